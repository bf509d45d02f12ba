"""The page of all figures, benchmarks/README.md: goals, then each benchmark with plot, conditions and gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.bench.catalogue import BENCHMARKS, Benchmark
from tools.bench.page_goals import GOALS, PARTS, Goal, judge, tell
from tools.bench.page_panels import Panel, missing, panels, shown
from tools.bench.page_plots import plot
from tools.bench.page_read import Found, conditions, date, made_by, read, tree

__all__ = ["page", "write_page"]

NONE, UNJUDGED = "not measured", "smoke: not judged"


def write_page(folder: Path, *, smoke: bool) -> Path:
    """Make FOLDER/README.md and FOLDER/plots/ of FOLDER/results; where it was written.

    smoke: with the figures of the smoke size beside the full ones; else the page is the same on every machine that has
    the same files.
    """
    full = read(folder / "results", "")
    small = read(folder / "results", ".smoke") if smoke else None
    for benchmark in BENCHMARKS:
        for found, suffix in ((full, ""), (small, ".smoke")):
            drawn = _panels(benchmark, found)
            path = folder / "plots" / f"{benchmark.name}{suffix}.svg"
            # What compares with somebody is drawn; where nothing does, all of it.
            drawn = [panel for panel in drawn if panel.base] or drawn
            if drawn and (suffix == "" or not _panels(benchmark, full)):
                plot(path, benchmark.name, f"{benchmark.title}: {benchmark.what}", drawn)
    text = page(full, small)
    out = folder / "README.md"
    out.write_text(text, encoding="utf-8")
    return out


def page(full: Found, small: Found | None) -> str:
    """The whole page; small: what the smoke size found, None for a page without it."""
    lines = [
        "<!-- Made by python -m tools.bench; not to be edited. -->",
        "# Figures",
        "",
        "What this project promises in figures, what was measured, under which conditions, and what was not measured.",
        "[How we measure](../docs/measuring.md) has the rules. Every figure is a file under `results/`, and has the",
        "command that makes it. Trust ratios before times: both sides of a ratio were measured in one run.",
        "",
        "| command | |",
        "|---|---|",
        "| `make bench` | every benchmark, small, within 15 minutes on two cores; adds a column that nobody judges |",
        "| `make bench-full` | every benchmark, in hours; this page is made of its figures |",
        "| `.venv/bin/python -m tools.bench --only NAME` | one of them; `--smoke` for its small size |",
        "",
        *_goals(full, small),
    ]
    for benchmark in BENCHMARKS:
        lines += _section(benchmark, full, small)
    return "\n".join(lines).rstrip() + "\n"


def _goals(full: Found, small: Found | None) -> list[str]:
    judged = [(goal, judge(goal, full.documents)) for goal in GOALS]
    met = sum(verdict is not None and verdict.met is True for _, verdict in judged)
    lacking = sum(verdict is not None and verdict.met is False for _, verdict in judged)
    unknown = sum(verdict is None and (bool(goal.unrun) or not goal.test) for goal, verdict in judged)
    lines = [
        "## Goals",
        "",
        f"{met} met, {lacking} not met, {unknown} not measured; the others ask for no limit, or for a behaviour.",
        "A goal of which only a part was measured is not measured. A behaviour has no figure of its own, it holds or",
        "does not: its row names the test that fails where it does not, and CI runs them all.",
        "",
    ]
    heads = ["goal", "figure", "", "from", *([UNJUDGED] if small is not None else [])]
    for part, title in PARTS.items():
        lines += [f"### {part}: {title}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        lines += [_goal(goal, verdict, full, small) for goal, verdict in judged if goal.part == part]
        lines.append("")
    return lines


def _goal(goal: Goal, verdict: Any, full: Found, small: Found | None) -> str:
    if goal.test:
        kind = "test" if goal.test.startswith("tests/") else "document"
        cells = [goal.wording, goal.unrun, NONE if goal.unrun else kind]
        cells += [f"[{goal.test}](../{goal.test})", *([""] if small is not None else [])]
        return f"| {' | '.join(cells)} |"
    benchmark = next(each for each in BENCHMARKS if each.name == goal.benchmark)
    if verdict is None:
        cells = [goal.wording, NONE, NONE, f"`--only {goal.benchmark}`"]
    else:
        name = goal.file or benchmark.files[0]
        word = {True: "**met**", False: "**not met**", None: "stated"}[verdict.met]
        document = full.documents[name]
        source = [f"[{name}.json](results/{name}.json)", made_by(document) or f"`--only {goal.benchmark}`"]
        source += [f"*{tree(document)}*"] if tree(document) else []
        cells = [goal.wording, verdict.figure, word, ", ".join(source)]
    if small is not None:
        found = tell(goal, small.documents)
        cells.append("" if found is None else found.figure)
    return f"| {' | '.join(cells)} |"


def _panels(benchmark: Benchmark, found: Found | None) -> list[Panel]:
    if found is None:
        return []
    documents = [found.documents[name] for name in benchmark.files if name in found.documents]
    return [panel for document in documents for panel in panels(benchmark.name, document)]


def _section(benchmark: Benchmark, full: Found, small: Found | None) -> list[str]:
    document, other = full.of(benchmark), None if small is None else small.of(benchmark)
    lines = [f"## {benchmark.title}", "", f"Measured: {benchmark.what}."]
    program = "-m " + benchmark.program[1] if benchmark.program[0] == "-m" else benchmark.program[0]
    made = None if document is None else made_by(document)
    by = f"The figures below are by {made}." if made else ""
    lines += [f"By `python {program}`; `python -m tools.bench --only {benchmark.name}`. {by}".rstrip(), ""]
    lines += [benchmark.note, ""] if benchmark.note else []
    lines.append(f"{conditions(document) if document is not None else 'In the full size: ' + NONE + '.'}")
    if other is not None:
        lines += ["", f"Smoke size: {conditions(other)}"]
    lines.append("")
    tables = _tables(_panels(benchmark, full), _panels(benchmark, small), wide=small is not None)
    if tables:
        suffix = "" if _panels(benchmark, full) else ".smoke"
        title = benchmark.title + (f" ({UNJUDGED})" if suffix else "")
        lines += [f"![{title}](plots/{benchmark.name}{suffix}.svg)", "", *tables]
    gaps = _gaps(benchmark, full, "") + _gaps(benchmark, small, "in the smoke size, ")
    if gaps:
        lines += ["Not measured:", "", *(f"- {gap}." for gap in gaps), ""]
    files = [f"[{name}.json](results/{name}.json)" for name in benchmark.files if name in full.documents]
    if benchmark.name in full.pages:
        files.insert(0, f"[{benchmark.name}.md](results/{benchmark.name}.md)")
    if files:
        lines += [f"All of it: {', '.join(files)}.", ""]
    return lines


def _gaps(benchmark: Benchmark, found: Found | None, where: str) -> list[str]:
    if found is None:
        return []
    out: list[str] = []
    documents = [found.documents[name] for name in benchmark.files if name in found.documents]
    outcome: Mapping[str, Any] = found.outcomes.get(benchmark.name, {})
    if outcome.get("reason"):
        kept = f" (the figures above are of {date(documents[0])})" if documents and date(documents[0]) else ""
        out.append(f"{where}{outcome['outcome']} on {outcome['at'][:10]}: {outcome['reason'].rstrip('.')}{kept}")
    if outcome.get("peers"):
        out.append(f"{where}peers: {outcome['peers']}")
    elif not outcome and not documents:
        out.append(f"{where}it was not run")
    for document in documents:
        out += [f"{where}{gap.rstrip('.')}" for gap in missing(benchmark.name, document)]
    return out


def _tables(full: Sequence[Panel], small: Sequence[Panel], *, wide: bool) -> list[str]:
    """One table of all panels: figures, their ratio to kedge's, and the smoke size's in a column of their own."""
    titles = list(dict.fromkeys(panel.title for panel in [*full, *small]))
    if not titles:
        return []
    heads = ["", "figure", "of kedge's", *([UNJUDGED] if wide else [])]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for title in titles:
        one, two = (next((panel for panel in some if panel.title == title), None) for some in (full, small))
        better = next("lower" if panel.lower else "higher" for panel in (one, two) if panel is not None)
        lines.append(f"| **{title}** ({better} is better){' |' * len(heads)}")
        labels = list(dict.fromkeys(bar.label for panel in (one, two) if panel is not None for bar in panel.bars))
        for label in labels:
            cells = [label, *_figure(one, label), *([_figure(two, label)[0]] if wide else [])]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _figure(panel: Panel | None, label: str) -> tuple[str, str]:
    """A bar's figure with its unit, and its ratio to kedge's."""
    bar = None if panel is None else next((bar for bar in panel.bars if bar.label == label), None)
    if panel is None or bar is None:
        return "", ""
    own = panel.own
    return f"{shown(bar.value)} {panel.unit}", f"{bar.value / own:.2f} ×" if own else ""
