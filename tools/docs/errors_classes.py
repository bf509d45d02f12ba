"""Which classes of exceptions a call makes whose callee is no name of one: another name, one of two, one of a table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from .errors_source import Function, Sources, last_name
from .errors_text import Scope, Unknown, arguments_of, assigned, constant

__all__ = ["alternatives", "is_read", "made_by"]

_DEPTH = 6


def alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """What a condition may come to, each by itself."""
    if isinstance(node, ast.IfExp):
        yield from alternatives(node.body)
        yield from alternatives(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from alternatives(value)
    elif isinstance(node, ast.NamedExpr):
        yield from alternatives(node.value)
    else:
        yield node


def is_read(callee: ast.expr, function: Function, sources: Sources) -> bool:
    """Whether it is a class or a function under its own name, so that all its calls are found by that."""
    name = last_name(callee)
    is_held = isinstance(callee, ast.Name) and next(_held(name, Scope(sources, function)), None) is not None
    known = function.module.true_name(name)
    return bool(name) and not is_held and (known in sources.exceptions or known in sources.functions)


def made_by(callee: ast.expr, function: Function, sources: Sources) -> set[str]:
    """The classes of exceptions that a callee may be, where it is not read by its own name; none: something else."""
    return set() if is_read(callee, function, sources) else set(_classes(callee, Scope(sources, function)))


def _classes(callee: ast.expr, scope: Scope) -> Iterator[str]:
    for node in alternatives(callee):
        if scope.depth > _DEPTH:
            return
        if isinstance(node, ast.Subscript):
            yield from _of_table(node.value, scope)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            for value in (node.func.value, *node.args[1:]):
                yield from _of_table(value, scope) if value is node.func.value else _classes(value, scope)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = last_name(node)
            held = list(_held(name, scope)) if isinstance(node, ast.Name) else []
            for value, where in held:
                yield from _classes(value, where)
            if not held and (known := scope.function.module.true_name(name)) in scope.sources.exceptions:
                yield known


def _of_table(table: ast.expr, scope: Scope) -> Iterator[str]:
    if isinstance(table, ast.Dict | ast.Tuple | ast.List):
        for value in table.values if isinstance(table, ast.Dict) else table.elts:
            yield from _classes(value, scope)
    elif isinstance(table, ast.Name):
        for value, where in _held(table.id, scope):
            yield from _of_table(value, where)


@cache
def _stored(function: Function) -> frozenset[str]:
    """The names that a function gives values to: most calls are of others, and need no search."""
    return frozenset(
        node.id for node in function.own() if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )


def _held(name: str, scope: Scope) -> Iterator[tuple[ast.expr, Scope]]:
    """What a name of a variable, parameter or constant stands for, and where that is written."""
    function: Function | None = scope.function
    while function is not None:
        inside = Scope(scope.sources, function, depth=scope.depth + 1)
        if name in function.parameters:
            if (default := function.default(name)) is not None:
                yield default, inside
            for where, call in scope.sources.callers(function):
                there = Scope(scope.sources, where, depth=scope.depth + 1)
                if name in (bound := arguments_of(call, function, there)):
                    yield bound[name][0], there
            return
        if name in _stored(function) and (values := list(assigned(function, name))):
            yield from ((value, inside) for value in values)
            return
        function = function.outer
    try:
        value = constant(name, scope)
    except Unknown:
        return
    yield value, Scope(scope.sources, scope.function, depth=scope.depth + 1)
