"""A rollout as one HTML page: what came of it, its devices over time, its waves with their gates, every device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .history_events import duration, moment
from .page import cell, markup, render_page
from .rollout_chart import devices_over_time, part_s, time_by_wave
from .rollout_words import SERVES, STATES, count_words, counts_of, headline, in_order
from .text import byte_size, capital, ended, milliseconds, one_line, sentence

__all__ = ["rollout_html"]

_BADGES = {
    "done": ("passed", "Done"),
    "halted": ("failed", "Halted"),
    "aborted": ("failed", "Aborted"),
    "interrupted": ("warning", "Interrupted"),
    "paused": ("info", "Between two waves"),
    "running": ("info", "Running"),
}
_GATE_STATES = {True: ("passed", "passed"), False: ("failed", "failed"), None: ("unavailable", "not judged")}
_WAVE_STATES = {
    "passed": "passed",
    "failed": "failed",
    "aborted": "warning",
    "running": "info",
    "watching": "info",
    "waiting": "unavailable",
}
_AMISS_COLUMNS = ("Device", "State", "Wave", "Reason", "To do")
_DEVICE_COLUMNS = ("Device", "State", "Wave", "Took", "Push", "Gates", "Probation", "Sent", "p99")
_WAVE_COLUMNS = ("Wave", "State", "Devices", "Until here", "Took", "Came to")
_GATE_COLUMNS = ("Wave", "Gate", "Result", "Why")

_MANY = 40


def rollout_html(document: Mapping[str, Any]) -> str:
    """The page of one rollout (docs/rollout-report.md), complete in itself; the same document gives the same text.

    Raises:
        IncompatibleError: jinja2 or matplotlib is not installed.
    """
    state, badge = _BADGES[document["state"]]
    well = sum(document["counts"].get(each, 0) for each in SERVES)
    if document["state"] == "done" and well < len(document["devices"]):
        state, badge = "warning", "Done in part"
    sentences = [ended(f"Because: {one_line(document['reason'])}")] if document["reason"] else []
    if document["hint"]:
        sentences.append(f"To do: {one_line(document['hint'])}")
    return render_page(
        "rollout.html.j2",
        {
            "d": document,
            "state": state,
            "badge": badge,
            "headline": capital(headline(document)),
            "sentences": sentences,
            "lead": f"Rollout {document['id']} of release {document['release'][:12]}, "
            f"begun {moment(document['created_s'])} UTC",
            "tiles": _tiles(document, well),
            "over_time": markup(devices_over_time(document)),
            "parts": markup(time_by_wave(document)),
            "wave_columns": _WAVE_COLUMNS,
            "waves": [_wave(document, each) for each in document["waves"]],
            "gate_columns": _GATE_COLUMNS,
            "gates": [_gate(wave, gate) for wave in document["waves"] for gate in wave["gates"]],
            "amiss_columns": _AMISS_COLUMNS,
            "amiss": [_amiss(each) for each in in_order(document["devices"]) if each["reason"]],
            "device_columns": _DEVICE_COLUMNS,
            "devices": [_device(each) for each in in_order(document["devices"])],
            "many": len(document["devices"]) > _MANY,
            "options": _options(document),
        },
    )


def _tiles(document: Mapping[str, Any], well: int) -> list[dict[str, str]]:
    devices = document["devices"]
    took = sorted(each["seconds"] for each in devices if each["state"] == "updated" and each["seconds"] is not None)
    sent = [each["wire_bytes"] for each in devices if each["wire_bytes"] is not None]
    tiles = [{"name": "serve the release", "value": f"{well:,}", "detail": f"of {len(devices):,} devices"}]
    rest = {state: count for state, count in counts_of(devices).items() if state not in SERVES}
    if rest:
        tiles.append({"name": "the others", "value": f"{sum(rest.values()):,}", "detail": count_words(rest)})
    if took:
        detail = f"longest {duration(took[-1])}"
        tiles.append({"name": "an update: median", "value": duration(took[len(took) // 2]), "detail": detail})
    if sent:
        tiles.append({"name": "sent", "value": byte_size(sum(sent)), "detail": f"to {len(sent):,} devices"})
    return tiles


def _wave(document: Mapping[str, Any], wave: Mapping[str, Any]) -> tuple[Any, ...]:
    own = [each for each in document["devices"] if each["wave"] == wave["wave"]]
    begun, end = wave["begun_s"], wave["ended_s"]
    took = None if begun is None or end is None else end - begun
    return (
        cell(f"Wave {wave['wave']}"),
        cell(wave["state"], state=_WAVE_STATES[wave["state"]]),
        cell(f"{len(own):,}", len(own)),
        cell(f"{wave['count']:,}", wave["count"]),
        _seconds(took),
        count_words(counts_of(own)),
    )


def _gate(wave: Mapping[str, Any], gate: Mapping[str, Any]) -> tuple[Any, ...]:
    state, word = _GATE_STATES[gate["passed"]]
    why = sentence(one_line(gate["why"]))
    return (cell(f"Wave {wave['wave']}"), gate["gate"], cell(word, state=state), why)


def _named(device: Mapping[str, Any]) -> tuple[Any, ...]:
    state = STATES[device["state"]]
    name = cell(device["device"], code=True)
    return (name, cell(state.word, state=state.mark), cell(str(device["wave"]), device["wave"]))


def _amiss(device: Mapping[str, Any]) -> tuple[Any, ...]:
    reason = one_line(device["reason"]).removeprefix(f"{device['device']}: ")
    return (*_named(device), sentence(reason), one_line(device["hint"] or ""))


def _device(device: Mapping[str, Any]) -> tuple[Any, ...]:
    sent, p99 = device["wire_bytes"], device["p99_ms"]
    return (
        *_named(device),
        _seconds(device["seconds"]),
        *(_seconds(part_s(device, part)) for part in ("push", "gates", "probation")),
        cell("–" if sent is None else byte_size(sent), sent),
        cell("–" if p99 is None else milliseconds(p99), p99),
    )


def _seconds(value: float | None) -> dict[str, Any]:
    return cell("–" if value is None else duration(value), value)


def _options(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = document["options"]
    rate, drift = options["max_error_rate"], options["max_p99_drift"]
    return [
        ("Waves", ", ".join(options["canary"])),
        ("Pause after a wave", duration(options["pause_s"])),
        ("Failures that halt it", f"more than {options['max_failures']}"),
        ("Deadline of a device", duration(options["deadline_s"])),
        ("Devices at a time", f"{options['concurrency']:,}"),
        ("Failed requests", "no limit" if rate is None else f"at most {rate:.3%} of a wave"),
        ("p99", "no limit" if drift is None else f"at most {drift:.0%} above the wave before"),
        ("When it halts", "the wave goes back" if options["on_halt"] == "rollback" else "nothing more begins"),
        ("Driven by", document["cluster"] or "threads of one host"),
    ]
