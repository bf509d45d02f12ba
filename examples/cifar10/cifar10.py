"""CIFAR-10 images and ResNet checkpoints for the recipes in this folder.

They are looked for in `shared/` beside the repository, or in the folder that KEDGE_SHARED names:

    data/cifar10/{train,test}_*.webp and *_labels.npy    mosaics of 32×32 images, 25 columns
    models/resnet{20,56}_cifar10.th                      akamaster/pytorch_resnet_cifar10

A recipe refers to a function here as "cifar10:resnet56"; kedge imports this file from the recipe's folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

SHARED = Path(os.environ.get("KEDGE_SHARED", Path(__file__).resolve().parents[3] / "shared"))

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def train() -> Labelled:
    """The 7,500 training images at hand: uint8 [n, 32, 32, 3], and labels [n]."""
    return _images("train")


def test() -> Labelled:
    """The 10,000 test images."""
    return _images("test")


def resnet20() -> nn.Module:
    """ResNet-20 with its trained weights; 91.73 % on the test images."""
    return _resnet("resnet20", 3)


def resnet56() -> nn.Module:
    """ResNet-56 with its trained weights; 93.39 % on the test images."""
    return _resnet("resnet56", 9)


def _images(split: str) -> Labelled:
    folder = SHARED / "data" / "cifar10"
    mosaics = sorted(folder.glob(f"{split}_*.webp"))
    if not mosaics:
        raise FileNotFoundError(f"no {split} images in {folder}; set KEDGE_SHARED")
    parts = []
    for path in mosaics:
        mosaic = np.asarray(Image.open(path).convert("RGB"))
        rows, columns = mosaic.shape[0] // 32, mosaic.shape[1] // 32
        parts.append(mosaic.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3))
    labels = np.load(folder / f"{split}_labels.npy").astype(np.int64)
    return np.concatenate(parts)[: len(labels)], labels


def _resnet(name: str, blocks: int) -> nn.Module:
    model = ResNet(blocks)
    path = SHARED / "models" / f"{name}_cifar10.th"
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path.name} in {path.parent}; set KEDGE_SHARED")
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict({key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()})
    return model.eval()


class Block(nn.Module):
    """Two convolutions and a shortcut without weights (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, inputs, h, w] → [n, outputs, h / stride, w / stride]."""
        y = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return nn.functional.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. 2016, section 4.2."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.example_input = torch.zeros(2, 3, 32, 32)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, 32, 32] → logits [n, 10]."""
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.linear(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))
