from __future__ import annotations

import hashlib
import itertools
import lzma
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.build.release import BuildOptions, build_release
from kedge.errors import BadInputError, IntegrityError
from kedge.model.graph import Graph
from kedge.release.packing import Span, pack, pack_model, weight_spans
from kedge.targets import host_target
from kedge_agent.errors import AgentError
from kedge_agent.formats.packed import (
    HEADER,
    MAGIC,
    MAX_ORIGINAL_BYTES,
    SEGMENT,
    STORED,
    Kind,
    PackedError,
    lzma_filters,
    read_info,
    unpack,
    unpack_into,
)
from kedge_agent.measure.memory import MemoryReading
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.serving import loading
from kedge_agent.serving.loading import check_parity, load_staged
from kedge_agent.serving.staging import stage_release
from kedge_agent.store.layout import Layout
from tests.support import models


def network(path: Path, *weights: np.ndarray) -> Path:
    """x [n] → y [n] with constants of any type that are loaded and used."""
    nodes, last = [], "x"
    for index in range(len(weights)):
        name = f"w{index}"
        nodes.append(helper.make_node("Cast", [name], [f"f{index}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceMax", [f"f{index}"], [f"m{index}"], keepdims=0))
        nodes.append(helper.make_node("Add", [last, f"m{index}"], [f"s{index}"]))
        last = f"s{index}"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", last)]
    constants = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "test", value[:1], value[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def clustered(count: int, levels: int, dtype: str = "f4", seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    codebook = (
        np.sort(random.standard_normal(levels)).astype(dtype) if dtype[0] == "f" else np.arange(levels, dtype=dtype)
    )
    shares = np.exp(-0.5 * np.linspace(-2.5, 2.5, levels) ** 2)
    return codebook[random.choice(levels, count, p=shares / shares.sum())]


def packed_file(path: Path) -> tuple[bytes, bytes]:
    original = path.read_bytes()
    return original, pack(original, weight_spans(original, Graph.read(path)))


def by_hand(
    segments: list[bytes],
    payload: bytes,
    size: int,
    *,
    pool: bytes = b"",
    coding: int = STORED,
    sha256: bytes = bytes(32),
    magic: bytes = MAGIC,
    version: int = 1,
    count: int | None = None,
) -> bytes:
    total = len(segments) if count is None else count
    return b"".join([HEADER.pack(magic, version, coding, 0, total, size, sha256, len(pool)), *segments, pool, payload])


def raw(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=lzma_filters(0, len(data)))


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i1", "u1", "i4"])
@pytest.mark.parametrize("levels", [1, 2, 31, 100])
def test_a_model_is_rebuilt_byte_for_byte(tmp_path: Path, dtype: str, levels: int) -> None:
    weights = [
        clustered(5000, levels, dtype).reshape(50, 100),
        np.random.default_rng(1).standard_normal(700).astype("f4"),
    ]
    original, packed = packed_file(network(tmp_path / "m.onnx", *weights))
    assert unpack(packed) == original
    assert len(packed) < len(original)


def test_bits_that_compare_equal_but_are_not_survive(tmp_path: Path) -> None:
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-42], "f4")
    weights = np.random.default_rng(0).choice(special, 4000)
    weights.view("u4")[:10] = 0x7FC00001
    original, packed = packed_file(network(tmp_path / "m.onnx", weights))
    assert len(packed) < 0.2 * len(original)
    assert unpack(packed) == original


@pytest.mark.parametrize("original", [b"", b"x", b"kedge" * 1000, bytes(3_000_000)])
def test_any_file_can_be_packed(original: bytes) -> None:
    assert unpack(pack(original)) == original


def test_shared_weights_take_little_more_than_their_entropy(tmp_path: Path) -> None:
    weights = clustered(100_000, 32)
    original, packed = packed_file(network(tmp_path / "m.onnx", weights))
    _, counts = np.unique(weights, return_counts=True)
    entropy = float((counts * np.log2(weights.size / counts)).sum()) / 8
    assert entropy < len(packed) < 1.06 * entropy + 500
    assert unpack(packed) == original


def test_int8_weights_pack_shared_or_not(tmp_path: Path) -> None:
    plain = np.clip(np.random.default_rng(0).standard_normal(50_000) * 30, -127, 127).astype("i1")
    original, packed = packed_file(network(tmp_path / "m.onnx", plain))
    assert 0.8 * len(original) < len(packed) < 0.93 * len(original)
    original, packed = packed_file(network(tmp_path / "m.onnx", clustered(50_000, 20, "i1")))
    assert len(packed) < 0.6 * len(original)


def test_a_segment_is_packed_only_where_that_is_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype="u1")
    original, packed = packed_file(network(tmp_path / "m.onnx", noise))
    assert len(packed) < len(original) + 100
    assert unpack(packed) == original


def test_constants_are_found_where_they_lie_in_the_file(tmp_path: Path) -> None:
    twin = clustered(2000, 9)
    path = network(tmp_path / "m.onnx", twin, np.zeros(3000, "f4"), twin, clustered(2000, 9, "i1"))
    original = path.read_bytes()
    spans = weight_spans(original, Graph.read(path))
    assert [(span.length, span.value_bytes) for span in spans] == [(8000, 4), (12000, 4), (8000, 4), (2000, 1)]
    assert all(b.offset >= a.offset + a.length for a, b in itertools.pairwise(spans))
    assert original[spans[2].offset :][:8000] == twin.tobytes()


def test_spans_that_overlap_or_lie_outside_are_refused() -> None:
    data = clustered(1000, 4).tobytes()
    for spans in ([Span(0, 4000, 4), Span(2000, 2000, 4)], [Span(4, 4000, 4)]):
        with pytest.raises(BadInputError, match="overlap"):
            pack(data, spans)


def test_the_header_alone_tells_the_size(tmp_path: Path) -> None:
    original = bytes(range(256)) * 40
    (tmp_path / "m.kpk").write_bytes(pack(original))
    info = read_info(tmp_path / "m.kpk")
    assert (info.original_bytes, info.original_sha256) == (10240, hashlib.sha256(original).hexdigest())


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    _, packed = packed_file(network(tmp_path / "m.onnx", clustered(3000, 7)))
    for end in range(len(packed)):
        with pytest.raises(PackedError):
            unpack(packed[:end])
    with pytest.raises(PackedError):
        unpack(packed + b"\0")


def test_a_file_with_any_bytes_changed_is_refused_or_unharmed(tmp_path: Path) -> None:
    weights = [
        clustered(3000, 7),
        clustered(3000, 200, "i1"),
        np.random.default_rng(2).standard_normal(500).astype("f4"),
    ]
    original, packed = packed_file(network(tmp_path / "m.onnx", *weights))
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(packed)
        # As often in the header and the table, where sizes stand, as anywhere else.
        end = len(packed) if random.random() < 0.5 else HEADER.size + 8 * SEGMENT.size
        for at in random.integers(0, end, random.integers(1, 5)):
            damaged[at] = random.integers(0, 256)
        try:
            assert unpack(bytes(damaged)) == original
        except PackedError:
            refused += 1
    assert refused > 2900


SEGMENT_OF_FOUR = SEGMENT.pack(Kind.CODEBOOK, STORED, 4, 1, 16, 4)


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (b"", "header"),
        (b"\x08\x07\x12\x0bonnx" * 40, "not a packed file"),
        (by_hand([], b"", 0, version=2), "version 2"),
        (by_hand([], b"", MAX_ORIGINAL_BYTES + 1), "at most"),
        (by_hand([], b"", 0, count=1 << 20), "segments"),
        (by_hand([], b"", 0, count=9), "table"),
        (by_hand([SEGMENT.pack(Kind.POOL, 0, 0, 0, 1 << 30, 0)], b"", 1 << 30), "1024 times"),
        (by_hand([SEGMENT.pack(Kind.POOL, 0, 0, 0, 4, 0)], b"", 5, pool=b"abcd"), "original's size"),
        (by_hand([SEGMENT.pack(Kind.POOL, 0, 0, 0, 4, 0)], b"!", 4, pool=b"abcd"), "its own size"),
        (by_hand([SEGMENT.pack(Kind.POOL, 0, 0, 0, 4, 0)], b"", 4, pool=b"abc"), "stored stream"),
        (by_hand([SEGMENT.pack(Kind.POOL, 1, 0, 0, 4, 0)], b"", 4, pool=b"abcd"), "segment 0"),
        (by_hand([SEGMENT.pack(Kind.POOL, 0, 0, 0, 0, 0)], b"", 0), "segment 0"),
        (by_hand([SEGMENT.pack(3, 0, 0, 0, 4, 4)], b"abcd", 4), "segment 0"),
        (by_hand([SEGMENT.pack(Kind.CODEBOOK, STORED, 3, 0, 3, 1)], b"abc\0", 3), "segment 0"),
        (by_hand([SEGMENT.pack(Kind.CODEBOOK, STORED, 4, 0, 15, 4)], bytes(8), 15), "segment 0"),
        (by_hand([SEGMENT.pack(Kind.STREAM, 254, 0, 0, 4, 4)], b"abcd", 4), "coding 254"),
        (by_hand([SEGMENT.pack(Kind.STREAM, 17, 0, 0, 4, 4)], b"abcd", 4), "coding 17"),
        (by_hand([SEGMENT_OF_FOUR], bytes(8) + b"\0\1\2\0", 16), "outside its codebook"),
        (by_hand([SEGMENT_OF_FOUR], bytes(8) + b"\0\1\1\0", 16), "sha256"),
        (by_hand([SEGMENT.pack(Kind.STREAM, 0, 0, 0, 9, len(raw(bytes(8))))], raw(bytes(8)), 9), "damaged|early"),
        (by_hand([SEGMENT.pack(Kind.STREAM, 0, 0, 0, 7, len(raw(bytes(8))))], raw(bytes(8)), 7), "longer"),
        (
            by_hand([SEGMENT.pack(Kind.STREAM, 0, 0, 0, 8, len(raw(bytes(8))) + 1)], raw(bytes(8)) + b"!", 8),
            "end where",
        ),
    ],
)
def test_a_hostile_file_is_refused_with_its_reason(packed: bytes, reason: str) -> None:
    with pytest.raises(PackedError, match=reason):
        unpack(packed)


def test_a_file_by_another_hand_is_read() -> None:
    original = np.array([1.5, -2, -2, 1.5], "<f4").tobytes() + b"tail"
    segments = [SEGMENT_OF_FOUR, SEGMENT.pack(Kind.POOL, 0, 0, 0, 4, 0)]
    codebook = np.array([1.5, -2], "<f4").tobytes()
    packed = by_hand(segments, codebook + b"\0\1\1\0", 20, pool=b"tail", sha256=hashlib.sha256(original).digest())
    assert unpack(packed) == original


def test_a_stream_that_expands_without_end_costs_little_memory() -> None:
    bomb = raw(bytes(20_000_000))
    claimed = 100_000
    packed = by_hand([SEGMENT.pack(Kind.STREAM, 0, 0, 0, claimed, len(bomb))], bomb, claimed)
    tracemalloc.start()
    try:
        with pytest.raises(PackedError):
            unpack_into(packed, len)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_unpacking_a_large_model_holds_a_piece_of_it_at_a_time(tmp_path: Path) -> None:
    original, packed = packed_file(network(tmp_path / "m.onnx", clustered(500_000, 2, "f8")))
    assert len(original) > 4_000_000
    tracemalloc.start()
    try:
        unpack_into(packed, len)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A dictionary, the packed bytes once more, and pieces: not the model.
    assert peak < 2_000_000


def test_packing_is_left_out_where_it_is_not_worth_the_unpacking(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(30_000).astype("f4")
    plain = network(tmp_path / "plain.onnx", noise)
    assert pack_model(plain, only_if_worthwhile=True) is None
    assert pack_model(plain) is not None
    shared = network(tmp_path / "shared.onnx", clustered(30_000, 32))
    assert pack_model(shared, only_if_worthwhile=True) is not None
    # Channels of different scale, each of few values: what weights are that were shared, then quantised.
    scales = np.random.default_rng(1).uniform(0.3, 1, (128, 1))
    channels = np.rint(clustered(128 * 576, 32).reshape(128, 576) * 40 * scales).astype("i1")
    assert pack_model(network(tmp_path / "int8.onnx", channels), only_if_worthwhile=True) is not None
    assert pack_model(network(tmp_path / "tiny.onnx", clustered(300, 4)), only_if_worthwhile=True) is None


@pytest.mark.parametrize(
    ("wanted", "file"), [(None, "model.onnx.kpk"), (True, "model.onnx.kpk"), (False, "model.onnx")]
)
def test_a_build_packs_what_is_worthwhile_unless_told_otherwise(tmp_path: Path, wanted: bool | None, file: str) -> None:
    model = network(tmp_path / "m.onnx", clustered(30_000, 32))
    built = build_release(model, host_target(), tmp_path / "r", BuildOptions("m", pack=wanted))
    release = built.release
    artefact = release.manifest.artefacts[0]
    assert artefact.file == file
    assert artefact.encoding == ("raw" if wanted is False else "packed")
    assert built.model_bytes == release.model_bytes(artefact) == model.stat().st_size
    release.verify()
    release.prove_unpacking()


def test_a_packed_file_that_lies_is_found_by_verify(tmp_path: Path) -> None:
    model = network(tmp_path / "m.onnx", clustered(30_000, 32))
    release = build_release(model, host_target(), tmp_path / "r", BuildOptions("m", pack=True)).release
    path = release.folder / "model.onnx.kpk"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match="cannot be unpacked"):
        release.prove_unpacking()


def test_the_command_line_tells_both_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kedge.cli import main

    model = network(tmp_path / "m.onnx", clustered(30_000, 32))
    folder = str(tmp_path / "r")
    assert main(["build", str(model), "--target", host_target().name, "-o", folder]) == 0
    assert "packed: unpacks to 120 kB" in capsys.readouterr().out
    assert main(["release", "show", folder]) == 0
    assert "packed: unpacks to 120 kB" in capsys.readouterr().out
    assert main(["release", "verify", folder]) == 0
    assert "unpacked), all intact" in capsys.readouterr().out
    tiny = models.classifier(tmp_path / "tiny.onnx")
    assert main(["build", str(tiny), "--target", host_target().name, "-o", folder, "--no-pack"]) == 0
    assert "packed" not in capsys.readouterr().out


def accepted(tmp_path: Path) -> tuple[Layout, str]:
    """A store that has accepted a packed release."""
    model = network(tmp_path / "m.onnx", clustered(30_000, 32))
    release = build_release(model, host_target(), tmp_path / "r", BuildOptions("m", pack=True)).release
    layout = Layout(tmp_path / "state")
    shutil.copytree(release.folder, layout.release(release.digest))
    return layout, release.digest


def test_a_packed_release_is_loaded_and_leaves_no_file_open(tmp_path: Path) -> None:
    layout, digest = accepted(tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    live = load_staged(layout, stage_release(layout, {"onnxruntime": OnnxRuntime()}, digest, 1))
    assert [spec.name for spec in live.artefact.inputs] == ["x"]
    assert len(check_parity(layout, live)) == 1
    assert set(os.listdir("/proc/self/fd")) <= before
    live.pool.retire()


def test_a_device_without_the_memory_to_unpack_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, digest = accepted(tmp_path)
    monkeypatch.setattr(loading, "read_memory", lambda: MemoryReading(None, None, None, 100_000))
    with pytest.raises(AgentError, match="100000 bytes of memory") as caught:
        load_staged(layout, stage_release(layout, {"onnxruntime": OnnxRuntime()}, digest, 1))
    assert caught.value.kind == "space"


def test_a_python_without_lzma_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, digest = accepted(tmp_path)
    monkeypatch.setitem(sys.modules, "kedge_agent.formats.packed", None)
    with pytest.raises(AgentError, match="cannot unpack") as caught:
        load_staged(layout, stage_release(layout, {"onnxruntime": OnnxRuntime()}, digest, 1))
    assert caught.value.kind == "incompatible"
    assert "--no-pack" in caught.value.hint
