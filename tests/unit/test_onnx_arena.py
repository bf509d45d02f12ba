"""The one arena of onnxruntime's sessions: what is shared, what is given back, and what that costs whom."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kedge_agent.measure.memory import read_memory
from kedge_agent.runtime import onnx_arena, onnxruntime
from kedge_agent.runtime.base import LoadOptions, Slot
from kedge_agent.runtime.onnx_arena import SharedArena, arena_of_process
from kedge_agent.runtime.onnx_inputs import has_bounded_inputs
from kedge_agent.runtime.onnxruntime import OnnxModel, OnnxRuntime
from tests.support import models

LARGE = 8192
"""A batch that needs more than 256 MB between its layers."""


def fixed(path: Path, batch: int = LARGE) -> Path:
    """The model `wide`, of this batch alone."""
    model = onnx.load(models.wide(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, path)
    return path


def nonzero(path: Path, size: int = 1 << 20) -> Path:
    """x [size] → indices [1, k] of those that are not 0: onnxruntime allocates the output."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["indices"])],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size])],
        [helper.make_tensor_value_info("indices", TensorProto.INT64, [1, "k"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rss() -> int:
    # What was freed may not have gone back to the system yet.
    ctypes.CDLL(None).malloc_trim(0)
    value = read_memory().rss_bytes
    assert value is not None
    return value


def run(slot: Slot, batch: int = 4, times: int = 1) -> None:
    for _ in range(times):
        binding = slot.bind({"x": (batch, 64)})
        binding.inputs["x"][...] = 1
        binding.submit()
        binding.wait()


@contextmanager
def loaded(path: Path, most_samples: int | None = None) -> Iterator[tuple[OnnxModel, Slot]]:
    model = OnnxRuntime().load(path, LoadOptions(threads=1, most_samples=most_samples))
    slot = model.slot()
    try:
        yield model, slot
    finally:
        slot.close()
        model.close()


@contextmanager
def without_pause(work: Callable[[], None], threads: int = 2) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            work()

    running = [threading.Thread(target=loop) for _ in range(threads)]
    for each in running:
        each.start()
    try:
        yield
    finally:
        stop.set()
        for each in running:
            each.join()


@pytest.mark.parametrize(("make", "most_samples"), [(fixed, None), (models.wide, LARGE)], ids=["fixed", "limited"])
def test_what_one_model_computed_in_serves_the_next(
    make: Callable[[Path], Path], most_samples: int | None, tmp_path: Path
) -> None:
    path = make(tmp_path / "m.onnx")
    with loaded(path, most_samples) as (first, one), loaded(path, most_samples) as (_, two):
        assert first.facts()["arena"] == "shared"
        assert "arena that it shares" in {item.what: item.method for item in first.ledger()}["activations"]
        usual = rss()
        run(one, LARGE)
        alone = rss()
        run(two, LARGE)
        both = rss()
    needed = alone - usual
    assert needed > 128 << 20, "the large request must have needed something"
    # Beside the other's input and output, which lie in its slot's own buffers.
    assert both - alone < needed / 4


@pytest.mark.parametrize("make", [models.wide, models.words, models.adder])
def test_a_model_whose_requests_differ_in_size_has_an_arena_of_its_own(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    with loaded(make(tmp_path / "m.onnx")) as (model, _):
        assert model.facts()["arena"] == "own"
        assert "arena of its own" in {item.what: item.method for item in model.ledger()}["activations"]


@pytest.mark.parametrize(
    ("make", "whose"),
    # Of words the inputs are text, of nonzero the free dimension is no batch's: its output has another first one.
    [(models.wide, "shared"), (models.adder, "shared"), (models.words, "own"), (models.nonzero, "own")],
)
def test_a_batch_that_is_limited_computes_in_the_shared_arena(
    make: Callable[[Path], Path], whose: str, tmp_path: Path
) -> None:
    with loaded(make(tmp_path / "m.onnx"), most_samples=8) as (model, _):
        assert model.facts()["arena"] == whose


def test_a_batch_that_onnxruntime_finds_to_be_none_computes_in_an_arena_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0])],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        # Of one row, as its operator has it.
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert has_bounded_inputs(path, batch=True)
    with loaded(path, most_samples=8) as (model, slot):
        assert model.facts()["arena"] == "own"
        assert slot.bind({"x": (9, 4)}).inputs["x"].shape == (9, 4)


def test_text_of_a_fixed_shape_is_of_no_one_size(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "m",
        [helper.make_tensor_value_info("x", TensorProto.STRING, [1])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with loaded(path) as (model, _):
        assert model.facts()["arena"] == "own"


def test_of_a_file_that_is_no_model_nothing_is_believed(tmp_path: Path) -> None:
    path = fixed(tmp_path / "m.onnx", 1)
    assert has_bounded_inputs(path)
    whole = path.read_bytes()
    for data in (b"", b"\x08", b"\xff" * 64, b"\x3a\x7f", b"\x0b" + whole, whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert not has_bounded_inputs(path, batch=True)
    assert not has_bounded_inputs(tmp_path / "none.onnx", batch=True)


def test_models_that_compute_at_once_each_give_their_own_results(tmp_path: Path) -> None:
    path = fixed(tmp_path / "m.onnx", 16)
    wrong = []

    def work(value: int) -> None:
        with loaded(path) as (_, slot):
            binding = slot.bind({"x": (16, 64)})
            binding.inputs["x"][...] = value
            binding.submit()
            expected = binding.outputs["y"].copy()
            for _ in range(200):
                binding.submit()
                if not np.array_equal(binding.outputs["y"], expected):
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("shared", [True, False])
def test_a_peak_is_given_back_while_another_model_computes_without_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    if not shared:
        # As where onnxruntime was built without allocators that sessions share.
        monkeypatch.setattr(onnxruntime, "arena_of_process", lambda: None)
    with loaded(models.wide(tmp_path / "m.onnx")) as (_, slot), loaded(fixed(tmp_path / "f.onnx", 64)) as (model, _):
        assert model.facts()["arena"] == ("shared" if shared else "own")
        run(slot)
        usual = rss()
        run(slot, LARGE)
        large = rss() - usual
        others = threading.local()

        def work() -> None:
            if not hasattr(others, "slot"):
                others.slot = model.slot()
            run(others.slot, 64)

        with without_pause(work):
            run(slot, times=65)
            assert rss() - usual < large / 4


def test_no_model_waits_for_the_peak_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = arena_of_process()
    assert arena is not None
    shrinks = []
    monkeypatch.setattr(arena, "_shrink", lambda: shrinks.append(1))
    with loaded(models.wide(tmp_path / "m.onnx")) as (_, slot), loaded(fixed(tmp_path / "f.onnx", 4)) as (_, other):
        run(slot, LARGE)
        for _ in range(66):
            run(slot)
            run(other)
        assert shrinks == []


def test_what_a_model_computed_in_goes_with_it(tmp_path: Path) -> None:
    with loaded(fixed(tmp_path / "small.onnx", 4)) as (_, slot):
        run(slot)
    usual = rss()
    with loaded(fixed(tmp_path / "m.onnx")) as (_, slot):
        run(slot, LARGE)
        large = rss() - usual
        slot.close()
    assert large > 128 << 20
    assert rss() - usual < large / 4


def test_an_output_that_onnxruntime_allocated_keeps_no_block(tmp_path: Path) -> None:
    with loaded(nonzero(tmp_path / "n.onnx")) as (other, slot):
        assert other.facts()["arena"] == "shared"
        usual = rss()
        with loaded(fixed(tmp_path / "m.onnx")) as (_, large):
            run(large, LARGE)
            needed = rss() - usual
            binding = slot.bind({"x": (1 << 20,)})
            binding.inputs["x"][...] = 0
            binding.inputs["x"][: 1 << 18] = 1
            binding.submit()
            binding.wait()
        # Its request is not over: whoever asked may read slowly.
        assert needed > 128 << 20
        assert rss() - usual < needed / 4
        assert np.array_equal(binding.outputs["indices"], [np.arange(1 << 18)])


def test_what_a_run_waits_for_memory_is_none_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arena = arena_of_process()
    assert arena is not None
    waited = 10_000_000_000
    clock = time.perf_counter_ns
    late = 0

    def enter() -> None:
        nonlocal late
        late += waited
        SharedArena.enter(arena)

    with loaded(fixed(tmp_path / "m.onnx", 4)) as (_, slot):
        monkeypatch.setattr(time, "perf_counter_ns", lambda: clock() + late)
        monkeypatch.setattr(arena, "enter", enter)
        binding = slot.bind({"x": (4, 64)})
        binding.submit()
        assert late == waited
        assert binding.wait().compute_ns < waited


def test_a_run_that_does_not_end_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_arena, "_PAUSE_S", 0.0)
    arena = SharedArena()
    shrinks = []
    monkeypatch.setattr(arena, "_shrink", lambda: shrinks.append(arena._inside))
    arena.enter()
    for _ in range(3):
        arena.enter()
        arena.give_back()
        arena.leave()
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (arena.enter(), entered.set()))
    thread.start()
    assert entered.wait(20)
    thread.join()
    assert shrinks == [], "some run was inside all the time"
    arena.leave()
    arena.leave()
    assert shrinks == [0]
    arena.enter()
    arena.leave()
    assert shrinks == [0], "what has been given back is not given back again"


def test_nothing_begins_while_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = SharedArena()
    shrinks, begun = threading.Event(), threading.Event()

    def shrink() -> None:
        shrinks.set()
        assert not begun.wait(0.2)

    monkeypatch.setattr(arena, "_shrink", shrink)
    thread = threading.Thread(target=arena.give_back)
    thread.start()
    assert shrinks.wait(20)
    arena.enter()
    begun.set()
    thread.join()
    arena.leave()


def test_where_onnxruntime_registers_no_arena_each_model_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("built without it")

    monkeypatch.setattr("onnxruntime.create_and_register_allocator", refuse)
    monkeypatch.setattr(onnx_arena, "_arena", [])
    assert arena_of_process() is None
    with loaded(fixed(tmp_path / "m.onnx", 4)) as (model, slot):
        assert model.facts()["arena"] == "own"
        run(slot)
        assert slot.bind({"x": (4, 64)}).outputs["y"].any()


def test_there_is_one_arena_and_the_model_that_shrinks_it_is_sound() -> None:
    assert arena_of_process() is arena_of_process()
    onnx.checker.check_model(onnx.load_from_string(onnx_arena._IDENTITY), full_check=True)
