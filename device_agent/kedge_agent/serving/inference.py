"""Open Inference Protocol v2 inference: JSON and binary tensors, in and out.

Binary input is received from the socket into the slot's own input buffer; binary output is sent
from the slot's output buffer. Source: KServe's "Open Inference Protocol v2" (REST) and Triton's
"Binary Tensor Data Extension".
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.oip import HEADER_LENGTH
from ..formats.tensors import DATATYPES, MAX_RANK, TensorSpec, datatype_of, tensor_bytes
from ..runtime.pool import Timing
from .http import Request, Response
from .loading import LiveModel
from .repository import Repository

__all__ = ["infer"]

_INTEGERS = "iu"


@dataclass(frozen=True)
class _Input:
    name: str
    datatype: str
    shape: tuple[int, ...]
    binary_bytes: int | None
    data: Any


def infer(repository: Repository, model: str, version: str | None, request: Request) -> Response:
    """Serve one inference request.

    Raises:
        AgentError: the request is malformed (bad_input), or the model cannot serve it.
    """
    timing = Timing()
    start = time.perf_counter_ns()
    live = repository.get(model)
    _check_version(live, version)
    header_length = _header_length(request)
    body = request.read_json(header_length)
    if not isinstance(body, dict):
        raise AgentError("the inference request is not a JSON object")
    inputs = _parse_inputs(body, live.artefact.inputs, request.body.left)
    wanted = _parse_outputs(body, live.artefact.outputs)
    # JSON tensors are checked before a slot is taken, so that a bad one costs nobody a buffer.
    arrays = {item.name: _json_tensor(item) for item in inputs if item.binary_bytes is None}

    checked = live
    live, binding = repository.borrow(model, {item.name: item.shape for item in inputs}, timing, request.stack)
    if live is not checked:
        _check_version(live, version)
        if (live.artefact.inputs, live.artefact.outputs) != (checked.artefact.inputs, checked.artefact.outputs):
            raise AgentError(f"{model} was replaced by a release with other tensors", kind="busy", hint="try again")
    for item in inputs:
        target = binding.inputs[item.name]
        if item.binary_bytes is None:
            target[...] = arrays[item.name]
        elif item.binary_bytes:
            request.read_into(target.reshape(-1).view(np.uint8).data)
    received = time.perf_counter_ns()
    # Everything up to here but the wait for a slot, which is the queue's.
    timing.input_ns = received - start - timing.queue_ns

    live.pool.run(binding, timing)

    done = time.perf_counter_ns()
    response = _encode_response(live, binding.outputs, wanted, body.get("id"))
    timing.output_ns = time.perf_counter_ns() - done
    response.headers = (*response.headers, ("Server-Timing", _server_timing(timing)))
    return response


def _check_version(live: LiveModel, version: str | None) -> None:
    if version is not None and version != str(live.manifest.version):
        raise AgentError(
            f"{live.manifest.model} serves version {live.manifest.version}, not {version}",
            kind="not_found",
            hint="leave the version out",
        )


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15) or int(text) > request.content_length:
        raise AgentError(f"bad {HEADER_LENGTH}: {text[:40]!r}")
    return int(text)


def _parse_inputs(body: Mapping[str, Any], specs: Sequence[TensorSpec], binary_bytes: int) -> list[_Input]:
    items = body.get("inputs")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise AgentError("'inputs' is not a list of tensors")
    by_name = {spec.name: spec for spec in specs}
    parsed: dict[str, _Input] = {}
    for item in items:
        name = item.get("name")
        if not isinstance(name, str) or name not in by_name or name in parsed:
            raise AgentError(
                f"unexpected input {str(name)[:80]!r}", hint=f"the model's inputs are {', '.join(map(repr, by_name))}"
            )
        parsed[name] = _parse_input(name, item, by_name[name])
    missing = [name for name in by_name if name not in parsed]
    if missing:
        raise AgentError(f"inputs are missing: {', '.join(map(repr, missing))}")
    announced = sum(item.binary_bytes or 0 for item in parsed.values())
    if announced != binary_bytes:
        raise AgentError(f"inputs announce {announced} bytes of binary data, the body carries {binary_bytes}")
    return list(parsed.values())


def _parse_input(name: str, item: Mapping[str, Any], spec: TensorSpec) -> _Input:
    shape, datatype = item.get("shape"), item.get("datatype")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(dim) is int and 0 <= dim < 1 << 40 for dim in shape)
    ):
        raise AgentError(f"input {name!r}: shape is not a list of sizes")
    if not isinstance(datatype, str):
        raise AgentError(f"input {name!r}: datatype is missing")
    mismatch = spec.mismatch(datatype, shape)
    if mismatch is not None:
        raise AgentError(mismatch, hint="see the model's metadata: GET /v2/models/NAME")
    parameters = item.get("parameters", {})
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        if "data" not in item:
            raise AgentError(f"input {name!r} has neither data nor binary_data_size")
        return _Input(name, datatype, tuple(shape), None, item["data"])
    expected = tensor_bytes(datatype, shape)
    if type(size) is not int or size != expected:
        raise AgentError(f"input {name!r}: binary_data_size is {str(size)[:40]}, its shape needs {expected}")
    return _Input(name, datatype, tuple(shape), size, None)


def _json_tensor(item: _Input) -> NDArray[Any]:
    dtype = DATATYPES[item.datatype]
    try:
        given = np.asarray(item.data)
        count = tensor_bytes(item.datatype, item.shape) // dtype.itemsize
        if given.size != count:
            raise AgentError(f"input {item.name!r} has {given.size} values, its shape needs {count}")
        fits = given.dtype.kind in {"b": "b", "f": _INTEGERS + "f"}.get(dtype.kind, _INTEGERS) or given.size == 0
        with np.errstate(over="ignore"):
            array = given.astype(dtype)
        overflowed = dtype.kind == "f" and not np.isfinite(array).all() and np.isfinite(given).all()
        if not fits or overflowed or (dtype.kind in _INTEGERS and not np.array_equal(array, given)):
            raise AgentError(f"input {item.name!r} has values that are not {item.datatype}")
    except (ValueError, TypeError, OverflowError) as error:
        raise AgentError(f"input {item.name!r} has data that is no tensor: {error}") from error
    return array.reshape(item.shape)


def _parse_outputs(body: Mapping[str, Any], specs: Sequence[TensorSpec]) -> list[tuple[str, bool | None]]:
    parameters = body.get("parameters", {})
    default = parameters.get("binary_data_output") if isinstance(parameters, dict) else None
    names = [spec.name for spec in specs]
    items = body.get("outputs")
    if not items:
        return [(name, default) for name in names]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or len(items) > len(names):
        raise AgentError("'outputs' is not a list of tensors")
    wanted = []
    for item in items:
        if item.get("name") not in names:
            raise AgentError(f"unexpected output {str(item.get('name'))[:80]!r}")
        options = item.get("parameters", {})
        binary = options.get("binary_data", default) if isinstance(options, dict) else default
        wanted.append((item["name"], binary))
    return wanted


def _encode_response(
    live: LiveModel,
    outputs: Mapping[str, NDArray[Any]],
    wanted: Sequence[tuple[str, bool | None]],
    request_id: Any,
) -> Response:
    entries: list[dict[str, Any]] = []
    buffers: list[memoryview] = []
    for name, choice in wanted:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if choice is True:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            if array.nbytes:
                buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    body: dict[str, Any] = {"model_name": live.manifest.model, "model_version": str(live.manifest.version)}
    if isinstance(request_id, str):
        body["id"] = request_id[:256]
    body["outputs"] = entries
    try:
        header = json.dumps(body, allow_nan=False).encode()
    except ValueError:
        raise AgentError(
            "an output holds NaN or infinity, which JSON cannot carry", hint="ask for binary data"
        ) from None
    if any("parameters" in entry for entry in entries):
        return Response(200, [header, *buffers], [(HEADER_LENGTH, str(len(header)))], "application/octet-stream")
    return Response(200, [header])


def _server_timing(timing: Timing) -> str:
    parts = (
        ("queue", timing.queue_ns),
        ("input", timing.input_ns),
        ("compute", timing.compute_ns),
        ("output", timing.output_ns),
    )
    return ", ".join(f"{name};dur={value / 1e6:.6f}" for name, value in parts)
