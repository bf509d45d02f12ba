"""A real dask scheduler with workers in processes of their own, on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


def _start(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "DASK_DISTRIBUTED__WORKER__PREEMPTION": "0"}
    with (folder / "dask.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int = 2, threads: int = 4) -> Iterator[Cluster]:
    """Started with dask's own commands, as docs/cluster.md says; killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    address = f"tcp://127.0.0.1:{port}"
    scheduler = _start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", folder=folder)
    cluster = Cluster(address, scheduler, [])
    try:
        cluster.workers += [
            _start(
                *("worker", address, "--host", "127.0.0.1", "--nthreads", str(threads), "--no-nanny", "--no-dashboard"),
                folder=folder,
            )
            for _ in range(workers)
        ]
        _wait_for(address, workers)
        yield cluster
    finally:
        for process in (*cluster.workers, scheduler):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _wait_for(address: str, workers: int) -> None:
    import distributed

    end = time.monotonic() + 60
    while True:
        try:
            with distributed.Client(address, timeout=5, set_as_default=False) as client:
                if workers:
                    client.wait_for_workers(workers, timeout=30)
                return
        except (OSError, TimeoutError, AssertionError):  # the last where its own thread is slow to start
            if time.monotonic() > end:
                raise
