"""The agent's own way to a real GPU: page-locked buffers, engines in its runtime, copies that overlap, clean ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.model.onnx_io import read_model
from kedge.model.session import ReferenceModel
from kedge_agent.engine.apart import compile_apart
from kedge_agent.engine.here import gpu_here
from kedge_agent.engine.library import RUNTIMES
from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.buffers import ALIGNMENT
from kedge_agent.runtime.cuda import Cuda, Stream
from kedge_agent.runtime.cuda_bindings import BindingsCuda
from kedge_agent.runtime.cuda_lanes import Gpu
from kedge_agent.runtime.cuda_pycuda import PycudaCuda
from kedge_agent.runtime.tensorrt import TensorRTRuntime
from kedge_agent.runtime.tensorrt_model import TensorRTModel
from tests.gpu.test_engine_runs import order_for
from tests.support import models
from tests.support.environment import lacks, shared_model

pytestmark = pytest.mark.gpu

BINDINGS = {"pycuda": PycudaCuda.open, "cuda.bindings": BindingsCuda.open}
_opened: dict[str, Cuda] = {}


def opened(name: str) -> Cuda:
    """A binding on this machine's GPU, opened once; skips where there is none."""
    if gpu_here() is None:
        lacks("gpu", "no NVIDIA GPU and driver on this machine")
    if name not in _opened:
        try:
            _opened[name] = BINDINGS[name]()
        except ImportError as error:
            lacks("gpu", f"{name} is not installed on this machine: {error}")
    return _opened[name]


@pytest.fixture(params=list(BINDINGS))
def cuda(request: pytest.FixtureRequest) -> Iterator[Cuda]:
    found = opened(request.param)
    with found.current():
        before = found.free_bytes()
        yield found
        # What this test took it gave back, as far as the driver's own pools of 2 MiB tell.
        assert before - found.free_bytes() < 64 << 20


@pytest.fixture(params=[(runtime, name) for runtime in RUNTIMES for name in BINDINGS], ids=str)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., TensorRTModel]]:
    """Compiles an ONNX file for this GPU and loads it."""
    runtime, name = request.param
    order = order_for(runtime)
    gpu = Gpu(opened(name))
    made: list[TensorRTModel] = []

    def load(path: Path, options: LoadOptions) -> TensorRTModel:
        engine = tmp_path / "m.engine"
        engine.write_bytes(compile_apart(path.read_bytes(), order).engine)
        made.append(TensorRTRuntime(runtime, gpu=lambda: gpu).load(engine, options))
        return made[-1]

    yield load
    for model in made:
        model.close()


def heavy(path: Path) -> Path:
    """image [1, 3, 512, 512] → y, through twelve convolutions of 64 channels: milliseconds on any GPU."""
    draw = np.random.default_rng(0)
    nodes, weights, last = [], [], "image"
    for layer in range(12):
        shape = (64, 3 if layer == 0 else 64, 3, 3)
        weights.append(numpy_helper.from_array((draw.standard_normal(shape) * 0.05).astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 512, 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64, 1, 1])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_page_locked_memory_goes_to_the_device_and_back(cuda: Cuda) -> None:
    size = 1 << 20
    stream, source, device, target = cuda.stream(), cuda.pinned(size), cuda.memory(size), cuda.pinned(size)
    source.array[:] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    target.array[:] = 0
    stream.h2d(device.address, source.array)
    stream.d2h(target.array, device.address)
    stream.synchronise()
    np.testing.assert_array_equal(target.array, source.array)
    assert all(block.address % ALIGNMENT == 0 for block in (source, device, target))
    for each in (stream, source, device, target):
        each.close()


def test_memory_that_is_not_there_is_an_error_of_its_kind_and_the_gpu_works_on(cuda: Cuda) -> None:
    with pytest.raises(AgentError, match="no GPU memory left") as caught:
        cuda.memory(1 << 50)
    assert caught.value.kind == "space"
    cuda.memory(1 << 20).close()


def test_events_of_copies_in_both_directions_show_that_they_overlap(cuda: Cuda) -> None:
    size = 256 << 20
    up, down = cuda.stream(), cuda.stream()
    blocks = [cuda.pinned(size), cuda.memory(size), cuda.pinned(size), cuda.memory(size)]
    begin_up, end_up, begin_down, end_down = events = [cuda.event() for _ in range(4)]

    def alone_ms(stream: Stream, queue: Callable[[], None]) -> float:
        begin_up.record(stream)
        queue()
        end_up.record(stream)
        end_up.synchronise()
        return end_up.elapsed_ms(begin_up)

    def copy_up() -> None:
        up.h2d(blocks[1].address, blocks[0].array)

    def copy_down() -> None:
        down.d2h(blocks[2].array, blocks[3].address)

    for _ in range(2):  # the first is the warm-up
        alone = alone_ms(up, copy_up) + alone_ms(down, copy_down)
    begin_up.record(up)
    copy_up()
    end_up.record(up)
    begin_down.record(down)
    copy_down()
    end_down.record(down)
    for event in events:
        event.synchronise()
    together = max(end_up.elapsed_ms(begin_up), end_down.elapsed_ms(begin_up))
    for each in (*events, *blocks, up, down):
        each.close()
    assert together < 0.9 * alone, "a GPU with one copy engine cannot do this; all that kedge has profiles of have two"


@pytest.mark.parametrize("transfer", ["copy", "mapped", "managed", "auto"])
def test_the_agents_results_are_onnxruntimes(load: Callable[..., TensorRTModel], transfer: Any, tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx", batch=1)
    try:
        model = load(path, LoadOptions(transfer=transfer, cache=tmp_path / "cache"))
    except AgentError as error:
        if "cannot be had" in error.message:
            pytest.skip(error.message)
        raise
    images = models.images(1)
    expected = ReferenceModel(path).run({"image": images})
    slot = model.slot()
    binding = slot.bind({"image": images.shape})
    for _ in range(4):  # plain, captured, launched
        binding.inputs["image"][...] = images
        binding.outputs["logits"][...] = np.nan
        binding.submit()
        binding.wait()
        np.testing.assert_allclose(binding.outputs["logits"], expected["logits"], rtol=1e-2, atol=1e-2)
    slot.close()


def test_a_real_network_gives_onnxruntimes_answers(load: Callable[..., TensorRTModel]) -> None:
    path = shared_model("resnet20_cifar10.onnx")
    draw = np.random.default_rng(0)
    inputs = {
        each.name: draw.standard_normal(tuple(max(dim, 1) for dim in each.shape)).astype(each.dtype)
        for each in read_model(path).inputs
    }
    expected = ReferenceModel(path).run(inputs)
    slot = load(path, LoadOptions()).slot()
    binding = slot.bind({name: array.shape for name, array in inputs.items()})
    for name, array in inputs.items():
        binding.inputs[name][...] = array
    binding.submit()
    binding.wait()
    for name, value in expected.items():
        a, b = value.reshape(-1).astype(np.float64), binding.outputs[name].reshape(-1).astype(np.float64)
        assert float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) > 0.999
    slot.close()


def test_the_next_requests_copy_in_ends_before_this_computation_does(
    load: Callable[..., TensorRTModel], tmp_path: Path
) -> None:
    model = load(heavy(tmp_path / "m.onnx"), LoadOptions(transfer="copy"))
    slots = [model.slot(), model.slot()]
    first, second = (slot.bind({"image": (1, 3, 512, 512)}) for slot in slots)
    for _ in range(3):
        for binding in (first, second):
            binding.submit()  # type: ignore[attr-defined]
        seats = [binding.seat for binding in (first, second)]  # type: ignore[attr-defined]
        for binding in (first, second):
            binding.wait()
    with model.cuda.current():
        one, two = seats
        computed = one.run_end.elapsed_ms(one.in_begin)
        copied = two.in_end.elapsed_ms(one.in_begin)
        begun = two.run_begin.elapsed_ms(one.in_begin)
    assert copied < computed, "the second copy was over while the first inference ran"
    assert begun >= computed, "inferences on one lane follow one another"
    for slot in slots:
        slot.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_are_told_by_name_for_every_run(tmp_path: Path, runtime: str) -> None:
    order = order_for(runtime)
    path = models.classifier(tmp_path / "m.onnx", batch=1)
    engine = tmp_path / "m.engine"
    engine.write_bytes(compile_apart(path.read_bytes(), order).engine)
    layers = TensorRTRuntime(runtime).layers(engine, LoadOptions(), {"image": models.images(1)}, 5)
    assert layers
    assert {len(layer.times_ms) for layer in layers} == {5}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_damaged_engine_is_refused_in_tensorrts_words(tmp_path: Path, runtime: str) -> None:
    order_for(runtime)
    path = tmp_path / "m.engine"
    path.write_bytes(b"ftrt" + bytes(4096))
    with pytest.raises(AgentError, match="refuses the engine") as caught:
        TensorRTRuntime(runtime).load(path, LoadOptions())
    assert caught.value.kind == "incompatible"


def test_scratch_that_moved_leaves_no_graph_of_the_old_one(load: Callable[..., TensorRTModel], tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx", batch=1)
    images = models.images(1)
    expected = ReferenceModel(path).run({"image": images})["logits"]
    slot = load(path, LoadOptions(transfer="copy")).slot()
    binding = slot.bind({"image": images.shape})

    def run() -> None:
        binding.inputs["image"][...] = images
        binding.outputs["logits"][...] = np.nan
        binding.submit()
        binding.wait()
        np.testing.assert_allclose(binding.outputs["logits"], expected, rtol=1e-2, atol=1e-2)

    for _ in range(4):  # plain, captured, launched
        run()
    load(heavy(tmp_path / "heavy.onnx"), LoadOptions(transfer="copy"))  # needs more scratch: the lane's moves
    for _ in range(4):
        run()
    slot.close()
