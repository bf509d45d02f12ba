"""A call of ours in a child process, which may crash, hang or be killed, and takes nothing with it.

Request and answer are plain files of a folder: `request.json`, then `answer.json`, which is there whole or not at all.
What the child prints goes to a file: libraries write to standard output as they like. Progress has a pipe of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Ended", "Limits", "run_child", "write_answer"]

_MAX_ANSWER_BYTES = 64 << 20
_MAX_PRINTED_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1

# The child sees the packages that this process sees, in whatever way it came to see them.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kedge_agent.child import _main; _main(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))"
)


@dataclass(frozen=True)
class Limits:
    """Of a child. address_space_bytes: RLIMIT_AS, None: none. nice: its priority, 0 to 19 the lowest.

    started: told the child's process id, for whoever wants to end it.
    """

    timeout_s: float
    address_space_bytes: int | None = None
    nice: int = 0
    started: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended. answer: None where it gave none. late: it was killed at its deadline.

    cancelled: `relay` had enough. code: as of `Popen.wait`: negative is the signal that ended it. printed: the last of
    what it printed.
    """

    answer: Any
    cancelled: bool
    late: bool
    code: int
    printed: tuple[str, ...]


def run_child(
    entry: str,
    folder: Path,
    request: Mapping[str, Any],
    limits: Limits,
    handles: tuple[int, ...] = (),
    relay: Callable[[BinaryIO], bool] | None = None,
) -> Ended:
    """Call a function in a child process and wait for its end.

    Args:
        entry: `package.module:function`, which takes the folder and the request and returns plain JSON, or None where
            it has called `write_answer`.
        folder: where request and answer lie; the caller's, and empty of both.
        handles: file descriptors that the child is to have, under the same numbers.
        relay: reads what the child writes to the pipe that the function is then given as a third argument, until its
            end; True: it has had enough, and the child is to be killed.
    """
    body = {"request": dict(request), "nice": limits.nice, "address_space_bytes": limits.address_space_bytes}
    (folder / "request.json").write_text(json.dumps(body), encoding="utf-8")
    path = json.dumps([part for part in (str(Path(__file__).parents[1]), *sys.path) if part])
    read_end, write_end = os.pipe()
    pipe = write_end if relay is not None else -1
    command = [sys.executable, "-I", "-c", _PROGRAM, path, entry, str(folder), str(os.getpid()), str(pipe)]
    late = threading.Event()
    with (folder / "printed").open("w+b") as printed, open(read_end, "rb") as lines:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=(*handles, write_end)
            )
        finally:
            os.close(write_end)

        def too_late() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(limits.timeout_s, too_late)
        timer.start()
        cancelled = False
        try:
            if limits.started is not None:
                limits.started(child.pid)
            if relay is not None:
                cancelled = relay(lines)
            if cancelled:
                child.kill()
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
            child.wait()
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _MAX_PRINTED_BYTES))
        said = printed.read().decode("utf-8", "replace").splitlines()[-20:]
    answer = folder / "answer.json"
    # The deadline may have passed while the child was ending by itself.
    out_of_time = late.is_set() and code != 0
    whole = not out_of_time and answer.is_file() and answer.stat().st_size <= _MAX_ANSWER_BYTES
    found = json.loads(answer.read_text(encoding="utf-8")) if whole else None
    return Ended(found, cancelled, out_of_time, code, tuple(said))


def write_answer(folder: Path, answer: Any) -> None:
    """Answer before the function returns: what comes after may fall, and the answer stands."""
    (folder / "answer.partial").write_text(json.dumps(answer), encoding="utf-8")
    (folder / "answer.partial").rename(folder / "answer.json")


def _main(entry: str, folder_name: str, parent: int, pipe: int) -> None:
    folder = Path(folder_name)
    body = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    os.nice(body["nice"])
    with contextlib.suppress(OSError):
        # When memory runs out, the kernel is to end this process and not the one that serves.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # Whoever asked went before the kernel was told: nobody would take the answer.
        os._exit(1)
    if body["address_space_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (body["address_space_bytes"],) * 2)
    module, _, function = entry.partition(":")
    more = () if pipe < 0 else (pipe,)
    answer = getattr(importlib.import_module(module), function)(folder, body["request"], *more)
    if answer is not None:
        write_answer(folder, answer)
