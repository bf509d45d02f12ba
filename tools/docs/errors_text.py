"""What an expression of a message may say, as patterns: literal text, with {name} for what is filled in."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from .errors_source import Function, Sources

__all__ = ["Carried", "NeedsCallers", "Scope", "Unknown", "arguments_of", "assigned", "constant", "patterns"]

_DEPTH = 8
_MOST = 24
_FEW_LETTERS = 12
# What a message is passed through, which leaves its words as they are.
_THROUGH = ("str", "printable", "first_line", "strip", "rstrip", "lower", "capitalize", "removesuffix", "removeprefix")
_OF_ERRORS = ("message", "hint", "args", "strerror", "reason", "why", "text")


class NeedsCallers(Exception):  # noqa: N818  a turn of the walk, not a fault
    """The message is a parameter: whoever calls the function says what it is."""

    def __init__(self, function: Function) -> None:
        super().__init__(function.name)
        self.function = function


class Carried(Exception):  # noqa: N818
    """The message is what another error, or another machine, said."""


class Unknown(Exception):  # noqa: N818
    """The walk cannot tell."""


@dataclass(frozen=True)
class Scope:
    """Where an expression stands. bound: parameters of the function, by the argument and the scope it stands in.

    asks: callers are asked also for a parameter that is a part of the message only, where little else is said.
    """

    sources: Sources
    function: Function
    bound: Mapping[str, tuple[ast.expr, Scope]] = field(default_factory=dict)
    depth: int = 0
    asks: bool = True


def arguments_of(call: ast.Call, function: Function, scope: Scope) -> dict[str, tuple[ast.expr, Scope]]:
    """The function's parameters in this call, by name; defaults stand for what is not given."""
    names = function.parameters
    bound: dict[str, tuple[ast.expr, Scope]] = {}
    for name in names:
        if (default := function.default(name)) is not None:
            bound[name] = (default, Scope(scope.sources, function))
    for name, value in zip(names, call.args, strict=False):
        if not isinstance(value, ast.Starred):
            bound[name] = (value, scope)
    bound |= {keyword.arg: (keyword.value, scope) for keyword in call.keywords if keyword.arg}
    return bound


def patterns(node: ast.expr, scope: Scope) -> list[str]:
    """Every pattern that the expression may have.

    Raises:
        NeedsCallers: it leans on a parameter that nobody has bound yet.
        Carried: it is another error's text.
        Unknown: it cannot be told.
    """
    if scope.depth > _DEPTH:
        raise Unknown(ast.unparse(node))
    return list(dict.fromkeys(itertools.islice(_patterns(node, scope), _MOST)))


def _patterns(node: ast.expr, scope: Scope) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        if scope.asks:
            _ask(node, scope)
        parts = [_part(value, scope) for value in node.values]
        yield from ("".join(chosen) for chosen in itertools.product(*parts))
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left, right in itertools.product(patterns(node.left, scope), patterns(node.right, scope)):
            yield left + right
    elif isinstance(node, ast.IfExp):
        yield from patterns(node.body, scope)
        yield from patterns(node.orelse, scope)
    elif isinstance(node, ast.BoolOp):
        yield from _any(node.values, scope)
    elif isinstance(node, ast.NamedExpr):
        yield from patterns(node.value, scope)
    elif isinstance(node, ast.Name):
        yield from _named(node.id, scope)
    elif isinstance(node, ast.Call):
        yield from _called(node, scope)
    elif isinstance(node, ast.Subscript):
        yield from _picked(node, scope)
    elif isinstance(node, ast.Attribute) and node.attr in _OF_ERRORS:
        raise Carried(ast.unparse(node))
    else:
        raise Unknown(ast.unparse(node))


def _any(nodes: list[ast.expr], scope: Scope) -> Iterator[str]:
    """What may be said of several; one that carries another's text does not hide the others' words."""
    carried: Carried | None = None
    told = False
    for node in nodes:
        try:
            for text in patterns(node, scope):
                told = True
                yield text
        except Carried as error:
            carried = error
    if carried is not None and not told:
        raise carried


def _ask(node: ast.JoinedStr, scope: Scope) -> None:
    """Turn to the callers for what is filled in, where the f-string itself has hardly a word."""
    own = "".join(str(value.value) for value in node.values if isinstance(value, ast.Constant))
    filled = {
        value.value.id
        for value in node.values
        if isinstance(value, ast.FormattedValue) and isinstance(value.value, ast.Name)
    }
    if sum(letter.isalpha() for letter in own) < _FEW_LETTERS and filled & {*scope.function.parameters} - {
        *scope.bound
    }:
        raise NeedsCallers(scope.function)


def _part(node: ast.expr, scope: Scope) -> list[str]:
    """One piece of an f-string: text, or what is filled in, spelled out where it is one of a few texts."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    assert isinstance(node, ast.FormattedValue)
    inner = node.value
    if isinstance(inner, ast.IfExp | ast.JoinedStr):
        try:
            return patterns(inner, scope)
        except (Carried, NeedsCallers, Unknown):
            pass
    elif isinstance(inner, ast.Name) and inner.id in scope.bound:
        value, where = scope.bound[inner.id]
        if isinstance(value, ast.Constant):
            return [str(value.value)]
        if isinstance(value, ast.JoinedStr | ast.IfExp):
            return patterns(value, replace(where, asks=False))
    elif isinstance(inner, ast.Name) and (written := _written_out(inner.id, scope)):
        return written
    return ["{" + _label(inner) + "}"]


def _written_out(name: str, scope: Scope) -> list[str]:
    """What a name may hold, where that is a few texts: of a loop over them, of a condition, or a module's."""
    values = list(assigned(scope.function, name))
    if not values and (name.isupper() or name.startswith("_")):
        try:
            values = [constant(name, scope)]
        except Unknown:
            return []
    if len(values) > _MOST or not all(isinstance(value, ast.Constant | ast.IfExp | ast.JoinedStr) for value in values):
        return []
    try:
        return [text for value in values for text in _plain(value, replace(scope, asks=False)) if text]
    except (Carried, NeedsCallers, Unknown):
        return []


def _plain(value: ast.expr, scope: Scope) -> list[str]:
    if isinstance(value, ast.Constant):
        return [str(value.value)] if value.value else []
    return patterns(value, replace(scope, depth=scope.depth + 1))


def _label(node: ast.expr) -> str:
    """A short name for what is filled in."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Subscript | ast.Starred | ast.FormattedValue):
        return _label(node.value)
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "len":
            return "number"
        if node.args:
            return _label(node.args[0])
        return _label(node.func.value) if isinstance(node.func, ast.Attribute) else name or "…"
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _label(node.generators[0].iter)
    if isinstance(node, ast.BinOp):
        return _label(node.left)
    if isinstance(node, ast.BoolOp):
        return _label(node.values[0])
    return "…"


def _named(name: str, scope: Scope) -> Iterator[str]:
    if name in scope.bound:
        value, where = scope.bound[name]
        yield from patterns(value, Scope(where.sources, where.function, where.bound, scope.depth + 1))
        return
    function: Function | None = scope.function
    while function is not None:
        if name in function.parameters:
            raise NeedsCallers(function)
        inside = Scope(scope.sources, function, scope.bound, scope.depth + 1)
        for node in function.own():
            if isinstance(node, ast.ExceptHandler) and node.name == name:
                raise Carried(name)
        if values := list(assigned(function, name)):
            yield from _any(values, inside)
            return
        function = function.outer
    yield from patterns(constant(name, scope), Scope(scope.sources, scope.function, {}, scope.depth + 1))


def constant(name: str, scope: Scope) -> ast.expr:
    """What a module's name stands for: of the scope's module, or of the only one that has it.

    Raises:
        Unknown: none has it, or several.
    """
    own = scope.function.module.constants
    if name in own:
        return own[name]
    elsewhere = [module.constants[name] for module in scope.sources.modules if name in module.constants]
    if len(elsewhere) == 1:
        return elsewhere[0]
    raise Unknown(name)


def assigned(function: Function, name: str) -> Iterator[ast.expr]:
    """Everything that a local name is made of, of a loop and of what is unpacked included."""
    for node in function.own():
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            targets, value = [node.target], node.value
        elif isinstance(node, ast.For):
            targets, value = [node.target], _items(node.iter)
        for target in targets:
            if isinstance(target, ast.Name) and target.id == name and value is not None:
                yield from value.elts if isinstance(value, _Choices) else [value]
            elif isinstance(target, ast.Tuple):
                yield from _unpacked(target, value, name)


class _Choices(ast.List):
    """What a loop goes over, where it is written out."""


def _items(node: ast.expr) -> ast.expr | None:
    return _Choices(elts=node.elts) if isinstance(node, ast.Tuple | ast.List) else node


def _unpacked(target: ast.Tuple, value: ast.expr | None, name: str) -> Iterator[ast.expr]:
    for index, element in enumerate(target.elts):
        if isinstance(element, ast.Name) and element.id == name and value is not None:
            for row in value.elts if isinstance(value, _Choices) else [value]:
                if isinstance(row, ast.Tuple):
                    yield row.elts[index]
                else:
                    yield ast.Subscript(row, ast.Constant(index), ast.Load())


def _called(node: ast.Call, scope: Scope) -> Iterator[str]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _THROUGH:
        inner = node.func.value if isinstance(node.func, ast.Attribute) else node.args[0]
        yield from patterns(inner, scope)
        return
    if name == "strerror":
        raise Carried(ast.unparse(node))
    if name == "get" and isinstance(node.func, ast.Attribute):
        yield from _picked(ast.Subscript(node.func.value, node.args[0], ast.Load()), scope, *node.args[1:])
        return
    found = scope.sources.functions.get(name, [])
    here = [function for function in found if function.module is scope.function.module]
    if len(here or found) != 1:
        raise Unknown(ast.unparse(node))
    function = (here or found)[0]
    inside = Scope(scope.sources, function, arguments_of(node, function, scope), scope.depth + 1)
    returned = [item.value for item in function.own() if isinstance(item, ast.Return) and item.value is not None]
    if not returned:
        raise Unknown(ast.unparse(node))
    yield from _any([value for value in returned if not isinstance(value, ast.Constant) or value.value], inside)


def _picked(node: ast.Subscript, scope: Scope, *otherwise: ast.expr) -> Iterator[str]:
    """One of a table's values, or one place of a tuple that a function returns."""
    table = node.value
    if isinstance(table, ast.Name):
        values = list(assigned(scope.function, table.id)) if table.id not in scope.bound else []
        table = values[0] if len(values) == 1 else constant(table.id, scope)
    if isinstance(table, ast.Dict):
        yield from _any([*table.values, *otherwise], scope)
    elif isinstance(table, ast.Tuple) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
        yield from patterns(table.elts[node.slice.value], scope)
    else:
        raise Unknown(ast.unparse(node))
