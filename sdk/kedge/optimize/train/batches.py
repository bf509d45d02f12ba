"""Samples as torch batches: a split for judging epochs, shuffling, augmentation; all from seeds, never from state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import BadInputError
from ...model.samples import Samples

__all__ = ["Batch", "Batches", "flip_crop", "generator", "split"]

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Batch:
    """Inputs by name, labels [n] or None, the teacher's logits [n, classes] or None."""

    inputs: Mapping[str, Tensor]
    labels: Tensor | None = None
    teacher: Tensor | None = None

    @property
    def count(self) -> int:
        """How many samples."""
        return next(iter(self.inputs.values())).shape[0]

    def part(self, start: int, size: int) -> Batch:
        """Some of the samples."""
        end = start + size
        return Batch(
            {name: value[start:end] for name, value in self.inputs.items()},
            None if self.labels is None else self.labels[start:end],
            None if self.teacher is None else self.teacher[start:end],
        )


def generator(*parts: int) -> torch.Generator:
    """A source of randomness that depends on these numbers alone: a resumed run needs no saved state of it."""
    words = np.random.SeedSequence([abs(part) for part in parts]).generate_state(2, np.uint32)
    made = torch.Generator()
    made.manual_seed(int(words[0]) << 32 | int(words[1]))
    return made


def split(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """The samples to train on, and those to judge by: drawn by the seed alone. None where the share is 0."""
    held = round(samples.count * share)
    if held == 0 or held >= samples.count:
        return samples, None
    order = np.random.default_rng([abs(seed), 1]).permutation(samples.count)
    return samples.take(np.sort(order[held:])), samples.take(np.sort(order[:held]))


class Batches:
    """Samples held as tensors; one epoch at a time."""

    def __init__(self, samples: Samples, size: int) -> None:
        self.inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in samples.inputs.items()}
        self.labels = None if samples.labels is None else torch.from_numpy(samples.labels.astype(np.int64))
        self.teacher: Tensor | None = None
        self.count, self.size = samples.count, min(size, samples.count)

    def __len__(self) -> int:
        # A last batch of one sample has no variance for BatchNormalization to learn from.
        whole, rest = divmod(self.count, self.size)
        return whole + (rest > 1 or (rest == 1 and whole == 0))

    def epoch(self, order: Tensor | None = None) -> Iterator[Batch]:
        """Batches in a given order of the samples, or as they lie (then all of them)."""
        if order is None:
            whole = Batch(self.inputs, self.labels, self.teacher)
            for start in range(0, self.count, self.size):
                yield whole.part(start, self.size)
            return
        for index in range(len(self)):
            chosen = order[index * self.size : (index + 1) * self.size]
            yield Batch(
                {name: value[chosen] for name, value in self.inputs.items()},
                None if self.labels is None else self.labels[chosen],
                None if self.teacher is None else self.teacher[chosen],
            )


def flip_crop(inputs: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
    """Images mirrored at random and shifted by up to an eighth of their size, borders reflected (He et al. 2016).

    Raises:
        BadInputError: the inputs are not images.
    """
    changed = {}
    for name, value in inputs.items():
        if value.dim() != 4 or not value.is_floating_point():
            raise BadInputError(f"input {name!r} holds no images to flip and crop", hint="set augment to none")
        first = value.shape[1] in _CHANNELS
        if not first and value.shape[3] not in _CHANNELS:
            raise BadInputError(f"input {name!r} has no image channels", hint="set augment to none")
        count, (height, width) = value.shape[0], value.shape[2:4] if first else value.shape[1:3]
        rows = _reflected(height, torch.randint(-(height // 8), height // 8 + 1, (count, 1), generator=random))
        columns = _reflected(width, torch.randint(-(width // 8), width // 8 + 1, (count, 1), generator=random))
        mirror = torch.randint(0, 2, (count, 1), generator=random, dtype=torch.bool)
        columns = torch.where(mirror, columns.flip(1), columns)
        each = torch.arange(count)[:, None, None]
        if first:
            picked = value.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
            changed[name] = picked.permute(0, 3, 1, 2).contiguous()
        else:
            changed[name] = value[each, rows[:, :, None], columns[:, None, :]]
    return changed


def _reflected(size: int, shift: Tensor) -> Tensor:
    """Indices [n, size] of a row that is shifted, those outside mirrored at the border."""
    places = (torch.arange(size)[None, :] + shift).abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places).clamp(0, size - 1)
