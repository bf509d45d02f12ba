"""Which value in the adapter's sources is what of TensorRT's."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .guards import Guards, guards_of, probed
from .uses import MODULE

__all__ = ["Kind", "Names", "Scope", "Untold"]

_PLAIN = (ast.Constant, ast.JoinedStr, ast.List, ast.Dict, ast.Set, ast.Tuple, ast.BinOp, ast.Compare, ast.ListComp)


@dataclass(frozen=True)
class Names:
    """What names mean.

    classes: by what variables are called. results: by the path of a method or attribute, the class of what it gives.
    own: fields of the adapter's own classes that hold nothing of TensorRT's. constants: strings in the file's
    constants.
    """

    classes: Mapping[str, str]
    results: Mapping[str, str]
    own: frozenset[str]
    constants: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Untold:
    """The kind of what an attribute gives where no table tells."""

    path: str


# What a value is: an object of this class or the class itself, or MODULE; None: nothing of TensorRT's.
Kind = str | Untold | None


@dataclass
class Scope:
    """Where names hold something. A nested one begins with what is known so far.

    kinds: by name, what it holds; a name that is not bound means what it is called. tests: what is known where the
    test whose result a name holds is true.
    """

    names: Names
    kinds: dict[str, Kind] = field(default_factory=dict)
    tests: dict[str, Guards] = field(default_factory=dict)

    def nested(self) -> Scope:
        """A scope within this one."""
        return Scope(self.names, dict(self.kinds), dict(self.tests))

    def bind(self, name: str, value: ast.expr | None) -> None:
        """Give a name a value; None: one that is not known, so that the name is taken for what it is called."""
        kind = None if value is None else self.kind(value)
        test = Guards() if value is None else self.guards(value)
        self.kinds[name] = self._called(name) if kind is None and not _is_plain(value) else kind
        self.tests[name] = test

    def kind(self, node: ast.expr) -> Kind:
        """What an expression gives."""
        if isinstance(node, ast.Name):
            return self.kinds[node.id] if node.id in self.kinds else self._called(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.kind(node.value)
            if owner is None:
                return None if node.attr in self.names.own else self._called(node.attr)
            return self._given(owner, node.attr) if isinstance(owner, str) else None
        if isinstance(node, ast.Call):
            if (found := probed(node)) is not None and isinstance(owner := self.kind(found[0]), str):
                return self._given(owner, found[1])
            return self.kind(node.func) if isinstance(node.func, ast.Attribute) else None
        if isinstance(node, ast.NamedExpr):
            return self.kind(node.value)
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        return None

    def guards(self, test: ast.expr) -> Guards:
        """What is known where a test is true, and where it is false."""

        def path(owner: ast.expr, name: str) -> str | None:
            kind = self.kind(owner)
            return f"{kind}.{name}" if isinstance(kind, str) else None

        return guards_of(test, path, self.tests)

    def _called(self, name: str) -> Kind:
        return self.names.classes.get(name.lstrip("_"))

    def _given(self, owner: str, name: str) -> Kind:
        """What an attribute gives: of the module, its classes; of an enum, its members."""
        path = f"{owner}.{name}"
        if path in self.names.results:
            return self.names.results[path]
        if not name[:1].isupper():
            return Untold(path)
        if owner == MODULE:
            return name
        return owner if name.isupper() else path


def _is_plain(value: ast.expr | None) -> bool:
    """Whether a value is one of Python's own, whatever it is called."""
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return hasattr(builtins, value.func.id) and value.func.id != "getattr"
    return isinstance(value, _PLAIN)
