"""`kedge bench --waterfall`: one request timed at every level from the runtime to the host, all in turn.

Rounds are interleaved, so that a device that warms up or is disturbed does so for every level alike. What a level takes
more than the one below it is what lies between the two.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.latency import summarize
from kedge_agent.formats.oip import HEADER_LENGTH, decode_response
from kedge_agent.formats.trust import judge
from kedge_agent.wire import WireError, parse_json

from ..errors import BusyError, IncompatibleError, UnreachableError
from ..transport.base import Channel, Deadline, Transport
from ..transport.client import AgentClient
from ..transport.local import LocalAgent
from .end_to_end import device_conditions
from .rules import BenchRules, Tick

__all__ = ["measure_waterfall"]

_ROUNDS = 10
_FEWEST_RUNS, _MOST_RUNS = 5, 200
_WARMUP = 3
_TIMEOUT_S = 60.0

_STEPS = {
    "runtime": ("runtime", "the run itself, from handing the inputs over to the results being there"),
    "agent": ("agent", "request parsed, tensors into the slot, turn taken, response made"),
    "socket": ("socket", "HTTP head, the kernel's socket both ways, server and client being woken"),
    "channel": ("SSH", "encryption, the network, and the process dial-stdio, both ways"),
    "host": ("host", "tensors encoded, HTTP client, response decoded, in this host's Python"),
}
_LOCAL_CHANNEL = ("dial-stdio", "the process that joins this host's pipe to the socket, both ways")


def measure_waterfall(
    transport: Transport, client: AgentClient, model: str, rules: BenchRules, typical_ms: float, tick: Tick
) -> dict[str, Any]:
    """The report's `waterfall`, with the release that it is of.

    Args:
        typical_ms: latency of a request from the host; how many make a round follows from it.

    Raises:
        KedgeError: the device stopped answering, or a request failed.
    """
    body, header_bytes = client.golden(model, rules.batch)
    inputs = _inputs(body, header_bytes)
    runs = int(min(max(rules.duration_ms / _ROUNDS / max(typical_ms, 1e-3), _FEWEST_RUNS), _MOST_RUNS))
    times: dict[str, list[float]] = {level: [] for level in _STEPS}
    releases = set()
    before = device_conditions(client)
    raw = _RawClient(transport, model, body, header_bytes)
    try:
        for index in range(_ROUNDS):
            tick("waterfall", index / _ROUNDS)
            order = {"batch": rules.batch, "runs": runs, "warmup": _WARMUP}
            path = f"/kedge/v1/models/{model}/levels"
            found = client.post(path, order, changes=False, expect=("release", "levels_ms"))
            releases.add(str(found["release"]))
            for level in ("runtime", "agent", "socket"):
                times[level] += [float(ms) for ms in found["levels_ms"][level]]
            times["channel"] += _timed(raw.once, runs)
            times["host"] += _timed(lambda: client.infer(model, inputs), runs)
    finally:
        raw.close()
    tick("waterfall", 1.0)
    local = isinstance(transport, LocalAgent)
    steps = _STEPS | ({"channel": _LOCAL_CHANNEL} if local else {})
    summaries = {level: summarize(samples).to_json() for level, samples in times.items()}
    return {
        "release": releases.pop() if len(releases) == 1 else None,
        "rounds": _ROUNDS,
        "runs": runs,
        "levels": [{"level": level, **summaries[level]} for level in _STEPS],
        "steps": _differences(steps, summaries),
        "left_out": ["SSH: the device is this machine, and is reached without it"] if local else [],
        "trust": judge(times["host"], (before, device_conditions(client)), others=False).to_json(),
    }


def _differences(steps: dict[str, tuple[str, str]], summaries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    below = {"median_ms": 0.0, "p99_ms": 0.0}
    for level, (name, what) in steps.items():
        here = summaries[level]
        more = {key: here[key] - below[key] for key in below}
        out.append({"name": name, "what": what, "level": level, "p50_ms": more["median_ms"], "p99_ms": more["p99_ms"]})
        below = {key: here[key] for key in below}
    return out


def _timed(once: Callable[[], object], runs: int) -> list[float]:
    for _ in range(_WARMUP):
        once()
    out = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        once()
        out.append((time.perf_counter_ns() - start) / 1e6)
    return out


def _inputs(body: bytes, header_bytes: int) -> dict[str, NDArray[Any]]:
    """The tensors of an encoded request: what an application would have had in its hands."""
    try:
        header = parse_json(body[:header_bytes], floats=True)
        # A response's tensors are stated as a request's are.
        stated = json.dumps({"outputs": header["inputs"]}).encode()
        tensors = decode_response(memoryview(stated + body[header_bytes:]), len(stated))
    except (WireError, KeyError, TypeError) as error:
        raise IncompatibleError(f"the recorded inputs make no sense: {error}") from error
    return {name: np.array(tensor) for name, tensor in tensors.items()}


class _RawClient:
    """The same bytes again and again through a channel of its own, answers received and not looked at."""

    def __init__(self, transport: Transport, model: str, body: bytes, header_bytes: int) -> None:
        head = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: agent\r\nContent-Length: {len(body)}\r\n"
            f"{HEADER_LENGTH}: {header_bytes}\r\n\r\n"
        )
        self._name = transport.name
        self._request = memoryview(head.encode() + body)
        self._channel: Channel = transport.open_door("infer", Deadline.after(_TIMEOUT_S, f"reaching {transport.name}"))
        self._channel.settimeout(_TIMEOUT_S)
        self._reader: BinaryIO = self._channel.makefile("rb")

    def once(self) -> None:
        """Send the request, receive the response."""
        try:
            self._channel.sendall(self._request)
            status, length = self._reader.readline(1 << 16), 0
            while (line := self._reader.readline(1 << 16)) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length" and value.strip().isdigit():
                    length = int(value)
            if not status.startswith(b"HTTP/1.1 200 ") or len(self._reader.read(length)) != length:
                raise BusyError(
                    f"{self._name}: the agent refused a request: {status[:80].decode('latin-1')!r}",
                    hint="run the bench again when nobody else uses the model",
                )
        except OSError as error:
            raise UnreachableError(f"{self._name}: the agent stopped answering: {error}") from error

    def close(self) -> None:
        """Hang up."""
        self._reader.close()
        self._channel.close()
