"""What NVIDIA's own parser and compiler of TensorRT for RTX say on this host's CPU, as findings at nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from kedge_agent.engine.apart import Limits, parse_apart
from kedge_agent.engine.library import RUNTIMES
from kedge_agent.engine.report import EngineError, ParserFinding
from kedge_agent.formats.frames import hash_file

from ...errors import KedgeError
from ...model.graph import Graph
from ..cache import EngineCache
from ..engines import build_engine, order_of
from ..plan import Plan
from . import rules
from .findings import Finding

__all__ = ["by_compiler", "by_parser"]

Progress = Callable[[str, float], None]

_PARSE_S = 300.0
# What a compiler's failure says of the model, and not of this host.
_OF_THE_MODEL = ("refused", "crashed", "bad_input")
_CONTROL_FLOW = ("If", "Loop", "Scan")


def by_compiler(
    model: Path,
    graph: Graph,
    engine: Plan | None,
    judges: list[str],
    cache: EngineCache | None,
    progress: Progress,
) -> Iterator[Finding]:
    """The very parser and compiler that `build` will use; the compiler needs a plan."""
    refused = list(by_parser(model, graph, judges, progress))
    yield from refused
    if any(finding.severity == "error" or finding.rule == "not-asked" for finding in refused):
        return
    library = RUNTIMES["tensorrt-rtx"]
    judge = f"the compiler of {library.title} {library.version()}"
    if engine is None:
        yield Finding("info", "not-asked", f"{judge} was not asked: it needs the shapes first", rules.KEDGE)
        return
    judges.append(judge)
    try:
        build_engine(
            model.read_bytes(),
            hash_file(model).sha256,
            order_of(engine),
            cache=cache or EngineCache(),
            progress=progress,
        )
    except KedgeError as error:
        cause = error.__cause__
        if isinstance(cause, EngineError) and cause.kind not in _OF_THE_MODEL:
            yield _not_asked(judge, error.message, error.hint)
            return
        yield from _compiler(graph, error, judge)


def _not_asked(judge: str, why: str, hint: str) -> Finding:
    """This host could not ask: that says nothing of the model."""
    return Finding("warning", "not-asked", f"{judge} could not be asked: {why}", rules.KEDGE, suggestion=hint)


def _compiler(graph: Graph, error: KedgeError, judge: str) -> Iterator[Finding]:
    """The compiler's refusal at the nodes it names; where it names none, at the control flow it cannot look into."""
    named = [node for node in graph.nodes if re.search(rf"(?<![\w/]){re.escape(node.name)}(?![\w/])", error.message)]
    suspects = named or [node for node in graph.nodes if node.op_type in _CONTROL_FLOW]
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    if not suspects:
        yield Finding("error", "compiler", error.message, judge, suggestion=error.hint)
    for node in suspects[:8]:
        doubt = "" if named else " (it names no node; this one decides at run time what is computed)"
        yield Finding(
            "error",
            "compiler",
            f"{error.message}{doubt}",
            judge,
            node=node.name,
            op=node.op_type,
            place=places[node.name],
            suggestion=rules.suggestion(node.op_type),
        )


def by_parser(model: Path, graph: Graph, judges: list[str], progress: Progress) -> Iterator[Finding]:
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
        if error.kind not in _OF_THE_MODEL:
            yield _not_asked(judge, error.message, error.hint)
            return
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
