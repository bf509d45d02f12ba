"""A folder of images by class, decoded and preprocessed one by one."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.tensors import TensorSpec, tensor_bytes

from ..errors import BadInputError, KedgeError, first_line
from .inputs import MAX_DATA_BYTES, fitted
from .preprocess import Preprocess, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["as_input", "list_classes", "load_images", "open_image", "visible"]

# Raster formats that Pillow decodes itself: an EPS file would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MAX_PIXELS = 1 << 26
_MAX_FILES = 1 << 20


def list_classes(folder: Path) -> dict[str, list[Path]]:
    """Image files by class: a class is a subfolder, classes and files in sorted order. Hidden entries are left out.

    Raises:
        BadInputError: there are no subfolders, one of them is empty, or there are too many files.
    """
    classes = {entry.name: visible(entry) for entry in visible(folder) if entry.is_dir()}
    if not classes:
        raise BadInputError(f"{folder} has no subfolders", hint="one subfolder a class, images inside")
    for name, files in classes.items():
        if not files:
            raise BadInputError(f"the class {name!r} of {folder} has no images", hint="add some, or remove the folder")
    return classes


def load_images(files: Sequence[Path], spec: TensorSpec, preprocess: Preprocess) -> NDArray[Any]:
    """Images as one input of a model, in the order given: [n, …] of the input's type.

    Raises:
        BadInputError: a file is no image, too large, of another size than the others, or not what the model takes.
    """
    out: NDArray[Any] | None = None
    for index, path in enumerate(files):
        value = as_input(str(path), open_image(path), spec, preprocess)
        if out is None:
            size = tensor_bytes(spec.datatype, (len(files), *value.shape[1:]))
            if size > MAX_DATA_BYTES:
                raise BadInputError(
                    f"{len(files)} images of {list(value.shape[1:])} fill more than {MAX_DATA_BYTES} bytes",
                    hint="give a limit, or a smaller resize in [preprocess]",
                )
            out = np.empty((len(files), *value.shape[1:]), value.dtype)
        if value.shape[1:] != out.shape[1:]:
            raise BadInputError(
                f"{path} becomes {list(value.shape[1:])}, the images before it {list(out.shape[1:])}",
                hint="state resize and crop in [preprocess]",
            )
        out[index] = value[0]
    if out is None:
        raise BadInputError("there are no images")
    return out


def open_image(path: Path) -> Image:
    """A decoded image.

    Raises:
        BadInputError: it cannot be read, or has more than 2^26 pixels.
    """
    image = pillow()
    too_large = BadInputError(f"{path} has more than {_MAX_PIXELS} pixels", hint="reduce it first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", image.DecompressionBombWarning)
            with image.open(path, formats=_FORMATS) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise too_large
                picture.load()
                return picture.copy()  # type: ignore[no-any-return]
    except KedgeError:
        raise
    except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
        raise too_large from error
    except Exception as error:  # Pillow's decoders raise many unrelated classes
        raise BadInputError(
            f"{path} cannot be read as an image: {first_line(error)}",
            hint=f"remove or replace it; formats: {', '.join(_FORMATS)}",
        ) from error


def as_input(
    origin: str, pictures: NDArray[np.uint8] | Image, spec: TensorSpec, preprocess: Preprocess
) -> NDArray[Any]:
    """Preprocessed pictures in the shape and type the input wants; whole pixels for an input of integers.

    Args:
        origin: where they come from, for messages.

    Raises:
        BadInputError: they do not fit, or the input takes integers and the preprocessing makes fractions.
    """
    if spec.dtype.kind in "ui" and not preprocess.keeps_pixels:
        raise BadInputError(
            f"input {spec.name!r} takes {spec.datatype}, preprocessing makes fractions",
            hint="leave scale, mean and std out of [preprocess]",
        )
    try:
        values = preprocess.apply(pictures)
    except BadInputError as error:
        raise BadInputError(f"{origin}: {error.message}", hint=error.hint) from error
    values = values.astype(spec.dtype, copy=False)
    return fitted(origin, spec, values, hint="check resize, crop, mode and layout in [preprocess]")


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries.

    Raises:
        BadInputError: it cannot be read, or holds more than 2^20 entries.
    """
    try:
        entries = list(itertools.islice(folder.iterdir(), _MAX_FILES + 1))
    except OSError as error:
        raise BadInputError(f"{folder} cannot be read: {error.strerror}") from error
    if len(entries) > _MAX_FILES:
        raise BadInputError(f"{folder} holds more than {_MAX_FILES} files")
    return sorted(entry for entry in entries if not entry.name.startswith("."))
