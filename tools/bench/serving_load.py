"""The processes that tools/bench/serving.py measures with: clients, and the bare model.

A client holds one connection a measurement and asks as fast as it is answered. All of a measurement's clients warm up
until one moment, and are measured from then on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving_client import Address

__all__ = ["WARMUP_S", "Bare", "Clients", "Load"]

WARMUP_S = 0.15
_WORKER = Path(__file__).resolve().with_name("serving_worker.py")


@dataclass(frozen=True)
class Load:
    """What a measurement found: milliseconds of each request, and answers a second of all clients together."""

    latencies_ms: tuple[float, ...]
    per_s: float


class _Worker:
    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.receive()

    def send(self, **job: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def receive(self) -> list[dict[str, Any]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "a process of the benchmark ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        found: list[dict[str, Any]] = answer.get("found", [])
        return found

    def close(self) -> None:
        with self._process as process:
            process.kill()


class Clients:
    """`count` client processes; a measurement uses the first so many of them."""

    def __init__(self, count: int) -> None:
        self._workers = [_Worker("client") for _ in range(count)]

    def load(self, address: Address, request: Path, clients: int, seconds: float) -> Load:
        """Load a server.

        Args:
            request: a file of prepared bytes.

        Raises:
            RuntimeError: a request failed.
        """
        where = str(address) if isinstance(address, Path) else list(address)
        begin = time.perf_counter() + WARMUP_S
        for worker in self._workers[:clients]:
            worker.send(address=where, request=str(request), begin=begin, seconds=seconds)
        return _gathered([each for worker in self._workers[:clients] for each in worker.receive()])

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


class Bare:
    """`session.run` in a process of its own. models: by name, the file and a `.npy` of the input."""

    def __init__(self, models: Mapping[str, tuple[Path, Path]], threads: int) -> None:
        paths = {name: {"path": str(path), "input": str(data)} for name, (path, data) in models.items()}
        begin = time.perf_counter()
        self._worker = _Worker("bare", str(threads), json.dumps(paths))
        self.ready_s = time.perf_counter() - begin
        self.pid = self._worker.pid

    def load(self, model: str, callers: int, seconds: float) -> Load:
        """Run a model from so many threads at a time.

        Raises:
            RuntimeError: it failed.
        """
        self._worker.send(model=model, callers=callers, begin=time.perf_counter() + WARMUP_S, seconds=seconds)
        return _gathered(self._worker.receive())

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _gathered(found: Sequence[Mapping[str, Any]]) -> Load:
    latencies = tuple(value for each in found for value in each["latencies_ms"])
    return Load(latencies, sum(len(each["latencies_ms"]) / each["seconds"] for each in found))
