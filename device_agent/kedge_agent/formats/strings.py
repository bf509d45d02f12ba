"""BYTES tensors: how their elements travel, and as what they lie in memory.

Source of the encoding: Triton, "Binary Tensor Data Extension": each element is its length in bytes, a 32-bit
little-endian unsigned integer, and then those bytes; elements follow each other in C order. Golden tensors of a release
are stored in it too.

In memory a BYTES tensor is an object array. What was received holds `bytes`, because any bytes may travel; what a
runtime gives, and a user's text, holds `str`, which stands for its UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..wire import WireError
from .tensors import element_count

__all__ = ["STRING_LENGTH_BYTES", "as_text", "decode_strings", "encode_strings", "strings_from_json", "tensor_data"]

_LENGTH = struct.Struct("<I")
STRING_LENGTH_BYTES = _LENGTH.size
"""Before each element; a tensor of n strings has n times as many bytes at least."""


def encode_strings(array: NDArray[Any]) -> bytes:
    """The elements of a tensor of `str` or `bytes`, of any shape and of the dtypes object, S or U, in C order.

    Raises:
        WireError: an element is neither, or is text that UTF-8 cannot say, or has 4 GiB.
    """
    elements = [_encoded(element) for element in array.ravel().tolist()]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in elements))


def tensor_data(array: NDArray[Any]) -> bytes:
    """A tensor's bytes as they travel and are stored, in C order.

    Raises:
        WireError: as `encode_strings`.
    """
    return encode_strings(array) if array.dtype.kind == "O" else array.tobytes()


def decode_strings(data: bytes | bytearray | memoryview, shape: Sequence[int]) -> NDArray[Any]:
    """A tensor of `bytes` of this shape, which takes exactly all of `data`.

    Raises:
        WireError: it does not.
    """
    count = element_count(shape)
    # Before anything of that size is made: a shape costs its sender nothing.
    if count * _LENGTH.size > len(data):
        raise WireError(f"{len(data)} bytes are too few for {count} strings")
    view = memoryview(data)
    out = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        start = at + _LENGTH.size
        if start > len(view):
            raise WireError(f"string {index} of {count} is cut off")
        at = start + _LENGTH.unpack_from(view, at)[0]
        if at > len(view):
            raise WireError(f"string {index} of {count} is cut off")
        out[index] = bytes(view[start:at])
    if at != len(view):
        raise WireError(f"{len(view) - at} bytes follow the last of {count} strings")
    return out.reshape(tuple(shape))


def strings_from_json(data: Any, shape: Sequence[int]) -> NDArray[Any]:
    """A tensor of `str` from JSON data: a list of texts, flat or nested as the shape is.

    Raises:
        WireError: it is not, or does not have as many elements as the shape.
    """
    flat = data
    for _ in range(max(0, len(shape) - 1)):
        if not (isinstance(flat, list) and flat and isinstance(flat[0], list)):
            break
        if not all(isinstance(item, list) for item in flat):
            raise WireError("data is no list of texts")
        flat = list(chain.from_iterable(flat))
    if not isinstance(flat, list) or not all(isinstance(item, str) for item in flat):
        raise WireError("data is no list of texts")
    if len(flat) != element_count(shape):
        raise WireError(f"data has {len(flat)} values, the shape needs {element_count(shape)}")
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(tuple(shape))


def as_text(array: NDArray[Any]) -> NDArray[Any]:
    """The tensor with `str` elements, an object array of the same shape: what onnxruntime takes.

    Raises:
        WireError: an element is neither `str` nor `bytes`, or is not UTF-8.
    """
    out = np.empty(array.size, dtype=object)
    for index, element in enumerate(array.ravel().tolist()):
        try:
            # Text is encoded too: a lone surrogate is no UTF-8.
            out[index] = _encoded(element).decode()
        except UnicodeDecodeError as error:
            raise WireError(f"string {index} is not UTF-8") from error
    return out.reshape(array.shape)


def _encoded(element: Any) -> bytes:
    if isinstance(element, str):
        try:
            element = element.encode()
        except UnicodeEncodeError as error:
            raise WireError("a text has characters that UTF-8 cannot say") from error
    if not isinstance(element, bytes):
        raise WireError(f"an element is of {type(element).__name__}; strings are text or bytes")
    if len(element) >= 1 << 32:
        raise WireError("a string has 4 GiB")
    return element
