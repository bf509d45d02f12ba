"""What a compilation of an engine came to, and what can go wrong with it. No TensorRT here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["FAULTS", "CompileReport", "EngineError", "EngineTensor", "ParserFinding", "Profiles", "Progress"]

# missing: TensorRT for RTX is not installed. bad_input: not a request that could be compiled. refused: the parser or
# the compiler says no. crashed, timeout: of the compiler's process. cancelled: the caller's progress said stop.
FAULTS = ("missing", "bad_input", "refused", "crashed", "timeout", "cancelled")

Profiles = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Least, best and greatest shape of each input whose shape is not fixed."""

Progress = Callable[[str, int, int], bool]
"""Called with a phase's name, the step done and the number of steps; False cancels the compilation."""


@dataclass(frozen=True)
class ParserFinding:
    """What the ONNX parser holds against one node. Empty strings where it does not say."""

    node: str
    op: str
    message: str


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of the engine: TensorRT's name for its type (FLOAT, HALF, INT8 …); -1 is a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CompileReport:
    """A compiled engine.

    seconds: parsing and compiling, without loading TensorRT itself.
    layers: of the network as the parser made it, before the compiler fused any.
    log: TensorRT's warnings and errors, in order; bounded.
    """

    engine: bytes
    seconds: float
    runtime: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]
    layers: int
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    log: tuple[str, ...]


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
