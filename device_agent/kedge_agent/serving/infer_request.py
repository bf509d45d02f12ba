"""What an inference request asks for: its JSON, checked against the model, before a buffer is taken.

Sources: KServe, "Open Inference Protocol v2" (REST); Triton, "Binary Tensor Data Extension" and "Shared-Memory
Extension".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import AgentError
from ..formats.strings import STRING_LENGTH_BYTES
from ..formats.tensors import BYTES, DYNAMIC, MAX_RANK, TensorSpec, element_count, tensor_bytes
from .http import json_text

__all__ = [
    "InferRequest",
    "InputTensor",
    "OutputTensor",
    "RegionPart",
    "parse_request",
    "raw_request",
]

# Of a BYTES tensor: on its way into the runtime and out of it each string is copied several times.
_MAX_STRING_BYTES = 16 * 1024 * 1024
_MAX_DIM = 1 << 40
_MAX_ELEMENTS = 1 << 48
_MAX_TIMEOUT_US = 1 << 53
_MAX_ID_CHARACTERS = 256
_REGION = "shared_memory_region"


@dataclass(frozen=True)
class RegionPart:
    """Part of a registered shared memory region, in bytes."""

    region: str
    offset: int
    byte_size: int


@dataclass(frozen=True)
class InputTensor:
    """One input: its bytes follow the JSON (body_bytes), lie in shared memory (part), or are `data` of the JSON.

    bare: the bytes are one string, without its length.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    body_bytes: int | None = None
    part: RegionPart | None = None
    data: Any = None
    bare: bool = False


@dataclass(frozen=True)
class OutputTensor:
    """One output that is wanted: binary, in shared memory (part), or as JSON."""

    name: str
    binary: bool
    part: RegionPart | None = None


@dataclass(frozen=True)
class InferRequest:
    """A request that fits the model. timeout_us: how long it may wait for its turn; None: as the model's rules say.

    body_bytes: of binary data that follow the JSON. reusable: it holds no data, so that the same JSON means the same.
    answers: JSON of its responses, by the shapes of the outputs, where these are binary.
    """

    inputs: tuple[InputTensor, ...]
    outputs: tuple[OutputTensor, ...]
    shapes: Mapping[str, tuple[int, ...]]
    body_bytes: int
    id: str | None = None
    timeout_us: int | None = None
    reusable: bool = False
    answers: dict[tuple[tuple[int, ...], ...], bytes] = field(default_factory=dict, compare=False)


def parse_request(text: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    """Parse a request's JSON.

    Args:
        inputs, outputs: of the model.

    Raises:
        AgentError: it is not JSON, not a request, or not one for this model (bad_input).
    """
    body = json_text(text) if text else None
    if not isinstance(body, dict):
        raise AgentError("the inference request is not a JSON object")
    parameters = _object(body, "parameters", "the request's parameters")
    parsed = _inputs(body.get("inputs"), inputs)
    request_id = body.get("id")
    if request_id is not None and (not isinstance(request_id, str) or len(request_id) > _MAX_ID_CHARACTERS):
        raise AgentError(f"the request's id is not text of at most {_MAX_ID_CHARACTERS} characters")
    timeout = parameters.get("timeout")
    if timeout is not None and (type(timeout) is not int or not 0 <= timeout <= _MAX_TIMEOUT_US):
        raise AgentError("the request's timeout is not a number of microseconds")
    return InferRequest(
        inputs=parsed,
        outputs=_outputs(body.get("outputs"), outputs, parameters.get("binary_data_output") is True),
        shapes={item.name: item.shape for item in parsed},
        body_bytes=sum(item.body_bytes or 0 for item in parsed),
        id=request_id or None,
        # Triton takes 0 for "none was given".
        timeout_us=timeout or None,
        reusable=all(item.data is None for item in parsed),
    )


def raw_request(size_bytes: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> InferRequest:
    """A request that is nothing but the bytes of the model's one input; its outputs come as binary.

    The input's shape is the model's, with one free size at most, which follows from the number of bytes.

    Raises:
        AgentError: the model has several inputs or free sizes, or the bytes fill no such shape (bad_input).
    """
    if len(inputs) != 1:
        raise AgentError(f"raw binary requests are for models of one input, this one has {len(inputs)}")
    spec = inputs[0]
    if spec.datatype == BYTES:
        shape: tuple[int, ...] = tuple(1 if dim == DYNAMIC else dim for dim in spec.shape)
        if element_count(shape) != 1:
            raise AgentError(f"input {spec.name!r} holds several strings; raw binary requests carry one")
        if size_bytes > _MAX_STRING_BYTES:
            raise AgentError(
                f"input {spec.name!r}: {size_bytes} bytes are more than strings may have", kind="too_large"
            )
    else:
        shape = _shape_of(spec, size_bytes)
    item = InputTensor(spec.name, spec.datatype, shape, body_bytes=size_bytes, bare=spec.datatype == BYTES)
    wanted = tuple(OutputTensor(output.name, binary=True) for output in outputs)
    return InferRequest((item,), wanted, {spec.name: shape}, size_bytes)


def _shape_of(spec: TensorSpec, size_bytes: int) -> tuple[int, ...]:
    free = [index for index, dim in enumerate(spec.shape) if dim == DYNAMIC]
    if len(free) > 1:
        raise AgentError(f"input {spec.name!r} has {len(free)} free sizes; raw binary requests leave room for one")
    one = tensor_bytes(spec.datatype, [1 if dim == DYNAMIC else dim for dim in spec.shape])
    count, rest = divmod(size_bytes, one) if one else (0, size_bytes)
    if rest or (not free and count != 1):
        raise AgentError(f"{size_bytes} bytes do not fill input {spec.name!r} of shape {list(spec.shape)}")
    return tuple(count if dim == DYNAMIC else dim for dim in spec.shape)


def _inputs(items: Any, specs: Sequence[TensorSpec]) -> tuple[InputTensor, ...]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise AgentError("'inputs' is not a list of tensors")
    by_name = {spec.name: spec for spec in specs}
    parsed: dict[str, InputTensor] = {}
    for item in items:
        name = item.get("name")
        if not isinstance(name, str) or name not in by_name or name in parsed:
            raise AgentError(
                f"unexpected input {str(name)[:80]!r}", hint=f"the model's inputs are {', '.join(map(repr, by_name))}"
            )
        parsed[name] = _input(name, item, by_name[name])
    missing = [name for name in by_name if name not in parsed]
    if missing:
        raise AgentError(f"inputs are missing: {', '.join(map(repr, missing))}")
    return tuple(parsed.values())


def _input(name: str, item: Mapping[str, Any], spec: TensorSpec) -> InputTensor:
    shape, datatype = item.get("shape"), item.get("datatype")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(dim) is int and 0 <= dim < _MAX_DIM for dim in shape)
        # A size of 0 beside huge ones is no tensor that anything could hold either.
        or math.prod(dim or 1 for dim in shape) > _MAX_ELEMENTS
    ):
        raise AgentError(f"input {name!r}: shape is not a list of sizes")
    if not isinstance(datatype, str):
        raise AgentError(f"input {name!r}: datatype is missing")
    mismatch = spec.mismatch(datatype, shape)
    if mismatch is not None:
        raise AgentError(mismatch, hint="see the model's metadata: GET /v2/models/NAME")
    parameters = _object(item, "parameters", f"input {name!r}: parameters")
    part = _part(parameters, f"input {name!r}")
    size = parameters.get("binary_data_size")
    if (item.get("data") is not None) + (part is not None) + (size is not None) > 1:
        raise AgentError(f"input {name!r} has data in two places")
    if part is None and size is None:
        if item.get("data") is None:
            raise AgentError(f"input {name!r} has neither data nor binary_data_size")
        return InputTensor(name, datatype, tuple(shape), data=item["data"])
    given, what = (part.byte_size, "shared_memory_byte_size") if part is not None else (size, "binary_data_size")
    if type(given) is not int or given < 0:
        raise AgentError(f"input {name!r}: {what} is {str(given)[:40]}, not a number of bytes")
    if datatype == BYTES and given > _MAX_STRING_BYTES:
        raise AgentError(f"input {name!r}: {what} is {given}, more than strings may have", kind="too_large")
    if datatype == BYTES and given < STRING_LENGTH_BYTES * element_count(shape):
        raise AgentError(f"input {name!r}: {what} is {given}, too little for {element_count(shape)} strings")
    if datatype != BYTES and given != tensor_bytes(datatype, shape):
        raise AgentError(
            f"input {name!r}: {what} is {str(given)[:40]}, its shape needs {tensor_bytes(datatype, shape)}"
        )
    return InputTensor(name, datatype, tuple(shape), given if part is None else None, part)


def _outputs(items: Any, specs: Sequence[TensorSpec], binary_by_default: bool) -> tuple[OutputTensor, ...]:
    names = [spec.name for spec in specs]
    if not items:
        return tuple(OutputTensor(name, binary_by_default) for name in names)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or len(items) > len(names):
        raise AgentError("'outputs' is not a list of tensors")
    wanted: dict[str, OutputTensor] = {}
    for item in items:
        name = item.get("name")
        if name not in names or name in wanted:
            raise AgentError(
                f"unexpected output {str(name)[:80]!r}", hint=f"the model's outputs are {', '.join(map(repr, names))}"
            )
        parameters = _object(item, "parameters", f"output {name!r}: parameters")
        if parameters.get("classification"):
            raise AgentError(
                f"output {name!r}: classification is not offered", hint="ask for the scores and take the largest"
            )
        binary = parameters.get("binary_data", binary_by_default) is True
        wanted[name] = OutputTensor(name, binary, _part(parameters, f"output {name!r}"))
    return tuple(wanted.values())


def _part(parameters: Mapping[str, Any], what: str) -> RegionPart | None:
    region = parameters.get(_REGION)
    if region is None:
        return None
    offset, size = parameters.get("shared_memory_offset", 0), parameters.get("shared_memory_byte_size")
    if not isinstance(region, str) or type(offset) is not int or type(size) is not int or offset < 0 or size < 0:
        raise AgentError(f"{what}: {_REGION} needs a name, and an offset and a byte_size in bytes")
    return RegionPart(region, offset, size)


def _object(item: Mapping[str, Any], key: str, what: str) -> Mapping[str, Any]:
    value = item.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AgentError(f"{what} are not an object")
    return value
