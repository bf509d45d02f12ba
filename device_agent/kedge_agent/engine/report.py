"""What a compilation of an engine came to, and what can go wrong with it. No TensorRT here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

__all__ = [
    "FAULTS",
    "CompileReport",
    "EngineError",
    "EngineTensor",
    "NetworkLayer",
    "ParseReport",
    "ParserFinding",
    "Profiles",
    "Progress",
]

# What each comes to, as a kind of `wire.FAULTS`, on a device and on a host alike.
# missing: the compiler is not installed. bad_input: not a request that could be compiled. refused: the parser or the
# compiler says no. crashed, killed, timeout: of the compiler's process; killed: by the kernel, or for want of memory.
# memory: it said itself that memory ran out. cancelled: the caller's progress said stop.
FAULTS = {
    "missing": "incompatible",
    "bad_input": "bad_input",
    "refused": "incompatible",
    "crashed": "incompatible",
    "killed": "space",
    "memory": "space",
    "timeout": "incompatible",
    "cancelled": "busy",
}

Profiles = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Least, best and greatest shape of each input whose shape is not fixed."""

Progress = Callable[[str, int, int], bool]
"""Called with a phase's name, the step done and the number of steps; False cancels the compilation."""


@dataclass(frozen=True)
class ParserFinding:
    """What the ONNX parser holds against one node. Empty strings where it does not say; index: -1 likewise."""

    node: str
    op: str
    message: str
    index: int = -1


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of the engine: TensorRT's name for its type (FLOAT, HALF, INT8 …); -1 is a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class NetworkLayer:
    """A layer of the network as the parser made it, before the compiler fused any: its kind, and what it gives out."""

    name: str
    kind: str
    outputs: tuple[EngineTensor, ...]


@dataclass(frozen=True)
class ParseReport:
    """A model that was parsed. parser: whose judgement this is, with its version. findings: empty when it took all."""

    parser: str
    findings: tuple[ParserFinding, ...]
    layers: tuple[NetworkLayer, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    log: tuple[str, ...]


@dataclass(frozen=True)
class CompileReport:
    """A compiled engine.

    seconds: parsing and compiling, without loading TensorRT itself.
    network: the layers as the parser made them. engine_layers: as the compiler made them, as JSON by TensorRT's
    inspector; empty where no GPU was there to load the engine.
    log: TensorRT's warnings and errors, in order; bounded. peak_rss_bytes: of the compiler's process; None: unknown.
    timing_cache: what tensorrt measured of kernels, for the next build under the same passport; empty: none.
    """

    engine: bytes
    seconds: float
    runtime: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    network: tuple[NetworkLayer, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    log: tuple[str, ...]
    peak_rss_bytes: int | None = None
    engine_layers: str = ""
    timing_cache: bytes = field(default=b"", repr=False)

    @property
    def layers(self) -> int:
        """How many layers the parser made."""
        return len(self.network)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without the engine and the timing cache."""
        body = asdict(replace(self, engine=b"", timing_cache=b""))
        del body["engine"], body["timing_cache"]
        return body | {"engine_bytes": len(self.engine)}


class EngineError(Exception):
    """A model that did not become an engine.

    Args:
        message: one line, what is wrong.
        kind: one of FAULTS.
        hint: one line, what to do about it.
        findings: what the ONNX parser said, node by node.
        log: TensorRT's warnings and errors.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        hint: str = "",
        findings: tuple[ParserFinding, ...] = (),
        log: tuple[str, ...] = (),
    ) -> None:
        if kind not in FAULTS:
            raise ValueError(f"unknown kind of fault {kind!r}")
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint
        self.findings = findings
        self.log = log

    @property
    def fault(self) -> str:
        """The kind of `wire.FAULTS` that it comes to."""
        return FAULTS[self.kind]

    def advice(self) -> str:
        """The hint, and the last that the compiler said, in one line."""
        said = " | ".join([line for line in self.log if not line.startswith("INFO")][-3:])[:600]
        parts = [self.hint, f"it said: {said}" if said else ""]
        return "; ".join(part for part in parts if part)
