"""Weights in four bits under activations in FP32, and INT8 whose activation ranges are taken at run time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...errors import IncompatibleError
from ...model.graph import Graph, attributes
from ..work import Result, Work
from .affine import INT8_NARROW, INT8_REDUCED
from .awq import AWQ, awq_weights
from .blocks import TENSORRT_BLOCKS, Stored, asymmetric_blocks, packed, symmetric_blocks
from .calibrate import weight_params
from .placement import quantizable, weight_site
from .refine import TOLERANCE_8_BITS, Judge, refine
from .static import lacks_feature
from .step import Quantize

__all__ = ["quantize_dynamic", "quantize_int4"]

_BLOCK = 32
_INT4_OPSET, _INT4_IR_VERSION = 21, 10
_DYNAMIC_OPSET = 13
_CUSTOM = "com.microsoft"
_UNMEASURED = "without calibration data the error was not measured, and nothing kept in FP32 for it"

# As TOLERANCE_8_BITS; a cosine of about 0.985.
_TOLERANCE = 0.03


def quantize_int4(step: Quantize, graph: Graph, work: Work) -> Result:
    """Weights of matrix products (for TensorRT of convolutions, too) to four bits; activations stay FP32.

    For onnxruntime its own operator MatMulNBits, asymmetric; for TensorRT DequantizeLinear with blocks along the
    input channels, symmetric, for it takes no other. Each block's clip is searched for the least squared error, its
    weights are rounded to nearest; or, for TensorRT's products, `step.rounding` leaves both to ModelOpt's AWQ.

    Raises:
        IncompatibleError: the model has no such weights, or is quantised already; AWQ for another runtime.
        BadInputError: a pattern of `keep` names no layer; AWQ without calibration data.
    """
    _require_float(graph)
    for_tensorrt = work.target.int8.placement == "tensorrt"
    layers = [node.name for node in quantizable(graph) if _holds_four_bits(graph, node, for_tensorrt)]
    if not layers:
        raise IncompatibleError(
            "the model has no weights to store in four bits",
            hint="weights of MatMul and Gemm are (for TensorRT of Conv, too); for others: --quantize int8",
        )
    wanted = [name for name in layers if name not in step.kept(layers)]
    source = graph.copy()
    if for_tensorrt:
        source.add_opset(_INT4_OPSET)
        source.proto.ir_version = max(source.proto.ir_version, _INT4_IR_VERSION)
    stored: dict[str, Stored] = {}
    if step.rounding == AWQ:
        if not for_tensorrt:
            raise IncompatibleError(
                f"AWQ's symmetric blocks are for TensorRT, {work.target.name} runs {work.target.runtimes[0]}",
                hint="leave --rounding out: its clips are searched anyhow",
            )
        stored = awq_weights(source, wanted, work.need_calibration("AWQ"), work)
    by_awq = len(stored)
    for index, name in enumerate(wanted):
        if name in stored:
            continue
        work.progress("rounding weights", index / len(wanted))
        node = source.by_name[name]
        stored[name] = _symmetric(source, node) if for_tensorrt else _asymmetric(source, node)

    def build(chosen: frozenset[str]) -> Graph:
        out = source.copy()
        write = _dequantized if for_tensorrt else _nbits
        return _swapped(out, {name: write(out, out.by_name[name], stored[name]) for name in sorted(chosen)})

    done = refine(Judge(graph, work), work, wanted, build, _TOLERANCE)
    taken = [name for name in wanted if name not in done.kept]
    sizes = Counter("a channel" if stored[name].size is None else str(stored[name].size) for name in taken)
    changed = {
        "layers": {"int4": len(taken), "fp32": len(quantizable(graph)) - len(taken)},
        "layers_by_block_size": dict(sizes),
        "symmetric": for_tensorrt,
        "rounding": "nearest",
        "clips_by_awq": by_awq,
        "kept_for_their_error": list(done.kept),
        "output_error": done.error,
    }
    notes = ["only weights have four bits: the products are computed in float"]
    if step.rounding == AWQ and not by_awq:
        notes.append("AWQ took no layer: its one size of blocks divides the input channels of too few products")
    if work.calibration is None:
        notes.append(_UNMEASURED)
    return Result(done.graph, changed, tuple(notes), {"precision": dict.fromkeys(taken, "int4 weights")})


def quantize_dynamic(step: Quantize, graph: Graph, work: Work) -> Result:
    """Matrix products with constant weights in INT8; the range of each activation is taken as it comes.

    Weights are symmetric, one scale a column; activations UINT8 (ONNX DynamicQuantizeLinear). With calibration data,
    products that add most of the error are kept in FP32 until the outputs are near enough.

    Raises:
        IncompatibleError: the model has no such product, or is quantised already.
        BadInputError: a pattern of `keep` names no layer.
    """
    _require_float(graph)
    layers = [node.name for node in quantizable(graph) if _is_product(graph, node)]
    if not layers:
        raise IncompatibleError(
            "the model has no matrix product to quantise dynamically",
            hint="convolutions are quantised statically: --quantize int8 with --calibration",
        )
    wanted = set(layers) - step.kept(layers)
    reduced = step.reduced_range == "yes" or (step.reduced_range == "auto" and lacks_feature(work.target.int8))
    source = graph.copy()
    source.add_opset(_DYNAMIC_OPSET)

    def build(chosen: frozenset[str]) -> Graph:
        return _dynamic(source, set(chosen), reduced=reduced)

    candidates = [name for name in layers if name in wanted]
    done = refine(Judge(graph, work), work, candidates, build, TOLERANCE_8_BITS)
    taken = sorted(wanted - set(done.kept))
    changed = {
        "activations": "uint8, at run time",
        "weights": "int8",
        "reduced_range": reduced,
        "layers": {"int8": len(taken), "fp32": len(quantizable(graph)) - len(taken)},
        "kept_for_their_error": list(done.kept),
        "output_error": done.error,
    }
    notes = () if work.calibration is not None else (_UNMEASURED,)
    return Result(done.graph, changed, notes, {"precision": dict.fromkeys(taken, "int8")})


def _require_float(graph: Graph) -> None:
    quantized = next((node for node in graph.nodes if node.op_type == "QuantizeLinear"), None)
    if quantized is not None:
        raise IncompatibleError(
            f"the model is quantised already, by {quantized.name}",
            hint="give one quantize pass, on the FP32 model: blocks of weights do not go with quantised activations",
        )


def _is_product(graph: Graph, node: onnx.NodeProto) -> bool:
    """A plain matrix product with a constant matrix: its rows are not turned and nothing is scaled."""
    site = weight_site(graph, node)
    if site is None or node.op_type not in ("MatMul", "Gemm") or len(graph.initializers[site.tensor].dims) != 2:
        return False
    given = attributes(node)
    return not given.get("transA", 0) and given.get("alpha", 1.0) == 1.0 and given.get("beta", 1.0) == 1.0


def _holds_four_bits(graph: Graph, node: onnx.NodeProto, for_tensorrt: bool) -> bool:
    if node.op_type == "Conv":
        return for_tensorrt and weight_site(graph, node) is not None
    return _is_product(graph, node)


def _matrix(graph: Graph, node: onnx.NodeProto) -> NDArray[np.float32]:
    """The weights as [input channels, output channels]."""
    weights = graph.array(node.input[1]).astype(np.float32)
    return weights.T if attributes(node).get("transB", 0) else weights


def _symmetric(graph: Graph, node: onnx.NodeProto) -> Stored:
    weights = graph.array(node.input[1]).astype(np.float32)
    site = weight_site(graph, node)
    axis, size = (0 if site is None else site.axis or 0), None
    if node.op_type != "Conv":
        # Blocks lie along the input channels, which are the other axis.
        size = next((block for block in TENSORRT_BLOCKS if weights.shape[1 - axis] % block == 0), None)
        axis = axis if size is None else 1 - axis
    q, scale = symmetric_blocks(weights, axis, size)
    return Stored(q, scale, None, axis, size)


def _asymmetric(graph: Graph, node: onnx.NodeProto) -> Stored:
    weights = _matrix(graph, node)
    inputs, outputs = weights.shape
    rows = np.zeros((outputs, -(-inputs // _BLOCK) * _BLOCK), np.float32)
    rows[:, :inputs] = weights.T
    q, scale, zero = asymmetric_blocks(rows.reshape(-1, _BLOCK))
    return Stored(q, scale, zero, 0, _BLOCK)


def _dequantized(graph: Graph, node: onnx.NodeProto, stored: Stored) -> list[onnx.NodeProto]:
    """Put weights behind DequantizeLinear."""
    name = node.input[1]
    stem = graph.unused_name(f"{name}_int4")
    scale, result = graph.unused_name(f"{stem}_scale"), graph.unused_name(f"{name}_dequantized")
    raw = packed(stored.q.reshape(-1)).tobytes()
    graph.proto.graph.initializer.append(helper.make_tensor(stem, TensorProto.INT4, stored.q.shape, raw, raw=True))
    _add_constant(graph, scale, stored.scale)
    dequantize = helper.make_node(
        "DequantizeLinear", [stem, scale], [result], name=graph.unused_name(f"{result}_node"), axis=stored.axis
    )
    if stored.size is not None:
        dequantize.attribute.append(helper.make_attribute("block_size", stored.size))
    node.input[1] = result
    return [dequantize, node]


def _nbits(graph: Graph, node: onnx.NodeProto, stored: Stored) -> list[onnx.NodeProto]:
    """Make a product onnxruntime's MatMulNBits.

    Layout, after onnxruntime's ContribOperators.md: B [N, blocks, size / 2], scales [N, blocks], zero points
    [N, blocks / 2 rounded up], the lower half of a byte first.
    """
    inputs, outputs = _matrix(graph, node).shape
    assert stored.zero is not None
    stem = graph.unused_name(f"{node.input[1]}_int4")
    names = [stem, *(graph.unused_name(f"{stem}_{part}") for part in ("scale", "zero_point"))]
    parts: tuple[NDArray[Any], ...] = (
        packed(stored.q).reshape(outputs, -1, _BLOCK // 2),
        stored.scale.reshape(outputs, -1),
        packed(stored.zero.reshape(outputs, -1)),
    )
    for name, values in zip(names, parts, strict=True):
        _add_constant(graph, name, values)
    given = {"K": inputs, "N": outputs, "bits": 4, "block_size": _BLOCK}
    product = helper.make_node("MatMulNBits", [node.input[0], *names], [node.output[0]], name=node.name, domain=_CUSTOM)
    product.attribute.extend(helper.make_attribute(key, value) for key, value in given.items())
    _declare(graph, node.output[0])
    if not any(entry.domain == _CUSTOM for entry in graph.proto.opset_import):
        graph.proto.opset_import.append(helper.make_opsetid(_CUSTOM, 1))
    return _biased(graph, node, [product])


def _declare(graph: Graph, name: str) -> None:
    """Write down a tensor's type, for shape inference does not see through an operator that is not ONNX's."""
    known = {value.name for value in (*graph.proto.graph.value_info, *graph.proto.graph.output)}
    if name not in known:
        kind, shape = graph.types[name]
        graph.proto.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _add_constant(graph: Graph, name: str, values: NDArray[Any]) -> None:
    """Without forgetting the graph's indices, as many are added: `_swapped` does it once for all."""
    graph.proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _biased(graph: Graph, node: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes in a product's place, of which the last makes its output: a Gemm's bias is added to that."""
    if len(node.input) <= 2 or not node.input[2]:
        return nodes
    name = node.output[0]
    nodes[-1].output[0] = graph.unused_name(f"{name}_unbiased")
    own = graph.unused_name(f"{node.name}_bias")
    return [*nodes, helper.make_node("Add", [nodes[-1].output[0], node.input[2]], [name], name=own)]


def _swapped(graph: Graph, swap: Mapping[str, list[onnx.NodeProto]]) -> Graph:
    """The graph itself, with nodes in the place of others, by the others' names."""
    graph.replace_nodes([made for node in graph.nodes for made in swap.get(node.name, [node])])
    graph.prune_unused()
    return graph


def _dynamic(source: Graph, taken: set[str], *, reduced: bool) -> Graph:
    out = source.copy()
    quantized: dict[str, list[str]] = {}
    swap: dict[str, list[onnx.NodeProto]] = {}
    for name in sorted(taken):
        node, before = out.by_name[name], []
        read = node.input[0]
        if read not in quantized:
            # One quantisation of an activation serves all that read it.
            quantized[read] = [out.unused_name(f"{read}_{part}") for part in ("quantized", "scale", "zero_point")]
            own = out.unused_name(f"{read}_quantize")
            before = [helper.make_node("DynamicQuantizeLinear", [read], quantized[read], name=own)]
        product = _integer_product(out, node, quantized[read], reduced=reduced)
        swap[name] = [*before, *_biased(out, node, product)]
    return _swapped(out, swap)


def _integer_product(
    graph: Graph, node: onnx.NodeProto, quantized: list[str], *, reduced: bool
) -> list[onnx.NodeProto]:
    activation, scale, zero = quantized
    weights = _matrix(graph, node)
    params = weight_params(weights, INT8_REDUCED if reduced else INT8_NARROW, 1, search=False)
    stem = graph.unused_name(f"{node.input[1]}_int8")
    own = graph.unused_name(f"{stem}_scale")
    _add_constant(graph, stem, params.quantize(weights).astype(params.dtype))
    _add_constant(graph, own, params.scale)
    integers, floats, factor = (graph.unused_name(f"{node.output[0]}_{part}") for part in ("int32", "float", "factor"))
    return [
        helper.make_node("MatMulInteger", [activation, stem, zero], [integers], name=node.name),
        helper.make_node("Cast", [integers], [floats], name=graph.unused_name(f"{floats}_cast"), to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, own], [factor], name=graph.unused_name(f"{factor}_mul")),
        helper.make_node("Mul", [floats, factor], [node.output[0]], name=graph.unused_name(f"{node.name}_scaled")),
    ]
