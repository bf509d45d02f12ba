"""Reads one source file of the adapter: which value is what of TensorRT's, and what is done with it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

from .guards import is_left, probed
from .kinds import Names, Scope, Untold
from .uses import MODULE, Call, Surface, Use

__all__ = ["Reader"]

_ELEMENTS = {"INetworkDefinition": "ILayer"}  # what a loop over one meets
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
_NONE: frozenset[str] = frozenset()
_OWN = ast.Constant(None)  # stands for a value that is none of TensorRT's


class Reader:
    """Adds what one file uses to a surface. Names are followed in the order of the text."""

    def __init__(self, file: str, surface: Surface, names: Names) -> None:
        self._file, self._surface, self._names = file, surface, names

    def read(self, tree: ast.Module) -> None:
        """Read the whole file."""
        self._block(tree.body, Scope(self._names), _NONE)

    # Statements. `needs` is what must hold for them to be reached.

    def _block(self, body: Iterable[ast.stmt], scope: Scope, needs: frozenset[str]) -> None:
        for node in body:
            self._statement(node, scope, needs)
            if isinstance(node, ast.If):
                guards = scope.guards(node.test)
                needs |= (guards.no if is_left(node.body) else _NONE) | (guards.yes if is_left(node.orelse) else _NONE)

    def _statement(self, node: ast.AST, scope: Scope, needs: frozenset[str]) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scope.kinds[node.name] = None
            self._function(node.args, node.body, scope, needs)
        elif isinstance(node, ast.ClassDef):
            scope.kinds[node.name] = None
            self._class(node, scope, needs)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            scope.kinds.update({name: MODULE if name == MODULE else None for name in names})
        elif isinstance(node, (ast.If, ast.While)):
            self._visit(node.test, scope, needs)
            guards = scope.guards(node.test)
            self._block(node.body, scope, needs | guards.yes)
            self._block(node.orelse, scope, needs | guards.no)
        elif isinstance(node, ast.Assign):
            self._visit(node.value, scope, needs)
            for target in node.targets:
                self._bind(target, node.value, scope, needs)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._visit(node.value, scope, needs)
            own = ast.unparse(node.annotation) != "Any"
            self._bind(node.target, _OWN if own else node.value, scope, needs)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self._loop(node.target, node.iter, scope, needs)
            self._block([*node.body, *node.orelse], scope, needs)
        elif isinstance(node, ast.ExceptHandler):
            inner = scope.nested()
            inner.kinds[node.name or ""] = None
            self._block(node.body, inner, needs)
        elif isinstance(node, ast.withitem):
            self._visit(node.context_expr, scope, needs)
            if node.optional_vars is not None:
                self._bind(node.optional_vars, node.context_expr, scope, needs)
        else:  # with, try, match, and what holds expressions alone
            for _, value in ast.iter_fields(node):
                parts = value if isinstance(value, list) else [value]
                if parts and isinstance(parts[0], ast.stmt):
                    self._block(parts, scope, needs)
                    continue
                for part in parts:
                    if isinstance(part, ast.expr):
                        self._visit(part, scope, needs)
                    elif isinstance(part, ast.AST):
                        self._statement(part, scope, needs)

    def _function(
        self, args: ast.arguments, body: Sequence[ast.stmt] | ast.expr, scope: Scope, needs: frozenset[str]
    ) -> None:
        inner = scope.nested()
        for default in (*args.defaults, *args.kw_defaults):
            if default is not None:
                self._visit(default, scope, needs)
        for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs):
            free = argument.annotation is None or ast.unparse(argument.annotation) == "Any"
            inner.bind(argument.arg, None if free else _OWN)
        if isinstance(body, ast.expr):
            self._visit(body, inner, needs)
        else:
            self._block(body, inner, needs)

    def _class(self, node: ast.ClassDef, scope: Scope, needs: frozenset[str]) -> None:
        """A class of the adapter; where it derives from one of TensorRT's, its public methods are TensorRT's names."""
        for base in node.bases:
            self._visit(base, scope, needs)
            if isinstance(kind := scope.kind(base), str):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        self._add(kind, method.name, method, needs, overrides=len(method.args.args) - 1)
        self._block(node.body, scope.nested(), needs)

    def _loop(self, target: ast.expr, source: ast.expr, scope: Scope, needs: frozenset[str]) -> None:
        self._visit(source, scope, needs)
        kind = scope.kind(source)
        self._bind(target, None, scope, needs)
        if isinstance(kind, str) and isinstance(target, ast.Name) and kind in _ELEMENTS:
            scope.kinds[target.id] = _ELEMENTS[kind]

    def _bind(self, target: ast.expr, value: ast.expr | None, scope: Scope, needs: frozenset[str]) -> None:
        """Follow an assignment; value: None where it is not known."""
        if isinstance(target, ast.Name):
            scope.bind(target.id, value)
        elif isinstance(target, (ast.Tuple, ast.List)):
            parts = value.elts if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts) else None
            for index, each in enumerate(target.elts):
                self._bind(each, parts[index] if parts else None, scope, needs)
        else:
            self._visit(target, scope, needs)

    # Expressions.

    def _visit(self, node: ast.AST, scope: Scope, needs: frozenset[str]) -> None:
        """Note what an expression uses, and all within it."""
        if isinstance(node, ast.Attribute):
            self._visit(node.value, scope, needs)
            self._use(node, scope, needs)
        elif isinstance(node, ast.Call):
            self._call(node, scope, needs)
        elif isinstance(node, ast.IfExp):
            guards = scope.guards(node.test)
            self._visit(node.test, scope, needs)
            self._visit(node.body, scope, needs | guards.yes)
            self._visit(node.orelse, scope, needs | guards.no)
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                self._visit(value, scope, needs)
                guards = scope.guards(value)
                needs |= guards.yes if isinstance(node.op, ast.And) else guards.no
        elif isinstance(node, _COMPREHENSIONS):
            inner = scope.nested()
            for part in node.generators:
                self._loop(part.target, part.iter, inner, needs)
                for test in part.ifs:
                    self._visit(test, inner, needs)
                    needs |= inner.guards(test).yes
            for made in (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,):
                self._visit(made, inner, needs)
        elif isinstance(node, ast.Lambda):
            self._function(node.args, node.body, scope, needs)
        elif isinstance(node, ast.NamedExpr):
            self._visit(node.value, scope, needs)
            self._bind(node.target, node.value, scope, needs)
        else:
            for child in ast.iter_child_nodes(node):
                self._visit(child, scope, needs)

    def _call(self, node: ast.Call, scope: Scope, needs: frozenset[str]) -> None:
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._visit(argument, scope, needs)
        if isinstance(node.func, ast.Attribute):
            self._visit(node.func.value, scope, needs)
            starred = any(isinstance(each, ast.Starred) for each in node.args)
            keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
            whole = not starred and len(keywords) == len(node.keywords)
            self._use(node.func, scope, needs, Call(len(node.args) if whole else None, keywords))
        elif isinstance(node.func, ast.Name) and node.func.id in {"hasattr", "getattr", "setattr"}:
            self._by_name(node, node.func.id, scope, needs)
        else:
            self._visit(node.func, scope, needs)

    def _by_name(self, node: ast.Call, function: str, scope: Scope, needs: frozenset[str]) -> None:
        """`getattr` and its kin: what a constant names, or one of a constant's values."""
        kind = scope.kind(node.args[0])
        if not isinstance(kind, str):
            return
        name = node.args[1]
        names: tuple[str, ...] = ()
        if isinstance(name, ast.Constant):
            names = (str(name.value),)
        elif isinstance(name, ast.Subscript) and isinstance(name.value, ast.Name):
            names = tuple(self._names.constants.get(name.value.id, ()))
        if not names:
            self._surface.unresolved.append(f"{self._where(node)}: a name that is made when it runs, of {kind}")
        for each in names:
            free = needs | {f"{kind}.{each}"} if probed(node) is not None else needs
            self._add(kind, each, node, free, written=function == "setattr")

    def _use(self, node: ast.Attribute, scope: Scope, needs: frozenset[str], call: Call | None = None) -> None:
        kind = scope.kind(node.value)
        if isinstance(kind, Untold):
            self._surface.untold.setdefault(kind.path, self._where(node))
        elif kind is not None:
            self._add(kind, node.attr, node, needs, call, written=isinstance(node.ctx, ast.Store))

    def _add(
        self,
        owner: str,
        name: str,
        node: ast.AST,
        needs: frozenset[str],
        call: Call | None = None,
        *,
        written: bool = False,
        overrides: int | None = None,
    ) -> None:
        self._surface.uses.append(Use(owner, name, self._where(node), needs, call, written, overrides))

    def _where(self, node: ast.AST) -> str:
        return f"{self._file}:{getattr(node, 'lineno', 0)}"
