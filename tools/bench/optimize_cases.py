"""The models and data that tools/bench/optimize.py compares on: what calibrates, and what is evaluated."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

__all__ = ["CASES", "Case", "Part", "missing"]

CALIBRATION = 512
MNIST_CALIBRATION = 1000
MOBILENET_CALIBRATION, MOBILENET_EVALUATION = 128, 1000

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """Inputs [n, …] that calibrate, others that evaluate; labels [n], or None: FP32's own answers stand for them."""

    calibration: NDArray[np.generic]
    evaluation: NDArray[np.generic]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Case:
    """A model and its data. Each part is quantised and evaluated by itself; the answers of all parts are counted.

    batch: how many samples a calibration step takes; 1 where the model insists. opset: that the model is converted to
    before the others get it, where one of them refuses it as published.
    """

    name: str
    model: Path
    input: str
    parts: tuple[Part, ...]
    batch: int
    measured: str
    opset: int | None = None


def missing(shared: Path) -> list[str]:
    """Paths that must be there and are not."""
    wanted = [f"models/{name}.onnx" for name in ("resnet20_cifar10", "resnet56_cifar10", "mnist_cnn", "magika_v3_3")]
    wanted += ["models/resnet8_cifar10_mlperftiny.onnx", "models/mobilenetv2_imagenet.onnx"]
    wanted += ["data/load.py", "data/cifar10", "data/mnist", "data/magika"]
    return [name for name in wanted if not (shared / name).exists()]


def resnet20(shared: Path, limit: int) -> Case:
    return _cifar(shared, limit, "ResNet-20", "resnet20_cifar10", "input", _normalised)


def resnet56(shared: Path, limit: int) -> Case:
    return _cifar(shared, limit, "ResNet-56", "resnet56_cifar10", "input", _normalised)


def resnet8(shared: Path, limit: int) -> Case:
    return _cifar(
        shared, limit, "ResNet-8 (MLPerf Tiny)", "resnet8_cifar10_mlperftiny", "input_1", lambda x: x.astype(np.float32)
    )


def mnist(shared: Path, limit: int) -> Case:
    images, labels = _loader(shared).mnist_test()
    images, first = images.astype(np.float32), MNIST_CALIBRATION
    part = Part(images[:first], images[first:][:limit], labels[first:][:limit])
    text = (
        f"top-1 on {len(part.evaluation):,} MNIST test images, {first:,} others calibrate; published in opset 8, which "
        "ModelOpt refuses: onnxruntime and ModelOpt get it converted to opset 17"
    )
    return Case("mnist_cnn", shared / "models" / "mnist_cnn.onnx", "Input3", (part,), 1, text, opset=17)


def mobilenet(shared: Path, limit: int) -> Case:
    load = _loader(shared)
    count = min(limit, MOBILENET_EVALUATION)
    part = Part(
        _enlarged(load.cifar10("train")[0][:MOBILENET_CALIBRATION]), _enlarged(load.cifar10("test")[0][:count]), None
    )
    text = (
        f"argmax agreement with FP32 on {count:,} CIFAR-10 test images enlarged to 224 × 224 (no labelled ImageNet "
        f"data), {MOBILENET_CALIBRATION} training images calibrate"
    )
    return Case("MobileNetV2", shared / "models" / "mobilenetv2_imagenet.onnx", "input", (part,), 16, text)


def magika(shared: Path, limit: int) -> Case:
    features = _loader(shared).magika()[0]
    even, odd = features[::2], features[1::2]
    parts = (Part(even, odd[:limit], None), Part(odd, even[:limit], None))
    text = (
        f"argmax agreement with FP32 on all {len(features)} samples: either half calibrates a model that is evaluated "
        "on the other half"
    )
    return Case("magika", shared / "models" / "magika_v3_3.onnx", "bytes", parts, len(even), text)


CASES: dict[str, Callable[[Path, int], Case]] = {
    "resnet20": resnet20,
    "resnet56": resnet56,
    "resnet8": resnet8,
    "mnist": mnist,
    "mobilenetv2": mobilenet,
    "magika": magika,
}
"""By name: called with the folder `shared` and the most samples to evaluate."""


def _cifar(
    shared: Path, limit: int, name: str, model: str, source: str, prepare: Callable[[Images], NDArray[np.float32]]
) -> Case:
    load = _loader(shared)
    images, labels = load.cifar10("test")
    part = Part(prepare(load.cifar10("train")[0][:CALIBRATION]), prepare(images[:limit]), labels[:limit])
    text = f"top-1 on {len(part.evaluation):,} CIFAR-10 test images, {CALIBRATION} training images calibrate"
    return Case(name, shared / "models" / f"{model}.onnx", source, (part,), 64, text)


def _normalised(images: Images) -> NDArray[np.float32]:
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def _enlarged(images: Images) -> NDArray[np.float32]:
    from PIL import Image

    large = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)) for image in images]
    return np.ascontiguousarray(np.stack(large).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def _loader(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_load", shared / "data" / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
