"""PyTorch → ONNX: the one place that calls torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, IncompatibleError, first_line

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["OPSET", "export_onnx", "quiet_torch"]

OPSET = 18
_CHATTY = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnxslim")


def export_onnx(
    module: torch.nn.Module | torch.export.ExportedProgram,
    example: torch.Tensor | tuple[torch.Tensor, ...],
    path: Path,
    *,
    input_names: Sequence[str] | None = ("input",),
    output_names: Sequence[str] | None = ("output",),
    free_batch: bool = True,
    free_axes: Mapping[str, Mapping[int, str]] | None = None,
    keep_batch_norm: bool = False,
) -> None:
    """Export a module, or a program of torch.export, to one ONNX file.

    Args:
        example: inputs of the right shape, at least two samples where the batch is free: torch.export
            takes a batch of one for a constant. Not used for a program, which has its own.
        input_names, output_names: or None for torch's.
        free_batch: the first dimension of every input is free. A program has decided that already.
        free_axes: other dimensions that are free, by input name and axis; those of one name are alike. The example
            needs two entries there at least, as for the batch.
        keep_batch_norm: leave BatchNormalization nodes, which training and pruning want; else they
            are folded into convolutions, for running.

    Raises:
        BadInputError: torch cannot export the module.
        IncompatibleError: torch or onnxslim is not installed.
    """
    torch = _torch()
    examples = (example,) if isinstance(example, torch.Tensor) else example
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "opset_version": OPSET, "verbose": False}
    options["input_names"] = None if input_names is None else list(input_names)
    options["output_names"] = None if output_names is None else list(output_names)
    if isinstance(module, torch.nn.Module):
        module.eval()
        options["dynamic_shapes"] = _dynamic_shapes(torch, input_names, len(examples), free_batch, free_axes or {})
    else:
        examples = ()
    try:
        with quiet_torch():
            if not keep_batch_norm:
                torch.onnx.export(module, examples, path, **options)
                return
            # optimize=True would fold BatchNormalization; what else it does is done by _cleaned.
            program = torch.onnx.export(module, examples, optimize=False, **options)
            path.write_bytes(_cleaned(program).SerializeToString())
    except IncompatibleError:
        raise
    except Exception as error:  # the exporter raises its own and torch's classes
        # The exporter's own error says which of its steps failed; the cause says why.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise BadInputError(
            f"torch cannot export this module: {first_line(cause)}",
            hint="try torch.onnx.export on it directly for the whole report",
        ) from error


def _dynamic_shapes(
    torch: Any, names: Sequence[str] | None, count: int, free_batch: bool, free_axes: Mapping[str, Mapping[int, str]]
) -> tuple[dict[int, Any], ...] | None:
    """What torch.export calls each free dimension; None where none is."""
    dims = {name: torch.export.Dim(name) for axes in free_axes.values() for name in axes.values()}
    batch = {0: torch.export.Dim("batch")} if free_batch else {}
    named = [*(names or ()), *[""] * count][:count]
    shapes = tuple(batch | {axis: dims[name] for axis, name in free_axes.get(each, {}).items()} for each in named)
    return shapes if any(shapes) else None


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence what torch's exporter and its helpers print, log and warn about."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise IncompatibleError("torch is needed to read this model", hint="pip install 'kedge[optimize]'") from error
    return torch


def _cleaned(program: Any) -> onnx.ModelProto:
    """Fold the constants and shape arithmetic of an unoptimised export; nothing that has weights is fused."""
    from onnxscript import optimizer

    try:
        import onnxslim
        from onnxslim.core.pattern.registry import DEFAULT_FUSION_PATTERNS
    except ImportError as error:
        raise IncompatibleError(
            "onnxslim is needed to read this model", hint="pip install 'kedge[optimize]'"
        ) from error
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    fusions = [name for name in DEFAULT_FUSION_PATTERNS if name.startswith("Fusion")]
    # Tied, weights that are equal only because training has not begun would be trained as one.
    model: onnx.ModelProto = onnxslim.slim(
        program.model_proto, skip_fusion_patterns=fusions, skip_optimizations=["weight_tying"]
    )
    _drop_casts(model)
    _name_layers(model)
    _name_batch(model)
    return model


def _drop_casts(model: onnx.ModelProto) -> None:
    # torch's exporter writes CastLike where types might differ; most often they do not.
    from ..model.graph import Graph

    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type != "CastLike" or node.output[0] in graph.output_names:
            continue
        have, want = (graph.types.get(name, (0, None))[0] for name in node.input)
        if have and have == want:
            graph.rewire(node.output[0], node.input[0])
    graph.prune_unused()


def _name_layers(model: onnx.ModelProto) -> None:
    """Name each layer as its module is called: the node that reads `a.b.weight` becomes `a.b`."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".weight")}
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        # Stack traces name folders of the machine that exported.
        del node.metadata_props[:]
        node.doc_string = ""
        names = [name.removesuffix(".weight") for name in node.input if name in weights]
        if names and names[0] not in taken:
            node.name = names[0]
            taken.add(names[0])
    for described in (model.graph, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del described.metadata_props[:]
        described.doc_string = ""
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del model.metadata_props[:]


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the free first dimension "batch", where torch made a name up."""
    first = {
        value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input if value.type.tensor_type.shape.dim
    }
    if len(first) != 1 or not (name := first.pop()):
        return
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == name:
                dim.dim_param = "batch"
