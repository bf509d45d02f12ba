"""The Open Inference Protocol's binary requests and responses, as a client makes and reads them.

Sources: KServe, "Open Inference Protocol v2" (REST); Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..wire import HEADER_LENGTH, WireError, parse_json
from .strings import decode_strings, encode_strings, strings_from_json
from .tensors import BYTES, DATATYPES, datatype_of, tensor_bytes

__all__ = ["HEADER_LENGTH", "decode_response", "encode_request", "parse_server_timing"]


def encode_request(inputs: Mapping[str, NDArray[Any]]) -> tuple[bytes, list[memoryview]]:
    """A request with binary tensors that asks for binary outputs.

    Returns:
        The JSON header, and the buffers that follow it in the body (views where possible).

    Raises:
        KeyError: a tensor's dtype has no name in the protocol.
        WireError: an element of a tensor of objects is neither text nor bytes.
    """
    entries = []
    buffers = []
    for name, array in inputs.items():
        data = np.ascontiguousarray(array).reshape(np.shape(array))
        datatype = datatype_of(data.dtype)
        buffer = memoryview(encode_strings(data)) if datatype == BYTES else data.reshape(-1).view(np.uint8).data
        entries.append(
            {
                "name": name,
                "datatype": datatype,
                "shape": list(data.shape),
                "parameters": {"binary_data_size": buffer.nbytes},
            }
        )
        buffers.append(buffer)
    return json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode(), buffers


def decode_response(body: memoryview, header_bytes: int | None) -> dict[str, NDArray[Any]]:
    """Output tensors of a response, as views of its body where they are binary and numeric.

    BYTES tensors are object arrays: of bytes where they are binary, of str where they are JSON.

    Raises:
        WireError: the response is not what the protocol says.
    """
    size = len(body) if header_bytes is None else header_bytes
    if not 0 <= size <= len(body):
        raise WireError("the response's header is longer than the response")
    header = parse_json(body[:size], floats=True)
    out: dict[str, NDArray[Any]] = {}
    offset = size
    try:
        for entry in header["outputs"]:
            name, datatype = entry["name"], entry["datatype"]
            shape = tuple(int(dim) for dim in entry["shape"])
            length = entry.get("parameters", {}).get("binary_data_size")
            if length is None:
                out[name] = _from_json(datatype, entry["data"], shape)
                continue
            fits = type(length) is int and 0 <= length <= len(body) - offset
            if not fits or (datatype != BYTES and length != tensor_bytes(datatype, shape)):
                raise WireError(f"output {name!r} does not have the bytes its shape needs")
            out[name] = _from_bytes(datatype, body[offset : offset + length], shape)
            offset += length
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WireError(f"malformed inference response: {error}") from error
    return out


def _from_bytes(datatype: str, data: memoryview, shape: tuple[int, ...]) -> NDArray[Any]:
    if datatype == BYTES:
        return decode_strings(data, shape)
    return np.frombuffer(data, dtype=DATATYPES[datatype]).reshape(shape)


def _from_json(datatype: str, data: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    if datatype == BYTES:
        return strings_from_json(data, shape)
    return np.array(data, dtype=DATATYPES[datatype]).reshape(shape)


def parse_server_timing(text: str) -> dict[str, float]:
    """Durations in milliseconds by name from a Server-Timing header (W3C "Server Timing").

    Entries without a duration are left out.
    """
    out: dict[str, float] = {}
    for part in text.split(",")[:32]:
        name, *parameters = (piece.strip() for piece in part.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                try:
                    out[name] = float(value)
                except ValueError:
                    continue
    return out
