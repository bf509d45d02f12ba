"""What a step of a release may end as, and how the steps are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "BrokenError", "NotCheckedError", "Step", "say", "shell"]

ROOT = Path(__file__).resolve().parents[2]
_TAIL_LINES = 15


class BrokenError(Exception):
    """The step found something that must not be released; the message says what, and what to do."""


class NotCheckedError(Exception):
    """The step needs something this machine lacks; the message says what."""


@dataclass(frozen=True)
class Step:
    """outcome: passed, failed or not checked. detail: one line."""

    name: str
    outcome: str
    detail: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        return {"step": self.name, "outcome": self.outcome, "detail": self.detail, "seconds": round(self.seconds, 1)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shell(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    timeout_s: float = 900,
    expect: tuple[int, ...] = (0,),
) -> str:
    """What a program says on standard output.

    Raises:
        BrokenError: it ends with another exit code than expected, or not in time.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd or ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BrokenError(f"`{' '.join(words[-6:])}` did not end within {timeout_s:g} s") from error
    if done.returncode not in expect:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_TAIL_LINES:])
        raise BrokenError(f"`{' '.join(words)}` ended with {done.returncode}:\n{tail}")
    return done.stdout
