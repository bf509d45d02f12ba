"""Open Inference Protocol v2 inference: from a request to a response, through a slot's own memory.

Binary input is received from the socket into the slot's input buffer; binary output is sent from the slot's output
buffer. What has to be copied on the way (JSON, strings, outputs that the runtime allocated) is counted.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.oip import HEADER_LENGTH
from ..formats.strings import decode_strings, encode_strings
from ..formats.tensors import BYTES, datatype_of
from ..runtime.base import Binding
from ..runtime.pool import Timing
from ..wire import WireError
from .http import Request, Response
from .infer_request import InferRequest, InputTensor, parse_request, raw_request
from .loading import LiveModel
from .repository import Repository
from .shared_memory import Regions
from .tensor_json import array_of, list_of

__all__ = ["infer"]

_NUMBER = re.compile(r"[0-9]{1,15}")
_HEADER = HEADER_LENGTH.lower()
# Clients that stream send the same JSON again and again; what it means is kept, a few of each model.
_KEPT_REQUESTS = 16
_KEPT_BYTES = 4096


def infer(repository: Repository, regions: Regions, model: str, version: str | None, request: Request) -> Response:
    """Serve one inference request.

    Raises:
        AgentError: the request is malformed (bad_input), or the model cannot serve it.
    """
    begin = time.perf_counter_ns()
    live = repository.get(model)
    try:
        return _infer(repository, regions, live, version, request, begin)
    except AgentError as error:
        live.statistics.failure(error, time.perf_counter_ns() - begin)
        raise
    except Exception:
        live.statistics.failure(None, time.perf_counter_ns() - begin)
        raise


def _infer(
    repository: Repository, regions: Regions, checked: LiveModel, version: str | None, request: Request, begin: int
) -> Response:
    timing = Timing()
    checked.require_version(version)
    wanted = _read_request(checked, request)
    checked.require_samples(wanted.shapes)
    # JSON tensors are checked before a slot is taken, so that a bad one costs nobody a buffer.
    arrays = {item.name: array_of(item) for item in wanted.inputs if item.data is not None}
    deadline = None if wanted.timeout_us is None else time.monotonic() + wanted.timeout_us / 1e6

    live, binding = repository.borrow(checked, wanted.shapes, timing, request.stack)
    if live is not checked:
        live.require_version(version)
        live.require_samples(wanted.shapes)
    for item in wanted.inputs:
        _fill(item, binding, arrays, request, regions)
    # Everything up to here but the wait for a slot, which is the queue's.
    timing.input_ns = time.perf_counter_ns() - begin - timing.queue_ns

    live.pool.run(binding, timing, deadline)

    done = time.perf_counter_ns()
    response = _respond(live, binding.outputs, wanted, regions)
    end = time.perf_counter_ns()
    timing.output_ns = end - done
    response.headers = (*response.headers, ("Server-Timing", _server_timing(timing)))
    if timing.joined > 1:
        copied = len(binding.inputs) + len(binding.outputs)
    else:
        as_json = sum(not choice.binary and choice.part is None for choice in wanted.outputs)
        copied = len(arrays) + as_json + len(binding.copied)
    live.statistics.success(timing, live.samples(wanted.shapes), end - begin, copied)
    if live.drift is not None:
        # Called when the response is on its way, and before the slot is given back.
        request.stack.callback(live.drift.count, binding.inputs)
    return response


def _read_request(live: LiveModel, request: Request) -> InferRequest:
    inputs, outputs = live.artefact.inputs, live.artefact.outputs
    header = request.headers.get(_HEADER)
    if header is None:
        length = request.body.left
    elif _NUMBER.fullmatch(header) is None or int(header) > request.body.left:
        raise AgentError(f"bad {HEADER_LENGTH}: {header[:40]!r}")
    else:
        length = int(header)
        if length == 0:
            return raw_request(request.body.left, inputs, outputs)
    text = request.read_text(length)
    wanted = live.requests.get(text)
    if wanted is None:
        wanted = parse_request(text, inputs, outputs)
        if wanted.reusable and length <= _KEPT_BYTES:
            if len(live.requests) >= _KEPT_REQUESTS:
                live.requests.clear()
            live.requests[text] = wanted
    if wanted.body_bytes != request.body.left:
        raise AgentError(
            f"inputs announce {wanted.body_bytes} bytes of binary data, the body carries {request.body.left}"
        )
    return wanted


def _fill(
    item: InputTensor, binding: Binding, arrays: Mapping[str, NDArray[Any]], request: Request, regions: Regions
) -> None:
    target = binding.inputs[item.name]
    if item.data is not None:
        target[...] = arrays[item.name]
    elif item.datatype == BYTES:
        if item.part is not None:
            regions.require(item.part.region, item.part.byte_size, item.part.offset)
        data = memoryview(bytearray(item.part.byte_size if item.part is not None else item.body_bytes or 0))
        _receive(item, data, request, regions)
        if item.bare:
            target[...] = bytes(data)
            return
        try:
            target[...] = decode_strings(data, item.shape)
        except WireError as error:
            raise AgentError(f"input {item.name!r}: {error}") from error
    elif target.nbytes:
        _receive(item, target.reshape(-1).view(np.uint8).data, request, regions)


def _receive(item: InputTensor, view: memoryview, request: Request, regions: Regions) -> None:
    if item.part is not None:
        regions.read_into(item.part.region, view, item.part.offset)
    elif len(view):
        request.read_into(view)


def _respond(live: LiveModel, outputs: Mapping[str, NDArray[Any]], wanted: InferRequest, regions: Regions) -> Response:
    if wanted.reusable:
        shapes = tuple(outputs[choice.name].shape for choice in wanted.outputs)
        known = wanted.answers.get(shapes)
        if known is not None:
            return _binary(known, [_bytes_of(outputs[choice.name]) for choice in wanted.outputs])
    entries: list[dict[str, Any]] = []
    buffers: list[bytes | memoryview] = []
    for choice in wanted.outputs:
        array = outputs[choice.name]
        entry: dict[str, Any] = {"name": choice.name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if choice.part is None and not choice.binary:
            entry["data"] = list_of(choice.name, array)
        else:
            data = _bytes_of(array)
            if choice.part is None:
                entry["parameters"] = {"binary_data_size": len(data)}
                buffers.append(data)
            else:
                if len(data) > choice.part.byte_size:
                    raise AgentError(
                        f"output {choice.name!r} has {len(data)} bytes, its shared memory {choice.part.byte_size}"
                    )
                regions.write(choice.part.region, memoryview(data), choice.part.offset)
                entry["parameters"] = {
                    "shared_memory_region": choice.part.region,
                    "shared_memory_offset": choice.part.offset,
                    "shared_memory_byte_size": len(data),
                }
        entries.append(entry)
    body: dict[str, Any] = {"model_name": live.manifest.model, "model_version": str(live.manifest.version)}
    if wanted.id is not None:
        body["id"] = wanted.id
    body["outputs"] = entries
    header = json.dumps(body).encode()
    if not buffers:
        return Response(200, [header])
    # The sizes of strings are not in their shapes.
    if wanted.reusable and len(buffers) == len(entries) and not any(each["datatype"] == BYTES for each in entries):
        if len(wanted.answers) >= _KEPT_REQUESTS:
            wanted.answers.clear()
        wanted.answers[shapes] = header
    return _binary(header, buffers)


def _binary(header: bytes, buffers: list[bytes | memoryview]) -> Response:
    return Response(200, [header, *buffers], [(HEADER_LENGTH, str(len(header)))], "application/octet-stream")


def _bytes_of(array: NDArray[Any]) -> bytes | memoryview:
    if array.dtype.kind == "O":
        return encode_strings(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.nbytes else b""


def _server_timing(timing: Timing) -> str:
    parts = [
        f"queue;dur={timing.queue_ns / 1e6:.6f}",
        f"input;dur={timing.input_ns / 1e6:.6f}",
        f"compute;dur={timing.compute_ns / 1e6:.6f}",
        f"output;dur={timing.output_ns / 1e6:.6f}",
    ]
    for name, value in (("h2d", timing.h2d_ns), ("kernel", timing.kernel_ns), ("d2h", timing.d2h_ns)):
        if value is not None:
            parts.append(f"{name};dur={value / 1e6:.6f}")
    return ", ".join(parts)
