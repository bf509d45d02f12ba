from __future__ import annotations

import os

import pytest

from kedge_agent.formats import delta
from kedge_agent.formats.delta import DeltaError, compress, decompress, encodings, slice_of
from kedge_agent.wire import ENCODING_DELTA, ENCODING_RAW, ENCODING_ZSTD, FRAME_BYTES


def test_a_frame_that_changed_in_part_travels_as_the_part_that_changed() -> None:
    base = os.urandom(3 * FRAME_BYTES)
    offset, length = slice_of(1, len(base))
    changed = base[FRAME_BYTES : FRAME_BYTES + 5_000_000] + os.urandom(400_000) + base[FRAME_BYTES + 5_400_000 :]
    frame = changed[:FRAME_BYTES]
    packed = compress(frame, base[offset : offset + length])
    assert len(packed) < 410_000
    assert decompress(packed, FRAME_BYTES, base[offset : offset + length]) == frame


def test_what_moved_by_less_than_a_frame_is_found() -> None:
    base = os.urandom(3 * FRAME_BYTES)
    offset, length = slice_of(1, len(base))
    for shift in (-FRAME_BYTES + 4096, 1, 7_000_000):
        frame = base[FRAME_BYTES + shift : 2 * FRAME_BYTES + shift]
        assert len(compress(frame, base[offset : offset + length])) < 20_000


@pytest.mark.parametrize(
    ("frame", "size", "expected"),
    [
        (0, 100, (0, 100)),
        (0, 3 * FRAME_BYTES, (0, 2 * FRAME_BYTES)),
        (1, 3 * FRAME_BYTES, (0, 3 * FRAME_BYTES)),
        (2, 3 * FRAME_BYTES + 7, (FRAME_BYTES, 2 * FRAME_BYTES + 7)),
        (5, FRAME_BYTES, (FRAME_BYTES, 0)),
    ],
)
def test_the_slice_is_the_frame_s_place_and_a_frame_to_each_side(
    frame: int, size: int, expected: tuple[int, int]
) -> None:
    assert slice_of(frame, size) == expected


def test_what_is_no_frame_of_the_announced_length_is_refused() -> None:
    data = os.urandom(1000) * 50
    packed = compress(data)
    for bad in (b"", b"x", packed[:-1], packed[:100], packed + b"x", packed + packed, b"\0" * len(packed)):
        with pytest.raises(DeltaError):
            decompress(bad, len(data))
    for size in (len(data) - 1, len(data) + 1):
        with pytest.raises(DeltaError):
            decompress(packed, size)
    assert decompress(packed, len(data)) == data


def test_a_bomb_makes_no_more_than_was_announced() -> None:
    with pytest.raises(DeltaError):
        decompress(compress(bytes(256 << 20)), FRAME_BYTES)


def test_a_window_larger_than_ours_is_refused() -> None:
    zstd = delta.zstd_module()
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    writer = zstd.ZstdCompressor(options=options)
    packed = writer.compress(bytes(FRAME_BYTES)) + writer.flush()
    with pytest.raises(DeltaError):
        decompress(packed, FRAME_BYTES)


def test_without_the_library_only_raw_frames_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert encodings() == (ENCODING_RAW, ENCODING_ZSTD, ENCODING_DELTA)
    monkeypatch.setattr(delta, "zstd_module", lambda: None)
    assert encodings() == (ENCODING_RAW,)
