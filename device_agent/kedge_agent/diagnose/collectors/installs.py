"""Agents that are installed or run here, and what of it is one too many.

What is installed is read from its files, and no interpreter is started for it. Sources: PyPA, "Recording installed
projects" (`NAME-VERSION.dist-info`); proc_pid_cmdline(5).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...formats.manifest import is_digest
from ...store.files import read_beginning
from ...store.slots import agents_folder, read_trial, slot_named
from ..device import Collected, Device, UnavailableError
from .holder import daemon_of

__all__ = ["collect"]

_VERSION = re.compile(r'__version__ = "([^"]{1,80})"')
_DIST_INFO = re.compile(r"(kedge|kedge_agent)-([0-9][^-]{0,80})\.dist-info")
_PROGRAM = re.compile(r"(?:.*/)?(?:kedge-agent|kedge_agent|run\.py|kedge_agent/__main__\.py)")
# They run beside the agent for a while, or end with whoever started them: no installations.
_PASSING = ("--standby", "--parent-pipe", "--ephemeral")
_SEARCHED = ("/usr/local/bin", "/usr/bin", "/opt/kedge/bin", "~/.local/bin", "~root/.local/bin")
_SITES = ("lib/python3*/site-packages", "lib/python3/dist-packages", "lib/python3*/dist-packages")


@dataclass(frozen=True)
class _Daemon:
    """An agent that runs. passing: it is no installation."""

    pid: int
    path: str
    state: str | None
    user: str
    passing: bool


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    if not device.live:
        raise UnavailableError("a recorded tree has no processes")
    daemons = _daemons()
    holder = daemon_of(device)
    slots, distributions = _slots(device, daemons), _distributions(daemons)
    processes = [
        _agent("process", each.path, state=each.state, pid=each.pid, user=each.user, running=True) for each in daemons
    ]
    duplicates = [
        *_two_daemons(device, daemons, holder),
        *_two_distributions(distributions),
        *_two_current(device, daemons, holder),
    ]
    return Collected({"agents": [*slots, *distributions, *processes], "duplicates": duplicates})


def _agent(what: str, path: str, **known: Any) -> dict[str, Any]:
    return {"what": what, "path": path, **dict.fromkeys(("version", "state", "pid", "user", "running")), **known}


def _slots(device: Device, daemons: list[_Daemon]) -> list[dict[str, Any]]:
    layout = device.layout
    trial = read_trial(layout)
    roles = {
        slot_named(layout, "previous"): "previous",
        (trial and trial.bundle): "trial",
        slot_named(layout, "current"): "current",
    }
    try:
        names = sorted(filter(is_digest, os.listdir(agents_folder(layout))))
    except OSError:
        return []
    out = []
    for name in names:
        folder = agents_folder(layout) / name
        pid = next((each.pid for each in daemons if Path(each.path).resolve().is_relative_to(folder.resolve())), None)
        facts = {"version": _version(folder / "site/kedge_agent/__init__.py"), "state": str(device.state)}
        out.append(
            _agent("slot", str(folder), **facts, pid=pid, running=pid is not None, role=roles.get(name, "other"))
        )
    return out


def _version(path: Path) -> str | None:
    try:
        found = _VERSION.search(read_beginning(path, 4096).decode("utf-8", "replace"))
    except OSError:
        return None
    return found[1] if found else None


def _distributions(daemons: list[_Daemon]) -> list[dict[str, Any]]:
    """`kedge` and `kedge-agent` in this interpreter, and in those of the commands that lie about."""
    prefixes = {Path(sys.prefix)}
    places = [*os.environ.get("PATH", "").split(os.pathsep), *_SEARCHED]
    programs = [Path(os.path.expanduser(place), "kedge-agent") for place in places if place]
    for program in [*programs, *(Path(each.path) for each in daemons)]:
        with contextlib.suppress(OSError):
            prefix = _prefix(program)
            if prefix is not None:
                # What pip installs beside a system's packages, or for one user, lies where its commands do.
                prefixes |= {prefix, program.parent.parent}
    out = {}
    for prefix in sorted(prefixes):
        for pattern in _SITES:
            for folder in sorted(prefix.glob(pattern)):
                for name in _listed(folder):
                    found = _DIST_INFO.fullmatch(name)
                    if found:
                        path = str(folder.resolve() / name)
                        # It is the interpreter's; whether a daemon of it runs, the processes tell.
                        out[path] = _agent("distribution", path, version=found[2], name=found[1].replace("_", "-"))
    return list(out.values())


def _prefix(program: Path) -> Path | None:
    """Of the interpreter that a command's first line names."""
    line = read_beginning(program, 512).partition(b"\n")[0]
    if not line.startswith(b"#!/"):
        return None
    interpreter = Path(os.fsdecode(line[2:].split()[0]))
    return interpreter.parent.parent if interpreter.parent.name == "bin" else None


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _daemons() -> list[_Daemon]:
    out = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb", buffering=0) as file:
                words = os.fsdecode(file.read(1 << 16)).split("\0")[:-1]
            found = _daemon(int(name), words)
            if found is not None:
                out.append(found)
    return sorted(out, key=lambda each: each.pid)


def _daemon(pid: int, words: list[str]) -> _Daemon | None:
    if "serve" not in words:
        return None
    options = words[: words.index("serve")]
    place = next((place for place, word in enumerate(options) if _PROGRAM.fullmatch(word)), None)
    if place is None or place > 4:
        return None
    state = None
    if "--state" in options[:-1]:
        state = options[options.index("--state") + 1]
    uid = os.stat(f"/proc/{pid}").st_uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    path = options[place] if "/" in options[place] else words[0]
    # Nothing that lasts is kept on a temporary folder: somebody tries an agent out.
    tried = state is not None and Path(state).is_relative_to(tempfile.gettempdir())
    return _Daemon(pid, path, state, user, tried or any(word in words for word in _PASSING))


def _two_daemons(device: Device, daemons: list[_Daemon], holder: int | None) -> list[str]:
    mine = {str(device.state), os.path.realpath(device.state)}
    others = [each for each in daemons if not each.passing and each.pid != holder]
    if holder is None:
        # Who holds the lock is not known: the first that may be it is.
        here = [each for each in others if each.state is None or each.state in mine]
        others = [each for each in others if each not in here[:1]]
    out = []
    for each in others:
        who = f"process {each.pid} of user {each.user}"
        if each.state in mine:
            out.append(f"{who} is another agent on this state folder")
        else:
            where = each.state or "its user's default state folder"
            out.append(f"{who} is an agent on another state folder: {where}")
    return out


def _two_distributions(distributions: list[dict[str, Any]]) -> list[str]:
    by_folder: dict[str, dict[str, str]] = {}
    for each in distributions:
        by_folder.setdefault(os.path.dirname(each["path"]), {})[each["name"]] = each["version"]
    return [
        f"kedge {names['kedge']} and kedge-agent {names['kedge-agent']} are both installed in {folder}: they own the "
        f"same files, and removing one breaks the other"
        for folder, names in by_folder.items()
        if len(names) == 2
    ]


def _two_current(device: Device, daemons: list[_Daemon], holder: int | None) -> list[str]:
    current = slot_named(device.layout, "current")
    serving = next((each for each in daemons if each.pid == holder), None)
    if serving is None or current is None or read_trial(device.layout) is not None:
        return []
    own = Path(serving.path)
    # The launcher goes through the link, which says nothing of what it named then.
    if own.is_relative_to(agents_folder(device.layout) / "current"):
        return []
    runs = next((part for part in own.parts if is_digest(part)), None)
    if runs != current:
        where = f"the slot {runs[:12]}" if runs else serving.path
        return [f"process {holder} serves from {where}, though the slot {current[:12]} is current"]
    return []
