"""The Markdown page of tools/bench/serving.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["markdown"]

_NONE = "not measured"


def markdown(document: Mapping[str, Any]) -> str:
    """The whole page."""
    facts = document["conditions"]
    load = facts["load_average"]
    where = f"{facts['processor']}, {facts['machine']}; {facts['started']} to {facts['ended']}. "
    before, after = load["started"][0], load["ended"][0]
    libraries = f"Python {facts['python']}; onnxruntime {facts['onnxruntime']} everywhere"
    conditions = [
        f"{where}Load average {before:.1f} before, {after:.1f} after: trust ratios before times.",
        f"kedge {facts['kedge']}; {libraries}, {facts['threads']} intra-operator thread(s).",
    ]
    conditions += [_peer(name, versions) for name, versions in facts["peers"].items()]
    conditions.append(
        f"kedge computes {facts['workers']} requests of a model at a time (`workers`), bare `session.run` as many as "
        "there are callers. MLServer: one worker process, its default; and none, everything in its own. FastAPI: one "
        "process, its thread pool."
    )
    conditions.append(
        "The client is the same for all: a raw socket, prepared bytes, a closed loop on one connection, a send buffer "
        "of 1 MiB on the Unix socket. kedge is sent binary tensors. MLServer's REST takes JSON alone (gRPC was not "
        "measured). FastAPI: an application that takes JSON lists, and one that takes the tensor's bytes."
    )
    conditions.append(
        "The floor is the least that a Python process can do behind a Unix socket: it looks at the head, receives the "
        "tensor into bound memory, runs, and sends (`serving_floor.py`). What is above it is a server's own doing."
    )
    conditions.append(
        f"{facts['rounds']} rounds of {facts['seconds']:g} s after {facts['warmup_s']:g} s of warm-up; all servers "
        "run, one is asked. p50: median over the rounds of each round's; p99: of all requests of all rounds; × bare "
        "and added: round against round, in brackets the lowest and the highest."
    )
    lines = ["# Serving: kedge, MLServer, FastAPI, and the bare model", ""]
    lines += ["Made by `tools/bench/serving.py`; the figures with all their digits are in the `.json` beside this.", ""]
    lines += [f"- {line}" for line in conditions]
    lines += ["", "## Goals", "", *(_goal(goal) for goal in document["goals"])]
    for model in document["models"].values():
        lines += ["", f"## {model['about']} ({model['input_bytes']:,} bytes in)", "", *_rows(model)]
    lines += ["", "## Memory and start", "", *_memory(document)]
    return "\n".join(lines) + "\n"


def _peer(name: str, versions: Mapping[str, str] | None) -> str:
    if versions is None:
        return f"{name}: {_NONE}, no interpreter was named that has it."
    return f"{name}: " + ", ".join(f"{key} {value}" for key, value in versions.items()) + "."


def _goal(goal: Mapping[str, Any]) -> str:
    text = f"- {goal['goal']}: at most {goal['most']:g} {goal['unit']}: "
    if goal["held"] is None:
        return text + f"{_NONE}."
    return text + f"{goal['figure']:.3g} {goal['unit']}, {'held' if goal['held'] else '**missed**'}."


def _rows(model: Mapping[str, Any]) -> list[str]:
    lines = [
        "| | p50 ms | p99 ms | × bare | added µs | 1 client, /s | 4 clients, /s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in model["ways"].items():
        ratio, added = row["over_bare"], row["added_us"]
        cells = [name, f"{row['p50_ms']['median']:.3f}", f"{row['latency']['p99_ms']:.3f}"]
        cells.append(f"{ratio['median']:.3f} ({ratio['low']:.3f}–{ratio['high']:.3f})")
        cells.append(f"{added['median']:,.0f} ({added['low']:,.0f}–{added['high']:,.0f})")
        cells += [f"{row['per_s'][count]['median']:,.0f}" for count in ("1", "4")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines + [f"\n{name}: {_NONE}: {why}." for name, why in model["not_measured"].items()]


def _memory(document: Mapping[str, Any]) -> list[str]:
    starts = document["conditions"]["starts"]
    text = (
        "All models loaded, after all requests; all of a server's processes. Seconds from the start of the process to "
    )
    lines = [text + f"its first good answer: median of {starts}, alone on the machine (bare: one).", ""]
    lines += ["| | processes | RSS | PSS | ready s |", "|---|--:|--:|--:|--:|"]
    for name, memory in document["memory"].items():
        ready = document["starts"].get(name)
        cells = [name, str(memory["processes"])]
        cells += [f"{memory[key] / 1e6:,.0f} MB" for key in ("rss_bytes", "pss_bytes")]
        cells.append(
            _NONE if ready is None else f"{ready['median']:.2f} ({min(ready['runs']):.2f}–{max(ready['runs']):.2f})"
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines
