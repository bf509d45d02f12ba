"""Engines on a real GPU: built or loaded by TensorRT or TensorRT for RTX, run, and held against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kedge.model.onnx_io import read_model
from kedge.model.session import ReferenceModel
from kedge_agent.engine.apart import compile_apart
from kedge_agent.engine.compile import COMPUTE_CAPABILITIES
from kedge_agent.engine.here import gpu_here
from kedge_agent.engine.library import RUNTIMES
from kedge_agent.engine.order import Order
from kedge_agent.formats.plan_header import read_plan_header
from tests.support import models
from tests.support.environment import lacks, shared_model

pytestmark = pytest.mark.gpu


def order_for(runtime: str) -> Order:
    """What to compile for the GPU that is here; skips where that cannot be."""
    gpu = gpu_here()
    if gpu is None:
        lacks("gpu", "no NVIDIA GPU and driver on this machine")
    library = RUNTIMES[runtime]
    if library.version() is None:
        pytest.skip(f"{library.title} is not installed on this machine")
    if not library.cross:
        return Order(runtime)
    if gpu.compute_capability not in COMPUTE_CAPABILITIES:
        pytest.skip(f"{library.title} does not compile for this GPU's compute capability {gpu.compute_capability}")
    return Order(runtime, (gpu.compute_capability,))


def run(runtime: str, engine: bytes, inputs: dict[str, NDArray[Any]], shapes: dict[str, tuple[int, ...]]) -> Any:
    """Outputs of an engine, by name. torch lends memory and stream: the project's own are not tested here."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        lacks("gpu", "torch has no CUDA here")
    trt = RUNTIMES[runtime].load()
    loaded = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(engine)
    assert loaded is not None, "the engine does not load"
    context = loaded.create_execution_context()
    memory = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    memory |= {name: torch.empty(shape, dtype=torch.float32, device="cuda") for name, shape in shapes.items()}
    for name, array in inputs.items():
        assert context.set_input_shape(name, array.shape)
    for name, tensor in memory.items():
        assert context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return {name: memory[name].cpu().numpy() for name in shapes}


def held_against_onnxruntime(runtime: str, path: Path, *, least: float) -> None:
    order = order_for(runtime)
    report = compile_apart(path.read_bytes(), order)
    header = read_plan_header(report.engine, file_bytes=len(report.engine))
    assert header.runtime == runtime
    assert report.engine_layers, "where a GPU is, the inspector shows the engine's layers"
    draw = np.random.default_rng(0)
    spec = read_model(path)
    inputs = {
        each.name: draw.standard_normal(tuple(max(dim, 1) for dim in each.shape)).astype(each.dtype)
        for each in spec.inputs
    }
    expected = ReferenceModel(path).run(inputs)
    found = run(runtime, report.engine, inputs, {name: value.shape for name, value in expected.items()})
    for name, value in expected.items():
        a, b = value.reshape(-1).astype(np.float64), found[name].reshape(-1).astype(np.float64)
        assert float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) > least


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_an_engine_computes_what_onnxruntime_computes(runtime: str, tmp_path: Path) -> None:
    held_against_onnxruntime(runtime, models.classifier(tmp_path / "m.onnx", batch=1), least=0.999)


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_a_real_network_computes_what_onnxruntime_computes(runtime: str) -> None:
    held_against_onnxruntime(runtime, shared_model("resnet20_cifar10.onnx"), least=0.999)
