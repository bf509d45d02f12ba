"""What the graph alone tells: types, precisions, opset, free dimensions, Q/DQ placement, operators by table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kedge_agent.formats.tensors import DYNAMIC

from ...model.facts import CHECKER, FP64, LONG, PRECISIONS_BY_KIND, TYPES_BY_KIND, input_kinds, strict_fault
from ...model.graph import Graph
from ...model.onnx_io import ModelSpec
from ...model.qdq_check import QdqReport
from ...targets import Target
from .findings import Finding
from .operators import OperatorTable

__all__ = [
    "CHECKER",
    "KEDGE",
    "by_table",
    "free_dimensions",
    "precision",
    "qdq",
    "shape_inference",
    "suggestion",
    "table_judge",
    "types",
    "versions",
]

KEDGE = "kedge's own rules"

# What to put in an operator's place. Legacy ones first: exporters of old wrote them before ONNX had a way to say it.
_INSTEAD = {
    "Crop": "export again with opset 10 or newer, which says this with Slice",
    "ImageScaler": "multiply and add in the preprocessing, or export again with a newer opset",
    "Affine": "export again with a newer opset, which says this with Mul and Add",
    "Upsample": "export again with opset 11 or newer, which says this with Resize",
    "Scan": "export with the loop unrolled",
    "Loop": "export with the loop unrolled, or with its count fixed",
    "If": "export the branch that the device needs: a condition on data cannot be compiled",
    "NonMaxSuppression": "leave the selection of boxes to the host, after the network",
    "StringNormalizer": "leave text to the host, before the network",
    "TfIdfVectorizer": "leave text to the host, before the network",
    "QuantizeLinear": "quantise symmetrically, with zero point 0: kedge optimize --quantize int8 for this target",
    "DequantizeLinear": "quantise symmetrically, with zero point 0: kedge optimize --quantize int8 for this target",
    "ConvInteger": "start from the FP32 model: kedge optimize --quantize int8 writes Q/DQ pairs",
    "MatMulInteger": "start from the FP32 model: kedge optimize --quantize int8 for this target",
    "DynamicQuantizeLinear": "TensorRT wants every range stated: kedge optimize --quantize int8 for this target",
    "MatMulNBits": "this is onnxruntime's own: kedge optimize --quantize int4 for this target",
}
_OTHERWISE = "express it by other operators when exporting, or leave this part to the host"


def suggestion(op: str) -> str:
    """What to put in an operator's place."""
    if op.startswith("QLinear"):
        return _INSTEAD["ConvInteger"]
    return _INSTEAD.get(op, _OTHERWISE)


def shape_inference(graph: Graph) -> Iterator[Finding]:
    """What ONNX's own checker and strict shape inference say."""
    fault = strict_fault(graph)
    if fault is not None:
        yield Finding(
            "warning",
            "shape-inference",
            f"shapes and types do not agree: {fault}",
            CHECKER,
            suggestion="export it again; what a compiler makes of it is its own judgement",
        )


def precision(spec: ModelSpec, graph: Graph, target: Target) -> Iterator[Finding]:
    """A precision that the target does not have, at the model and at each tensor type in it."""
    if spec.precision not in target.precisions:
        yield Finding(
            "error",
            "precision",
            f"the model is {spec.precision}, {target.name} runs {', '.join(target.precisions)}",
            f"profile {target.name}",
            suggestion=f"kedge optimize --target {target.name} --quantize {_nearest(spec.precision, target)}",
        )
    used: dict[str, str] = {}
    for name, (kind, _) in graph.types.items():
        if kind in PRECISIONS_BY_KIND:
            used.setdefault(PRECISIONS_BY_KIND[kind], name)
    for name, tensor in sorted(used.items()):
        if name not in (*target.precisions, spec.precision):
            maker = graph.producer.get(tensor)
            yield Finding(
                "error",
                "precision",
                f"tensor {tensor} is {name}, which {target.name} does not have",
                f"profile {target.name}",
                node=maker.name if maker is not None else "",
                op=maker.op_type if maker is not None else "",
                place=graph.nodes.index(maker) if maker is not None else None,
            )


def _nearest(wanted: str, target: Target) -> str:
    order = {"fp8": ("int8", "fp16"), "fp4": ("int4", "int8"), "int4": ("int8",), "bf16": ("fp16",)}
    return next((each for each in order.get(wanted, ()) if each in target.precisions), "int8")


def versions(spec: ModelSpec, target: Target, runtime: str) -> Iterator[Finding]:
    """Opset and IR version against the target's onnxruntime."""
    if runtime != "onnxruntime":
        return
    for what, found, most in (
        ("opset", spec.opset, target.onnx_opset_max),
        ("IR version", spec.ir_version, target.onnx_ir_max),
    ):
        if most is not None and found > most:
            yield Finding(
                "error",
                "version",
                f"the model has {what} {found}; the onnxruntime of {target.name} reads up to {most}",
                f"profile {target.name}",
                suggestion=f"export it with {what} {most} or older",
            )


def types(graph: Graph) -> Iterator[Finding]:
    """64-bit numbers. TensorRT has no FP64: its parser makes FP32 of it, also where the model takes or gives it."""
    ends = [name for name in (*graph.input_names, *graph.output_names) if graph.types.get(name, (0, None))[0] == FP64]
    if ends:
        yield Finding(
            "error",
            "fp64",
            f"{', '.join(ends[:4])} would be FP32 in the engine, and is FP64 in the model",
            KEDGE,
            suggestion="export the model with FP32 inputs and outputs",
        )
    for place, node in enumerate(graph.nodes):
        if any(graph.types.get(name, (0, None))[0] == FP64 for name in node.output if name):
            yield Finding(
                "warning",
                "fp64",
                "gives out FP64, which TensorRT computes in FP32",
                KEDGE,
                node=node.name,
                op=node.op_type,
                place=place,
                suggestion="export the model in FP32",
            )
    long = [name for name, kind in input_kinds(graph).items() if kind in LONG]
    if long:
        yield Finding(
            "info",
            "int64",
            f"input {', '.join(long[:4])} holds 64-bit numbers: twice the bytes on the way to the device",
            KEDGE,
            suggestion="export it with INT32 inputs where the values allow it",
        )


def free_dimensions(spec: ModelSpec, given: Any) -> Iterator[Finding]:
    """Inputs whose shape is not fixed: an engine needs their bounds."""
    for each in spec.inputs:
        free = [index for index, dim in enumerate(each.shape) if dim == DYNAMIC]
        if not free or each.name in given:
            continue
        if free == [0]:
            yield Finding(
                "info",
                "free-batch",
                f"input {each.name} has a free batch: the engine is built for batch 1",
                KEDGE,
                suggestion=f"for others: --shapes {each.name}=LEAST:USUAL:GREATEST",
            )
        else:
            yield Finding(
                "error",
                "free-dimensions",
                f"input {each.name} has free dimensions besides its batch, {list(each.shape)}, and no shape profile",
                KEDGE,
                suggestion=f"--shapes {each.name}=LEAST:USUAL:GREATEST, each as 1x3x224x224",
            )


def qdq(graph: Graph, report: QdqReport) -> Iterator[Finding]:
    """What the checker of Q/DQ placement says, as findings of preflight."""
    for each in report.findings:
        op = graph.by_name[each.node].op_type if each.node in graph.by_name else ""
        yield Finding(
            each.severity,
            each.code,
            each.message.removeprefix(f"{op} {each.node}: "),
            "kedge's Q/DQ checker",
            node=each.node,
            op=op,
            place=_place(graph, each.node),
            suggestion=each.hint,
        )


def table_judge(table: OperatorTable) -> str:
    """How findings and reports name a table."""
    return f"operator table of TensorRT {table.version}" + (
        "" if table.table == table.version else f" (that of {table.table})"
    )


def by_table(graph: Graph, spec: ModelSpec, table: OperatorTable) -> Iterator[Finding]:
    """Operators, types and opset against the table of a TensorRT release."""
    judge = table_judge(table)
    if not table.opset_min <= spec.opset <= table.opset_max:
        yield Finding(
            "warning",
            "opset",
            f"the model has opset {spec.opset}; this parser is documented for {table.opset_min} to {table.opset_max}",
            judge,
            suggestion="export it with one of these",
        )
    local = {function.name for function in graph.proto.functions}
    for place, node in enumerate(graph.nodes):
        if node.op_type in local:
            continue
        support = table.supports(node.op_type, node.domain)
        if not support.supported:
            yield Finding(
                "error",
                "operator",
                f"not supported{': ' if support.note else ''}{support.note}",
                judge,
                node=node.name,
                op=node.op_type,
                place=place,
                suggestion=suggestion(node.op_type),
            )
            continue
        # Rows name what an operator reads; of Q and DQ the first input, beside which stand scale and zero point.
        read = node.input[:1] if node.op_type in ("QuantizeLinear", "DequantizeLinear") else node.input
        kinds = {graph.types.get(name, (0, None))[0] for name in read if name}
        names = {TYPES_BY_KIND[kind] for kind in kinds if kind in TYPES_BY_KIND}
        taken = {*support.types, *table.quantized_types, *table.casts, *table.io_types}
        odd = sorted(names - taken) if support.types else []
        # Shapes and indices are INT64 everywhere in ONNX; parsers hold them as constants.
        odd = [name for name in odd if name not in ("INT64", "INT32")]
        if odd:
            yield Finding(
                "warning",
                "operator-type",
                f"{node.op_type} with {', '.join(odd)}; its row names {', '.join(support.types)}",
                judge,
                node=node.name,
                op=node.op_type,
                place=place,
            )
        elif support.note and node.op_type in ("If", "Loop", "Scan", "NonMaxSuppression"):
            yield Finding("info", "restricted", support.note, judge, node=node.name, op=node.op_type, place=place)


def _place(graph: Graph, name: str) -> int | None:
    return next((place for place, node in enumerate(graph.nodes) if node.name == name), None)
