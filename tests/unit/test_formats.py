from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from kedge_agent.formats.frames import frame_count, frame_length, hash_file
from kedge_agent.formats.latency import percentile_index, summarize
from kedge_agent.formats.oip import decode_response, encode_request, parse_server_timing
from kedge_agent.formats.tensors import TensorSpec
from kedge_agent.wire import FRAME_BYTES, WireError, parse_json


@pytest.mark.parametrize(
    ("size", "frames"), [(0, 0), (1, 1), (FRAME_BYTES, 1), (FRAME_BYTES + 1, 2), (5 * FRAME_BYTES, 5)]
)
def test_frames_cover_a_file_exactly(size: int, frames: int) -> None:
    assert frame_count(size) == frames
    assert sum(frame_length(size, i) for i in range(frames)) == size
    with pytest.raises(IndexError):
        frame_length(size, frames)
    with pytest.raises(IndexError):
        frame_length(size, -1)


def test_a_file_is_hashed_whole_and_by_frame(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(FRAME_BYTES + 1000)
    path = tmp_path / "file"
    path.write_bytes(data)
    found = hash_file(path)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.frames == tuple(hashlib.sha256(part).hexdigest() for part in (data[:FRAME_BYTES], data[FRAME_BYTES:]))
    path.write_bytes(b"")
    assert hash_file(path).frames == ()


@pytest.mark.parametrize(
    ("count", "percentile", "index"),
    # From trtexec's rule, index = max(n - 1 - int((1 - p/100) * n), 0), in single precision: 1 - 0.9f = 0.10000002,
    # 1 - 0.95f = 0.050000012, 1 - 0.99f = 0.0099999905.
    [
        (1, 50, 0),
        (2, 50, 0),
        (10, 50, 4),
        (10, 90, 8),
        (11, 50, 5),
        (100, 99, 99),
        (101, 99, 99),
        (1000, 95, 949),
        (3, 99, 2),
    ],
)
def test_percentiles_follow_trtexec_s_rule(count: int, percentile: float, index: int) -> None:
    assert percentile_index(count, percentile) == index


def test_a_summary_states_the_distribution_in_order() -> None:
    summary = summarize([float(value) for value in range(100, 0, -1)])
    assert (summary.count, summary.min_ms, summary.max_ms, summary.mean_ms) == (100, 1.0, 100.0, 50.5)
    assert summary.min_ms <= summary.median_ms <= summary.p90_ms <= summary.p95_ms <= summary.p99_ms <= summary.max_ms
    assert summary.cov == pytest.approx(np.std(np.arange(1, 101)) / 50.5)


def test_nothing_cannot_be_summarised() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_a_tensor_specification_says_what_does_not_fit() -> None:
    spec = TensorSpec("x", "FP32", (-1, 3))
    assert spec.mismatch("FP32", (5, 3)) is None
    assert "shape" in (spec.mismatch("FP32", (5, 4)) or "")
    assert "shape" in (spec.mismatch("FP32", (5, 3, 1)) or "")
    assert "FP16" in (spec.mismatch("FP16", (5, 3)) or "")


def test_a_binary_request_carries_the_very_bytes() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    header, buffers = encode_request({"x": array, "scalar": np.float32(2)})
    body = parse_json(header)
    assert body["inputs"][0] == {
        "name": "x",
        "datatype": "INT16",
        "shape": [2, 3],
        "parameters": {"binary_data_size": 12},
    }
    assert body["inputs"][1]["shape"] == []
    assert bytes(buffers[0]) == array.tobytes()


@pytest.mark.parametrize(
    "header",
    [
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 4}}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [4], "parameters": {"binary_data_size": 16}}]}',
        b'{"outputs": [{"name": "y", "datatype": "STRANGE", "shape": [1], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "data": [1]}]}',
        b'{"outputs": 3}',
        b"[]",
    ],
)
def test_a_response_that_lies_about_its_bytes_is_refused(header: bytes) -> None:
    with pytest.raises(WireError):
        decode_response(memoryview(header + b"\0" * 8), len(header))


def test_server_timing_is_read_and_nonsense_in_it_passed_over() -> None:
    assert parse_server_timing("queue;dur=0.5, compute;dur=1.25;desc=x, cache, bad;dur=x") == {
        "queue": 0.5,
        "compute": 1.25,
    }
