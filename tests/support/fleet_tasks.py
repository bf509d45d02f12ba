"""Tasks for agents on this machine: each a device of its own name, with no way but that it is one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedge.fleet.task import run_task
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge.transport.base import Deadline, Transport
from kedge.transport.local import LocalAgent

__all__ = ["Named", "Way", "agents", "answer_of", "task_for"]


class Named(LocalAgent):
    """An agent that is a device of another name than this machine."""

    def __init__(self, name: str, state: Path) -> None:
        super().__init__(state)
        self.name = name


class Way:
    """An opener of ways to agents that others started: each task goes on a transport of its own, which stops none."""

    def __init__(self, agents: Mapping[str, Path]) -> None:
        self._agents = agents

    @contextlib.contextmanager
    def __call__(self, device: str, way: Mapping[str, Any]) -> Iterator[Transport]:
        yield Named(device, self._agents[device])


@contextlib.contextmanager
def agents(folder: Path, *names: str) -> Iterator[dict[str, Named]]:
    """Running agents by name; nobody waits for a probation but who asks for one."""
    made: dict[str, Named] = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            state = folder / name
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (state / "agent.json").exists():
                (state / "agent.json").write_text('{"releases": {"probation_s": 0}}')
            made[name] = Named(name, state)
            stack.callback(made[name].close)
            made[name].start(Deadline.after(60, "the test"))
        yield made


def task_for(device: str, release: Release, kind: str = "deploy", **more: Any) -> dict[str, Any]:
    """A task as a rollout gives it."""
    return {
        "rollout": "20261126-090000-abcdef",
        "device": device,
        "kind": kind,
        "address": {"test": str(os.getpid())},
        "target": host_target().name,
        "model": release.manifest.model,
        "release": {"digest": release.digest, "source": str(release.folder)},
        "engines": [],
        "build_own": False,
        "deadline_s": 120.0,
        "limit_bytes_per_s": None,
        "downgrade": None,
        "first_s": time.time(),
        **more,
    }


def answer_of(agent: Named, release: Release, kind: str = "deploy", **more: Any) -> dict[str, Any]:
    """The answer to a task for an agent that runs."""
    return run_task(task_for(agent.name, release, kind, **more), opener=Way({agent.name: agent.state}))
