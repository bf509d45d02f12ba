"""The daemon: whether it runs, answers and restarts; what STATE tells where it does not answer."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from ...errors import AgentError
from ...measure.recorder.reading import newest_starts
from ...settings import settings_of, settings_path
from ...store.crashes import read_marks
from ...store.slots import read_outcome
from ..device import Collected, Device, UnavailableError, reason_of
from .doors import ask
from .holder import lock_holder, process_facts
from .service import find_service

__all__ = ["collect"]

_PATIENCE_S = 2.0
_STARTS = 100


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    data: dict[str, Any] = {"pid": None, "running": None}
    try:
        data["pid"] = lock_holder(device)
        data["running"] = data["pid"] is not None
    except UnavailableError as error:
        data["running_why"] = str(error)
    # Who may not see the lock may still ask.
    answers = dict(_NO_ANSWERS) if data["running"] is False else _answers(device)
    if data["running"] is None and answers["responds"]:
        pid = (answers["info"] or {}).get("pid")
        data |= {"running": True, "running_why": None, "pid": pid if type(pid) is int else None}
    elif data["running"] is None:
        answers["responds"] = None
    facts = process_facts(device, data["pid"]) if data["pid"] else None
    data |= {
        "process_state": facts and facts.state,
        "started_at_s": facts and facts.started_at_s,
        "uptime_s": facts and facts.uptime_s,
        "threads": facts and facts.threads,
        "open_files": facts and facts.open_files,
        "rss_bytes": facts and facts.rss_bytes,
    }
    if facts is not None and facts.open_files is None:
        data["open_files_why"] = "its own user and root alone may look"
    data |= answers
    data["settings"] = _settings(device, data["info"])
    try:
        data["service"] = find_service(device, data["pid"])
    except UnavailableError as error:
        data |= {"service": None, "service_why": str(error)}
    data |= {**_starts(device), **_crashes(device)}
    outcome = read_outcome(device.layout)
    data["upgrade_last"] = None if outcome is None else asdict(outcome)
    return Collected(data)


_NO_ANSWERS: dict[str, Any] = dict.fromkeys(("responds", "responds_ms", "ready", "safe_mode", "info", "status"))


def _answers(device: Device) -> dict[str, Any]:
    """What the daemon says itself. Where it does not answer the first question in time, it is not asked another."""
    out = dict(_NO_ANSWERS)
    begin = time.monotonic()
    try:
        ask(device, "infer", "/v2/health/live", _PATIENCE_S)
        # A door that is full says 503, and that is an answer.
        out |= {"responds": True, "responds_ms": (time.monotonic() - begin) * 1000}
    except TimeoutError:
        return {**out, "responds": False, "responds_why": f"no answer within {_PATIENCE_S:g} s"}
    except UnavailableError as error:
        # Who may not ask does not know.
        return {**out, "responds": None if "may not" in str(error) else False, "responds_why": str(error)}
    for key in ("status", "info"):
        try:
            status, body = ask(device, "control", f"/kedge/v1/{key}", _PATIENCE_S)
            if status == 200 and isinstance(body, dict):
                out[key] = body
            else:
                out[f"{key}_why"] = f"it answers with status {status}"
        except TimeoutError:
            return {**out, f"{key}_why": f"no answer within {_PATIENCE_S:g} s"}
        except UnavailableError as error:
            out[f"{key}_why"] = str(error)
    if out["status"] is not None:
        ready, safe_mode = out["status"].get("ready"), out["status"].get("safe_mode")
        out |= {"ready": ready if isinstance(ready, bool) else None, "safe_mode": safe_mode and str(safe_mode)}
    return out


def _settings(device: Device, info: dict[str, Any] | None) -> dict[str, Any]:
    """The file, and what is wrong with it: as the daemon says, else as it would find it now."""
    told = (info or {}).get("settings")
    if isinstance(told, dict) and "problem" in told:
        file, problem = str(told.get("file")), told.get("problem")
        return {"file": file if os.path.exists(file) else None, "problem": problem and str(problem)}
    try:
        path = settings_of(device.state).releases.settings or settings_path(device.state, None)
        return {"file": str(path) if os.path.exists(path) else None, "problem": None}
    except AgentError as error:
        if error.kind != "forbidden":
            return {"file": None, "problem": error.message}
        return {"file": None, "problem": None, "problem_why": error.message}


def _starts(device: Device) -> dict[str, Any]:
    try:
        found = newest_starts(device.state, _STARTS)
    except OSError as error:
        return {"starts": None, "starts_why": reason_of(error, device.state / "recorder")}
    if not found:
        return {"starts": None, "starts_why": "no recorder has written any"}
    starts = [(record.at_s, record.start) for record in found if record.start is not None]
    return {"starts": [{"at_s": at_s, "version": start.version, "how": start.how} for at_s, start in starts]}


def _crashes(device: Device) -> dict[str, Any]:
    try:
        boot_id: str | None = device.text("proc/sys/kernel/random/boot_id", 64).strip()
    except UnavailableError:
        boot_id = None
    try:
        return {"crashes": read_marks(device.layout, boot_id)}
    except OSError as error:
        return {"crashes": None, "crashes_why": reason_of(error, device.state / "running")}
