"""Figures as the doctor words them, and commands: what a device tells goes into none of these but quoted or checked."""

from __future__ import annotations

import re
import shlex
from datetime import datetime, timezone

from kedge_agent.formats.manifest import is_model_name

from ..evidence import Evidence
from ..node import Node

__all__ = [
    "OFFLINE",
    "counted",
    "duration",
    "edit_settings",
    "model_name",
    "moment",
    "restart_command",
    "seconds_of",
    "service_command",
    "share",
    "start_command",
]

OFFLINE = "not looked at: this is a snapshot"
_LARGEST_S = 4e9
_SYSTEM_SETTINGS = "/etc/kedge/agent.json"
_FILE = re.compile(r"(/[^:]{1,300}): ")
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9@_.-]{0,99}")


def share(value: float) -> str:
    """`31 %`, `0.4 %`."""
    per_cent = value * 100
    return f"{per_cent:.0f} %" if per_cent >= 9.95 or per_cent == 0 else f"{per_cent:.1f} %"


def counted(count: float, thing: str, things: str | None = None) -> str:
    """`1 file`, `3 files`."""
    return f"{count:,.0f} {thing if count == 1 else things or thing + 's'}"


def duration(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h`, `9 days`."""
    size = abs(seconds)
    for unit, length, from_s in (("days", 86_400, 172_800), ("h", 3600, 7200), ("min", 60, 120)):
        if size >= from_s:
            return f"{size / length:.0f} {unit}"
    return f"{size:.0f} s" if size >= 9.95 else f"{size:.2g} s"


def moment(at_s: float | None) -> str:
    """`2026-11-26 04:12 UTC`, by whatever clock it was told."""
    if at_s is None or not 0 <= at_s <= _LARGEST_S:
        return "at an unknown time"
    return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def seconds_of(text: str | None) -> float | None:
    """Seconds since 1970 of a time in ISO 8601; one without a zone is UTC."""
    try:
        at = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
        return (at if at.tzinfo is not None else at.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def model_name(row: Node) -> str:
    """The model that a row is of, for a command."""
    called = row.text("model")
    return called if called is not None and is_model_name(called) else "MODEL"


def service_command(evidence: Evidence, action: str) -> str | None:
    """What has systemd start or restart the agent; None where it is no service."""
    unit = evidence.data("agent").child("service").text("unit")
    if unit is None or not _UNIT.fullmatch(unit):
        return None
    return f"sudo systemctl {action} {unit}" if _is_systems(evidence) else f"systemctl --user {action} {unit}"


def start_command(evidence: Evidence) -> str:
    """What starts the agent, to be pasted."""
    if evidence.link is not None and evidence.link.over == "local":
        return f"kedge status --on {evidence.device}"
    return evidence.shell(service_command(evidence, "start") or f"{_program(evidence)} start")


def restart_command(evidence: Evidence, *, hung: bool = False) -> str:
    """What ends the agent, by force where it hangs, and starts it again, to be pasted."""
    command = service_command(evidence, "restart")
    if command is None:
        program = _program(evidence)
        pid = evidence.data("agent").pid()
        command = f"kill -9 {pid}; {program} start" if hung and pid else f"{program} stop; {program} start"
    return evidence.shell(command)


def edit_settings(evidence: Evidence, then: str | None = None) -> str:
    """What opens the settings file in an editor and has the change take effect, to be pasted.

    Args:
        then: what follows the editing; None: the daemon reads the file again, where one runs.
    """
    agent, system = evidence.data("agent"), _is_systems(evidence)
    settings, pid = agent.child("settings"), agent.pid()
    # An agent that does not run names no file, but what is wrong with it begins with its path.
    named = _FILE.match(settings.text("problem") or "")
    usual = _SYSTEM_SETTINGS if system else f"{evidence.facts.text('state') or 'STATE'}/agent.json"
    path = settings.text("file") or (named[1] if named else usual)
    sudo = "sudo " if system else ""
    if then is None:
        then = start_command(evidence) if pid is None else evidence.shell(f"{sudo}kill -HUP {pid}")
    return f"{evidence.shell(f'{sudo}${{EDITOR:-vi}} {shlex.quote(path)}', terminal=True)} && {then}"


def _is_systems(evidence: Evidence) -> bool:
    """Whether root set the agent up: `kedge device provision` makes it a service of the user's own else."""
    return evidence.facts.text("state") == "/var/lib/kedge"


def _program(evidence: Evidence) -> str:
    return shlex.quote(f"{evidence.facts.text('state') or 'STATE'}/bin/kedge-agent")
