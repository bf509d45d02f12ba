"""FP16 and BF16: casts around what may be computed so, FP32 for the rest; what is kept is found by measuring.

Which of a node's tensors may change is the operator's schema's to say; which should not is told by a table, by
the values on calibration data, and by the error of the outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import activations
from ..proof.runner import session_of
from ..work import Result, Work
from .casts import LowFloat, insert_casts, low_slots
from .refine import Judge, refine
from .step import Quantize

__all__ = ["SENSITIVE", "convert"]

_FORMATS = {
    "fp16": LowFloat("fp16", TensorProto.FLOAT16, largest=65504.0, smallest=2.0**-14, roundoff=2.0**-11, opset=13),
    # Its range is FP32's. Convolutions and poolings take it from operator set 22 on.
    "bf16": LowFloat("bf16", TensorProto.BFLOAT16, largest=float("inf"), smallest=0.0, roundoff=2.0**-8, opset=22),
}

_ROUNDINGS = 32
"""Outputs may be as far off as so many roundings of their own size, 1.6 % in FP16 and 12.5 % in BF16, untried."""

_HEADROOM = 4.0
"""Other data may reach further than those that were calibrated with."""

_SAMPLES = 128

_EXPONENTIATES = "exponentiates or divides: small differences become large, large values overflow"
_ADDS = "adds up many values in one"
_CARRIES = "carries its error from step to step"
_PLACES = "computes positions: half precision has 11 bits for them"

# After PyTorch's list of operators that automatic mixed precision leaves in FP32 (documentation of torch.amp, "CUDA
# Ops that can autocast to float32"), for what it names; means, recurrent layers and positions are added. onnxruntime's
# CPU computes most of FP16 through FP32, which hides what sums in FP16 would lose: measuring alone would not do.
SENSITIVE: dict[str, str] = {
    **dict.fromkeys(
        ("Acos", "Asin", "Cosh", "Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "Sinh", "Softmax", "Softplus", "Tan"),
        _EXPONENTIATES,
    ),
    **dict.fromkeys(
        (
            "CumProd", "CumSum", "GlobalAveragePool", "GroupNormalization", "InstanceNormalization", "LRN",
            "LayerNormalization", "LpNormalization", "MeanVarianceNormalization", "RMSNormalization", "ReduceL1",
            "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
        ),
        _ADDS,
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _CARRIES),
    **dict.fromkeys(("AffineGrid", "GridSample", "MaxRoiPool", "RoiAlign"), _PLACES),
}  # fmt: skip
"""Operators that stay FP32, and why."""


def convert(step: Quantize, graph: Graph, work: Work) -> Result:
    """A graph that computes in half precision where that is safe; its inputs and outputs stay FP32.

    Raises:
        IncompatibleError: the graph is quantised already, no node of it can be computed so, or the runtime refuses it.
        BadInputError: a pattern of `keep` names no node.
    """
    kind = _FORMATS[step.precision]
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.nodes):
        raise IncompatibleError(
            f"the model is quantised already: casts to {kind.name.upper()} would keep its integers apart",
            hint="give one quantize pass, on the FP32 model",
        )
    work.progress(f"converting to {kind.name.upper()}", 0.0)
    notes: list[str] = []
    graph = _raised(graph, kind, notes)
    candidates = low_slots(graph, kind)
    if not candidates:
        raise IncompatibleError(
            f"no node of the model can be computed in {kind.name.upper()}", hint="its operators take FP32 only"
        )
    fixed = _reasons(step, graph, work, kind, set(candidates))
    wanted = _without_islands(graph, set(candidates) - set(fixed))
    if not wanted:
        raise IncompatibleError(
            f"every node of the model is one that should not be computed in {kind.name.upper()}",
            hint=f"the reason for most: {Counter(fixed.values()).most_common(1)[0][0]}" if fixed else "",
        )

    def build(low: frozenset[str]) -> Graph:
        return insert_casts(graph, {name: candidates[name] for name in low}, kind)

    judge = Judge(graph, work)
    tolerance = (_ROUNDINGS * kind.roundoff) ** 2
    done = refine(judge, work, [node.name for node in graph.nodes if node.name in wanted], build, tolerance)
    made, error, low = done.graph, done.error, _without_islands(graph, wanted - set(done.kept))
    if len(low) < len(wanted) - len(done.kept):
        made = build(frozenset(low))
        error = judge.error(made)
    _require_runs(made, work)
    reasons = Counter([*fixed.values(), *("costs the most accuracy" for _ in done.kept)])
    reasons["stands between nodes in FP32"] = len(candidates) - len(low) - reasons.total()
    changed = {
        "nodes": {kind.name: len(low), "fp32": len(graph.nodes) - len(low)},
        "fp32_because": {reason: count for reason, count in reasons.most_common() if count},
        "kept_for_their_error": list(done.kept),
        "casts": sum(node.op_type == "Cast" for node in made.nodes),
        "output_error": error,
    }
    if error is not None and error > tolerance:
        notes.append(f"the outputs are off by {np.sqrt(error) * 100:.2g} % of their size on the calibration data")
    notes += _notes(kind, work)
    return Result(made, changed, tuple(notes), {"precision": dict.fromkeys(sorted(low), kind.name)})


def _notes(kind: LowFloat, work: Work) -> list[str]:
    notes = []
    if work.calibration is None:
        notes.append(
            "without calibration data only a table of operators tells what stays in FP32: neither the range of values "
            "nor the error was measured"
        )
    if work.target.runtimes[0] == "onnxruntime":
        notes.append("onnxruntime's CPU computes most of FP16 through FP32: the file is smaller, not faster")
    else:
        notes.append(f"accuracy is simulated: FP32 on this host's CPU, each result rounded to {kind.name.upper()}")
    return notes


def _raised(graph: Graph, kind: LowFloat, notes: list[str]) -> Graph:
    out = graph.copy()
    try:
        out.add_opset(kind.opset)
    except BadInputError:
        notes.append(f"the opset could not be raised to {kind.opset}: operators that need it for {kind.name} stay FP32")
        return graph.copy()
    if kind.opset >= 22:
        # onnx 1.17, the first with operator set 22, wrote IR version 10.
        out.proto.ir_version = max(out.proto.ir_version, 10)
    return out


def _reasons(step: Quantize, graph: Graph, work: Work, kind: LowFloat, candidates: set[str]) -> dict[str, str]:
    """Of the candidates, those that stay in FP32, and why."""
    reasons: dict[str, str] = dict.fromkeys(
        step.kept([node.name for node in graph.nodes if node.name in candidates]), "asked for"
    )
    carried = _carried(graph)
    peaks = _peaks(graph, candidates, work.calibration) if np.isfinite(kind.largest) else {}
    for node in graph.nodes:
        if node.name not in candidates or node.name in reasons:
            continue
        if node.op_type in SENSITIVE:
            reasons[node.name] = SENSITIVE[node.op_type]
        elif not any(name in carried for name in node.output):
            reasons[node.name] = "computes shapes, not data"
        elif any(not _fits(graph, name, kind) for name in _constants(graph, node)):
            reasons[node.name] = f"a constant lies outside of the range of {kind.name.upper()}"
        elif any(
            name in peaks and not kind.smallest <= peaks[name] <= kind.largest / _HEADROOM
            for name in (*node.input, *node.output)
        ):
            reasons[node.name] = f"its values leave the safe range of {kind.name.upper()} on the calibration data"
    return reasons


def _carried(graph: Graph) -> set[str]:
    """Tensors that depend on the values of an input, and not on its shape alone."""
    carried = set(graph.input_names)
    for node in graph.nodes:
        # A subgraph may read anything around it: what If and Loop make counts as data.
        holds = any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
        if node.op_type not in ("Shape", "Size") and (holds or any(name in carried for name in node.input)):
            carried.update(name for name in node.output if name)
    return carried


def _fits(graph: Graph, name: str, kind: LowFloat) -> bool:
    if not graph.is_float(name):
        return True
    largest = float(np.abs(graph.array(name)).max(initial=0.0))
    return largest == 0 or kind.smallest <= largest <= kind.largest


def _peaks(graph: Graph, candidates: Iterable[str], samples: Samples | None) -> dict[str, float]:
    """Largest magnitude of each float tensor that a candidate reads or makes; those that are always 0 are left out."""
    if samples is None:
        return {}
    nodes = [graph.by_name[name] for name in candidates]
    names = {name for node in nodes for name in (*node.input, *node.output) if name and graph.is_float(name)}
    peaks: dict[str, float] = {}
    for values in activations(graph, sorted(names - set(graph.initializers)), samples.first(_SAMPLES)):
        for name, array in values.items():
            peak = float(np.abs(array).max(initial=0.0))
            peaks[name] = max(peaks.get(name, 0.0), peak) if np.isfinite(peak) else float("inf")
    return {name: peak for name, peak in peaks.items() if peak > 0}


def _without_islands(graph: Graph, low: set[str]) -> set[str]:
    """Leave out cheap nodes that stand between nodes in FP32: two casts would cost more than they save."""
    left = set(low)
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if node.name not in left or any(len(graph.initializers[name].dims) > 1 for name in _constants(graph, node)):
                continue
            makers = [graph.producer[name].name for name in node.input if name in graph.producer]
            readers = [reader.name for name in node.output for reader, _ in graph.consumers.get(name, ())]
            if not any(name in left for name in (*makers, *readers)):
                left.discard(node.name)
                changed = True
    return left


def _constants(graph: Graph, node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name in graph.initializers]


def _require_runs(graph: Graph, work: Work) -> None:
    if work.target.runtimes[0] != "onnxruntime":
        return
    try:
        session_of(graph)
    except BadInputError as error:
        raise IncompatibleError(
            f"onnxruntime does not run this model in half precision: {error.message}",
            hint="keep the layers it names in FP32: --keep",
        ) from error
