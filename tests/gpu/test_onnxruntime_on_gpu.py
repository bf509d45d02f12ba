"""onnxruntime's CUDA provider behind the agent's buffers: the answers are the CPU's, and each request has its own."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kedge_agent.engine.here import gpu_here
from kedge_agent.runtime.base import LoadOptions, Provider
from kedge_agent.runtime.onnxruntime import OnnxModel, OnnxRuntime
from kedge_agent.runtime.pool import ModelPool, PoolRules, Timing
from tests.support import models
from tests.support.environment import lacks, shared_model

pytestmark = pytest.mark.gpu

CUDA = (Provider("CUDAExecutionProvider"),)


@pytest.fixture(autouse=True)
def provider() -> None:
    import onnxruntime

    if gpu_here() is None:
        lacks("gpu", "no NVIDIA GPU and driver on this machine")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        lacks("onnxruntime-gpu", "this onnxruntime has no CUDA provider (pip: onnxruntime-gpu)")


def on_gpu(path: Path, **options: int) -> OnnxModel:
    model = OnnxRuntime().load(path, LoadOptions(providers=CUDA, **options))
    # onnxruntime falls back to the CPU where the provider's own libraries (cuDNN, cuBLAS) are not found.
    assert model.facts()["providers"][0] == "CUDAExecutionProvider", "the CUDA provider did not load"
    return model


def ask(model: OnnxModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    slot = model.slot()
    try:
        binding = slot.bind({name: array.shape for name, array in inputs.items()})
        for name, array in inputs.items():
            binding.inputs[name][...] = array
        binding.submit()
        binding.wait()
        return {name: np.array(array) for name, array in binding.outputs.items()}
    finally:
        slot.close()


@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "mobilenetv1_025_128_imagenet.onnx"])
def test_a_real_network_gives_the_cpus_answers(name: str) -> None:
    path = shared_model(name)
    expected, found = OnnxRuntime().load(path, LoadOptions()), on_gpu(path)
    draw = np.random.default_rng(0)
    inputs = {
        spec.name: draw.standard_normal(tuple(max(dim, 1) for dim in spec.shape)).astype(spec.dtype)
        for spec in found.inputs
    }
    for output, value in ask(expected, inputs).items():
        np.testing.assert_allclose(ask(found, inputs)[output], value, rtol=1e-2, atol=1e-2)


def test_many_threads_get_their_own_results(tmp_path: Path) -> None:
    model = on_gpu(doubling(tmp_path / "m.onnx"), workers=2)
    pool = ModelPool(model, PoolRules(workers=2))
    wrong: list[int] = []

    def client(number: int) -> None:
        for turn in range(100):
            with pool.request({"x": (1 + turn % 7,)}, Timing()) as binding:
                binding.inputs["x"][...] = number + turn
                pool.run(binding, Timing())
                if not (binding.outputs["y"] == 2 * (number + turn)).all():
                    wrong.append(number)

    threads = [threading.Thread(target=client, args=(1000 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    pool.retire()


def test_the_classifier_runs_in_batches_of_any_size(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    expected, found = OnnxRuntime().load(path, LoadOptions()), on_gpu(path)
    for count in (1, 5, 2, 64):
        inputs = {"image": models.images(count)}
        np.testing.assert_allclose(ask(found, inputs)["logits"], ask(expected, inputs)["logits"], rtol=1e-2, atol=1e-2)


def doubling(path: Path) -> Path:
    """x [n] → y = x + x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
