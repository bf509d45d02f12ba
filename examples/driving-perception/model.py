"""Scenes of real surfaces, the network that tells them apart, and what the recipe refers to.

The surfaces are photographs that come with scikit-image, all under CC0: `grass` (Linolafett, DeviantArt),
`gravel` (CC0Textures, Gravel04) and `brick` (CC0Textures, Bricks25). A scene lays them on the ground in front of a
camera. Training takes the left three fifths of each photograph, the held-out frames the rest: no pixel is in both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage import data
from torch import nn

SURFACES = ("grass", "gravel", "brick")
HEIGHT, WIDTH = 384, 640
CELL = 8
"""Pixels of a cell's side: the network answers for cells."""

WEIGHTS = Path("driving-perception.pt")
HELD_OUT_FRAMES = 48
_TRAINING_FRAMES = 96
_CALIBRATION_FRAMES = 32
_SPLIT = 307  # of 512 columns
_CROP = 96
_STEPS = 500
_BATCH = 16
_LEARNING_RATE = 4e-3

Frames = NDArray[np.uint8]
Masks = NDArray[np.int64]


# --- scenes ---------------------------------------------------------------------------------------------------------


def scenes(part: str, count: int, seed: int) -> tuple[Frames, Masks]:
    """Frames [count, 1, 384, 640] and their surfaces by cell [count, 48, 80], from one part of the photographs.

    Which surface lies where is drawn at random for the road, the road farther on, and each verge: what a place looks
    like decides, not where it is. So are the camera's height, the light, its gradient, a shadow, blur and noise.
    """
    generator = np.random.default_rng(seed)
    made = [_scene(part, generator) for _ in range(count)]
    return np.stack([frame for frame, _ in made]), np.stack([mask for _, mask in made])


def _scene(part: str, generator: np.random.Generator) -> tuple[Frames, Masks]:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    rows, columns = rows / HEIGHT, columns / WIDTH - 0.5
    # A camera that looks down at flat ground: what is twice as far is half as large.
    distance = 1 / (0.55 + rows * generator.uniform(0.6, 1.0))
    across = columns * distance * WIDTH
    along = distance * generator.uniform(700, 1000)
    # Where things are: a road that bends, and a line across it beyond which its surface is another.
    bend, offset, half = generator.uniform(-0.4, 0.4), generator.uniform(-0.12, 0.12), generator.uniform(0.18, 0.34)
    middle = offset + bend * (1 - rows) ** 2
    side = columns - middle
    ahead = rows < generator.uniform(0.0, 0.7) + generator.uniform(-0.15, 0.15) * columns
    place = np.where(side < -half, 0, np.where(side > half, 1, np.where(ahead, 2, 3)))
    surface = generator.integers(0, len(SURFACES), 4)[place]
    frame = np.zeros((HEIGHT, WIDTH), np.float32)
    zoom, (shift_x, shift_y) = generator.uniform(0.7, 1.3), generator.uniform(0, 512, 2)
    for number in range(len(SURFACES)):
        for blurred in (False, True):
            here = (surface == number) & ((distance * zoom > 1.2) == blurred)
            frame[here] = _looked_up(
                _photograph(part, number, blurred), (along * zoom + shift_y)[here], (across * zoom + shift_x)[here]
            )
    light = generator.uniform(0.5, 1.25) * (
        1 + generator.uniform(-0.3, 0.3) * columns + generator.uniform(-0.2, 0.2) * rows
    )
    if generator.random() < 0.5:
        edge = generator.uniform(-0.4, 0.4) + generator.uniform(-0.8, 0.8) * rows
        light = light * np.where(columns > edge, generator.uniform(0.45, 0.8), 1.0)
    frame = gaussian_filter(frame * light, generator.uniform(0.0, 0.7)) + generator.normal(0, 4, frame.shape)
    cells = surface.reshape(HEIGHT // CELL, CELL, WIDTH // CELL, CELL).transpose(0, 2, 1, 3).reshape(-1, CELL * CELL)
    most = np.stack([(cells == number).sum(1) for number in range(len(SURFACES))]).argmax(0)
    return frame.clip(0, 255).astype(np.uint8)[None], most.reshape(HEIGHT // CELL, WIDTH // CELL)


@cache
def _photograph(part: str, number: int, blurred: bool) -> NDArray[np.float32]:
    pixels = getattr(data, SURFACES[number])().astype(np.float32)
    pixels = pixels[:, :_SPLIT] if part == "training" else pixels[:, _SPLIT:]
    # All three alike in brightness and contrast: only the texture tells them apart.
    pixels = (pixels - pixels.mean()) / pixels.std() * 36 + 120
    return gaussian_filter(pixels, 0.6) if blurred else pixels


def _looked_up(
    pixels: NDArray[np.float32], rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Nearest pixels of a photograph that is continued by its mirror images."""
    found = []
    for where, size in zip((rows, columns), pixels.shape, strict=True):
        at = where.astype(np.int64) % (2 * size)
        found.append(np.where(at < size, at, 2 * size - 1 - at))
    return pixels[found[0], found[1]]


# --- network --------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Fully convolutional: trained on crops, run on whole frames. 61,000 parameters.

    Takes a frame as the camera gives it, uint8 [n, 1, h, w]. Gives scores of the surfaces by cell, `cells`
    [n, 3, h / 8, w / 8].
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _layer(1, 16, stride=2),
            _layer(16, 32, stride=2),
            _layer(32, 48, stride=2),
            _layer(48, 48),
            _layer(48, 48, dilation=2),
            nn.Conv2d(48, len(SURFACES), 1),
        )

    def forward(self, frame: torch.Tensor) -> dict[str, torch.Tensor]:
        """The output by name."""
        return {"cells": self.layers((frame.float() - 120) / 60)}


def _layer(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def train() -> Network:
    """Train on crops of the training frames; about a quarter of a minute."""
    # On a busy machine, threads of so small a network wait for one another longer than they compute.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    frames, masks = scenes("training", _TRAINING_FRAMES, seed=1)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_LEARNING_RATE, total_steps=_STEPS)
    for _ in range(_STEPS):
        picked = [_crop(frames, masks, generator) for _ in range(_BATCH)]
        crops, truth = (torch.from_numpy(np.stack(part)) for part in zip(*picked, strict=True))
        loss = nn.functional.cross_entropy(network(crops)["cells"], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _crop(frames: Frames, masks: Masks, generator: np.random.Generator) -> tuple[Frames, Masks]:
    which = generator.integers(len(frames))
    row = int(generator.integers((HEIGHT - _CROP) // CELL + 1))
    column = int(generator.integers((WIDTH - _CROP) // CELL + 1))
    size = _CROP // CELL
    frame = frames[which, :, row * CELL : row * CELL + _CROP, column * CELL : column * CELL + _CROP]
    mask = masks[which, row : row + size, column : column + size]
    return (frame[:, :, ::-1].copy(), mask[:, ::-1].copy()) if generator.random() < 0.5 else (frame, mask)


# --- what the recipe refers to ----------------------------------------------------------------------------------------


def make() -> tuple[nn.Module, torch.Tensor]:
    """The trained network; trained now, where there are no weights in the current folder yet."""
    if not WEIGHTS.exists():
        torch.save(train().state_dict(), WEIGHTS)
    network = Network()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return network.eval(), torch.from_numpy(scenes("training", 2, seed=1)[0])


def calibration() -> tuple[Frames, None]:
    """Frames of the training part, without labels."""
    return scenes("training", _CALIBRATION_FRAMES, seed=2)[0], None


@cache
def _held_out() -> tuple[Frames, Masks]:
    return scenes("held-out", HELD_OUT_FRAMES, seed=3)


def held_out() -> tuple[Frames, None]:
    """Frames of the held-out part. Their truth is a mask and no label: the metrics look it up."""
    return _held_out()[0], None


def mean_iou(outputs: dict[str, NDArray[np.float32]], _labels: None) -> float:
    """Intersection over union of the cells of all held-out frames, mean over the surfaces."""
    found, truth = outputs["cells"].argmax(1), _held_out()[1]
    shares = [
        ((found == number) & (truth == number)).sum() / ((found == number) | (truth == number)).sum()
        for number in range(len(SURFACES))
    ]
    return float(np.mean(shares))


def cell_accuracy(outputs: dict[str, NDArray[np.float32]], _labels: None) -> float:
    """Share of the cells of all held-out frames that have their surface."""
    return float((outputs["cells"].argmax(1) == _held_out()[1]).mean())


def ahead_accuracy(outputs: dict[str, NDArray[np.float32]], _labels: None) -> float:
    """Share of the held-out frames whose surface in front of the wheels is right."""
    return float((surface_ahead(outputs["cells"]) == true_surface_ahead()).mean())


def true_surface_ahead() -> NDArray[np.int64]:
    """The surface in front of the wheels of each held-out frame [48]: what most of the cells there are."""
    masks = _held_out()[1]
    return surface_ahead(np.stack([masks == number for number in range(len(SURFACES))], 1))


def surface_ahead(cells: NDArray[np.float32 | np.bool_]) -> NDArray[np.int64]:
    """What the vehicle decides by: the surface in front of the wheels [n], of cells [n, 3, 48, 80]."""
    height, width = cells.shape[2] // 6, cells.shape[3] // 8
    return cells[:, :, 4 * height : 6 * height, 3 * width : 5 * width].mean((2, 3)).argmax(1)
