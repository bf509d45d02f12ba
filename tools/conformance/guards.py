"""Conditions in the adapter under which something of TensorRT is used: what may be absent, and what one runtime has.

A condition is the path of an attribute ("IBuilderConfig.progress_monitor": it is there), or "only" and a runtime.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["RUNTIMES", "Guards", "guards_of", "is_left", "probed", "runtime_of"]

# Runtimes by the names that the adapter compares with, and the other one.
RUNTIMES = {"tensorrt-rtx": "tensorrt", "tensorrt": "tensorrt-rtx"}

# Attributes that are true for one runtime alone.
_FLAGS = {"cross": "tensorrt-rtx"}


@dataclass(frozen=True)
class Guards:
    """What holds where a test is true, and where it is false."""

    yes: frozenset[str] = frozenset()
    no: frozenset[str] = frozenset()

    def __invert__(self) -> Guards:
        return Guards(self.no, self.yes)


def runtime_of(need: str) -> str | None:
    """The runtime that a condition names, or None."""
    return need.removeprefix("only ") if need.startswith("only ") else None


def probed(node: ast.expr) -> tuple[ast.expr, str] | None:
    """The object and the name in `hasattr(object, "name")` and `getattr(object, "name", default)`."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id, len(node.args)) in {("hasattr", 2), ("getattr", 3)}
        and isinstance(node.args[1], ast.Constant)
    ):
        return node.args[0], str(node.args[1].value)
    return None


def guards_of(test: ast.expr, path: Callable[[ast.expr, str], str | None], named: Mapping[str, Guards]) -> Guards:
    """Read a test.

    Args:
        path: the path of an object's attribute, None where the object is none of TensorRT's.
        named: what variables stand for that hold the result of a test, or of `getattr` with a default.
    """
    if (found := probed(test)) is not None:
        there = path(*found)
        return Guards(frozenset({there})) if there is not None else Guards()
    if isinstance(test, ast.Name):
        return named.get(test.id, Guards())
    if isinstance(test, ast.Attribute) and test.attr in _FLAGS:
        return _only(_FLAGS[test.attr])
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return ~guards_of(test.operand, path, named)
    if isinstance(test, ast.BoolOp):
        parts = [guards_of(value, path, named) for value in test.values]
        if isinstance(test.op, ast.And):
            return Guards(yes=frozenset().union(*(part.yes for part in parts)))
        return Guards(no=frozenset().union(*(part.no for part in parts)))
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.comparators[0], ast.Constant):
        value, same = test.comparators[0].value, isinstance(test.ops[0], (ast.Is, ast.Eq))
        if value is None:
            held = guards_of(test.left, path, named)
            return ~held if same else held
        if value in RUNTIMES:
            return _only(value) if same else ~_only(value)
    return Guards()


def _only(runtime: str) -> Guards:
    return Guards(frozenset({f"only {runtime}"}), frozenset({f"only {RUNTIMES[runtime]}"}))


def is_left(body: Sequence[ast.stmt]) -> bool:
    """Whether what follows a block is not reached through it."""
    return bool(body) and isinstance(body[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))
