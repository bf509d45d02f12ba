"""The agent that is installed: that there is one, of which version, and no second one beside it."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath

from kedge_agent import __version__ as OURS  # noqa: N812

from ...transport.base import LOCAL, agent_hint
from ..evidence import Evidence
from ..finding import Finding, fault, ok, unknown, warning
from .words import duration, restart_command

__all__ = ["agent", "installs"]

_NUMBER = re.compile(r"\d+")
_ELSEWHERE = "on another state folder"
_PROCESS = re.compile(r"process (\d{1,10}) ")


def agent(evidence: Evidence) -> Finding:
    """Whether it could be asked at all, and how its version compares with this host's."""
    name, link = "agent", evidence.link
    if not evidence.told:
        problem = None if link is None else link.agent_problem
        if link is None or problem is None:
            return unknown(name, evidence.section("agent").why or "not told")
        if link.agent_silent_s is not None:
            return fault(
                name,
                f"the agent's program was started and said nothing for {duration(link.agent_silent_s)}",
                brief="the agent's program does not start",
                cause="its start hangs: a disk or a file system does not answer, or the device is far too busy",
                cure=evidence.shell("ps -eo pid,stat,wchan:24,etime,args | grep '[k]edge-agent'"),
            )
        return fault(
            name,
            problem,
            brief="no agent tells anything",
            cause="none is installed, or it is damaged, or of another version than this kedge",
            cure=_install(evidence),
        )
    installed = evidence.facts.text("agent_version") or "unknown"
    running = evidence.data("agent").child("info").text("version")
    figures = {"installed": installed, "running": running, "host": OURS}
    if running is not None and running != installed:
        return warning(
            name,
            f"the agent that runs is {running}, the installed one {installed}",
            brief="an old agent still runs",
            cause="it was replaced on the disk and not started again",
            cure=restart_command(evidence),
            figures=figures,
        )
    if link is None or installed == OURS:
        return ok(name, f"version {installed}{'' if link is None else ', as this kedge'}", **figures)
    older = _parts(installed) < _parts(OURS)
    return warning(
        name,
        f"version {installed}, this kedge is {OURS}",
        brief="the agent is older than this kedge" if older else "this kedge is older than the agent",
        cause="what one of them has the other may not know",
        cure=(agent_hint(LOCAL) if evidence.device == LOCAL else f"kedge device upgrade {evidence.device}")
        if older
        else "pip install --upgrade kedge",
        figures=figures,
    )


def installs(evidence: Evidence) -> Finding:
    """Whether two agents, or two that own the same files, are installed or run."""
    name, section = "installs", evidence.section("installs")
    if section.why:
        return unknown(name, section.why)
    twice, agents = section.data.texts("duplicates"), section.data.nodes("agents")
    running = [each for each in agents if each.text("what") == "process"]
    figures = {"agents": len(agents), "running": len(running), "duplicates": twice}
    if not twice:
        return ok(name, "no second one is installed, or runs", **figures)
    more = f"; and {len(twice) - 1} more" if len(twice) > 1 else ""
    if evidence.link is not None and evidence.link.over == "local" and all(_ELSEWHERE in line for line in twice):
        # The agent that kedge runs here for itself and one that makes this machine a device do not meet.
        return warning(
            name,
            f"{twice[0]}{more}",
            brief="another agent runs on this machine",
            cause="this machine is a device as well, or somebody left it behind; they share memory and processor",
            cure=_remove(evidence, twice[0]),
            figures=figures,
        )
    return fault(
        name,
        f"{twice[0]}{more}",
        brief="two agents are installed",
        cause="they share the device's memory and ports, or own the same files: which one answers is chance",
        cure=_remove(evidence, twice[0]),
        figures=figures,
    )


def _install(evidence: Evidence) -> str:
    """What brings an agent to a device that has none, or one that tells nothing."""
    if evidence.link is not None and evidence.link.over == "local":
        return "pip install --force-reinstall --no-deps kedge"
    known = evidence.link is None or "no agent is" not in (evidence.link.agent_problem or "")
    return f"kedge device provision {evidence.device}{' --force' if known else ''}"


def _remove(evidence: Evidence, line: str) -> str:
    """What mends a duplicate, by the line that tells of it (docs/diagnose.md)."""
    process = _PROCESS.match(line)
    if "though the slot" in line:
        return restart_command(evidence)
    if process is not None:
        return evidence.shell(f"kill {process[1]}") + "  # or keep that one, and stop the other"
    folder = next(
        (
            path.parent
            for each in evidence.data("installs").nodes("agents")
            if each.text("what") == "distribution"
            and each.text("name") == "kedge-agent"
            # PREFIX/lib/python3.11/site-packages/kedge_agent-0.1.0.dist-info
            and len((path := PurePosixPath(each.text("path") or "")).parents) > 4
            and str(path.parent) in line
        ),
        None,
    )
    python = "python3" if folder is None else shlex.quote(str(folder.parents[2] / "bin/python3"))
    pip = f"{python} -m pip"
    return evidence.shell(f"{pip} uninstall -y kedge-agent && {pip} install --force-reinstall --no-deps kedge")


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part[:9]) for part in _NUMBER.findall(version)[:4])
