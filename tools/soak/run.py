"""A load that is held at half of an agent's capacity while the release of its model is switched."""

from __future__ import annotations

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tools.bench.serving_client import Connection, ResponseError, prepare

from kedge.deploy.push import deploy
from kedge.errors import KedgeError
from kedge.release.bundle import Release
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from kedge_agent.formats.latency import summarize
from kedge_agent.formats.oip import HEADER_LENGTH, decode_response, encode_request
from kedge_agent.store.layout import socket_directory

__all__ = ["Edition", "Rules", "soak", "verdict"]

_MAX_PROBLEMS = 20
_REST_S = 0.05

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Edition:
    """A release, and what it answers to the one request that is sent."""

    release: Release
    expected: Tensors


@dataclass(frozen=True)
class Rules:
    """How long, how, and what is borne. growth: of resident memory, as a share."""

    seconds: float
    capacity_s: float = 5.0
    clients: int = 4
    activate_every_s: float = 10.0
    sample_every_s: float = 1.0
    growth: float = 0.01


@dataclass
class _Tally:
    """What the clients saw. Each has its own latencies; the rest is guarded."""

    failed: int = 0
    problems: list[str] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def problem(self, text: str) -> None:
        with self.guard:
            self.failed += 1
            if len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(text)


def soak(
    agent: LocalAgent,
    editions: Sequence[Edition],
    inputs: Tensors,
    rules: Rules,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Serve the editions of one model in turn under load.

    Args:
        agent: started by us, and used by nobody else.
        inputs: of every request.

    Raises:
        KedgeError: the releases cannot be deployed.
    """
    for edition in editions:
        deploy(agent, edition.release)
    assert agent.pid is not None
    door = socket_directory(agent.state) / "infer.sock"
    model = editions[0].release.manifest.model
    judge = _Judge(editions, model, inputs)
    tally = _Tally()
    progress("measuring the capacity")
    warm = _load(rules, door, judge, tally, rules.capacity_s, None)
    capacity = len(warm) / rules.capacity_s
    progress(f"{capacity:.0f} requests/s; {rules.seconds:.0f} s at half of it")

    rss: list[int] = []
    switches = _Switches(agent, editions, tally)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(rules.sample_every_s):
            rss.append(_rss_bytes(agent.pid))

    def switch() -> None:
        while not ended.wait(rules.activate_every_s):
            switches.next()

    helpers = [threading.Thread(target=watch), threading.Thread(target=switch)]
    for helper in helpers:
        helper.start()
    try:
        latencies = _load(rules, door, judge, tally, rules.seconds, capacity / 2)
    finally:
        ended.set()
        for helper in helpers:
            helper.join()
    return _report(rules, capacity, latencies, tally, switches, rss)


class _Judge:
    """The request, and whether an answer is right. An answer's bytes are compared once a release, then with those."""

    def __init__(self, editions: Sequence[Edition], model: str, inputs: Tensors) -> None:
        header, buffers = encode_request(inputs)
        headers = [(HEADER_LENGTH, str(len(header)))]
        self.request = prepare("POST", f"/v2/models/{model}/infer", [header, *map(bytes, buffers)], headers)
        self._expected = {str(edition.release.manifest.version): edition.expected for edition in editions}
        self._right: set[bytes] = set()

    def problem(self, status: int, head: bytes, body: memoryview) -> str | None:
        """What is wrong with an answer."""
        content = bytes(body)
        if content in self._right:
            return None
        if status != 200:
            return f"status {status}: {content[:200].decode(errors='replace')}"
        name = HEADER_LENGTH.lower().encode() + b":"
        length = next(int(line[len(name) :]) for line in head.split(b"\r\n") if line.lower().startswith(name))
        version = json.loads(content[:length])["model_version"]
        found = decode_response(memoryview(content), length)
        for key, expected in self._expected[version].items():
            if not np.allclose(found[key], expected, rtol=1e-4, atol=1e-5):
                return f"version {version} answered wrongly"
        # A run on one thread gives the same bytes again; a few more forms of them do no harm.
        if len(self._right) < 64:
            self._right.add(content)
        return None


class _Switches:
    def __init__(self, agent: LocalAgent, editions: Sequence[Edition], tally: _Tally) -> None:
        self._agent = agent
        self._editions = editions
        self._tally = tally
        self.count = 0
        self.seconds: list[float] = []

    def next(self) -> None:
        """Activate the edition that has not been live the longest."""
        edition = self._editions[self.count % len(self._editions)]
        client = AgentClient(self._agent)
        begin = time.monotonic()
        try:
            client.post(f"/kedge/v1/releases/{edition.release.digest}/activate")
        except KedgeError as error:
            self._tally.problem(f"activation: {error.message}")
        finally:
            client.close()
        self.count += 1
        self.seconds.append(time.monotonic() - begin)


def _load(rules: Rules, door: Path, judge: _Judge, tally: _Tally, seconds: float, per_s: float | None) -> list[float]:
    """Milliseconds of each request of all clients, from when it was due; without a rate, as fast as they go."""
    found: list[list[float]] = [[] for _ in range(rules.clients)]
    begin = time.monotonic()

    def client(index: int) -> None:
        connection: Connection | None = None
        turn = 0
        while True:
            due = time.monotonic() if per_s is None else begin + (turn * rules.clients + index) / per_s
            if due - begin >= seconds:
                break
            time.sleep(max(0.0, due - time.monotonic()))
            turn += 1
            try:
                connection = connection or Connection(door)
                problem = judge.problem(*connection.ask(judge.request))
            except (OSError, ResponseError) as error:
                problem = f"{type(error).__name__}: {error}"
                if connection is not None:
                    connection.close()
                connection = None
                time.sleep(_REST_S)
            if problem is not None:
                tally.problem(problem)
            found[index].append((time.monotonic() - due) * 1e3)
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(rules.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for each in found for value in each]


def _report(
    rules: Rules, capacity: float, latencies: list[float], tally: _Tally, switches: _Switches, rss: list[int]
) -> dict[str, Any]:
    fifth = len(rss) // 5
    early = statistics.median(rss[fifth : 2 * fifth]) if fifth else None
    late = statistics.median(rss[-fifth:]) if fifth else None
    growth = None if early is None or late is None else late / early - 1
    return {
        "rules": asdict(rules),
        "capacity_per_s": capacity,
        "requests": len(latencies),
        "failed": tally.failed,
        "problems": tally.problems,
        "activations": switches.count,
        "activation_s": _summary(switches.seconds),
        "latency": summarize(latencies).to_json(),
        "rss_bytes": {"early": early, "late": late, "growth": growth, "samples": rss},
        "passed": tally.failed == 0 and switches.count > 0 and growth is not None and growth < rules.growth,
    }


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    """Median and largest; None of nothing."""
    return {"median": statistics.median(values), "max": max(values)} if values else None


def _rss_bytes(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def verdict(report: Mapping[str, Any]) -> str:
    """One line."""
    rss, latency = report["rss_bytes"], report["latency"]
    growth = "not measured" if rss["growth"] is None else f"{rss['growth']:+.2%} to {rss['late'] / 1e6:.1f} MB"
    return (
        f"{'passed' if report['passed'] else 'FAILED'}: {report['requests']:,} requests, {report['failed']} failed, "
        f"{report['activations']} activations, memory {growth}, p50 {latency['median_ms']:.2f} ms, "
        f"p99 {latency['p99_ms']:.2f} ms, longest {latency['max_ms']:.1f} ms"
    )
