"""The report of an optimisation on the terminal: before and after, the passes, the gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .optimize_gate import check_line
from .optimize_words import before_after_rows, compact, not_measured, verdict
from .tables import key_values, print_table

__all__ = ["show"]

_BLAMED = 5


def show(document: Mapping[str, Any]) -> None:
    """Print the tables of one report (docs/optimize-report.md)."""
    found = verdict(document)
    print_table(
        found.headline,
        ["", "before", "after", "change"],
        [[row.name, row.before, row.after, row.change] for row in before_after_rows(document)],
        right=[1, 2, 3],
    )
    if document["passes"]:
        print_table(
            "Passes",
            ["", "seconds", "changed", "notes"],
            [
                [entry["kind"], f"{entry['seconds']:.1f}", _brief(entry["changed"]), " ".join(entry["notes"])]
                for entry in document["passes"]
            ],
            right=[1],
        )
    key_values(_facts(document, found.sentences))


def _brief(changed: Mapping[str, Any]) -> str:
    """Of what has an entry a layer, the number; the page and the JSON have all."""
    return compact(
        {
            key: f"{len(value)} entries" if isinstance(value, Mapping) and list(value) != ["before", "after"] else value
            for key, value in changed.items()
        },
        limit=6,
    )


def _facts(document: Mapping[str, Any], sentences: tuple[str, ...]) -> list[tuple[str, str]]:
    data = [
        f"{use} {samples['name']} ({samples['count']:,})"
        for use, samples in document["data"].items()
        if samples is not None
    ]
    model = document["model"]
    facts = [("model", f"{model['name']} for {document['target']}, runtime {document['runtime']}")]
    facts += [("proof" if index == 0 else "", sentence) for index, sentence in enumerate(sentences)]
    conditions = dict.fromkeys(
        document[side]["latency"]["conditions"] for side in ("before", "after") if document[side]["latency"]
    )
    facts.append(("data", ", ".join(data) or "none"))
    facts.extend(("latency", text) for text in conditions)
    gate = document["gate"]
    if gate is None:
        facts.append(("gate", "none: --max-drop and --min-sensitivity set one"))
    else:
        facts += [("gate" if index == 0 else "", check_line(check)) for index, check in enumerate(gate["checks"])]
        if gate["blame"]:
            more = f" and {len(gate['blame']) - _BLAMED} more" if len(gate["blame"]) > _BLAMED else ""
            facts.append(("to blame", ", ".join(gate["blame"][:_BLAMED]) + more))
        if gate["next"]:
            facts.append(("next", gate["next"]))
    missing = not_measured(document)
    if missing:
        facts.append(("not measured", ", ".join(missing)))
    return facts
