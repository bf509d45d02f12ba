"""Damaged inputs: noise, blur, contrast and JPEG, as in the common benchmark of corruptions.

Parameters and order of steps: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", five severities of each kind, as published for CIFAR-10-C (pictures
of up to 64 pixels) and ImageNet-C (larger ones). Pixels are rounded where theirs are cut off.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError, IncompatibleError
from ...model.preprocess import pillow

__all__ = ["KINDS", "AffinePixels", "PixelSpace", "check_strength", "corrupt", "noise_relative", "severities"]

KINDS: Mapping[str, str] = {
    "noise": "σ, share of the pixel range",
    "blur": "σ in pixels",
    "contrast": "factor",
    "jpeg": "quality",
}
"""Corruptions and the units of their strengths."""

_SMALL_SIDE = 64
_CIFAR: Mapping[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "jpeg": (80, 65, 58, 50, 40),
}
_IMAGENET: Mapping[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "blur": (1, 2, 3, 4, 6),
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
    "jpeg": (25, 18, 15, 10, 7),
}
_CHUNK = 64
_Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class PixelSpace(Protocol):
    """The way between a model's inputs [n, …] and 8-bit pixels [n, height, width, channels], RGB or gray."""

    def to_pixels(self, x: NDArray[Any]) -> NDArray[np.uint8]:
        """The pixels that gave these inputs."""
        ...

    def from_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Inputs as the model takes them."""
        ...


@dataclass(frozen=True)
class AffinePixels:
    """Pixels behind y = (scale · p - mean) / std, as `kedge.model.preprocess` makes inputs; sizes are kept.

    mean, std: one number or one a channel in the order of the mode; () for none. layout: "NCHW" or "NHWC".
    mode: "RGB", "BGR" or "grayscale".
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    mode: str = "RGB"

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0 or 0 in self.std:
            raise BadInputError("preprocessing with a scale or std of 0 cannot be undone")
        if self.layout not in ("NCHW", "NHWC"):
            raise BadInputError(f"the layout {self.layout!r} is unknown", hint="NCHW or NHWC")

    def to_pixels(self, x: NDArray[Any]) -> NDArray[np.uint8]:
        """Nearest 8-bit pixels [n, height, width, channels] of inputs of four dimensions."""
        if x.ndim != 4:
            raise BadInputError(f"inputs of shape {list(x.shape)} are no pictures")
        values = x.astype(np.float64)
        values = values.transpose(0, 2, 3, 1) if self.layout == "NCHW" else values
        if self.std:
            values = values * np.asarray(self.std)
        if self.mean:
            values = values + np.asarray(self.mean)
        pixels = np.clip(np.rint(values / self.scale), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels[..., ::-1] if self.mode == "BGR" else pixels)

    def from_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Inputs, in the arithmetic of `Preprocess.apply`: pixels that came from it give the same bits."""
        values = (pixels[..., ::-1] if self.mode == "BGR" else pixels).astype(np.float32)
        if self.scale != 1:
            values *= np.float32(self.scale)
        if self.mean:
            values -= np.asarray(self.mean, np.float32)
        if self.std:
            values /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values)


def severities(side: int) -> dict[str, tuple[float, ...]]:
    """The published five strengths of each kind, mild to strong, for pictures whose longer side has so many pixels."""
    return dict(_CIFAR if side <= _SMALL_SIDE else _IMAGENET)


def check_strength(kind: str, strength: float) -> None:
    """Refuse a strength that makes no sense.

    Raises:
        BadInputError: the kind is unknown, or the strength out of its range.
    """
    ranges = {"noise": (0.0, 1.0), "blur": (0.0, 100.0), "contrast": (0.0, 1.0), "jpeg": (1.0, 100.0)}
    if kind not in ranges:
        raise BadInputError(f"{kind!r} is no corruption", hint=f"there are {', '.join(KINDS)}")
    low, high = ranges[kind]
    if not low <= strength <= high or (kind == "jpeg" and strength != int(strength)):
        whole = "a whole number " if kind == "jpeg" else ""
        raise BadInputError(f"{kind} of strength {strength:g} ({KINDS[kind]})", hint=f"{whole}from {low:g} to {high:g}")


def corrupt(pixels: NDArray[np.uint8], kind: str, strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Damaged copies of pictures [n, height, width, channels].

    noise: p + 255·N(0, strength²). blur: Gaussian of σ = strength pixels, edges repeated. contrast:
    (p - m)·strength + m, with m the mean of each channel of each picture. jpeg: encoded with this quality and
    decoded again.

    Raises:
        BadInputError: the strength is out of range, or JPEG does not know so many channels.
        IncompatibleError: scipy or Pillow is not installed.
    """
    check_strength(kind, strength)
    if kind == "jpeg":
        return _jpeg(pixels, int(strength))
    if kind == "noise":
        change = _noise(strength, rng)
    elif kind == "blur":
        change = _blur(strength)
    else:
        change = _contrast(strength)
    out = np.empty_like(pixels)
    for start in range(0, pixels.shape[0], _CHUNK):
        part = pixels[start : start + _CHUNK].astype(np.float32)
        out[start : start + _CHUNK] = np.clip(np.rint(change(part)), 0, 255).astype(np.uint8)
    return out


def noise_relative(x: NDArray[Any], strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Inputs that are no pictures, with Gaussian noise of `strength` times their standard deviation.

    Raises:
        BadInputError: the inputs are not floating numbers, or the strength is negative.
    """
    if not np.issubdtype(x.dtype, np.floating):
        raise BadInputError(f"noise on inputs of type {x.dtype} has no meaning")
    if not math.isfinite(strength) or strength < 0:
        raise BadInputError(f"noise of strength {strength:g}", hint="a share of the inputs' standard deviation")
    spread = float(x.std(dtype=np.float64))
    noisy: NDArray[Any] = (x + strength * spread * rng.standard_normal(x.shape, np.float32)).astype(x.dtype)
    return noisy


def _noise(sigma: float, rng: np.random.Generator) -> _Change:
    def noisy(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(part + np.float32(255 * sigma) * rng.standard_normal(part.shape, np.float32))

    return noisy


def _blur(sigma: float) -> _Change:
    try:
        from scipy.ndimage import gaussian_filter
    except ImportError as error:
        raise IncompatibleError("scipy is needed to blur pictures", hint="pip install 'kedge[optimize]'") from error

    def blurred(part: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(gaussian_filter(part, (0, sigma, sigma, 0), mode="nearest", truncate=4.0), np.float32)

    return blurred


def _contrast(factor: float) -> _Change:
    def flattened(part: NDArray[np.float32]) -> NDArray[np.float32]:
        mean = part.mean(axis=(1, 2), keepdims=True)
        return np.asarray((part - mean) * np.float32(factor) + mean)

    return flattened


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    image = pillow()
    if pixels.shape[3] not in (1, 3):
        raise BadInputError(f"JPEG does not know pictures of {pixels.shape[3]} channels")
    out = np.empty_like(pixels)
    for index, picture in enumerate(pixels):
        encoded = io.BytesIO()
        image.fromarray(picture[..., 0] if pixels.shape[3] == 1 else picture).save(encoded, "JPEG", quality=quality)
        encoded.seek(0)
        with image.open(encoded) as decoded:
            out[index] = np.asarray(decoded).reshape(picture.shape)
    return out
