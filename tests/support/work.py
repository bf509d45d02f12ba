"""Work for executors that is no device's: it goes to workers by its name, as kedge's own does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from tests.support import driven


def quiet(step: str) -> None:
    """Nobody listens."""


def stepping(task: Mapping[str, Any], *, step: Callable[[str], None] = quiet) -> dict[str, Any]:
    """Two steps, and where they ran."""
    step("push")
    step("done")
    return {"device": task["device"], "worker": os.getpid()}


def serving(task: Mapping[str, Any], *, seconds: float, step: Callable[[str], None] = quiet) -> dict[str, Any]:
    """A device that takes its time, and then serves the release."""
    step("connect")
    time.sleep(seconds)
    return driven.answer(task)


def failing(task: Mapping[str, Any], *, step: Callable[[str], None] = quiet) -> dict[str, Any]:
    raise ZeroDivisionError("by design")


def deadly(task: Mapping[str, Any], *, step: Callable[[str], None] = quiet) -> dict[str, Any]:
    """Kills the worker that runs it."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hanging(task: Mapping[str, Any], *, step: Callable[[str], None] = quiet) -> dict[str, Any]:
    step("hanging")
    time.sleep(3600)
    return {}


def total(shared: list[int], add: int) -> int:
    """Of something that all tasks share, and something of its own."""
    return sum(shared) + add


def deadly_judge(shared: object, model: bytes) -> int:
    """Kills the worker that judges."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def size(shared: bytes) -> int:
    return len(shared)


def same_facts() -> dict[str, str]:
    return {"fact": "the same everywhere"}


def own_facts() -> dict[str, str]:
    return {"process": str(os.getpid())}
