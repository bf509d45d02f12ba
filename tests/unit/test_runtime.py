from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from kedge_agent.errors import AgentError
from kedge_agent.runtime.buffers import ALIGNMENT, Arena, aligned_bytes
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import ModelPool, PoolRetiredError, Timing
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
    slot = OnnxRuntime().load(path, 1).slot()
    binding = slot.bind({"image": images.shape})
    address = binding.outputs["logits"].ctypes.data
    binding.inputs["image"][...] = images
    binding.run()
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    np.testing.assert_allclose(binding.outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    binding.inputs["image"][...] = 0
    binding.run()
    assert binding.outputs["logits"].ctypes.data == address
    assert not np.allclose(binding.outputs["logits"], expected)


def test_bindings_are_reused_for_shapes_that_return_and_made_anew_when_memory_moved(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), 1).slot()
    one = slot.bind({"image": (1, 1, 8, 8)})
    assert slot.bind({"image": (1, 1, 8, 8)}) is one
    sixteen = slot.bind({"image": (16, 1, 8, 8)})
    moved = slot.bind({"image": (1, 1, 8, 8)})
    assert moved is not one
    images = models.images(16)
    sixteen.inputs["image"][...] = images
    sixteen.run()
    batch = sixteen.outputs["logits"].copy()
    moved.inputs["image"][...] = images[:1]
    moved.run()
    np.testing.assert_allclose(moved.outputs["logits"], batch[:1], rtol=1e-5, atol=1e-6)


def test_an_output_whose_size_depends_on_the_data_is_served(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.nonzero(tmp_path / "m.onnx"), 1).slot()
    binding = slot.bind({"x": (5,)})
    for values, expected in (([0, 1, 0, 2, 0], [[1, 3]]), ([1, 1, 1, 1, 1], [[0, 1, 2, 3, 4]]), ([0] * 5, [[]])):
        binding.inputs["x"][...] = values
        binding.run()
        np.testing.assert_array_equal(binding.outputs["indices"], np.array(expected, dtype=np.int64))


def test_inputs_that_disagree_about_a_named_size_are_refused(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.adder(tmp_path / "m.onnx"), 1).slot()
    with pytest.raises(AgentError, match="disagree"):
        slot.bind({"a": (2,), "b": (3,)})


def test_a_tensor_no_device_could_hold_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.adder(tmp_path / "m.onnx"), 1).slot()
    with pytest.raises(AgentError, match="too large") as caught:
        slot.bind({"a": (1 << 39,), "b": (1 << 39,)})
    assert caught.value.kind == "too_large"


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(AgentError) as caught:
        OnnxRuntime().load(path, 1)
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
        OnnxRuntime().load(path, 1)


def make_pool(tmp_path: Path, **options) -> ModelPool:
    return ModelPool(OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), 1), **options)


SHAPE = {"image": (1, 1, 8, 8)}


def test_requests_beyond_the_slots_wait_and_the_wait_is_told(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    timings = [Timing() for _ in range(3)]
    inside = threading.Barrier(3)

    def hold(timing: Timing) -> None:
        with pool.request(SHAPE, timing):
            inside.wait(20)
            time.sleep(0.2)

    holders = [threading.Thread(target=hold, args=(timing,)) for timing in timings[:2]]
    for holder in holders:
        holder.start()
    inside.wait(20)
    with pool.request(SHAPE, timings[2]):
        pass
    for holder in holders:
        holder.join()
    assert timings[2].queue_ns > 50_000_000


def test_a_request_that_waits_too_long_is_told_to_come_back(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, wait_s=0.05)
    with (
        pool.request(SHAPE, Timing()),
        pool.request(SHAPE, Timing()),
        pytest.raises(AgentError, match="no buffer came free") as caught,
        pool.request(SHAPE, Timing()),
    ):
        pass
    assert caught.value.kind == "busy"


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
    pool = make_pool(tmp_path, wait_s=0.5)
    for _ in range(4):
        with pytest.raises(RuntimeError), pool.request(SHAPE, Timing()):
            raise RuntimeError
    with pool.request(SHAPE, Timing()):
        pass
