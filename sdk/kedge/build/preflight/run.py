"""Preflight: what of a model will not run on a target, and why, before anything is sent.

Who judges depends on the runtime, and every finding names its judge:

    onnxruntime      ONNX's checker; the target's limits of opset and IR version; onnxruntime itself, where it is here
    tensorrt-rtx     NVIDIA's own parser and compiler of TensorRT for RTX, on this host's CPU
    tensorrt         the operator tables of the TensorRT versions that the target's software carries. The parser of
                     TensorRT for RTX is asked too; it is another version's, so what it alone refuses is a warning
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import BadInputError, IncompatibleError
from ...model.footprint import activation_bytes, weight_bytes
from ...model.graph import Graph
from ...model.onnx_io import ModelSpec, read_model
from ...model.qdq_check import check_qdq
from ...model.session import ReferenceModel
from ...targets import Target
from ..cache import EngineCache
from ..memory import estimate
from ..plan import OLDEST_TENSORRT, Plan, plan, usable_versions
from ..shapes import Profiles, shape_profiles
from . import rules
from .findings import Finding, PreflightReport, agreed, ordered
from .native import by_compiler, by_parser
from .tables import tables_for

__all__ = ["preflight"]

Progress = Callable[[str, float], None]

_ESTIMATE = "kedge's estimate of memory"


def preflight(
    model: Path,
    target: Target,
    *,
    shapes: Profiles | None = None,
    runtime: str | None = None,
    cache: EngineCache | None = None,
    progress: Progress = lambda step, share: None,
) -> PreflightReport:
    """Look at a model for a target, with everything that can judge it here.

    Args:
        shapes: profiles of inputs whose shape is not fixed. runtime: one of the target's; None: the first.
        cache: where an engine that compiles is kept, so that `build` need not compile it again; None: the user's.

    Raises:
        BadInputError: the file is no model at all.
        IncompatibleError: the target does not run this runtime.
    """
    chosen = runtime or target.runtimes[0]
    if chosen not in target.runtimes:
        raise IncompatibleError(f"{target.name} runs {', '.join(target.runtimes)}, not {chosen}")
    progress("reading the model", 0.0)
    spec = read_model(model)
    graph = Graph.read(model)
    given = dict(shapes or {})
    found: list[Finding] = [
        *rules.shape_inference(graph),
        *rules.precision(spec, graph, target),
        *rules.versions(spec, target, chosen),
    ]
    judges = [rules.CHECKER, f"profile {target.name}", rules.KEDGE]
    profiles: Profiles = {}
    coverage = None
    if chosen == "onnxruntime":
        found += _onnxruntime(model, judges)
    else:
        judges.append("kedge's Q/DQ checker")
        found += [*rules.types(graph), *rules.free_dimensions(spec, given)]
        checked = check_qdq(graph, target.precisions)
        found += rules.qdq(graph, checked)
        coverage = checked.coverage.to_json() if checked.coverage.quantized_layers else None
        profiles, faults = _profiles(spec, given)
        # Free dimensions without bounds were found input by input already.
        found += [] if any(each.rule == "free-dimensions" for each in found) else faults
        if chosen == "tensorrt-rtx":
            engine = None if faults else _rtx_plan(spec, target, profiles)
            found += by_compiler(model, graph, engine, judges, cache, progress)
        else:
            found += _tensorrt(model, spec, graph, target, judges, progress)
    memory, room = _memory(spec, graph, target, profiles)
    judges.append(_ESTIMATE)
    found += room
    if all(each.severity != "error" for each in found):
        found += _planned(spec, target, chosen)
    counts = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.nodes)
    return PreflightReport(
        target=target.name,
        runtime=chosen,
        precision=spec.precision,
        opset=spec.opset,
        ir_version=spec.ir_version,
        nodes=len(graph.nodes),
        operators=dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))),
        judges=tuple(dict.fromkeys(judges)),
        findings=ordered(found),
        memory=memory,
        coverage=coverage,
        profiles=profiles,
    )


def _planned(spec: ModelSpec, target: Target, runtime: str) -> Iterator[Finding]:
    """What the planner of `kedge build` refuses besides."""
    try:
        plan(spec, target, runtime=runtime)
    except IncompatibleError as error:
        yield Finding("error", "plan", error.message, f"profile {target.name}", suggestion=error.hint)


def _profiles(spec: ModelSpec, given: Profiles) -> tuple[Profiles, list[Finding]]:
    try:
        return shape_profiles(spec, given), []
    except BadInputError as error:
        return {}, [Finding("error", "shapes", error.message, rules.KEDGE, suggestion=error.hint)]


def _onnxruntime(model: Path, judges: list[str]) -> Iterator[Finding]:
    try:
        runner = ReferenceModel(model)
    except IncompatibleError as error:
        yield Finding("info", "not-asked", error.message, rules.KEDGE, suggestion=error.hint)
    except BadInputError as error:
        judges.append("onnxruntime on this host")
        yield Finding(
            "error",
            "runtime",
            error.message,
            "onnxruntime on this host",
            suggestion="export it with operators of ONNX's own domain, in an older opset",
        )
    else:
        judges.append(f"onnxruntime {runner.runtime_version} on this host")


def _rtx_plan(spec: ModelSpec, target: Target, profiles: Profiles) -> Plan:
    assert target.compute_capability is not None
    return Plan("tensorrt-rtx", spec.precision, "host", "", (target.compute_capability,), profiles)


def _tensorrt(
    model: Path,
    spec: ModelSpec,
    graph: Graph,
    target: Target,
    judges: list[str],
    progress: Progress,
) -> Iterator[Finding]:
    """The tables of the versions that the target's software carries, and the parser of TensorRT for RTX beside them."""
    carried = dict.fromkeys(each.tensorrt for each in target.software)
    if carried and not usable_versions(target):
        yield Finding(
            "error",
            "software",
            f"{target.name} carries TensorRT {', '.join(carried)}; kedge builds with "
            f"{'.'.join(map(str, OLDEST_TENSORRT))} and newer",
            f"profile {target.name}",
            suggestion="run it there with NVIDIA's own tools, or on a newer module",
        )
    tables = tables_for(target)
    judges += [rules.table_judge(table) for table in tables]
    yield from agreed(each for table in tables for each in rules.by_table(graph, spec, table))
    for finding in by_parser(model, graph, judges, progress):
        yield finding if finding.severity != "error" else replace(finding, severity="warning")


def _memory(
    spec: ModelSpec, graph: Graph, target: Target, profiles: Profiles
) -> tuple[dict[str, Any] | None, list[Finding]]:
    shapes = {}
    for each in spec.inputs:
        known = profiles[each.name][2] if each.name in profiles else tuple(max(dim, 1) for dim in each.shape)
        shapes[each.name] = known
    found = estimate(weight_bytes(graph), {"greatest": activation_bytes(graph, shapes)}, target)
    if found.fits is not False:
        return found.to_json(), []
    return found.to_json(), [
        Finding(
            "error",
            "memory",
            f"it needs about {found.needed} bytes, {target.name} has {found.usable} to give",
            _ESTIMATE,
            suggestion="quantise it, build for a smaller batch (--shapes), or choose a larger target",
        )
    ]
