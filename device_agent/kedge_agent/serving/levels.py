"""One request timed at three levels of the device: bare in the runtime, in the agent, through the agent's socket.

With what the host measures of the ways beyond, this makes the waterfall of `kedge bench --waterfall`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..child import Limits, run_child
from ..errors import AgentError
from ..formats.oip import HEADER_LENGTH, encode_request
from ..measure.scratch import scratch_folder
from ..runtime.pool import Timing
from ..store.layout import Layout, socket_directory
from .http import Request
from .inference import infer
from .loading import LiveModel
from .repository import Repository
from .shared_memory import Regions

__all__ = ["time_levels"]

_CLIENT = "kedge_agent.measure.socket_client:client"
_CLIENT_S = 300.0


class _MemoryBody:
    """A request's body that is in memory already."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)
        self.left = len(data)

    def text(self, size: int, /) -> bytes:
        data = bytearray(size)
        self.into(memoryview(data))
        return bytes(data)

    def into(self, view: memoryview, /) -> None:
        start = len(self._view) - self.left
        view[:] = self._view[start : start + len(view)]
        self.left -= len(view)


def time_levels(
    repository: Repository,
    regions: Regions,
    layout: Layout,
    live: LiveModel,
    inputs: Mapping[str, NDArray[Any]],
    runs: int,
    warmup: int,
) -> dict[str, list[float]]:
    """Times in ms by level, `runs` of each after `warmup` that do not count.

    runtime: from submit to the end of wait, on a slot that is filled once. agent: the handler of an inference request,
    its body in memory, up to a response that nobody sends. socket: by a client in a process of its own, from its first
    byte sent to its last byte received.

    Raises:
        AgentError: a request failed, or the model was replaced meanwhile.
    """
    model = live.manifest.model
    header, buffers = encode_request(inputs)
    body = b"".join([header, *buffers])
    return {
        "runtime": _runtime(live, inputs, runs, warmup),
        "agent": _agent(repository, regions, model, body, len(header), runs, warmup),
        "socket": _socket(layout, model, body, len(header), runs, warmup),
    }


def _runtime(live: LiveModel, inputs: Mapping[str, NDArray[Any]], runs: int, warmup: int) -> list[float]:
    out = []
    with live.pool.request({name: array.shape for name, array in inputs.items()}, Timing()) as binding:
        for name, array in inputs.items():
            binding.inputs[name][...] = array
        for index in range(warmup + runs):
            timing = Timing()
            live.pool.run(binding, timing)
            if index >= warmup:
                out.append(timing.compute_ns / 1e6)
    return out


def _agent(
    repository: Repository, regions: Regions, model: str, body: bytes, header_bytes: int, runs: int, warmup: int
) -> list[float]:
    out = []
    headers = {HEADER_LENGTH.lower(): str(header_bytes)}
    path = f"/v2/models/{model}/infer"
    for index in range(warmup + runs):
        start = time.perf_counter_ns()
        with contextlib.ExitStack() as stack:
            request = Request("POST", path, "", headers, _MemoryBody(body), stack=stack)
            infer(repository, regions, model, None, request)
        if index >= warmup:
            out.append((time.perf_counter_ns() - start) / 1e6)
    return out


def _socket(layout: Layout, model: str, body: bytes, header_bytes: int, runs: int, warmup: int) -> list[float]:
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: agent\r\nContent-Length: {len(body)}\r\n"
        f"{HEADER_LENGTH}: {header_bytes}\r\n\r\n"
    ).encode()
    door = str(socket_directory(layout.root) / "infer.sock")
    with scratch_folder(len(head) + len(body)) as folder:
        (folder / "request.http").write_bytes(head + body)
        asked = {"socket": door, "runs": runs, "warmup": warmup}
        ended = run_child(_CLIENT, folder, asked, Limits(_CLIENT_S))
    if ended.late:
        raise AgentError(f"the client on the device was not done after {_CLIENT_S:g} s", kind="busy", hint="try again")
    if ended.answer is None:
        said = ended.printed[-1] if ended.printed else f"it ended with {ended.code}"
        raise AgentError(f"the client on the device failed: {said[:300]}", kind="internal", hint="see the agent's log")
    return [float(ms) for ms in ended.answer["ms"]]
