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

from kedge_agent.measure.memory import read_memory
from kedge_agent.runtime import onnx_arena
from kedge_agent.runtime.base import LoadOptions, Slot
from kedge_agent.runtime.onnx_arena import SharedArena, arena_of_process
from kedge_agent.runtime.onnxruntime import OnnxModel, OnnxRuntime
from tests.support import models

LARGE = 8192
"""A batch that needs more than 256 MB between its layers."""


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
def loaded(path: Path) -> Iterator[tuple[OnnxModel, Slot]]:
    model = OnnxRuntime().load(path, LoadOptions(threads=1))
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


def test_what_one_model_computed_in_serves_the_next(tmp_path: Path) -> None:
    path = models.wide(tmp_path / "m.onnx")
    with loaded(path) as (first, one), loaded(path) as (_, two):
        assert first.facts()["arena"] == "shared"
        assert "the one arena" in {item.what: item.method for item in first.ledger()}["activations"]
        run(one)
        run(two)
        usual = rss()
        run(one, LARGE)
        alone = rss()
        run(two, LARGE)
        both = rss()
    needed = alone - usual
    assert needed > 128 << 20, "the large request must have needed something"
    # Beside the other's input and output, which lie in its slot's own buffers.
    assert both - alone < needed / 4


def test_models_that_compute_at_once_each_give_their_own_results(tmp_path: Path) -> None:
    path = models.wide(tmp_path / "m.onnx")
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


def test_a_peak_is_given_back_while_another_model_computes_without_pause(tmp_path: Path) -> None:
    path = models.wide(tmp_path / "m.onnx")
    with loaded(path) as (_, slot), loaded(path) as (model, _):
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
            until = time.monotonic() + 20
            while rss() - usual > large / 4:
                assert time.monotonic() < until, "the peak stays"
                run(slot)


def test_what_a_model_computed_in_goes_with_it(tmp_path: Path) -> None:
    with loaded(models.wide(tmp_path / "m.onnx")) as (_, slot):
        run(slot)
    usual = rss()
    with loaded(tmp_path / "m.onnx") as (_, slot):
        run(slot, LARGE)
        large = rss() - usual
        slot.close()
    assert large > 128 << 20
    assert rss() - usual < large / 4


def test_a_run_that_does_not_end_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_arena, "_PAUSE_S", 0.0)
    assert arena_of_process() is not None
    arena = SharedArena()
    arena.enter()
    for _ in range(3):
        arena.enter()
        arena.leave(give_back=True)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (arena.enter(), entered.set()))
    thread.start()
    assert entered.wait(20)
    thread.join()
    arena.leave(give_back=False)
    arena.leave(give_back=False)
    arena.enter()
    arena.leave(give_back=True)


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
    arena.leave(give_back=False)


def test_there_is_one_arena_and_the_model_that_shrinks_it_is_sound() -> None:
    assert arena_of_process() is arena_of_process()
    onnx.checker.check_model(onnx.load_from_string(onnx_arena._IDENTITY), full_check=True)
