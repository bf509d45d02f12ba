"""A run on the terminal: which steps are done, what the model lost and gained, and how the device does since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .bench_words import trust_lines
from .deploy_text import event_words, probation_words
from .optimize_words import Row, before_after_rows, factor
from .rollout_text import rollout_tables
from .tables import key_values, print_table
from .text import byte_size, milliseconds

__all__ = ["run_tables"]

Json = Mapping[str, Any]

_SHORT = 12


def run_tables(document: Json, *, every: bool) -> None:
    """Print a run's document (docs/run-report.md).

    Args:
        every: of a rollout, a row for each device.
    """
    print_table(
        f"{document['recipe']} to {document['to']}",
        ["step", "", "seconds", "files", ""],
        [
            [
                step["step"],
                step["state"],
                "" if step["seconds"] is None else f"{step['seconds']:.1f}",
                ", ".join(step["files"].values()),
                # What it stopped at is told once more, as the error.
                step["why"] or "" if step["state"] == "skipped" else "",
            ]
            for step in document["steps"]
        ],
        right=[2],
    )
    if document["optimize"] is not None:
        _optimised(document)
    if document["rollout"] is not None:
        rollout_tables(document["rollout"], every=every)
    if document["bench"]["now"] is not None:
        _measured(document)
    key_values(_facts(document))


def _optimised(document: Json) -> None:
    rows = [row for row in before_after_rows(document["optimize"]) if not row.name.startswith("latency")]
    print_table(
        f"{document['model']} for {document['target']}",
        ["", "as given", "optimised", "change"],
        [[row.name, row.before, row.after, row.change] for row in rows],
        right=[1, 2, 3],
    )


def _measured(document: Json) -> None:
    before, now = document["bench"]["before"], document["bench"]["now"]
    rows = [
        Row("release", "" if before is None else before["release"][:_SHORT], now["release"][:_SHORT]),
        *(
            _latency(f"{name} {short}", before, now, loop, part, key)
            for name, loop, part in (("compute", "in_agent", "compute"), ("end to end", "end_to_end", "total"))
            for short, key in (("p50", "median_ms"), ("p99", "p99_ms"))
        ),
        _memory(before, now),
    ]
    print_table(
        f"{document['model']} on {document['device']}",
        ["", "served before", "serves now", "change"],
        [[row.name, row.before, row.after, row.change] for row in rows],
        right=[1, 2, 3],
    )


def _latency(name: str, before: Json | None, now: Json, loop: str, part: str, key: str) -> Row:
    def of(report: Json | None) -> float | None:
        summary = None if report is None else report[loop][part]
        return None if summary is None else float(summary[key])

    was, is_now = of(before), of(now)
    # Of figures that scatter, a ratio says nothing: the trust below says why there is none.
    told = before is not None and before[loop]["trust"]["stable"] and now[loop]["trust"]["stable"]
    change = factor(was, is_now) if told else ""
    return Row(name, "" if before is None else milliseconds(was), milliseconds(is_now), change)


def _memory(before: Json | None, now: Json) -> Row:
    was, is_now = (None if each is None else each["memory"]["model_bytes"] for each in (before, now))
    return Row("model on disk", "" if was is None else byte_size(was), byte_size(is_now), factor(was, is_now))


def _facts(document: Json) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    optimised, deployed, now = document["optimize"], document["deploy"], document["bench"]["now"]
    if optimised is not None and optimised["gate"] is not None:
        rows.append(("accuracy gate", "passed" if optimised["gate"]["passed"] else "NOT PASSED"))
    if deployed is not None:
        words = [event_words({"event": "gate", **gate}) for gate in deployed["gates"]]
        rows += [("" if index else "gates on the device", line) for index, line in enumerate(words)]
        if deployed["probation"] is not None and deployed["probation"]["seconds"]:
            told = probation_words(deployed["probation"])
            rows.append(("probation", f"passed: {deployed['probation']['seconds']} s, {told}"))
    if now is not None:
        before = document["bench"]["before"]
        for name, report in (("trust, before", before), ("trust", now)):
            if report is not None:
                rows.append((name, trust_lines(report["in_agent"]["trust"])[0]))
    if document["build"] is not None and document["build"]["golden_made_up"]:
        rows.append(("golden inputs", "made up: the recipe has no data, and the parity gate then compares noise"))
    if document["reused_passes"]:
        count, of = document["reused_passes"], len(optimised["passes"])
        rows.append(("passes", f"{count} of {of} taken from an earlier run"))
    if document["events"] is not None:
        rows.append(("event files", f"tensorboard --logdir {document['events']}"))
    return rows
