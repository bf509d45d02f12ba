"""What collectors look at, and how they read it: bounded, and with a reason where it cannot be read."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..store.files import read_beginning
from ..store.layout import Layout

__all__ = ["Collected", "Device", "UnavailableError", "end_with_parent", "reason_of", "within"]

T = TypeVar("T")

_MAX_TEXT_BYTES = 1 << 20
_MAX_OUTPUT_BYTES = 8 << 20
_PR_SET_PDEATHSIG = 1
# A command over SSH may find neither of the last two on its path.
_PATHS = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")


class UnavailableError(Exception):
    """Something is not to be had here; the message says why, and what would help."""


@dataclass(frozen=True)
class Collected:
    """What a collector found. data: plain JSON. members: raw files for a snapshot, by their names in it, made one at a
    time."""

    data: dict[str, Any]
    members: Iterable[tuple[str, bytes]] = ()


@dataclass(frozen=True)
class Device:
    """The device that is looked at.

    state: the agent's state folder. root: where /proc, /sys and /etc begin; another than / is a recorded tree, of which
    there are files alone: no process, no command. raw: raw files are wanted too. seconds: that all collectors have.
    silent: the state folder gives no answer, and whoever asks it waits for ever.
    """

    state: Path
    root: Path = field(default_factory=lambda: Path("/"))
    raw: bool = False
    seconds: float = 50.0
    silent: bool = False

    @property
    def layout(self) -> Layout:
        """The store under the state folder."""
        return Layout(self.state)

    def needs_state(self) -> None:
        """For whoever goes on to look into the state folder.

        Raises:
            UnavailableError: it gives no answer.
        """
        if self.silent:
            raise UnavailableError(f"{self.state} gives no answer")

    @property
    def live(self) -> bool:
        """It is this very machine, and no recorded tree."""
        return self.root == Path("/")

    def text(self, path: str, limit: int = _MAX_TEXT_BYTES) -> str:
        """What a file under the root says: its first `limit` bytes.

        Raises:
            UnavailableError: it cannot be read.
        """
        return self.data(path, limit).decode("utf-8", "replace")

    def data(self, path: str, limit: int = _MAX_TEXT_BYTES) -> bytes:
        """The first `limit` bytes of a file under the root.

        Raises:
            UnavailableError: it cannot be read.
        """
        try:
            # Files of /proc and /sys are as long as they say when they are read, and their size is 0.
            return read_beginning(self.root / path, limit)
        except OSError as error:
            raise UnavailableError(reason_of(error, f"/{path}")) from error

    def command(self, *words: str, timeout_s: float) -> str:
        """What a command of this machine prints: its last 8 MiB, in the C locale and in UTC.

        Raises:
            UnavailableError: it is not here, fails, or takes too long.
        """
        if not self.live:
            raise UnavailableError(f"{words[0]}: a recorded tree has no commands")
        path = os.pathsep.join(dict.fromkeys([*os.environ.get("PATH", "").split(os.pathsep), *_PATHS]))
        environment = {"PATH": path, "LC_ALL": "C", "TZ": "UTC"}
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=timeout_s,
                env=environment,
                preexec_fn=end_with_parent,
            )
        except FileNotFoundError:
            raise UnavailableError(f"{words[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"{words[0]} gave no answer within {timeout_s:g} s") from None
        except OSError as error:
            raise UnavailableError(reason_of(error, words[0])) from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise UnavailableError(f"{words[0]}: {said[-1][:200] if said else f'exit status {done.returncode}'}")
        return done.stdout[-_MAX_OUTPUT_BYTES:].decode("utf-8", "replace")


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that forked it is gone (PR_SET_PDEATHSIG(2const))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def within(patience_s: float, call: Callable[[], T], what: str) -> T:
    """Call something that may hang, as a disk does that is gone; its thread is then left behind.

    Args:
        what: is told as that which gives no answer.

    Raises:
        UnavailableError: it takes too long. Also what the call raises.
    """
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(patience_s)
    if raised:
        raise raised[0]
    if not found:
        raise UnavailableError(f"{what} gives no answer within {patience_s:g} s")
    return found[0]


def reason_of(error: OSError, what: object) -> str:
    """Why something cannot be read, as reasons are told."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{what}: user {os.geteuid()} may not read it; the agent's user or root may"
    if error.errno == errno.ENOENT:
        return f"{what} is not here"
    return f"{what}: {error.strerror or error}"
