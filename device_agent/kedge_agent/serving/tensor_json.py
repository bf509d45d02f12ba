"""Tensors as JSON lists: from a request, checked against their datatype, and into a response."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.strings import strings_from_json
from ..formats.tensors import BYTES, DATATYPES, element_count
from ..wire import WireError
from .infer_request import InputTensor

__all__ = ["array_of", "list_of"]

_INTEGERS = "iu"
# A million floats are some 20 MB of text, a second of work, and all that while nobody else is served.
_MAX_VALUES = 1_000_000


def array_of(item: InputTensor) -> NDArray[Any]:
    """The array that an input's `data` are; nested or flat, as the protocol allows.

    Raises:
        AgentError: they are of another size, or hold a value that is not of the datatype (bad_input).
    """
    if item.datatype == BYTES:
        return _strings(item)
    dtype = DATATYPES[item.datatype]
    _require_numbers(item)
    try:
        given = np.asarray(item.data)
        if item.datatype == "UINT64" and given.dtype.kind == "f":
            # numpy makes floats of integers of which only some need all 64 bits.
            exact = np.asarray(item.data, dtype=object)
            if all(type(value) is int and value >= 0 for value in exact.flat):
                given = exact.astype(np.uint64)
        count = element_count(item.shape)
        if given.size != count:
            raise AgentError(f"input {item.name!r} has {given.size} values, its shape needs {count}")
        fits = given.dtype.kind in {"b": "b", "f": _INTEGERS + "f"}.get(dtype.kind, _INTEGERS) or given.size == 0
        with np.errstate(over="ignore", invalid="ignore"):
            array = given.astype(dtype)
        overflowed = dtype.kind == "f" and not np.isfinite(array).all() and np.isfinite(given).all()
        if not fits or overflowed or (dtype.kind in _INTEGERS and not np.array_equal(array, given)):
            raise AgentError(f"input {item.name!r} has values that are not {item.datatype}")
    except (ValueError, TypeError, OverflowError) as error:
        raise AgentError(f"input {item.name!r} has data that is no tensor: {error}") from error
    return array.reshape(item.shape)


def _require_numbers(item: InputTensor) -> None:
    """Refuse text before numpy sees it: of one long string among many, numpy makes an array of as long ones."""
    leaves = item.data if isinstance(item.data, list) else [item.data]
    while leaves and all(type(leaf) is list for leaf in leaves):
        leaves = list(chain.from_iterable(leaves))
    allowed = {bool} if item.datatype == "BOOL" else {int, float}
    if not set(map(type, leaves)) <= allowed:
        raise AgentError(f"input {item.name!r} has values that are not {item.datatype}, or is no tensor")


def _strings(item: InputTensor) -> NDArray[Any]:
    try:
        return strings_from_json(item.data, item.shape)
    except WireError as error:
        raise AgentError(f"input {item.name!r}: {error}", hint="JSON carries BYTES as strings") from error


def list_of(name: str, array: NDArray[Any]) -> list[Any]:
    """An output's values in one flat list.

    Raises:
        AgentError: it holds NaN, infinity or bytes that are no text, which JSON cannot carry (bad_input); or more
            values than are written as JSON (too_large).
    """
    if array.size > _MAX_VALUES:
        raise AgentError(
            f"output {name!r} has {array.size} values; as JSON at most {_MAX_VALUES} are given",
            kind="too_large",
            hint="ask for binary data",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise AgentError(f"output {name!r} holds NaN or infinity, which JSON cannot carry", hint="ask for binary data")
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "O":
        try:
            return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        except UnicodeDecodeError:
            raise AgentError(
                f"output {name!r} holds bytes that are no text, which JSON cannot carry", hint="ask for binary data"
            ) from None
    return values
