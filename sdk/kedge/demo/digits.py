"""The demo's data and network: scikit-learn's handwritten digits, and a small CNN.

1,797 real 8×8 scans by 43 writers (UCI "Optical Recognition of Handwritten Digits", test part),
bundled with scikit-learn. They are enlarged to 16×16, where 64 and 128 channels give INT8 kernels
enough to do. With torch, this is the one module beside `optimize.export` that imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import IncompatibleError

if TYPE_CHECKING:
    import torch

__all__ = ["Digits", "load_digits", "train_and_export"]

_SEED = 0
_HELD_OUT = 360
_EPOCHS = 4
_BATCH = 64
_LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Digits:
    """Images [n, 1, 16, 16] float32 in 0..1 and labels [n]; training never sees the held-out ones."""

    train_images: NDArray[Any]
    train_labels: NDArray[Any]
    test_images: NDArray[Any]
    test_labels: NDArray[Any]


def load_digits() -> Digits:
    """Read the bundled images and hold 360 of them out.

    Raises:
        IncompatibleError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise _missing("scikit-learn") from error
    bundled = datasets.load_digits()
    images = (bundled.images / 16).astype(np.float32)[:, None].repeat(2, axis=2).repeat(2, axis=3)
    labels = bundled.target.astype(np.int64)
    order = np.random.default_rng(_SEED).permutation(len(labels))
    test, train = order[:_HELD_OUT], order[_HELD_OUT:]
    return Digits(images[train], labels[train], images[test], labels[test])


def train_and_export(digits: Digits, path: Path, tick: Callable[[str, float], None]) -> None:
    """Train a three-layer CNN for a few seconds and export it to ONNX, its batch free.

    Raises:
        IncompatibleError: torch is not installed.
    """
    tick("loading PyTorch", 0.0)
    try:
        import torch
    except ImportError as error:
        raise _missing("torch") from error
    from torch import nn

    from ..optimize.export import export_onnx

    # So small a network gains nothing from a second thread; on a busy machine the threads wait for one another,
    # and the demo took 81 s instead of 31.
    torch.set_num_threads(1)
    torch.manual_seed(_SEED)
    network = nn.Sequential(
        *_block(1, 64, stride=1),
        *_block(64, 128, stride=2),
        *_block(128, 128, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    steps = _EPOCHS * -(-len(labels) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(_SEED)
    done = 0
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):  # type: ignore[no-untyped-call]
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
            tick("training", done / steps)
    tick("exporting to ONNX", 0.0)
    export_onnx(network, images[:2], path, input_names=["image"], output_names=["logits"])


def _block(channels_in: int, channels_out: int, *, stride: int) -> list[torch.nn.Module]:
    from torch import nn

    # Batch normalisation halves the epochs, and the export folds it into the convolution.
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, stride=stride, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


def _missing(library: str) -> IncompatibleError:
    return IncompatibleError(f"the demo needs {library}", hint="pip install 'kedge[optimize]', or run: make demo")
