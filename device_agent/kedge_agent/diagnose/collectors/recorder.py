"""What the flight recorder wrote: of the last hour and five minutes, and of each model while its release served."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import AgentError
from ...formats.recording import Record, Summary, read_records, summarise
from ...measure.recorder.places import MINUTES, SECONDS
from ...measure.recorder.reading import describe_recorder, read_ages, segments_back
from ...store.journal import Entry
from ...store.models import list_models, read_state
from ..device import Collected, Device, UnavailableError, reason_of
from .journal import read_history

__all__ = ["collect"]

_BY_SECONDS_S = 3600.0
_LONGEST_S = 86_400.0
_FIRST_S = 600.0
_MOST_MODELS = 16


@dataclass(frozen=True)
class _Live:
    """What a model serves, and what it did since it went live, age_s ago: a day, where that is not known."""

    model: str
    release: str
    deploy: Entry | None
    age_s: float
    ring: str
    since: Summary = field(default_factory=Summary)


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    try:
        told = describe_recorder(device.state)
        if told is None:
            nothing = {"files": 0, "bytes": 0, "first_s": None, "last_s": None, "cost": None}
            why = "nothing was ever recorded: the recorder is off, or the agent is of a version that has none"
            none = {"hour": None, "hour_why": why, "recent": None, "recent_why": why}
            return Collected({"status": nothing, **none, "since_deploy": {}})
        for key, time_of in (("hour", "hour"), ("recent", "five minutes")):
            if told[key] is None:
                told[f"{key}_why"] = f"nothing was recorded in the last {time_of}"
        return Collected({**told, "since_deploy": _since_deploy(device)})
    except OSError as error:
        raise UnavailableError(reason_of(error, device.state / "recorder")) from error


def _since_deploy(device: Device) -> dict[str, Any]:
    try:
        history = read_history(device)
    except UnavailableError:
        history = []
    found = []
    for model in list_models(device.layout)[:_MOST_MODELS]:
        try:
            state = read_state(device.layout, model)
        except AgentError:
            # The releases tell of it.
            continue
        if state is not None:
            deploy = _deploy(history, model, state.current)
            age_s = _LONGEST_S if deploy is None else max(time.time() - deploy.at_s, 1.0)
            ring = SECONDS if age_s <= _BY_SECONDS_S else MINUTES
            found.append(_Live(model, state.current, deploy, min(age_s, _LONGEST_S), ring))
    _sum_up(device, found)
    return {
        each.model: {
            **each.since.to_json(),
            "at_deploy": None if each.deploy is None else _at_deploy(device, history, each.deploy, each.ring),
        }
        for each in found
    }


def _sum_up(device: Device, models: list[_Live]) -> None:
    """Read each ring once, for all models; a day of records is more than one would hold in memory."""
    for ring in (SECONDS, MINUTES):
        own = [each for each in models if each.ring == ring]
        if not own:
            continue
        for record, age_s in read_ages(device.state, max(each.age_s for each in own), ring):
            for each in own:
                if age_s <= each.age_s:
                    for served in _served([record], each.model, each.release):
                        each.since.add(served)


def _deploy(history: list[Entry], model: str, release: str) -> Entry | None:
    """The record of when a release last went live."""
    own = [entry for entry in history if (entry.model, entry.release) == (model, release)]
    for step in ("switched", "committed"):
        found = [entry for entry in own if entry.step == step]
        if found:
            return found[-1]
    return None


def _at_deploy(device: Device, history: list[Entry], deploy: Entry, ring: str) -> dict[str, Any]:
    first = summarise(_served(_first(device, deploy, ring), deploy.model, deploy.release))
    return {
        "release": deploy.release,
        "at_s": deploy.at_s,
        "gate": _gate(history, deploy),
        "first": first if first["seconds"] else None,
    }


def _gate(history: list[Entry], deploy: Entry) -> dict[str, Any] | None:
    """What the latency gate measured of it, last."""
    for entry in reversed(history):
        if entry.step != "gated" or (entry.model, entry.release) != (deploy.model, deploy.release):
            continue
        gates = entry.body.get("gates")
        for gate in gates if isinstance(gates, list) else ():
            figures = gate.get("figures") if isinstance(gate, dict) and gate.get("gate") == "latency" else None
            if isinstance(figures, dict):
                return {key: _number(figures.get(key)) for key in ("runs", "median_ms", "p99_ms")}
    return None


def _number(value: Any) -> float | int | None:
    return value if type(value) in (int, float) else None


def _first(device: Device, deploy: Entry, ring: str) -> Iterator[Record]:
    """Records of the ten minutes after a deploy; what came after them is not even decoded."""
    for data in segments_back(device.state, max(time.time() - deploy.at_s, 1.0), ring):
        for record in read_records(data):
            if record.at_s > deploy.at_s + _FIRST_S:
                return
            # A record tells of the time that ends with it; the journal knows whole seconds.
            if record.at_s > deploy.at_s:
                yield record


def _served(records: Iterable[Record], model: str, release: str) -> Iterator[Record]:
    """Those in which this release of the model was live, without other models."""
    for record in records:
        each = record.models.get(model)
        if each is not None and each.release == release:
            yield replace(record, models={model: each})
