"""Whether an ONNX file bounds the sizes of all its inputs, read before a session is made of it.

A session's arena is chosen when it is made, and onnxruntime tells the inputs afterwards. Read is what the file says of
its inputs and outputs, as onnx.proto numbers it; all else, weights among it, is passed over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

__all__ = ["has_bounded_inputs"]

_Bytes: TypeAlias = "bytes | mmap.mmap"

_GRAPH = 7  # of ModelProto
_INPUT, _OUTPUT = 11, 12  # of GraphProto
_TYPE = 2  # of ValueInfoProto
_TENSOR = 1  # of TypeProto
_ELEMENTS, _SHAPE = 1, 2  # of TypeProto.Tensor
_DIM = 1  # of TensorShapeProto
_SIZE = 1  # of TensorShapeProto.Dimension
_STRING = 8  # of TensorProto.DataType
# Bytes of a number; of a field's value by its wire type; and the wire type of a message.
_VARINT, _WIDTHS, _MESSAGE = 10, {1: 8, 5: 4}, 2


def has_bounded_inputs(path: Path, *, batch: bool = False) -> bool:
    """Whether no request is larger than a size that is known: no input has a free dimension, or is text.

    Args:
        batch: the first dimension may be free, where it is in every input and output, as one that counts samples:
            something else bounds those.

    Returns:
        False too where the file cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            infos = [
                (number, data[slice(*span)])
                for kind, graph in _fields(data, (0, len(data)))
                if kind == _GRAPH
                for number, span in _fields(data, graph)
                if number in (_INPUT, _OUTPUT)
            ]
            # A model has an output; what has none is no model.
            if not infos:
                return False
            if all(_is_sized(info) for number, info in infos if number == _INPUT):
                return True
            return batch and all(_is_batch(info, sized=number == _INPUT) for number, info in infos)
    except (OSError, ValueError, IndexError):
        return False


def _is_sized(info: bytes) -> bool:
    dims = _dims(info)
    return dims is not None and all(dims)


def _is_batch(info: bytes, *, sized: bool) -> bool:
    dims = _dims(info)
    if not dims or dims[0]:
        return False
    return all(dims[1:]) or not sized


def _dims(info: bytes) -> list[bool] | None:
    """Of each dimension of a tensor, whether its size is fixed; None: its rank is free, or it is text."""
    tensors = [
        tensor
        for number, kind in _fields(info, (0, len(info)))
        if number == _TYPE
        for number, tensor in _fields(info, kind)
        if number == _TENSOR
    ]
    shapes = [shape for tensor in tensors for number, shape in _fields(info, tensor) if number == _SHAPE]
    elements = [at for tensor in tensors for number, (at, _) in _fields(info, tensor) if number == _ELEMENTS]
    if not shapes or any(_number(info, at)[0] == _STRING for at in elements):
        return None
    return [_has_size(info, dim) for shape in shapes for number, dim in _fields(info, shape) if number == _DIM]


def _has_size(info: bytes, dim: tuple[int, int]) -> bool:
    return any(number == _SIZE and 0 < _number(info, at)[0] < 1 << 63 for number, (at, _) in _fields(info, dim))


def _fields(data: _Bytes, within: tuple[int, int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Number of each field of a message, and from where to where its value goes.

    Raises:
        ValueError, IndexError: that is no message.
    """
    at, end = within
    while at < end:
        key, at = _number(data, at)
        number, wire = key >> 3, key & 7
        if wire == _MESSAGE:
            size, at = _number(data, at)
        elif wire == 0:
            size = _number(data, at)[1] - at
        elif wire in _WIDTHS:
            size = _WIDTHS[wire]
        else:
            raise ValueError(f"no such wire type: {wire}")
        if at + size > end:
            raise ValueError("a field goes beyond its message")
        yield number, (at, at + size)
        at += size


def _number(data: _Bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number has no end")
