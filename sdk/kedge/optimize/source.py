"""Where a model comes from: an ONNX file, a torch.export program, or a function that makes a module.

Whatever was given, what passes work on is one ONNX graph. What came through torch's exporter keeps its
BatchNormalization nodes and is checked against torch before anything is built on it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.tensors import DYNAMIC

from ..errors import BadInputError, IncompatibleError, first_line
from ..model.graph import Graph
from ..model.onnx_io import ModelSpec, model_spec, read_proto, read_with_files
from ..model.session import ReferenceModel
from ..model.usercode import in_user_code, is_user_code, load_function
from ..model.versions import require_runnable

if TYPE_CHECKING:
    import torch

__all__ = ["Source", "load_source"]

_EXPORTED_NAME = "source.onnx"
_TOLERANCE = 1e-4
_EXAMPLE_SEED = 0
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


@dataclass(frozen=True)
class Source:
    """The model as it was given.

    sha256: of the file given (with weights in other files: of its one-file form), or of the exported ONNX of
        a module. path: the user's ONNX file, else None. kind: "onnx", "exported" or "module".
    """

    graph: Graph
    spec: ModelSpec
    reference: str
    sha256: str
    kind: str
    path: Path | None = None


def load_source(
    reference: str, scratch: Path, *, base: Path | None = None, input_shape: Sequence[Any] | None = None
) -> Source:
    """Read a model and make it a graph. Files given are only read.

    Args:
        reference: an `.onnx` file (weights in files beside it are read too), a `.pt2` program of torch.export,
            or `package.module:factory`: called with nothing, it returns an nn.Module, or (module, example),
            example a tensor or a tuple of tensors. The module may carry it as `example_input` instead, and as
            `dynamic_axes` the dimensions besides the batch that are free: {"tokens": {1: "words"}}.
        scratch: a folder for the exported ONNX, which is named source.onnx.
        base: the folder that paths and modules are relative to, or None for the current one.
        input_shape: shape of a module's float input, batch included, or a list of shapes for several inputs;
            only used where there is no example.

    Raises:
        BadInputError: the model cannot be read or exported.
        IncompatibleError: a library is missing, a tensor has a type that is not served, or the exported
            model does not compute what the module does.
    """
    path = (base or Path()) / reference
    if not path.exists() and is_user_code(reference):
        return _from_factory(reference, scratch, base, input_shape)
    if path.suffix.lower() == ".pt2" and path.exists():
        return _from_program(reference, path, scratch)
    if path.suffix.lower() in _CHECKPOINTS and path.exists():
        raise BadInputError(
            f"{reference} holds weights, not a model",
            hint="give package.module:factory that makes the module and loads them",
        )
    model, files = read_with_files(path)
    spec = model_spec(model)
    require_runnable(spec, reference)
    sha256 = hash_file(path).sha256
    if files:
        sha256 = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return Source(Graph(model), spec, reference, sha256, "onnx", path)


def _from_program(reference: str, path: Path, scratch: Path) -> Source:
    from .export import export_onnx
    from .program import load_program

    program = load_program(path)
    exported = scratch / _EXPORTED_NAME
    only = len(program.graph_signature.user_outputs) == 1
    export_onnx(
        program, (), exported, input_names=None, output_names=("output",) if only else None, keep_batch_norm=True
    )
    arguments, keywords = program.example_inputs or ((), {})
    if arguments and not keywords:
        _require_same(reference, exported, program.module(), tuple(arguments))
    return _exported(reference, exported, hash_file(path).sha256, "exported")


def _from_factory(reference: str, scratch: Path, base: Path | None, input_shape: Sequence[Any] | None) -> Source:
    from .export import export_onnx

    module, example = _made(reference, base, input_shape)
    exported = scratch / _EXPORTED_NAME
    with in_user_code(reference):
        import torch

        with torch.no_grad():
            outputs = module(*example)
    inputs = list(inspect.signature(module.forward).parameters)[: len(example)]
    names = {"input_names": inputs, "output_names": _output_names(outputs)}
    sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in example}
    free = len(sizes) == 1 and 0 not in sizes
    given = dict(zip(inputs, example, strict=False))
    axes = _free_axes(reference, module, given)
    several = tuple(torch.cat([tensor, tensor]) for tensor in example) if sizes == {1} else example
    try:
        export_onnx(module, several, exported, **names, free_batch=free, free_axes=axes, keep_batch_norm=True)
    except BadInputError:
        if not free:
            raise
        # Some modules insist on the batch of their example: they are exported as they are.
        export_onnx(module, example, exported, **names, free_batch=False, free_axes=axes, keep_batch_norm=True)
    _require_same(reference, exported, module, example)
    if axes:
        # At another size than the exporter saw: a size that got into the graph as a constant shows here.
        halved = tuple(_halved(tensor, axes.get(name, {})) for name, tensor in given.items())
        _require_same(reference, exported, module, halved)
    return _exported(reference, exported, hash_file(exported).sha256, "module")


def _free_axes(
    reference: str, module: torch.nn.Module, example: Mapping[str, torch.Tensor]
) -> dict[str, dict[int, str]]:
    """The module's `dynamic_axes`, checked against its example."""
    given = getattr(module, "dynamic_axes", None)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(axes, Mapping) for axes in given.values()):
        raise BadInputError(f"the dynamic_axes of {reference} are {given!r}", hint='as in {"tokens": {1: "words"}}')
    for name, axes in given.items():
        if name not in example:
            raise BadInputError(
                f"{reference} has no input {name!r}, which its dynamic_axes name",
                hint=f"its inputs: {', '.join(example)}",
            )
        for axis, size_name in axes.items():
            if type(axis) is not int or not 0 < axis < example[name].ndim or not str(size_name).isidentifier():
                raise BadInputError(
                    f"the dynamic_axes of {reference} give {axis!r} of {name!r} the name {size_name!r}",
                    hint="an axis after the batch's, and a name that Python would take",
                )
            if example[name].shape[axis] < 2:
                raise BadInputError(
                    f"the example of {reference} has one entry along axis {axis} of {name!r}, which is to be free",
                    hint="give an example of two entries there or more: torch takes one for a constant",
                )
    return {name: dict(axes) for name, axes in given.items()}


def _halved(tensor: torch.Tensor, axes: Mapping[int, str]) -> torch.Tensor:
    for axis in axes:
        tensor = tensor.narrow(axis, 0, max(1, tensor.shape[axis] // 2))
    return tensor


def _made(
    reference: str, base: Path | None, input_shape: Sequence[Any] | None
) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    factory = load_function(reference, base)
    try:
        import torch
    except ImportError as error:
        raise IncompatibleError("torch is needed to read this model", hint="pip install 'kedge[optimize]'") from error
    with in_user_code(reference):
        made = factory()
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise BadInputError(
            f"{reference} gives a {type(module).__name__}, not an nn.Module",
            hint="return the module, or (module, example input)",
        )
    module = module.eval().cpu()
    for given in (example, getattr(module, "example_input", None)):
        if given is None:
            continue
        tensors = (given,) if isinstance(given, torch.Tensor) else given
        if not isinstance(tensors, (tuple, list)) or not all(isinstance(each, torch.Tensor) for each in tensors):
            raise BadInputError(
                f"the example of {reference} is a {type(given).__name__}", hint="tensors, or a tuple of them"
            )
        return module, tuple(tensor.detach().cpu() for tensor in tensors)
    if not input_shape:
        raise BadInputError(
            f"{reference} gives no example input",
            hint="return (module, example), set module.example_input, or state input_shape in the recipe",
        )
    generator = torch.Generator().manual_seed(_EXAMPLE_SEED)
    return module, tuple(torch.randn(shape, generator=generator) for shape in _shapes(input_shape))


def _shapes(given: Sequence[Any]) -> list[tuple[int, ...]]:
    listed = list(given) if all(isinstance(each, (list, tuple)) for each in given) else [given]
    shapes = [tuple(shape) for shape in listed]
    if not all(shape and all(type(side) is int and 0 < side < 1 << 24 for side in shape) for shape in shapes):
        raise BadInputError(f"input_shape is {list(given)}", hint="whole sizes, the batch first: [1, 3, 224, 224]")
    return shapes


def _output_names(outputs: Any) -> list[str] | None:
    import torch

    if isinstance(outputs, torch.Tensor):
        return ["output"]
    if isinstance(outputs, Mapping) and all(isinstance(value, torch.Tensor) for value in outputs.values()):
        return [str(name) for name in outputs]
    if isinstance(outputs, (tuple, list)) and all(isinstance(value, torch.Tensor) for value in outputs):
        return [f"output_{index}" for index in range(len(outputs))]
    return None


def _require_same(reference: str, exported: Path, module: Any, example: tuple[torch.Tensor, ...]) -> None:
    """Compare the exported model with the module, on the example and, where the batch is free, on one sample of it."""
    model, spec = ReferenceModel(exported), model_spec(read_proto(exported))
    free = all(tensor.shape and tensor.shape[0] == DYNAMIC for tensor in spec.inputs)
    trials = [example, tuple(tensor[:1] for tensor in example)] if free else [example]
    for tensors in trials:
        wanted = _run(reference, module, tensors)
        fed = {tensor.name: value.numpy() for tensor, value in zip(spec.inputs, tensors, strict=False)}
        got = list(model.run(fed).values())
        if len(got) != len(wanted):
            raise IncompatibleError(f"{reference} has {len(wanted)} outputs, exported to ONNX {len(got)}")
        for ours, theirs in zip(got, wanted, strict=True):
            worst = _difference(ours, theirs)
            if worst > _TOLERANCE:
                raise IncompatibleError(
                    f"{reference} computes something else once exported to ONNX: relative difference {worst:.2g}",
                    hint="is it random, or still training after eval()? else export it yourself and give the ONNX file",
                )


def _run(reference: str, module: Any, tensors: tuple[torch.Tensor, ...]) -> list[NDArray[Any]]:
    import torch

    with in_user_code(reference), torch.no_grad():
        outputs = module(*tensors)
    values = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    values = list(values.values()) if isinstance(values, Mapping) else list(values)
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise BadInputError(f"{reference} gives outputs that are no tensors", hint="return tensors, flat")
    return [value.numpy() for value in values]


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Largest |difference|, in parts of the largest |value| where that is above 1."""
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.size == 0 or theirs.dtype.kind != "f":
        return 0.0
    scale = max(1.0, float(np.abs(theirs).max()))
    return float(np.abs(ours.astype(np.float64) - theirs).max()) / scale


def _exported(reference: str, path: Path, sha256: str, kind: str) -> Source:
    try:
        model = read_proto(path)
    except BadInputError as error:
        raise IncompatibleError(f"{reference} was exported to ONNX that is not valid: {first_line(error)}") from error
    spec = model_spec(model)
    require_runnable(spec, reference)
    return Source(Graph(model), spec, reference, sha256, kind)
