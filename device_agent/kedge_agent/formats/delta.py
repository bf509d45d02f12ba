"""Frames as they travel: compressed, or as the difference to a slice of an object that both sides have.

A difference is one zstd frame, made with the slice as its prefix: matches reach back into the slice as if its bytes
stood before the frame's own. The slice is the frame's own place in the base object and one frame to each side of it, so
that what moved by less than a frame is still found. zstd is the standard library's from Python 3.14 on, and before that
`backports.zstd`, which a device may lack: it then says so in WANT, and gets raw frames.
"""

from __future__ import annotations

import struct

from ..wire import ENCODING_DELTA, ENCODING_RAW, ENCODING_ZSTD, FRAME_BYTES
from .snapshots import zstd_module

__all__ = ["BASE_INDEX", "DeltaError", "compress", "decompress", "encodings", "slice_of"]

BASE_INDEX = struct.Struct(">B")
"""Stands before a delta's bytes: which of the bases that WANT names for this file."""

# Level 1 against 3 and 5: the same sizes within a hundredth, up to twice the speed (docs/adr/0009).
_LEVEL = 1
# A frame and the slice before it: 8 MiB + 24 MiB.
_WINDOW_LOG = 25


class DeltaError(Exception):
    """Bytes that are no frame of this length in this encoding."""


def encodings() -> tuple[int, ...]:
    """What this Python can make and read, of the protocol's encodings."""
    return (ENCODING_RAW,) if zstd_module() is None else (ENCODING_RAW, ENCODING_ZSTD, ENCODING_DELTA)


def slice_of(frame: int, base_bytes: int) -> tuple[int, int]:
    """Offset and length of the slice of a base object that frame `frame` is compared with."""
    start = min(max(frame - 1, 0) * FRAME_BYTES, base_bytes)
    return start, min((frame + 2) * FRAME_BYTES, base_bytes) - start


def compress(data: bytes | memoryview, prefix: bytes | memoryview | None = None) -> bytes:
    """A frame as ENCODING_ZSTD has it or, with a prefix, as ENCODING_DELTA (without BASE_INDEX)."""
    zstd = zstd_module()
    options = {zstd.CompressionParameter.compression_level: _LEVEL}
    if prefix is not None:
        options |= {
            zstd.CompressionParameter.window_log: _WINDOW_LOG,
            zstd.CompressionParameter.enable_long_distance_matching: 1,
        }
    dictionary = None if prefix is None else zstd.ZstdDict(prefix, is_raw=True).as_prefix
    packed: bytes = zstd.compress(data, options=options, zstd_dict=dictionary)
    return packed


def decompress(data: bytes | memoryview, size: int, prefix: bytes | memoryview | None = None) -> bytes:
    """The frame of `size` bytes that `compress` was given.

    Raises:
        DeltaError: it is none, or of another length; no more than `size` bytes and one are made of it.
    """
    zstd = zstd_module()
    dictionary = None if prefix is None else zstd.ZstdDict(prefix, is_raw=True).as_prefix
    reader = zstd.ZstdDecompressor(
        zstd_dict=dictionary, options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
    )
    try:
        out: bytes = reader.decompress(data, size + 1)
        # The end of the frame may need one more call, which makes nothing.
        if len(out) == size and not reader.eof and not reader.needs_input:
            out += reader.decompress(b"", 1)
    except (zstd.ZstdError, ValueError) as error:
        raise DeltaError(str(error)) from error
    if len(out) != size or not reader.eof or reader.unused_data:
        raise DeltaError(f"not the {size} bytes that were announced")
    return out
