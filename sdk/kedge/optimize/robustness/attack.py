"""Hostile inputs: FGSM and PGD inside an L∞ ball, in units of 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from .corrupt import PixelSpace

__all__ = ["Bounds", "Gradient", "bounds_of", "fgsm", "pgd", "view_gradient"]

Gradient = Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
"""(inputs [n, …], labels [n]) -> derivative of each sample's own loss by its inputs, [n, …]."""

_BATCH = 32


@dataclass(frozen=True)
class Bounds:
    """The inputs that pixels can give: [1, …] each. level: input units of one of the 255 steps between."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def level(self) -> NDArray[np.float32]:
        """Input units of one pixel level."""
        return np.asarray((self.high - self.low) / np.float32(255))


def bounds_of(space: PixelSpace, x: NDArray[Any]) -> Bounds:
    """The bounds of inputs like x [n, …]; the space must be affine, as `AffinePixels` is."""
    shape = space.to_pixels(x[:1]).shape
    black = space.from_pixels(np.zeros(shape, np.uint8))
    white = space.from_pixels(np.full(shape, 255, np.uint8))
    return Bounds(np.minimum(black, white), np.maximum(black, white))


def fgsm(
    x: NDArray[Any], labels: NDArray[Any], gradient: Gradient, epsilon: float, bounds: Bounds
) -> NDArray[np.float32]:
    """x + ε·sign(∇L), clipped to valid pixels.

    Fast gradient sign method: Goodfellow, Shlens, Szegedy 2015, "Explaining and Harnessing Adversarial Examples".

    Args:
        epsilon: in pixel levels, of 255.

    Raises:
        BadInputError: ε is negative, or the gradient is not of the inputs' shape or not finite.
    """
    _check(epsilon)
    step = np.float32(epsilon) * bounds.level * _direction(gradient, x, labels)
    return _clipped(x + step, x, epsilon, bounds)


def pgd(
    x: NDArray[Any],
    labels: NDArray[Any],
    gradient: Gradient,
    epsilon: float,
    bounds: Bounds,
    *,
    steps: int = 10,
    step_size: float | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Steps of FGSM from a random point of the ball, each projected back onto the ball and valid pixels.

    Projected gradient descent on the negative loss: Madry et al. 2018, "Towards Deep Learning Models Resistant
    to Adversarial Attacks".

    Args:
        epsilon: in pixel levels, of 255.
        step_size: in pixel levels; None: 2.5·ε / steps, their choice where the edge must be reached from any start.

    Raises:
        BadInputError: ε is negative, there are no steps, or the gradient is not of the inputs' shape or not finite.
    """
    _check(epsilon)
    if steps < 1 or (step_size is not None and not step_size > 0):
        raise BadInputError("PGD needs at least one step, of a size above 0")
    size = np.float32(2.5 * epsilon / steps if step_size is None else step_size)
    start = np.random.default_rng(seed).uniform(-epsilon, epsilon, x.shape).astype(np.float32)
    moved = _clipped(x + start * bounds.level, x, epsilon, bounds)
    for _ in range(steps):
        moved = _clipped(moved + size * bounds.level * _direction(gradient, moved, labels), x, epsilon, bounds)
    return moved


def view_gradient(graph: Graph) -> Gradient:
    """The gradient of a float classifier of one input, by torch (`kedge.optimize.train.gradient`).

    Raises:
        BadInputError: the graph has not one input, or no scores; when called: labels do not fit.
        IncompatibleError: torch is missing, or an operator has no torch form (as those of a quantised graph).
    """
    try:
        from ..train.gradient import input_gradient
    except ImportError as error:
        raise IncompatibleError("torch is needed for attacks", hint="pip install 'kedge[optimize]'") from error
    if len(graph.input_names) != 1:
        raise BadInputError(f"attacks need a model of one input; this one has {len(graph.input_names)}")
    name = graph.input_names[0]
    whole = input_gradient(graph)

    def gradient(x: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        parts = [slice(start, start + _BATCH) for start in range(0, x.shape[0], _BATCH)]
        return np.concatenate([whole({name: x[part]}, labels[part])[name] for part in parts])

    return gradient


def _check(epsilon: float) -> None:
    if not 0 <= epsilon <= 255:
        raise BadInputError(f"an attack of ε = {epsilon:g}", hint="in pixel levels, from 0 to 255")


def _direction(gradient: Gradient, x: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float32]:
    value = np.asarray(gradient(x, labels))
    if value.shape != x.shape or not np.isfinite(value).all():
        raise BadInputError(f"the gradient of the loss is {list(value.shape)} or not finite; inputs {list(x.shape)}")
    return np.asarray(np.sign(value), np.float32)


def _clipped(moved: NDArray[Any], x: NDArray[Any], epsilon: float, bounds: Bounds) -> NDArray[np.float32]:
    room = np.float32(epsilon) * bounds.level
    inside = np.clip(moved, x - room, x + room)
    return np.asarray(np.clip(inside, bounds.low, bounds.high), np.float32)
