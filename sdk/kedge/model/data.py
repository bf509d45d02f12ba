"""A user's data as samples: a folder of images by class, a numpy file, or a function of theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInputError
from .images import as_input, list_classes, load_images, visible
from .inputs import MAX_DATA_BYTES, fitted, read_arrays
from .onnx_io import ModelSpec
from .preprocess import Preprocess
from .samples import Samples
from .usercode import in_user_code, is_user_code, load_function

__all__ = ["load_samples"]

_INPUT_KEYS = ("x", "inputs", "images")
_LABEL_KEYS = ("labels", "y")
_CLASSES_KEY = "classes"


def load_samples(
    reference: str,
    spec: ModelSpec,
    preprocess: Preprocess | None = None,
    *,
    role: str = "evaluation",
    base: Path | None = None,
    limit: int | None = None,
    output_classes: int | None = None,
) -> Samples:
    """Read samples and check them against the model.

    Args:
        reference: one of
            a folder with one subfolder a class: labels follow the sorted names, or are the names where these are
            numbers; a limit takes evenly from all classes. Calibration data may be a folder of images alone;
            an `.npz` file: inputs by name (`x`, `inputs` or `images` for a model of one input), labels as `labels`
            or `y`, names of the classes as `classes`; an `.npy` file: a model's one input; a limit takes the first;
            `package.module:function`: called with nothing, it returns or yields `(inputs, labels)`, inputs an array
            or a mapping by name, labels [n] or None; whole, or in batches.
        preprocess: applied to images and to uint8 arrays that are pictures; float arrays are taken as they are.
        role: "calibration", "train" or "evaluation", for messages. Calibration data come without labels.
        base: the folder that paths and modules are relative to, or None for the current one.
        limit: at most so many samples.
        output_classes: classes of the model's output: labels beyond are refused.

    Raises:
        BadInputError: the data cannot be read, do not fit the model, or are labelled wrongly.
        IncompatibleError: Pillow is needed and not installed.
    """
    if limit is not None and limit < 1:
        raise BadInputError(f"the limit of the {role} data is {limit}", hint="give at least 1")
    origin, path = f"{role} data {reference}", (base or Path()) / reference
    classes: tuple[str, ...] = ()
    if not path.exists() and is_user_code(reference):
        inputs, labels = _from_function(origin, reference, spec, preprocess, base, limit)
    elif path.is_dir():
        inputs, labels, classes = _from_folder(origin, path, spec, preprocess, role, limit, output_classes)
    elif path.suffix.lower() in (".npz", ".npy") or not path.exists():
        inputs, labels, classes = _from_numpy(origin, path, spec, preprocess, limit)
    else:
        raise BadInputError(
            f"{origin} is of no known kind", hint="a folder of images by class, .npz, .npy, or package.module:function"
        )
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in inputs.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        listed = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise BadInputError(f"{origin} holds {listed}", hint="as many samples for each input, at least one")
    if role == "calibration":
        return Samples(inputs, None, reference, classes)
    checked = None if labels is None else _checked_labels(origin, labels, next(iter(counts.values())), output_classes)
    return Samples(inputs, checked, reference, classes)


def _from_folder(
    origin: str,
    folder: Path,
    spec: ModelSpec,
    preprocess: Preprocess | None,
    role: str,
    limit: int | None,
    output_classes: int | None,
) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None, tuple[str, ...]]:
    if len(spec.inputs) != 1:
        raise BadInputError(
            f"{origin} is a folder of images, the model has {len(spec.inputs)} inputs",
            hint="give an .npz, or package.module:function",
        )
    if preprocess is None:
        raise BadInputError(
            f"{origin} needs to know what the model makes of a picture",
            hint="state [preprocess] in the recipe: resize, crop, scale, mean, std, layout, mode",
        )
    entries = visible(folder)
    if role == "calibration" and entries and not any(entry.is_dir() for entry in entries):
        return {spec.inputs[0].name: load_images(entries[:limit], spec.inputs[0], preprocess)}, None, ()
    classes = list_classes(folder)
    numbers = _class_numbers(origin, list(classes), output_classes)
    # One of each class, then a second of each, …: a limit keeps the classes balanced.
    rounds = itertools.zip_longest(*([(number, file) for file in classes[name]] for name, number in numbers.items()))
    taken = [pair for group in rounds for pair in group if pair is not None][:limit]
    images = load_images([file for _, file in taken], spec.inputs[0], preprocess)
    return {spec.inputs[0].name: images}, np.array([number for number, _ in taken], np.int64), tuple(classes)


def _class_numbers(origin: str, names: list[str], output_classes: int | None) -> dict[str, int]:
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        by_name = {name: int(name) for name in names}
        if list(by_name.values()) != sorted(set(by_name.values())):
            raise BadInputError(
                f"{origin}: class folders sort differently as names and as numbers",
                hint="pad them with zeros to the same length: 00, 01, …",
            )
        return by_name
    if output_classes is not None and len(names) != output_classes:
        raise BadInputError(
            f"{origin} has {len(names)} class folders, the model has {output_classes} classes",
            hint="give all of them, or name each folder by its class number",
        )
    return {name: number for number, name in enumerate(names)}


def _from_numpy(
    origin: str, path: Path, spec: ModelSpec, preprocess: Preprocess | None, limit: int | None
) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None, tuple[str, ...]]:
    arrays = read_arrays(path)
    names = [tensor.name for tensor in spec.inputs]
    if isinstance(arrays, np.ndarray):
        if len(names) != 1:
            raise BadInputError(
                f"{origin} holds one array, the model has {len(names)} inputs",
                hint=f"save an .npz with {', '.join(names)}",
            )
        return _fit_all(origin, spec, {names[0]: arrays[:limit] if arrays.ndim else arrays}, preprocess), None, ()
    keys = {name: name for name in names if name in arrays}
    if len(names) == 1 and not keys:
        known = [key for key in _INPUT_KEYS if key in arrays]
        if len(known) > 1:
            raise BadInputError(f"{origin} holds several inputs: {', '.join(known)}", hint=f"keep one as {names[0]}")
        keys = dict(zip(names, known, strict=False))
    missing = [name for name in names if name not in keys]
    if missing:
        raise BadInputError(f"{origin} lacks the inputs {', '.join(missing)}", hint=f"it holds {', '.join(arrays)}")
    label_key = next((key for key in _LABEL_KEYS if key in arrays and key not in keys.values()), None)
    labels = None if label_key is None else arrays[label_key]
    counts = {arrays[key].shape[:1] for key in keys.values()}
    if labels is not None and counts != {labels.shape[:1]}:
        raise BadInputError(
            f"{origin} holds {_listed(counts)} samples and {_listed({labels.shape[:1]})} labels",
            hint="one label a sample",
        )
    classes: tuple[str, ...] = ()
    if _CLASSES_KEY in arrays and _CLASSES_KEY not in keys.values() and arrays[_CLASSES_KEY].dtype.kind == "U":
        classes = tuple(str(name) for name in arrays[_CLASSES_KEY].reshape(-1))
        labels = _numbered(origin, labels, classes)
    taken = {name: arrays[key][:limit] if arrays[key].ndim else arrays[key] for name, key in keys.items()}
    return _fit_all(origin, spec, taken, preprocess), None if labels is None else labels[:limit], classes


def _numbered(origin: str, labels: NDArray[Any] | None, classes: tuple[str, ...]) -> NDArray[Any] | None:
    if labels is None or labels.dtype.kind != "U":
        return labels
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels.reshape(-1)} - set(numbers))
    if unknown:
        raise BadInputError(f"{origin}: the label {unknown[0]!r} is not among its classes", hint="add it to `classes`")
    return np.array([numbers[str(label)] for label in labels.reshape(-1)], np.int64)


def _from_function(
    origin: str,
    reference: str,
    spec: ModelSpec,
    preprocess: Preprocess | None,
    base: Path | None,
    limit: int | None,
) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
    batches: list[dict[str, NDArray[Any]]] = []
    labels: list[NDArray[Any]] = []
    count = size = 0
    for given, given_labels in _pairs(origin, reference, base):
        named = given if isinstance(given, Mapping) else {spec.inputs[0].name: given}
        if set(named) != {tensor.name for tensor in spec.inputs}:
            raise BadInputError(
                f"{origin} gives the inputs {', '.join(map(str, named))}",
                hint=f"the model takes {', '.join(tensor.name for tensor in spec.inputs)}: a mapping by name",
            )
        batch = _fit_all(origin, spec, {str(k): _array(origin, v) for k, v in named.items()}, preprocess)
        held = next(iter(batch.values())).shape[:1]
        if given_labels is not None:
            labels.append(_array(origin, given_labels))
            if labels[-1].shape[:1] != held:
                raise BadInputError(
                    f"{origin} gives {_listed({held})} samples and {_listed({labels[-1].shape[:1]})} labels",
                    hint="one label a sample",
                )
        batches.append(batch)
        if labels and len(labels) != len(batches):
            raise BadInputError(f"{origin} labels some batches only", hint="labels for all, or None for all")
        count += held[0] if held else 0
        size += sum(array.nbytes for array in batch.values())
        if size > MAX_DATA_BYTES:
            raise BadInputError(f"{origin} gives more than {MAX_DATA_BYTES} bytes", hint="give a limit")
        if limit is not None and count >= limit:
            break
    if not batches:
        raise BadInputError(f"{origin} gives no samples", hint="return (inputs, labels), or yield some")
    inputs = {name: _joined(origin, name, [batch[name] for batch in batches])[:limit] for name in batches[0]}
    return inputs, _joined(origin, "labels", labels)[:limit] if labels else None


def _pairs(origin: str, reference: str, base: Path | None) -> Iterator[tuple[Any, Any]]:
    function = load_function(reference, base)
    with in_user_code(reference):
        value = function()
    if _is_pair(value):
        yield value[0], value[1]
        return
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, np.ndarray)):
        raise BadInputError(f"{origin} gives a {type(value).__name__}", hint="return or yield (inputs, labels)")
    with in_user_code(reference):
        iterator = iter(value)
    while True:
        with in_user_code(reference):
            pair = next(iterator, None)
        if pair is None:
            return
        if not _is_pair(pair):
            raise BadInputError(f"{origin} yields a {type(pair).__name__}", hint="yield (inputs, labels)")
        yield pair[0], pair[1]


def _is_pair(value: Any) -> bool:
    # A list of two batches is no pair: its first entry is one.
    return isinstance(value, (tuple, list)) and len(value) == 2 and not isinstance(value[0], (tuple, list))


def _array(origin: str, value: Any) -> NDArray[Any]:
    with in_user_code(origin):
        return np.asarray(value)


def _joined(origin: str, name: str, parts: list[NDArray[Any]]) -> NDArray[Any]:
    if len({part.shape[1:] for part in parts}) != 1 or not parts[0].ndim:
        raise BadInputError(f"{origin}: batches of {name!r} differ in shape", hint="only the first axis may differ")
    return np.concatenate(parts)


def _fit_all(
    origin: str, spec: ModelSpec, arrays: Mapping[str, NDArray[Any]], preprocess: Preprocess | None
) -> dict[str, NDArray[Any]]:
    out = {}
    for tensor in spec.inputs:
        array, hint = arrays[tensor.name], "convert it with numpy's astype and reshape"
        if array.dtype == np.uint8 and len(tensor.shape) == 4:
            if preprocess is not None:
                out[tensor.name] = as_input(origin, array, tensor, preprocess)
                continue
            hint = "state [preprocess] in the recipe for 8-bit pictures, or convert them"
        out[tensor.name] = fitted(origin, tensor, array, hint=hint)
    return out


def _checked_labels(origin: str, labels: NDArray[Any], count: int, output_classes: int | None) -> NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise BadInputError(
            f"{origin}: labels have the shape {list(labels.shape)}", hint="one class number a sample: argmax(axis=1)"
        )
    if labels.shape != (count,):
        raise BadInputError(f"{origin} holds {count} samples and {labels.size} labels", hint="one label a sample")
    if labels.dtype.kind not in "ui":
        raise BadInputError(
            f"{origin}: labels are {labels.dtype}, not whole numbers", hint="class numbers from 0: astype(numpy.int64)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= (output_classes if output_classes is not None else 1 << 31):
        known = "the first class is 0" if output_classes is None else f"the model has {output_classes} classes"
        raise BadInputError(
            f"{origin}: labels go from {low} to {high}, {known}", hint="class numbers count from 0 in the model's order"
        )
    return labels.astype(np.int64)


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join(sorted(str(shape[0]) if shape else "no" for shape in shapes))
