"""The first bytes of an engine file: which TensorRT wrote it, how long it is, for which GPUs.

Read on any machine, before the file is loaded: to load an engine is to execute native code, and a foreign or truncated
one is refused here, with both sides named. Layout (little-endian), found in engines of TensorRT 8 to 11 and of TensorRT
for RTX 1.7: 0 magic, 4 u32 format 0, 8 u32 sections, 16 u64 size of the whole, 24 to 27 version (major, minor, patch,
build); TensorRT for RTX also 32 u32, a bit a compute capability.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HEADER_BYTES", "PlanHeader", "PlanHeaderError", "read_header_of", "read_plan_header"]

HEADER_BYTES = 64

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt-rtx"
_MAGICS = {b"ftrt": TENSORRT, b"ptrt": TENSORRT, b"vtrt": TENSORRT_RTX}
_NAMES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}
# The newest that begins with "ptrt".
_OLD_MAJOR_MINOR = (8, 5)
_FIELDS = struct.Struct("<4sIIIQ4B")
_MASK = struct.Struct("<I")
_MASK_OFFSET = 32
_CAPABILITIES = {1: "7.5", 2: "8.0", 4: "8.6", 8: "8.9", 16: "12.0", 32: "12.1"}
_MAX_SECTIONS = 1024


class PlanHeaderError(Exception):
    """The bytes are not the beginning of an engine; the message says what they are."""


@dataclass(frozen=True)
class PlanHeader:
    """runtime: "tensorrt" or "tensorrt-rtx". version: four parts. size_bytes: of the whole file, as it claims.

    compute_capabilities: that it was compiled for; None where the header does not say (TensorRT proper).
    """

    runtime: str
    version: str
    size_bytes: int
    compute_capabilities: tuple[str, ...] | None

    def describe(self) -> str:
        """For messages: "TensorRT 10.3.0.30", "TensorRT for RTX 1.7.1.116, CC 8.9"."""
        for_gpus = f", CC {', '.join(self.compute_capabilities)}" if self.compute_capabilities else ""
        return f"{_NAMES[self.runtime]} {self.version}{for_gpus}"


def read_plan_header(data: bytes | bytearray | memoryview, *, file_bytes: int | None = None) -> PlanHeader:
    """The header of an engine.

    Args:
        data: the file, or its first HEADER_BYTES. file_bytes: the file's size, to be held against what it claims.

    Raises:
        PlanHeaderError: too short, no engine, of a form that is not known, or not as long as it claims.
    """
    head = bytes(data[:HEADER_BYTES])
    if len(head) < HEADER_BYTES:
        raise PlanHeaderError(f"the engine is truncated: {len(head)} bytes are no header")
    magic, form, sections, _, size, *version = _FIELDS.unpack_from(head)
    if magic not in _MAGICS:
        raise PlanHeaderError(f"this is no TensorRT engine: it begins with {magic.hex(' ')}")
    runtime = _MAGICS[magic]
    if form != 0 or not 1 <= sections <= _MAX_SECTIONS:
        raise PlanHeaderError(f"the engine's header is damaged, or of a newer form: {form}, with {sections} parts")
    old = magic == b"ptrt"
    if old != (runtime == TENSORRT and tuple(version[:2]) <= _OLD_MAJOR_MINOR) or not any(version):
        raise PlanHeaderError(f"the engine's header is damaged: {magic.decode()} with version {_dotted(version)}")
    if size <= HEADER_BYTES:
        raise PlanHeaderError(f"the engine's header is damaged: it claims {size} bytes in all")
    if file_bytes is not None and file_bytes != size:
        kind = "truncated" if file_bytes < size else "followed by bytes that are not its own"
        raise PlanHeaderError(f"the engine is {kind}: it claims {size} bytes and has {file_bytes}")
    return PlanHeader(runtime, _dotted(version), size, _capabilities(head) if runtime == TENSORRT_RTX else None)


def read_header_of(path: Path) -> PlanHeader:
    """The header of an engine file, held against the file's size.

    Raises:
        PlanHeaderError: as of `read_plan_header`.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return read_plan_header(file.read(HEADER_BYTES), file_bytes=path.stat().st_size)


def _capabilities(head: bytes) -> tuple[str, ...]:
    (mask,) = _MASK.unpack_from(head, _MASK_OFFSET)
    unknown = mask & ~sum(_CAPABILITIES)
    if unknown or not mask:
        raise PlanHeaderError(f"the engine is for GPUs that this kedge does not know: mask {mask:#x}")
    return tuple(name for bit, name in _CAPABILITIES.items() if mask & bit)


def _dotted(version: list[int]) -> str:
    return ".".join(map(str, version))
