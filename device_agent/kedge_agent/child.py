"""A call of ours in a child process, which may crash, hang or be killed, and takes nothing with it.

Request and answer are plain files of a folder: `request.json`, then `answer.json`, which is there whole or not at all.
What the child prints goes to a file: libraries write to standard output as they like.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "Limits", "run_child"]

_MAX_ANSWER_BYTES = 64 << 20
_MAX_PRINTED_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1

# The child sees the packages that this process sees, in whatever way it came to see them.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kedge_agent.child import _main; _main(sys.argv[2], sys.argv[3], int(sys.argv[4]))"
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

    code: as of `Popen.wait`: negative is the signal that ended it. printed: the last of what it printed.
    """

    answer: Any
    late: bool
    code: int
    printed: tuple[str, ...]


def run_child(
    entry: str, folder: Path, request: Mapping[str, Any], limits: Limits, handles: tuple[int, ...] = ()
) -> Ended:
    """Call a function in a child process and wait for its end.

    Args:
        entry: `package.module:function`, which takes the folder and the request and returns plain JSON.
        folder: where request and answer lie; the caller's, and empty of both.
        handles: file descriptors that the child is to have, under the same numbers.
    """
    body = {"request": dict(request), "nice": limits.nice, "address_space_bytes": limits.address_space_bytes}
    (folder / "request.json").write_text(json.dumps(body), encoding="utf-8")
    path = json.dumps([part for part in (str(Path(__file__).parents[1]), *sys.path) if part])
    command = [sys.executable, "-I", "-c", _PROGRAM, path, entry, str(folder), str(os.getpid())]
    late = False
    with (folder / "printed").open("w+b") as printed:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=handles)
        try:
            if limits.started is not None:
                limits.started(child.pid)
            child.wait(limits.timeout_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            child.kill()
            code = child.wait()
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _MAX_PRINTED_BYTES))
        said = printed.read().decode("utf-8", "replace").splitlines()[-20:]
    answer = folder / "answer.json"
    whole = not late and answer.is_file() and answer.stat().st_size <= _MAX_ANSWER_BYTES
    return Ended(json.loads(answer.read_text(encoding="utf-8")) if whole else None, late, code, tuple(said))


def _main(entry: str, folder_name: str, parent: int) -> None:
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
    answer = getattr(importlib.import_module(module), function)(folder, body["request"])
    (folder / "answer.partial").write_text(json.dumps(answer), encoding="utf-8")
    (folder / "answer.partial").rename(folder / "answer.json")
