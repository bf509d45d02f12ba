"""Shape profiles: for each input whose shape is not fixed, the least, the usual and the greatest shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kedge_agent.formats.tensors import DYNAMIC

from ..errors import BadInputError
from ..model.onnx_io import ModelSpec

__all__ = ["Profiles", "parse_shapes", "shape_profiles"]

Profiles = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Profiles from text: `input=1x3x224x224` for one shape, or `input=1x3x224x224:4x3x224x224:16x3x224x224`.

    Raises:
        BadInputError: it is not of that form.
    """
    out = {}
    for text in texts:
        name, equals, shapes = text.rpartition("=")
        parts = shapes.split(":")
        try:
            parsed = [tuple(int(dim) for dim in part.split("x")) for part in parts]
        except ValueError:
            parsed = []
        if not equals or not name or len(parsed) not in (1, 3) or any(dim < 1 for shape in parsed for dim in shape):
            raise BadInputError(
                f"{text!r} is no shape profile", hint="as in --shapes input=1x3x224x224:4x3x224x224:16x3x224x224"
            )
        least, best, greatest = parsed if len(parsed) == 3 else parsed * 3
        out[name] = (least, best, greatest)
    return out


def shape_profiles(
    model: ModelSpec, given: Profiles
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """The profile of every input with free dimensions. Where none was given: batch 1, if only the batch is free.

    Raises:
        BadInputError: a profile fits no input, or an input needs one and has none.
    """
    unknown = set(given) - {spec.name for spec in model.inputs}
    if unknown:
        raise BadInputError(
            f"the model has no input {', '.join(sorted(unknown))}",
            hint=f"its inputs: {', '.join(spec.name for spec in model.inputs)}",
        )
    out = {}
    for spec in model.inputs:
        if spec.name in given:
            shapes = given[spec.name]
            for shape in shapes:
                if len(shape) != len(spec.shape) or any(
                    known not in (DYNAMIC, dim) for known, dim in zip(spec.shape, shape, strict=True)
                ):
                    raise BadInputError(
                        f"the profile of input {spec.name} does not fit its shape {list(spec.shape)}: {list(shape)}"
                    )
            if any(not low <= mid <= high for low, mid, high in zip(*shapes, strict=True)):
                raise BadInputError(f"the profile of input {spec.name} is not in order: least, usual, greatest")
            if DYNAMIC in spec.shape:
                out[spec.name] = shapes
            continue
        free = [index for index, dim in enumerate(spec.shape) if dim == DYNAMIC]
        if not free:
            continue
        if free != [0]:
            raise BadInputError(
                f"input {spec.name} has free dimensions besides its batch, {list(spec.shape)}",
                hint=f"an engine needs their bounds: --shapes {spec.name}=LEAST:USUAL:GREATEST, each as 1x3x224x224",
            )
        shape = (1, *spec.shape[1:])
        out[spec.name] = (shape, shape, shape)
    return out
