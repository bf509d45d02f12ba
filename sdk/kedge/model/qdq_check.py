"""Is this Q/DQ graph one that TensorRT takes, and runs on integers? Ours, or anyone's.

The facts are those of TensorRT for RTX 1.7.1, whose compiler needs no GPU and was asked about each rule. Parsers of
other TensorRT versions may judge otherwise; nodes inside If and Loop are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from . import qdq_errors, qdq_warnings
from .graph import Graph
from .qdq_view import Finding, QdqView

__all__ = ["Coverage", "Finding", "QdqReport", "check_qdq"]

_ORDER = ("error", "warning", "info")
_QUANTIZED = ("int8", "int4", "fp8")

_RULES: tuple[Callable[[QdqView], Iterator[Finding]], ...] = (
    *qdq_errors.RULES,
    *qdq_warnings.RULES,
)


@dataclass(frozen=True)
class Coverage:
    """How many of the layers with weights (Conv, ConvTranspose, Gemm, MatMul) run on quantised operands.

    macs, quantized_macs: multiply-accumulates of one inference of batch one; None where some shape is not known.
    """

    layers: int
    quantized_layers: int
    macs: int | None
    quantized_macs: int | None

    @property
    def share(self) -> float | None:
        """By count; None when there are no such layers."""
        return self.quantized_layers / self.layers if self.layers else None

    @property
    def mac_share(self) -> float | None:
        """By multiply-accumulates; None when they are not known."""
        return self.quantized_macs / self.macs if self.macs and self.quantized_macs is not None else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "layers": self.layers,
            "quantized_layers": self.quantized_layers,
            "share": self.share,
            "macs": self.macs,
            "quantized_macs": self.quantized_macs,
            "mac_share": self.mac_share,
        }


@dataclass(frozen=True)
class QdqReport:
    """findings: errors first, then in the order of the graph's nodes."""

    findings: tuple[Finding, ...]
    coverage: Coverage

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What keeps the model from compiling, or from computing what it says."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What costs time or accuracy."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "coverage": self.coverage.to_json(),
        }


def check_qdq(graph: Graph, precisions: Collection[str] = _QUANTIZED) -> QdqReport:
    """Check a graph against the rules of TensorRT's explicit quantisation.

    Args:
        precisions: those of the target's profile; quantised types that are not among them are errors.
    """
    view = QdqView(graph, tuple(precisions))
    found = {finding: None for rule in _RULES for finding in rule(view)}
    place = {node.name: index for index, node in enumerate(graph.nodes)}
    findings = sorted(found, key=lambda finding: (_ORDER.index(finding.severity), place[finding.node]))
    layers = view.layers
    quantized = [layer for layer in layers if view.is_quantized(layer)]
    macs = [layer.macs for layer in layers]
    known = None not in macs
    coverage = Coverage(
        layers=len(layers),
        quantized_layers=len(quantized),
        macs=sum(count or 0 for count in macs) if known else None,
        quantized_macs=sum(layer.macs or 0 for layer in quantized) if known else None,
    )
    return QdqReport(tuple(findings), coverage)
