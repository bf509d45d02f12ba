"""A graph as TensorRT's explicit quantisation sees it: Q and DQ nodes, layers with weights, what feeds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from .graph import Graph, attributes
from .qdq_layer import WEIGHTED, Layer, layer_macs, weight_axis

__all__ = ["TRANSPARENT", "Finding", "QdqView", "Severity", "Source", "is_refused"]

Severity = Literal["error", "warning", "info"]

_STANDARD = ("", "ai.onnx")

# A DQ moves through these without a trace: the layer behind them still runs on integers. Each was compiled for 8.9 by
# TensorRT for RTX 1.7.1 between a DQ and a convolution. Not so: Relu, LeakyRelu, Clip, AveragePool, Resize.
TRANSPARENT = (
    "Cast", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity", "MaxPool", "Neg",
    "Pad", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
_MAX_DEPTH = 64

# Refused by the parser. Of onnxruntime's own operators it knows those in _KNOWN; it lists MatMulNBits and QMoE as
# well, but asks for plugins that the distribution does not hold.
_INTEGER_OPERATORS = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")
_KNOWN = (
    "Attention", "CausalConvWithState", "DequantizeLinear", "GatherND", "Gelu", "GridSample", "GroupQueryAttention",
    "LinearAttention", "MultiHeadAttention", "Pad", "QuantizeLinear", "Range", "RotaryEmbedding",
    "SkipSimplifiedLayerNormalization", "Trilu",
)  # fmt: skip

_TYPES: dict[int, str] = {
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT16: "int16",
    TensorProto.UINT16: "uint16",
    TensorProto.INT32: "int32",
    TensorProto.INT4: "int4",
    TensorProto.UINT4: "uint4",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8-e5m2",
}


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT takes amiss.

    code: names the rule. tensor: the one it is about, or an empty string.
    severity: "error": TensorRT for RTX refuses the model, or computes something else than the graph says. "warning":
        it compiles, and is slower or less accurate than it could be. "info": worth knowing.
    """

    code: str
    severity: Severity
    node: str
    tensor: str
    message: str
    hint: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "node": self.node,
            "tensor": self.tensor,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class Source:
    """The DQ nodes that feed a tensor, through operators that only move values.

    dq: none of them when something else feeds it.
    made_by: the operator at which the way back ended.
    axis: of the first DQ's channels as the reader sees it; None where the way does not tell.
    """

    dq: tuple[onnx.NodeProto, ...]
    made_by: str
    axis: int | None


def is_refused(node: onnx.NodeProto) -> bool:
    """Whether TensorRT does not have this operator on integers, or of onnxruntime's own."""
    return node.op_type in _INTEGER_OPERATORS or (node.domain == "com.microsoft" and node.op_type not in _KNOWN)


class QdqView:
    """What the rules ask. The graph is not changed; nodes inside If and Loop are not seen.

    precisions: what the target has.
    """

    def __init__(self, graph: Graph, precisions: tuple[str, ...]) -> None:
        self.graph = graph
        self.precisions = precisions
        self._sources: dict[str, Source] = {}

    @cached_property
    def quantize(self) -> list[onnx.NodeProto]:
        """Q nodes."""
        return [node for node in self.graph.nodes if node.op_type == "QuantizeLinear"]

    @cached_property
    def dequantize(self) -> list[onnx.NodeProto]:
        """DQ nodes."""
        return [node for node in self.graph.nodes if node.op_type == "DequantizeLinear"]

    @cached_property
    def types(self) -> dict[str, tuple[int, tuple[int | None, ...] | None]]:
        """As `Graph.types`; what is in the file alone where the types contradict each other."""
        try:
            return self.graph.types
        except Exception:  # onnx raises several classes; the contradiction itself is for the rules to name
            return {name: (value.data_type, tuple(value.dims)) for name, value in self.graph.initializers.items()}

    @cached_property
    def _constants(self) -> dict[str, TensorProto]:
        found = dict(self.graph.initializers)
        for node in self.graph.nodes:
            if node.op_type == "Constant" and (value := attributes(node).get("value")) is not None:
                found[node.output[0]] = value
        return found

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a constant as float64, or None. Names of absent inputs are no constants."""
        tensor = self._constants.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor)).astype(np.float64)

    def parameters(self, node: onnx.NodeProto) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
        """Scale and zero point of a Q or DQ node; None for one that is not a constant; no zero point is 0."""
        scale = self.constant(node.input[1])
        zero = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return scale, zero

    def float_type(self, name: str) -> int:
        """Element type of a tensor, 0 when it is not known; what DQ makes has the type of its scale."""
        maker = self.graph.producer.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            name = maker.input[1]
        return self.types.get(name, (0, None))[0]

    def quantized_type(self, node: onnx.NodeProto) -> str:
        """The type a Q node makes or a DQ node reads: as in a profile's `precisions`, or ONNX's name for another."""
        kind = 0
        if len(node.input) > 2 and node.input[2]:
            kind = self.types.get(node.input[2], (0, None))[0]
        if not kind and node.op_type == "DequantizeLinear":
            kind = self.types.get(node.input[0], (0, None))[0]
        if not kind:
            kind = attributes(node).get("output_dtype", 0) or TensorProto.UINT8
        return str(_TYPES.get(kind, TensorProto.DataType.Name(kind).lower()))

    @cached_property
    def _fixed(self) -> set[str]:
        fixed = set(self._constants)
        for node in self.graph.nodes:
            if node.input and all(name in fixed for name in node.input if name):
                fixed.update(node.output)
        return fixed

    def is_constant(self, name: str) -> bool:
        """Whether a tensor depends on no input of the graph."""
        return name in self._fixed

    def source(self, name: str) -> Source:
        """The DQ nodes that feed a tensor."""
        if name not in self._sources:
            self._sources[name] = self._find_source(name, 0)
        return self._sources[name]

    def _find_source(self, name: str, depth: int) -> Source:
        maker = self.graph.producer.get(name)
        if maker is None:
            return Source((), "the graph's input" if name in self.graph.input_names else "a constant", None)
        if maker.op_type == "DequantizeLinear":
            return Source((maker,), maker.op_type, attributes(maker).get("axis", 1))
        if depth >= _MAX_DEPTH:
            return Source((), maker.op_type, None)
        if maker.op_type == "Concat":
            found = [self._find_source(entry, depth + 1) for entry in dict.fromkeys(maker.input)]
            nodes = {dq.name: dq for entry in found for dq in entry.dq}
            together = all(entry.dq for entry in found) and self._one_scale(list(nodes.values()))
            return Source(tuple(nodes.values()) if together else (), maker.op_type, None)
        if maker.op_type not in TRANSPARENT or (maker.op_type == "Pad" and not self._pads_zeros(maker)):
            return Source((), maker.op_type, None)
        behind = self._find_source(maker.input[0], depth + 1)
        axis = behind.axis if maker.op_type in ("Identity", "Cast", "Dropout") else None
        if maker.op_type == "Transpose" and behind.axis is not None:
            order = list(attributes(maker).get("perm", ()))
            axis = order.index(behind.axis % len(order)) if order else None
        return Source(behind.dq, behind.made_by if behind.dq else maker.op_type, axis)

    def pair_of(self, dequantize: onnx.NodeProto) -> onnx.NodeProto | None:
        """The Q node that feeds a DQ node."""
        maker = self.graph.producer.get(dequantize.input[0])
        return maker if maker is not None and maker.op_type == "QuantizeLinear" else None

    def per_tensor(self, node: onnx.NodeProto) -> bool:
        """Whether one constant scale serves a whole tensor."""
        scale = self.parameters(node)[0]
        return scale is not None and scale.size == 1

    def blocked(self, node: onnx.NodeProto) -> bool:
        """Whether scales serve blocks along an axis."""
        scale = self.parameters(node)[0]
        return bool(attributes(node).get("block_size", 0)) or (scale is not None and scale.ndim > 1 and scale.size > 1)

    def quantized_axis(self, layer: Layer) -> int | None:
        """Axis along which a layer's weights have scales of their own; None when per tensor, blocked or not known."""
        source = self.source(layer.weight)
        if not source.dq or source.axis is None or not layer.shape:
            return None
        if self.per_tensor(source.dq[0]) or self.blocked(source.dq[0]):
            return None
        return int(source.axis % len(layer.shape))

    def is_quantized(self, layer: Layer) -> bool:
        """Whether the compiler runs this layer on quantised operands, as compiled by TensorRT for RTX 1.7.1."""
        activation, weight = self.source(layer.activation).dq, self.source(layer.weight).dq
        if not activation or not weight or layer.node.op_type == "ConvTranspose":
            return False
        if not all(self.per_tensor(node) for node in activation) or self.blocked(weight[0]):
            return False
        if self.quantized_axis(layer) not in (None, layer.weight_axis):
            return False
        return self.operands_fit(layer, self.quantized_type(activation[0]), self.quantized_type(weight[0]))

    @staticmethod
    def operands_fit(layer: Layer, activation: str, weight: str) -> bool:
        """Whether there is a kernel: for two equal types, and for INT4 weights of products on INT8 activations."""
        if layer.node.op_type in ("Conv", "ConvTranspose"):
            return activation == weight != "int4"
        return activation == weight or (activation, weight) == ("int8", "int4")

    def _one_scale(self, nodes: list[onnx.NodeProto]) -> bool:
        scales = [self.parameters(node)[0] for node in nodes]
        return all(scale is not None and scale.size == 1 and scale.item() == scales[0] for scale in scales)

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        given = attributes(node)
        if given.get("mode", b"constant") != b"constant":
            return True
        value = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(())
        return value is not None and not value.any() and not given.get("value", 0.0)

    @cached_property
    def layers(self) -> list[Layer]:
        """Conv, ConvTranspose, Gemm and MatMul nodes that have weights."""
        return list(self._layers())

    def _layers(self) -> Iterator[Layer]:
        for node in self.graph.nodes:
            if node.op_type not in WEIGHTED or node.domain not in _STANDARD or len(node.input) < 2:
                continue
            side = 1 if self.is_constant(node.input[1]) else 0
            if not self.is_constant(node.input[side]):
                continue
            shape = self.types.get(node.input[side], (0, None))[1]
            if shape is None or len(shape) < 2 or any(dim is None for dim in shape):
                shape = ()
            known = tuple(dim for dim in shape if dim is not None)
            bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
            axis = weight_axis(node, side, len(known))
            measured = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
            macs = layer_macs(node, known, axis, self.types.get(measured, (0, None))[1])
            yield Layer(node, node.input[1 - side], node.input[side], bias, axis, known, macs)
