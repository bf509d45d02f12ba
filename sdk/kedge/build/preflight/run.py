"""Preflight: what of a model will not run on a target, and why, before anything is sent.

Who judges depends on the runtime, and every finding names its judge:

    onnxruntime      ONNX's checker; the target's limits of opset and IR version; onnxruntime itself, where it is here
    tensorrt-rtx     NVIDIA's own parser and compiler of TensorRT for RTX, on this host's CPU
    tensorrt         the operator tables of the TensorRT versions that the target's software carries. The parser of
                     TensorRT for RTX is asked too; it is another version's, so what it alone refuses is a warning
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedge_agent.engine.apart import Limits, parse_apart
from kedge_agent.engine.library import RUNTIMES
from kedge_agent.engine.report import EngineError, ParserFinding
from kedge_agent.formats.frames import hash_file

from ...errors import BadInputError, IncompatibleError, KedgeError
from ...model.footprint import activation_bytes, weight_bytes
from ...model.graph import Graph
from ...model.onnx_io import ModelSpec, read_model
from ...model.qdq_check import check_qdq
from ...model.session import ReferenceModel
from ...targets import Target
from ..cache import EngineCache
from ..engines import build_engine, order_of
from ..memory import estimate
from ..plan import OLDEST_TENSORRT, Plan
from ..shapes import Profiles, shape_profiles
from . import rules
from .findings import Finding, PreflightReport, ordered
from .operators import table_for

__all__ = ["preflight"]

Progress = Callable[[str, float], None]

_PARSE_S = 300.0
_CONTROL_FLOW = ("If", "Loop", "Scan")


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
    judges = [rules.CHECKER, f"profile {target.name}"]
    profiles: Profiles = {}
    coverage = None
    if chosen == "onnxruntime":
        found += _onnxruntime(model, judges)
    else:
        judges += [rules.KEDGE, "kedge's Q/DQ checker"]
        found += [*rules.types(graph), *rules.free_dimensions(spec, given)]
        checked = check_qdq(graph, target.precisions)
        found += rules.qdq(graph, checked)
        coverage = checked.coverage.to_json() if checked.coverage.quantized_layers else None
        profiles, faults = _profiles(spec, given)
        found += faults
        if chosen == "tensorrt-rtx":
            plan = None if faults else _rtx_plan(spec, target, profiles)
            found += _rtx(model, graph, plan, judges, cache, progress)
        else:
            found += _tensorrt(model, spec, graph, target, judges, progress)
    memory, room = _memory(spec, graph, target, profiles)
    found += room
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


def _rtx(
    model: Path,
    graph: Graph,
    plan: Plan | None,
    judges: list[str],
    cache: EngineCache | None,
    progress: Progress,
) -> Iterator[Finding]:
    """The very parser and compiler that `build` will use; the compiler needs a plan."""
    refused = list(_parser(model, graph, judges, progress))
    yield from refused
    if plan is None or any(finding.severity == "error" or finding.rule == "not-asked" for finding in refused):
        return
    library = RUNTIMES["tensorrt-rtx"]
    judge = f"the compiler of {library.title} {library.version()}"
    judges.append(judge)
    try:
        build_engine(
            model.read_bytes(),
            hash_file(model).sha256,
            order_of(plan),
            cache=cache or EngineCache(),
            progress=progress,
        )
    except KedgeError as error:
        yield from _compiler(graph, error, judge)


def _compiler(graph: Graph, error: KedgeError, judge: str) -> Iterator[Finding]:
    """The compiler's refusal at the nodes it names; where it names none, at the control flow it cannot look into."""
    named = [node for node in graph.nodes if re.search(rf"(?<![\w/]){re.escape(node.name)}(?![\w/])", error.message)]
    suspects = named or [node for node in graph.nodes if node.op_type in _CONTROL_FLOW]
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    if not suspects:
        yield Finding("error", "compiler", error.message, judge, suggestion=error.hint)
    for node in suspects[:8]:
        doubt = (
            ""
            if named
            else "it names no node; this one decides at run time what is computed, which it cannot compile: "
        )
        yield Finding(
            "error",
            "compiler",
            f"{doubt}{error.message}",
            judge,
            node=node.name,
            op=node.op_type,
            place=places[node.name],
            suggestion=rules.suggestion(node.op_type),
        )


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
    usable = [version for version in carried if _version(version) >= OLDEST_TENSORRT]
    if carried and not usable:
        yield Finding(
            "error",
            "software",
            f"{target.name} carries TensorRT {', '.join(carried)}; kedge builds with "
            f"{'.'.join(map(str, OLDEST_TENSORRT))} and newer",
            f"profile {target.name}",
            suggestion="run it there with NVIDIA's own tools, or on a newer module",
        )
    # Where a profile states no software (a server), the oldest version that kedge serves is the strictest judge.
    for version in usable or list(carried) or [".".join(map(str, OLDEST_TENSORRT))]:
        table = table_for(version)
        judges.append(f"operator table of TensorRT {table.version}")
        yield from rules.by_table(graph, spec, table)
    for finding in _parser(model, graph, judges, progress):
        yield finding if finding.severity != "error" else replace(finding, severity="warning")


def _parser(model: Path, graph: Graph, judges: list[str], progress: Progress) -> Iterator[Finding]:
    """What the real parser of TensorRT for RTX says; a note where it is not installed."""
    library = RUNTIMES["tensorrt-rtx"]
    if library.version() is None:
        yield Finding(
            "info",
            "not-asked",
            f"the parser of {library.title} is not installed here, and was not asked",
            rules.KEDGE,
            suggestion=library.hint,
        )
        return
    progress("parsing", 0.0)
    judge = f"the parser of {library.title} {library.version()}"
    judges.append(judge)
    try:
        report = parse_apart(model.read_bytes(), limits=Limits(timeout_s=_PARSE_S))
    except EngineError as error:
        yield Finding("error", "parser", error.message, judge, suggestion=error.hint)
        return
    for each in report.findings:
        yield _parsed(graph, each, judge)


def _parsed(graph: Graph, each: ParserFinding, judge: str) -> Finding:
    nodes = graph.nodes
    place = each.index if 0 <= each.index < len(nodes) else None
    # The graph gives nodes without a name one of their own.
    node = nodes[place].name if place is not None and not each.node else each.node
    op = each.op or (nodes[place].op_type if place is not None else "")
    return Finding(
        "error",
        "parser",
        each.message,
        judge,
        node=node,
        op=op,
        place=place,
        suggestion=rules.suggestion(op),
    )


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
            "kedge's estimate",
            suggestion="quantise it, build for a smaller batch (--shapes), or choose a larger target",
        )
    ]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
