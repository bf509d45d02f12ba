"""What is to be compiled, and within what memory. Plain JSON, because it travels: to a child process, to a device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..formats.digests import sha256_hex
from ..formats.passport import Passport
from .report import EngineError, Profiles

__all__ = ["Order", "engine_key", "parse_order"]

_MAX_DIMENSION = (1 << 31) - 1
_MAX_BYTES = 1 << 46
_MAX_RANK = 16
_MAX_INPUTS = 256


@dataclass(frozen=True)
class Order:
    """How a model is compiled. Precisions are those in the ONNX file (Q/DQ pairs, casts).

    runtime: "tensorrt-rtx" or "tensorrt".
    compute_capabilities: of the GPUs the engine is for, as "8.9"; tensorrt-rtx alone: tensorrt builds for the GPU that
        is here.
    profiles: shapes of the inputs whose shape is not fixed; an input left out gets 1 for each free dimension.
    workspace_bytes: of scratch memory an engine may take while it runs; None: the library's default.
    tactic_dram_bytes: of GPU memory the builder may take to try kernels; None: all. Only tensorrt tries any.
    sparse_weights: use 2:4 sparse kernels where the weights are.
    optimization_level: 0 to 5; None: the library's default.
    """

    runtime: str = "tensorrt-rtx"
    compute_capabilities: tuple[str, ...] = ()
    profiles: Profiles = field(default_factory=dict)
    workspace_bytes: int | None = None
    tactic_dram_bytes: int | None = None
    sparse_weights: bool = False
    optimization_level: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is left to the library is left out."""
        body = {key: value for key, value in asdict(self).items() if value is not None and value is not False}
        body["compute_capabilities"] = list(self.compute_capabilities)
        body["profiles"] = {name: [list(shape) for shape in shapes] for name, shapes in self.profiles.items()}
        return body

    def plan(self) -> dict[str, Any]:
        """What was asked for of the engine, without the GPUs, which its passport has: part of a cache's key.

        Limits that a build sets itself, as memory allows, are not in it.
        """
        body = replace(self, compute_capabilities=()).to_json()
        del body["compute_capabilities"]
        return body


def engine_key(onnx_sha256: str, order: Order, passport: Passport) -> str:
    """The name of an engine in a cache: what it was built from, and where it runs."""
    body = {"onnx": onnx_sha256, "plan": order.plan(), "passport": passport.hard()}
    return sha256_hex(json.dumps(body, sort_keys=True).encode())


def parse_order(body: Any) -> Order:
    """An order from JSON that was received.

    Raises:
        EngineError: it is none (kind bad_input).
    """
    if not isinstance(body, Mapping):
        raise _bad("an order is an object")
    unknown = set(body) - set(Order.__dataclass_fields__)
    if unknown:
        raise _bad(f"unknown keys: {', '.join(sorted(map(str, unknown)))[:200]}")
    runtime, capabilities = body.get("runtime"), body.get("compute_capabilities", [])
    if not isinstance(runtime, str) or len(runtime) > 64:
        raise _bad("runtime is no name")
    if not isinstance(capabilities, list) or not all(isinstance(each, str) and len(each) < 8 for each in capabilities):
        raise _bad("compute_capabilities is no list of versions")
    for key in ("workspace_bytes", "tactic_dram_bytes"):
        if key in body and (type(body[key]) is not int or not 1 <= body[key] <= _MAX_BYTES):
            raise _bad(f"{key} is no size")
    level = body.get("optimization_level")
    if level is not None and (type(level) is not int or not 0 <= level <= 5):
        raise _bad("optimization_level is not 0 to 5")
    if not isinstance(body.get("sparse_weights", False), bool):
        raise _bad("sparse_weights is neither true nor false")
    return Order(
        runtime,
        tuple(capabilities),
        _profiles(body.get("profiles", {})),
        body.get("workspace_bytes"),
        body.get("tactic_dram_bytes"),
        body.get("sparse_weights", False),
        level,
    )


def _profiles(body: Any) -> Profiles:
    if not isinstance(body, Mapping) or len(body) > _MAX_INPUTS:
        raise _bad("profiles is no object of inputs")
    out = {}
    for name, shapes in body.items():
        if not isinstance(name, str) or not isinstance(shapes, list) or len(shapes) != 3:
            raise _bad(f"the profile of {str(name)[:80]!r} is not three shapes")
        for shape in shapes:
            if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(map(_is_dimension, shape)):
                raise _bad(f"the profile of {name[:80]!r} holds something that is no shape")
        least, best, greatest = (tuple(shape) for shape in shapes)
        out[name] = (least, best, greatest)
    return out


def _is_dimension(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MAX_DIMENSION


def _bad(what: str) -> EngineError:
    return EngineError(f"the order to compile is malformed: {what}", kind="bad_input")
