"""What makes a device slow, really: a control group with a limit, a swap file, hogs, and a clock that is lower."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.environment import lacks

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")

MEMORY_HOG = """
import sys
held = bytearray(int(sys.argv[1]))
while True:
    for place in range(0, len(held), 4096):
        held[place] = (held[place] + 1) % 256
"""
"""A program that writes to one page after the other of so many bytes, over and over."""


@contextlib.contextmanager
def swap_file(folder: Path, size_bytes: int) -> Iterator[None]:
    """This machine swaps to a file; skips where it may not."""
    if os.geteuid() != 0:
        lacks("swap", "only root can make swap space")
    path = folder / "swap"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    path.chmod(0o600)
    for command in ("mkswap", "swapon"):
        done = subprocess.run([command, str(path)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lacks("swap", f"no swap space can be made here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", str(path)], check=True)


class MemoryGroup:
    """A control group that limits what processes hold in memory; what is more is swapped out."""

    def __init__(self, folder: Path, limit_file: str) -> None:
        self._folder = folder
        self._limit_file = limit_file

    def limit(self, size_bytes: int) -> None:
        (self._folder / self._limit_file).write_text(str(size_bytes))

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A control group, v1 or v2; skips where none can be made."""
    v1 = (_V1 / "memory.limit_in_bytes").exists()
    folder = (_V1 if v1 else _V2) / f"kedge-test-{os.getpid()}"
    group = MemoryGroup(folder, "memory.limit_in_bytes" if v1 else "memory.max")
    try:
        folder.mkdir()
        group.limit(limit_bytes)
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        lacks("cgroup", f"no control group with a memory limit can be made here: {error}")
    try:
        yield group
    finally:
        # What was killed is in it until it is gone.
        for _ in range(100):
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    (folder.parent / "cgroup.procs").write_text(pid)
                folder.rmdir()
                break
            time.sleep(0.1)
        assert not folder.exists()


@contextlib.contextmanager
def slowed(pid: int, part: float = 0.1, turn_s: float = 0.6) -> Iterator[None]:
    """A process runs a part of the time only, as where clocks are lower; it goes on as it was in the end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(turn_s * part):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(turn_s * (1 - part))
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory_stalled() -> float:
    """Per cent of the last 10 s in which nothing could run for want of memory; 0 where the kernel does not count it."""
    try:
        lines = Path("/proc/pressure/memory").read_text().splitlines()
    except OSError:
        return 0.0
    return max(float(line.split("avg10=")[1].split()[0]) for line in lines if line.startswith("full"))


def swapped_in() -> int:
    """Pages that this machine has ever read back from swap space."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters["pswpin"])
