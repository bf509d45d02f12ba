from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.buffers import ALIGNMENT, Arena, aligned_bytes
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import ModelPool, PoolRetiredError, PoolRules, Timing
from kedge_agent.runtime.turns import Turns
from tests.support import models


@pytest.mark.parametrize("size", [1, 255, 256, 1 << 20])
def test_buffers_begin_on_the_alignment_tensorrt_asks_for(size: int) -> None:
    block = aligned_bytes(size)
    assert block.size == size
    assert block.ctypes.data % ALIGNMENT == 0


def test_an_arena_keeps_its_memory_until_a_shape_needs_more() -> None:
    arena = Arena()
    first = arena.tensor("x", np.dtype("f4"), (4, 8))
    before = arena.generation
    smaller = arena.tensor("x", np.dtype("f4"), (2, 8))
    assert smaller.ctypes.data == first.ctypes.data
    assert arena.generation == before
    larger = arena.tensor("x", np.dtype("f4"), (64, 8))
    assert larger.ctypes.data != first.ctypes.data
    assert arena.generation > before


def test_outputs_lie_in_memory_the_agent_allocated_and_equal_a_plain_run(tmp_path: Path) -> None:
    import onnxruntime

    path = models.classifier(tmp_path / "m.onnx")
    images = models.images(3)
    slot = OnnxRuntime().load(path, LoadOptions()).slot()
    binding = slot.bind({"image": images.shape})
    address = binding.outputs["logits"].ctypes.data
    binding.inputs["image"][...] = images
    binding.submit()
    binding.wait()
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    np.testing.assert_allclose(binding.outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    binding.inputs["image"][...] = 0
    binding.submit()
    binding.wait()
    assert binding.outputs["logits"].ctypes.data == address
    assert not np.allclose(binding.outputs["logits"], expected)


def test_bindings_are_reused_for_shapes_that_return_and_made_anew_when_memory_moved(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()).slot()
    one = slot.bind({"image": (1, 1, 8, 8)})
    assert slot.bind({"image": (1, 1, 8, 8)}) is one
    sixteen = slot.bind({"image": (16, 1, 8, 8)})
    moved = slot.bind({"image": (1, 1, 8, 8)})
    assert moved is not one
    images = models.images(16)
    sixteen.inputs["image"][...] = images
    sixteen.submit()
    sixteen.wait()
    batch = sixteen.outputs["logits"].copy()
    moved.inputs["image"][...] = images[:1]
    moved.submit()
    moved.wait()
    np.testing.assert_allclose(moved.outputs["logits"], batch[:1], rtol=1e-5, atol=1e-6)


def test_an_output_whose_size_depends_on_the_data_is_served(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.nonzero(tmp_path / "m.onnx"), LoadOptions()).slot()
    binding = slot.bind({"x": (5,)})
    for values, expected in (([0, 1, 0, 2, 0], [[1, 3]]), ([1, 1, 1, 1, 1], [[0, 1, 2, 3, 4]]), ([0] * 5, [[]])):
        binding.inputs["x"][...] = values
        binding.submit()
        binding.wait()
        np.testing.assert_array_equal(binding.outputs["indices"], np.array(expected, dtype=np.int64))


def test_inputs_that_disagree_about_a_named_size_are_refused(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.adder(tmp_path / "m.onnx"), LoadOptions()).slot()
    with pytest.raises(AgentError, match="disagree"):
        slot.bind({"a": (2,), "b": (3,)})


def test_a_tensor_no_device_could_hold_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.adder(tmp_path / "m.onnx"), LoadOptions()).slot()
    with pytest.raises(AgentError, match="too large") as caught:
        slot.bind({"a": (1 << 39,), "b": (1 << 39,)})
    assert caught.value.kind == "too_large"


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(AgentError) as caught:
        OnnxRuntime().load(path, LoadOptions())
    assert caught.value.kind == "incompatible"
    assert "\n" not in caught.value.message


def test_a_model_of_strings_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    value = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(AgentError, match="does not serve"):
        OnnxRuntime().load(path, LoadOptions())


def make_pool(tmp_path: Path, **rules: Any) -> ModelPool:
    return ModelPool(OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()), PoolRules(**rules))


SHAPE = {"image": (1, 1, 8, 8)}


def test_who_finds_the_model_busy_waits_and_the_wait_is_told(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool._turns.take(time.monotonic() + 1)
    timing = Timing()

    def request() -> None:
        with pool.request(SHAPE, timing) as binding:
            pool.run(binding, timing)

    waiter = threading.Thread(target=request)
    waiter.start()
    time.sleep(0.2)
    assert (pool.inside, pool.waiting) == (1, 1)
    pool._turns.give()
    waiter.join()
    assert timing.queue_ns > 50_000_000
    assert (pool.inside, pool.waiting) == (0, 0)


def test_a_request_beyond_the_queue_is_told_to_come_back_at_once(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, queue=1)
    with (
        pool.request(SHAPE, Timing()),
        pool.request(SHAPE, Timing()),
        pytest.raises(AgentError, match="2 requests are with this model already") as caught,
        pool.request(SHAPE, Timing()),
    ):
        pass
    assert caught.value.kind == "busy"
    with pool.request(SHAPE, Timing()):
        pass


def test_a_request_whose_turn_does_not_come_before_its_deadline_gives_up_and_leaves_no_trace(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool._turns.take(time.monotonic() + 1)
    with pool.request(SHAPE, Timing()) as binding, pytest.raises(AgentError, match="deadline") as caught:
        pool.run(binding, Timing(), deadline=time.monotonic() + 0.05)
    assert caught.value.kind == "busy"
    assert pool.waiting == 0
    pool._turns.give()
    with pool.request(SHAPE, Timing()) as binding:
        pool.run(binding, Timing())


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns = Turns(1)
    turns.take(time.monotonic() + 1)
    order: list[int] = []

    def wait(number: int) -> None:
        turns.take(time.monotonic() + 20)
        order.append(number)
        turns.give()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while turns.waiting() <= number:
            time.sleep(0.001)
    turns.give()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_newer_frame_takes_the_place_of_one_that_waits() -> None:
    turns = Turns(1, drop_stale=True)
    turns.take(time.monotonic() + 1)
    said: list[str] = []

    def old_frame() -> None:
        with pytest.raises(AgentError) as caught:
            turns.take(time.monotonic() + 20)
        said.append(str(caught.value))

    old = threading.Thread(target=old_frame)
    old.start()
    while not turns.waiting():
        time.sleep(0.001)
    new = threading.Thread(target=turns.take, args=(time.monotonic() + 20,))
    new.start()
    old.join()
    assert "newer request" in said[0]
    assert turns.waiting() == 1
    turns.give()
    new.join()


def test_slots_of_a_burst_are_given_back_after_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(pool.request(SHAPE, Timing()))
    assert len(pool._idle) == 2


def test_a_retired_pool_serves_who_is_inside_and_closes_after_them(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    timing = Timing()
    with pool.request(SHAPE, timing) as binding:
        pool.retire()
        with pytest.raises(PoolRetiredError), pool.request(SHAPE, Timing()):
            pass
        pool.run(binding, timing)
    assert timing.compute_ns > 0
    with pytest.raises(AgentError, match="unloaded"):
        pool.model.slot()


def test_a_slot_comes_back_when_its_request_fails(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, queue=1)
    for _ in range(4):
        with pytest.raises(RuntimeError), pool.request(SHAPE, Timing()):
            raise RuntimeError
    with pool.request(SHAPE, Timing()):
        pass
