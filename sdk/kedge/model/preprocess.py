"""How a picture becomes a model's input: stated once in the recipe, carried in the release's manifest.

With p the 8-bit pixel after resizing and cropping, in channel c:

    y = (scale · p - mean[c]) / std[c]

Resizing is Pillow's bilinear filter with antialiasing (its support grows with the reduction), as in
torchvision's `Resize`; a short side of s gives the long side int(s · long / short). The crop is taken at
round((height - crop height) / 2), likewise for the width, as in torchvision's `CenterCrop`. Grayscale is
ITU-R BT.601 luma, 0.299 R + 0.587 G + 0.114 B. An EXIF orientation is not acted on, as in torchvision.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInputError, IncompatibleError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Preprocess", "pillow"]

_LAYOUTS = ("NCHW", "NHWC")
_MODES = ("RGB", "BGR", "grayscale")
_MAX_SIDE = 1 << 14
_MAX_NUMBER_LENGTH = 64


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        IncompatibleError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise IncompatibleError("Pillow is needed to read images", hint="pip install 'kedge[optimize]'") from error
    return Image


@dataclass(frozen=True)
class Preprocess:
    """In this order: colour mode, resize, crop, scale, mean and std, layout.

    resize: pixels of the short side, or exactly (height, width); None leaves the size.
    crop: (height, width) cut from the centre, or None. scale: factor of the 8-bit pixel.
    mean, std: one number, or one a channel in the order of the mode, in units of scaled pixels; () for none.
    layout: "NCHW" or "NHWC". mode: "RGB", "BGR" or "grayscale".

    Raises:
        BadInputError: a value cannot be used.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    mode: str = "RGB"

    def __post_init__(self) -> None:
        for key, sides in (("resize", self.resize), ("crop", self.crop)):
            for side in (sides,) if isinstance(sides, int) else sides or ():
                if not 1 <= side <= _MAX_SIDE:
                    raise BadInputError(f"preprocess.{key} is {side}", hint=f"a number of pixels from 1 to {_MAX_SIDE}")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise BadInputError(f"preprocess.scale is {self.scale:g}", hint='a factor, such as "1/255"')
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, self.channels):
                raise BadInputError(
                    f"preprocess.{key} has {len(values)} numbers, {self.mode} has {self.channels} channels",
                    hint="give one number, or one a channel",
                )
            if not all(math.isfinite(value) and (key == "mean" or value > 0) for value in values):
                raise BadInputError(f"preprocess.{key} is {list(values)}", hint="finite numbers, std above 0")
        _one_of("layout", self.layout, _LAYOUTS)
        _one_of("mode", self.mode, _MODES)

    @property
    def channels(self) -> int:
        """1 for grayscale, else 3."""
        return 1 if self.mode == "grayscale" else 3

    @property
    def keeps_pixels(self) -> bool:
        """Whether values stay the 8-bit pixels they were."""
        return self.scale == 1 and not any(self.mean) and all(value == 1 for value in self.std)

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Preprocess:
        """Read a recipe's `[preprocess]` table, or what `to_manifest` wrote.

        Numbers may be given as text, also as fractions: "1/255".

        Raises:
            BadInputError: a key is unknown, or a value cannot be used.
        """
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                raise BadInputError(
                    f"preprocess has no key {key!r}",
                    hint=f"did you mean {close[0]}?" if close else f"keys: {', '.join(known)}",
                )
        values: dict[str, Any] = {}
        for key, value in table.items():
            if value is None:
                continue
            if key in ("resize", "crop"):
                values[key] = _sides(key, value)
            elif key == "scale":
                values[key] = _number(key, value)
            elif key in ("mean", "std"):
                listed = value if isinstance(value, (list, tuple)) else [value]
                values[key] = tuple(_number(key, each) for each in listed)
            else:
                values[key] = value
        return cls(**values)

    def to_manifest(self) -> dict[str, Any]:
        """JSON without floats: numbers as decimal strings that read back to the same float64."""
        body: dict[str, Any] = {"scale": _decimal(self.scale), "layout": self.layout, "mode": self.mode}
        if self.resize is not None:
            body["resize"] = self.resize if isinstance(self.resize, int) else list(self.resize)
        if self.crop is not None:
            body["crop"] = list(self.crop)
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values:
                body[key] = [_decimal(value) for value in values]
        return body

    def apply(self, images: NDArray[np.uint8] | Image) -> NDArray[np.float32]:
        """Pictures as the model takes them.

        Args:
            images: uint8 [n, height, width, channels], [n, height, width], or a Pillow image (n = 1).
                [n, channels, height, width] is taken too where the last axis cannot be channels.

        Returns:
            float32 [n, channels, height, width], or [n, height, width, channels] for NHWC.

        Raises:
            BadInputError: these are no 8-bit pictures, or smaller than the crop.
        """
        if isinstance(images, np.ndarray):
            pixels = self._resized(self._coloured(_channels_last(images)))
        else:
            pixels = self._resized(self._from_picture(images))
        values = self._cropped(pixels).astype(np.float32)
        if self.scale != 1:
            values *= np.float32(self.scale)
        if self.mean:
            values -= np.asarray(self.mean, np.float32)
        if self.std:
            values /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values)

    def _from_picture(self, picture: Image) -> NDArray[np.uint8]:
        # Pillow clips deeper pixels to 255 without a word.
        if picture.mode.startswith(("I", "F")):
            raise BadInputError(f"an image of mode {picture.mode} is not 8-bit", hint="convert it to 8 bits a channel")
        pixels = np.asarray(picture.convert("L" if self.mode == "grayscale" else "RGB"))
        pixels = pixels[None, :, :, None] if pixels.ndim == 2 else pixels[None]
        return pixels[..., ::-1] if self.mode == "BGR" else pixels

    def _coloured(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if pixels.shape[3] == 1:
            return np.repeat(pixels, self.channels, axis=3)
        colours = pixels[..., :3]
        if self.mode == "grayscale":
            image = pillow()
            return np.stack([np.asarray(image.fromarray(each).convert("L"))[..., None] for each in colours])
        return colours[..., ::-1] if self.mode == "BGR" else colours

    def _resized(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = pixels.shape[1:3]
        if self.resize is None:
            return pixels
        if isinstance(self.resize, int):
            short = min(height, width)
            wanted = (int(self.resize * height / short), int(self.resize * width / short))
        else:
            wanted = self.resize
        if max(wanted) > _MAX_SIDE:
            raise BadInputError(f"a picture of {height}×{width} would be resized to {wanted[0]}×{wanted[1]}")
        if wanted == (height, width):
            return pixels
        image = pillow()
        out = np.empty((len(pixels), *wanted, pixels.shape[3]), np.uint8)
        for index, each in enumerate(np.ascontiguousarray(pixels)):
            picture = image.fromarray(each[..., 0] if self.channels == 1 else each)
            resized = np.asarray(picture.resize(wanted[::-1], image.Resampling.BILINEAR))
            out[index] = resized.reshape(out.shape[1:])
        return out

    def _cropped(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.crop is None:
            return pixels
        (height, width), (tall, wide) = pixels.shape[1:3], self.crop
        if tall > height or wide > width:
            raise BadInputError(
                f"a picture of {height}×{width} is smaller than the crop of {tall}×{wide}",
                hint="resize to at least the crop: [preprocess] resize",
            )
        top, left = round((height - tall) / 2), round((width - wide) / 2)
        return pixels[:, top : top + tall, left : left + wide]


def _channels_last(images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
        raise BadInputError(
            f"{images.dtype} {list(images.shape)} are no 8-bit pictures", hint="uint8 [n, height, width, channels]"
        )
    if images.ndim == 3:
        return images[..., None]
    if images.shape[3] in (1, 3, 4):
        return images
    if images.shape[1] in (1, 3, 4):
        return np.moveaxis(images, 1, 3)
    raise BadInputError(f"pictures of shape {list(images.shape)} have no 1, 3 or 4 channels")


def _one_of(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInputError(f"preprocess.{key} is {value!r}", hint=f"one of: {', '.join(allowed)}")


def _sides(key: str, value: Any) -> int | tuple[int, int]:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    # bool is an int to Python.
    if not all(type(side) is int for side in listed) or len(listed) not in (1, 2):
        raise BadInputError(f"preprocess.{key} is {value!r}", hint="pixels, or [height, width]")
    if key == "resize" and not isinstance(value, (list, tuple)):
        return int(value)
    return int(listed[0]), int(listed[-1])


def _number(key: str, value: Any) -> float:
    try:
        if isinstance(value, str) and len(value) <= _MAX_NUMBER_LENGTH:
            return _fraction(value)
        if type(value) in (int, float):
            return float(value)
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    raise BadInputError(f"preprocess.{key} is {value!r}", hint='a number, or text such as "1/255"')


def _fraction(text: str) -> float:
    # An exponent would let a short text ask for a number of any size.
    if "e" in text.lower():
        return float(text)
    return float(Fraction(text.replace(" ", "")))


def _decimal(value: float) -> str:
    return format(Decimal(repr(value)), "f")
