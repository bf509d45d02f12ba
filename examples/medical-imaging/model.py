"""Patches of a stained tissue slide, and the network that says which of them are strongly stained.

The slide is scikit-image's `immunohistochemistry()`: colon tissue, stained brown with DAB for the protein FHL2, nuclei
counterstained blue (Center for Microscopy and Molecular Imaging; no known copyright restrictions). Labels are
computed: colour deconvolution (Ruifrok and Johnston 2001) gives the amount of DAB in each pixel, and a patch is
*strong* where enough of its area has much of it. No pathologist has seen them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from torch import nn

WEIGHTS = Path("medical-imaging.pt")
PATCH = 16
"""Pixels of a patch's side, at the slide's full resolution."""

_FIELD = 128
_STRONG_DAB, _STRONG_AREA = 0.14, 0.1
_SOME_DAB, _UNSTAINED_AREA = 0.05, 0.01
_EPOCHS, _BATCH, _LEARNING_RATE = 10, 64, 5e-3
# A strong patch that is missed costs as much as five weak ones that are taken for strong.
_WEIGHTS = (1.0, 5.0)

Patches = NDArray[np.uint8]
Labels = NDArray[np.int64]


# --- patches --------------------------------------------------------------------------------------------------------


@cache
def _slide() -> tuple[Patches, NDArray[np.float64]]:
    slide = immunohistochemistry()
    return slide, rgb2hed(slide)[..., 2]


def _places(part: str, step: int) -> list[tuple[slice, slice]]:
    """Where patches lie, `step` pixels apart, in every other field of a chessboard: no pixel is in both parts."""
    count, starts = _slide()[1].shape[0] // _FIELD, range(0, _FIELD - PATCH + 1, step)
    fields = [
        (row * _FIELD, column * _FIELD)
        for row in range(count)
        for column in range(count)
        if (row + column) % 2 == ("training", "held-out").index(part)
    ]
    return [
        np.s_[top + y : top + y + PATCH, left + x : left + x + PATCH]
        for top, left in fields
        for y in starts
        for x in starts
    ]


def _labelled(places: list[tuple[slice, slice]]) -> tuple[Patches, Labels]:
    slide, dab = _slide()
    strong = [(dab[place] > _STRONG_DAB).mean() > _STRONG_AREA for place in places]
    return np.stack([slide[place] for place in places]), np.array(strong, np.int64)


# --- the network ----------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Scores [n, 2] of weak and strong staining, of patches [n, 3, 16, 16] as the recipe's [preprocess] makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_layer(3, 16, 1), *_layer(16, 16, 2), *_layer(16, 32, 1), *_layer(32, 32, 2))
        self.amounts = nn.Sequential(nn.Conv2d(32, 4, 1), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, patches: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of four amounts, averaged over the patch: how much stain there is, over how much of it."""
        return {"staining": self.head(self.amounts(self.body(patches)).mean((2, 3)))}


def _layer(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def prepared(patches: Patches) -> NDArray[np.float32]:
    """What the network takes: [n, 3, 16, 16], as the recipe's [preprocess] says."""
    return ((patches.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25).astype(np.float32)


def _train(seed: int) -> Network:
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # of layers this small, a second one is only waited for
    patches, labels = _labelled(_places("training", 8))
    inputs, truth = torch.from_numpy(prepared(patches)), torch.from_numpy(labels)
    network, steps = Network().train(), len(inputs) // _BATCH
    optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_EPOCHS * steps)
    for _ in range(_EPOCHS):
        for some in torch.randperm(len(inputs))[: steps * _BATCH].split(_BATCH):
            turned = torch.rot90(inputs[some], int(torch.randint(4, ())), (2, 3))
            mirrored = turned.flip(3) if torch.rand(()) < 0.5 else turned
            scores = network(mirrored)["staining"]
            loss = nn.functional.cross_entropy(scores, truth[some], weight=torch.tensor(_WEIGHTS))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


# --- what the recipes refer to --------------------------------------------------------------------------------------


def make(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The trained network; trained now, where there are no weights in the current folder yet."""
    if not WEIGHTS.exists():
        torch.save(_train(seed).state_dict(), WEIGHTS)
    network = Network()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return network.eval(), torch.zeros(2, 3, PATCH, PATCH)


def calibration() -> tuple[Patches, None]:
    """512 patches of the training part, side by side: of every kind, as often as it occurs."""
    return _labelled(_places("training", PATCH))[0], None


def negative_control() -> tuple[Patches, None]:
    """Those of the training part with no stain to speak of: what a control slide without the antibody looks like."""
    dab = _slide()[1]
    unstained = [place for place in _places("training", 8) if (dab[place] > _SOME_DAB).mean() < _UNSTAINED_AREA]
    return _labelled(unstained)[0], None


def held_out() -> tuple[Patches, Labels]:
    """512 patches of the other part, side by side, and which of them are strong (1)."""
    return _labelled(_places("held-out", PATCH))
