"""The Open Inference Protocol's binary requests and responses, as a client makes and reads them.

Sources: KServe, "Open Inference Protocol v2" (REST); Triton, "Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..wire import WireError, parse_json
from .tensors import DATATYPES, datatype_of, tensor_bytes

__all__ = ["HEADER_LENGTH", "decode_response", "encode_request", "parse_server_timing"]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header: bytes of JSON before the binary tensors."""


def encode_request(inputs: Mapping[str, NDArray[Any]]) -> tuple[bytes, list[memoryview]]:
    """A request with binary tensors that asks for binary outputs.

    Returns:
        The JSON header, and the buffers that follow it in the body (views where possible).

    Raises:
        KeyError: a tensor's dtype has no name in the protocol.
    """
    entries = []
    buffers = []
    for name, array in inputs.items():
        data = np.ascontiguousarray(array).reshape(np.shape(array))
        entries.append(
            {
                "name": name,
                "datatype": datatype_of(data.dtype),
                "shape": list(data.shape),
                "parameters": {"binary_data_size": data.nbytes},
            }
        )
        buffers.append(data.reshape(-1).view(np.uint8).data)
    return json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode(), buffers


def decode_response(body: memoryview, header_bytes: int | None) -> dict[str, NDArray[Any]]:
    """Output tensors of a response, as views of its body where they are binary.

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
            dtype = DATATYPES[entry["datatype"]]
            shape = tuple(int(dim) for dim in entry["shape"])
            length = entry.get("parameters", {}).get("binary_data_size")
            if length is None:
                out[entry["name"]] = np.array(entry["data"], dtype=dtype).reshape(shape)
                continue
            if length != tensor_bytes(entry["datatype"], shape) or offset + length > len(body):
                raise WireError(f"output {entry['name']!r} does not have the bytes its shape needs")
            out[entry["name"]] = np.frombuffer(body[offset : offset + length], dtype=dtype).reshape(shape)
            offset += length
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WireError(f"malformed inference response: {error}") from error
    return out


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
