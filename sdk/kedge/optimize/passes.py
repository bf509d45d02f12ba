"""All passes by the name a recipe calls them, and how a recipe's table becomes one."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Mapping
from typing import Any, cast

from ..errors import BadInputError
from .work import Pass

__all__ = ["PASSES", "make_pass", "parameters_of"]

PASSES: dict[str, tuple[str, str]] = {
    "simplify": ("simplify", "Simplify"),
    "quantize": ("quantize.step", "Quantize"),
    "qat": ("quantize.qat", "QuantizationAwareTraining"),
    "prune-magnitude": ("prune.magnitude", "PruneMagnitude"),
    "prune-2:4": ("prune.two_four", "PruneTwoFour"),
    "prune-blocks": ("prune.blocks", "PruneBlocks"),
    "prune-channels": ("prune.channels", "PruneChannels"),
    "prune-heads": ("prune.heads", "PruneHeads"),
    "prune-structured": ("prune.shrink", "Shrink"),
    "cluster": ("cluster", "Cluster"),
    "recover": ("train.recover", "Recover"),
}
"""kind: (module under kedge.optimize, class)."""


def make_pass(kind: str, parameters: Mapping[str, Any]) -> Pass:
    """The pass of this kind with these parameters, as a recipe gives them.

    Raises:
        BadInputError: there is no such pass or parameter, or a value has the wrong type.
    """
    if kind not in PASSES:
        close = difflib.get_close_matches(kind, PASSES, n=1)
        raise BadInputError(
            f"no pass named {kind!r}",
            hint=f"did you mean {close[0]}?" if close else f"one of {', '.join(PASSES)}",
        )
    module, name = PASSES[kind]
    found = getattr(importlib.import_module(f"kedge.optimize.{module}"), name)
    allowed = typing.get_type_hints(found)
    fields = [field.name for field in dataclasses.fields(found)]
    values = {}
    for key, value in parameters.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            raise BadInputError(
                f"the pass {kind} has no parameter {key!r}",
                hint=f"did you mean {close[0]}?" if close else f"it takes {', '.join(fields) or 'none'}",
            )
        values[key] = _typed(f"{kind}.{key}", value, allowed[key])
    return cast("Pass", found(**values))


def parameters_of(step: Pass) -> dict[str, Any]:
    """The parameters of a pass, as a recipe would state them."""
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field in dataclasses.fields(cast("Any", step))
        if (value := getattr(step, field.name)) is not None
    }


def _typed(where: str, value: Any, wanted: Any) -> Any:
    choices = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for choice in choices:
        if typing.get_origin(choice) is tuple and isinstance(value, list):
            inner = typing.get_args(choice)[0]
            return tuple(_typed(f"{where}[]", item, inner) for item in value)
        if choice is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(choice, type) and type(value) is choice:
            return value
    raise BadInputError(f"{where} is {value!r}", hint=f"it takes {_spelled(choices)}")


def _spelled(choices: tuple[Any, ...]) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(names.get(choice, "a list") for choice in choices if choice is not type(None))
