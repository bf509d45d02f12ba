"""Errors in the agent's log, and what it said on standard error when it last started."""

from __future__ import annotations

from typing import Any

from ..agent_log import LogEntry, log_bytes, plain, read_entries, tail
from ..device import Collected, Device, UnavailableError, reason_of

__all__ = ["collect"]

_NEWEST = 50
_LEVELS = ("ERROR", "CRITICAL")
_START_BYTES = 16 << 10
_START_LINES = 20


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    try:
        entries = read_entries(device.state)
    except OSError as error:
        raise UnavailableError(reason_of(error, device.state / "agent.log")) from error
    errors = [_error(entry) for entry in entries if entry.level in _LEVELS]
    data: dict[str, Any] = {"errors": errors[-_NEWEST:], "bytes": log_bytes(device.state), **_start_log(device)}
    if data["bytes"] is None:
        data["bytes_why"] = f"{device.state / 'agent.log'} is not here"
    return Collected(data)


def _error(entry: LogEntry) -> dict[str, Any]:
    """Its first line, and where a traceback follows, that one's last: what was raised."""
    last = next((line.strip() for line in reversed(entry.lines[1:]) if line.strip()), None)
    line = f"{entry.level} {entry.lines[0]}"
    return {"at": entry.at, "line": line if last is None else f"{line} | {last}"}


def _start_log(device: Device) -> dict[str, Any]:
    try:
        data = tail(device.state / "start.log", _START_BYTES)
    except OSError as error:
        return {"start_log": [], "start_log_why": reason_of(error, device.state / "start.log")}
    return {"start_log": [plain(line) for line in data.decode("utf-8", "replace").splitlines()[-_START_LINES:]]}
