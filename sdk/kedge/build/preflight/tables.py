"""The operator tables that stand for a target: those of the TensorRT versions that its software carries."""

from __future__ import annotations

from ...model.graph import Graph
from ...model.onnx_io import ModelSpec
from ...targets import Target
from ..plan import OLDEST_TENSORRT, usable_versions
from . import rules
from .findings import Finding
from .operators import OperatorTable, table_for

__all__ = ["refused_everywhere", "tables_for"]


def tables_for(target: Target) -> list[OperatorTable]:
    """One table a release that differs; where a profile states no software (a server), that of the oldest version
    that kedge serves, which is the strictest.
    """
    carried = list(dict.fromkeys(each.tensorrt for each in target.software))
    versions = usable_versions(target) or carried or [".".join(map(str, OLDEST_TENSORRT))]
    return list({table.version: table for table in map(table_for, versions)}.values())


def refused_everywhere(graph: Graph, spec: ModelSpec, target: Target) -> Finding | None:
    """What keeps a model from every version of TensorRT that the target can have; None where one may take it."""
    first = None
    for table in tables_for(target):
        refused = next((each for each in rules.by_table(graph, spec, table) if each.severity == "error"), None)
        if refused is None:
            return None
        first = first or refused
    return first
