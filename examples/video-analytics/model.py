"""Frames of fixed cameras, the three small networks that look at them, and what the recipes refer to.

A frame has a number plate, a place where people stop, and the ground around them. Its parts are real: scans of digits
(scikit-learn; UCI Optical Recognition of Handwritten Digits), faces and backgrounds of photographs (scikit-image's
`lfw_subset`, 200 crops of Labeled Faces in the Wild), photographs of ground (scikit-image's `brick`, `grass` and
`gravel`, CC0). How they are put together is made up. No digit, face or part of a photograph is in training frames and
in held-out ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage import data
from sklearn.datasets import load_digits
from torch import nn

GROUNDS = ("brick", "grass", "gravel")
DIGITS = 6
"""Digits of a plate."""

HEIGHT, WIDTH = 240, 320
_TRAINING_FRAMES, HELD_OUT_FRAMES, _CALIBRATION_FRAMES = 500, 240, 64
_BATCH = 64
_LEARNING_RATE = 1e-2
_SPLIT = 307  # of a photograph's 512 columns

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Task:
    """One network's part of a frame: a square at a row and a column, repeated to the right, and its classes."""

    row: int
    column: int
    side: int
    repeats: int
    classes: int
    channels: tuple[int, ...]
    epochs: int


TASKS = {
    "plate": Task(176, 88, 24, DIGITS, 10, (32, 64, 64), epochs=2),
    "face": Task(40, 40, 25, 1, 2, (16, 32, 32), epochs=12),
    "scene": Task(64, 200, 64, 1, 3, (16, 32, 32), epochs=8),
}


# --- frames -----------------------------------------------------------------------------------------------------------


@cache
def frames(part: str, count: int, seed: int) -> tuple[Pixels, dict[str, NDArray[np.int64]]]:
    """Frames [count, 240, 320] of the training or the held-out part, and what each network should say of them."""
    generator = np.random.default_rng(seed)
    digits, numbers = _digits(part)
    faces, shown = _faces(part)
    drawn = generator.integers(len(digits), size=(count, DIGITS))
    person = generator.integers(len(faces), size=count)
    ground = generator.integers(len(GROUNDS), size=count)
    made = []
    for index in range(count):
        photograph = _ground(part, int(ground[index]))
        top, left = (
            int(generator.integers(0, size - need + 1))
            for size, need in zip(photograph.shape, (HEIGHT, WIDTH), strict=True)
        )
        frame = photograph[top : top + HEIGHT, left : left + WIDTH].copy()
        plate = 235 - 185 * np.concatenate(list(digits[drawn[index]]), axis=1)
        _put(frame, np.pad(plate, 4, constant_values=235), TASKS["plate"].row - 4, TASKS["plate"].column - 4)
        face = faces[person[index]][:, :: int(generator.choice([-1, 1]))]
        shift = generator.integers(-1, 2, 2)
        _put(
            frame,
            np.pad(255 * face, 2, mode="edge"),
            TASKS["face"].row - 2 + shift[0],
            TASKS["face"].column - 2 + shift[1],
        )
        light = generator.uniform(0.6, 1.2) * (1 + generator.uniform(-0.2, 0.2) * np.linspace(-1, 1, WIDTH))
        frame = gaussian_filter(frame * light, generator.uniform(0.0, 0.6)) + generator.normal(0, 5, frame.shape)
        made.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(made), {"plate": numbers[drawn], "face": shown[person], "scene": ground}


def crops(shown: Pixels, task: Task) -> Pixels:
    """What a network is given of frames [n, 240, 320]: [n × repeats, 1, side, side]."""
    parts = [
        shown[:, task.row : task.row + task.side, left : left + task.side]
        for left in range(task.column, task.column + task.repeats * task.side, task.side)
    ]
    return np.stack(parts, axis=1).reshape(-1, 1, task.side, task.side)


def _put(frame: NDArray[np.float64], patch: NDArray[np.float64], row: int, column: int) -> None:
    frame[row : row + patch.shape[0], column : column + patch.shape[1]] = patch


def _split(count: int, part: str) -> NDArray[np.int64]:
    order = np.random.default_rng(0).permutation(count)
    return order[: count * 7 // 10] if part == "training" else order[count * 7 // 10 :]


def _digits(part: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    bundled = load_digits()
    chosen = _split(len(bundled.target), part)
    # Eight pixels a side become 24, as a plate nearer to the camera has.
    images = (bundled.images[chosen] / 16).repeat(3, axis=1).repeat(3, axis=2)
    return gaussian_filter(images, (0, 0.8, 0.8)), bundled.target[chosen].astype(np.int64)


def _faces(part: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    images = data.lfw_subset()
    labels = (np.arange(len(images)) < 100).astype(np.int64)
    chosen = _split(len(images), part)
    return images[chosen], labels[chosen]


@cache
def _ground(part: str, number: int) -> NDArray[np.float64]:
    pixels = getattr(data, GROUNDS[number])().astype(np.float64)
    pixels = pixels[:, :_SPLIT] if part == "training" else pixels[:, _SPLIT:]
    # All three alike in brightness and contrast, and continued by their mirror images.
    pixels = (pixels - pixels.mean()) / pixels.std() * 36 + 120
    return np.pad(pixels, ((0, 0), (0, 180)), mode="symmetric")


# --- networks ---------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Crops as the camera gives them, uint8 [n, 1, side, side] → `scores` [n, classes]."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        sizes = (1, *task.channels)
        self.layers = nn.Sequential(*(_layer(*pair, stride=1 + (at > 0)) for at, pair in enumerate(pairwise(sizes))))
        self.last = nn.Linear(sizes[-1], task.classes)

    def forward(self, crop: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores by class."""
        return {"scores": self.last(self.layers((crop.float() - 120) / 60).mean((2, 3)))}


def _layer(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def train(name: str, *, epochs: int | None = None) -> None:
    """Train a network and leave its weights in the current folder; some seconds."""
    # On a busy machine, threads of so small a network wait for one another longer than they compute.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = TASKS[name]
    shown, truth = frames("training", _TRAINING_FRAMES, seed=1)
    images, labels = torch.from_numpy(crops(shown, task)), torch.from_numpy(truth[name].reshape(-1))
    network = Network(task)
    epochs = epochs or task.epochs
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_LEARNING_RATE, total_steps=epochs * -(-len(labels) // _BATCH)
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(_BATCH):
            loss = nn.functional.cross_entropy(network(images[batch])["scores"], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    torch.save(network.state_dict(), _weights(name))


def _weights(name: str) -> Path:
    return Path(f"{name}.pt")


# --- what the recipes refer to ----------------------------------------------------------------------------------------


def plate() -> tuple[nn.Module, torch.Tensor]:
    """The network that reads one digit of a plate; trained now, where there are no weights here yet."""
    return _made("plate")


def face() -> tuple[nn.Module, torch.Tensor]:
    """The network that says whether somebody is there."""
    return _made("face")


def scene() -> tuple[nn.Module, torch.Tensor]:
    """The network that says what the ground is."""
    return _made("scene")


def _made(name: str) -> tuple[nn.Module, torch.Tensor]:
    if not _weights(name).exists():
        train(name)
    network = Network(TASKS[name])
    network.load_state_dict(torch.load(_weights(name), weights_only=True))
    return network.eval(), torch.from_numpy(crops(frames("training", 2, seed=1)[0], TASKS[name]))


def plate_calibration() -> tuple[Pixels, None]:
    """Digits of training frames, without labels."""
    return _calibration("plate")


def face_calibration() -> tuple[Pixels, None]:
    """Places of training frames, without labels."""
    return _calibration("face")


def scene_calibration() -> tuple[Pixels, None]:
    """Grounds of training frames, without labels."""
    return _calibration("scene")


def _calibration(name: str) -> tuple[Pixels, None]:
    return crops(frames("training", _CALIBRATION_FRAMES, seed=2)[0], TASKS[name]), None


def plate_held_out() -> tuple[Pixels, NDArray[np.int64]]:
    """Digits of held-out frames, labelled."""
    return _held_out("plate")


def face_held_out() -> tuple[Pixels, NDArray[np.int64]]:
    """Places of held-out frames, labelled: 1 is a face."""
    return _held_out("face")


def scene_held_out() -> tuple[Pixels, NDArray[np.int64]]:
    """Grounds of held-out frames, labelled."""
    return _held_out("scene")


def _held_out(name: str) -> tuple[Pixels, NDArray[np.int64]]:
    shown, truth = frames("held-out", HELD_OUT_FRAMES, seed=3)
    return crops(shown, TASKS[name]), truth[name].reshape(-1)
