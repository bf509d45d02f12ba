"""A camera on the device: frames at a fixed rate, whether or not the last one was answered (open loop)."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from model import surface_ahead
from numpy.typing import NDArray

_OK, _BUSY = 200, 503
# More than the agent lets in at a time, so that a frame waits there and not here.
_CONNECTIONS = 120


@dataclass(frozen=True)
class Stream:
    """What became of a camera's frames.

    seconds: from the first exposure to the last. refused: frames that made way for a newer one, or met a full queue.
    ages_ms: from a frame's exposure until its answer was here, of all answers. Of the answers that came within the
    deadline, by which the vehicle decides: decided_s, when, from the first exposure; frames, which one of those that
    the camera shows; surfaces, what the answer has in front of the wheels.
    """

    seconds: float
    sent: int
    refused: int
    ages_ms: NDArray[np.float64]
    decided_s: NDArray[np.float64]
    frames: NDArray[np.int64]
    surfaces: NDArray[np.int64]

    @property
    def answered(self) -> int:
        """How many frames had an answer."""
        return len(self.ages_ms)

    def age_ms(self, share: float) -> float:
        """The age that this share of the answers had at most."""
        return float(np.quantile(self.ages_ms, share))

    def late(self, deadline_ms: float) -> float:
        """Share of the answers that came when their frame was older than this."""
        return float((self.ages_ms > deadline_ms).mean())

    def blind(self, interval_s: float) -> float:
        """Share of the stream's intervals of this length in which no answer came that could be acted upon."""
        edges = np.linspace(0, self.seconds, round(self.seconds / interval_s) + 1)
        return float((np.histogram(self.decided_s, edges)[0] == 0).mean())


@dataclass(frozen=True)
class _End:
    """Of one frame: its answer's status and age, and what the answer says, where it came within the deadline."""

    status: int
    age_ms: float
    surface: int | None


class Camera:
    """Shows frames in turn to the agent's door for inference, by the Open Inference Protocol over HTTP."""

    def __init__(self, door: Path, model: str, frames: NDArray[np.uint8], deadline_ms: float) -> None:
        tensor = {"name": "frame", "datatype": "UINT8", "shape": [1, *frames.shape[1:]]}
        tensor["parameters"] = {"binary_data_size": frames[0].nbytes}
        wanted = {"name": "cells", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        self._bodies = [head + frame.tobytes() for frame in frames]
        self._headers = {"Inference-Header-Content-Length": str(len(head))}
        self._door, self._path, self._deadline_ms = str(door), f"/v2/models/{model}/infer", deadline_ms
        self._own = threading.local()
        self._open: list[http.client.HTTPConnection] = []

    def play(self, rate_per_s: float, seconds: float) -> Stream:
        """Play the camera, and see every frame to its end."""
        began = time.monotonic() + 0.1
        exposed = began + np.arange(int(rate_per_s * seconds)) / rate_per_s
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            waiting = []
            for number, moment in enumerate(exposed):
                time.sleep(max(0.0, moment - time.monotonic()))
                waiting.append(pool.submit(self._ask, number % len(self._bodies), moment))
        while self._open:
            self._open.pop().close()
        ends = [each.result() for each in waiting]
        decided = [(number, end) for number, end in enumerate(ends) if end.surface is not None]
        return Stream(
            seconds,
            len(ends),
            sum(end.status == _BUSY for end in ends),
            np.array([end.age_ms for end in ends if end.status == _OK]),
            np.array([exposed[number] - began + end.age_ms / 1e3 for number, end in decided]),
            np.array([number % len(self._bodies) for number, _ in decided], np.int64),
            np.array([end.surface for _, end in decided], np.int64),
        )

    def _ask(self, frame: int, exposed: float) -> _End:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("agent")
            self._open.append(self._own.connection)
            self._own.connection.sock = socket.socket(socket.AF_UNIX)
            self._own.connection.sock.connect(self._door)
        self._own.connection.request("POST", self._path, self._bodies[frame], self._headers)
        answer = self._own.connection.getresponse()
        body = answer.read()
        age_ms = (time.monotonic() - exposed) * 1e3
        # Whatever the device promises: who acts looks at the frame's age first.
        if answer.status != _OK or age_ms > self._deadline_ms:
            return _End(answer.status, age_ms, None)
        length = int(answer.headers["Inference-Header-Content-Length"])
        cells = np.frombuffer(body, np.float32, offset=length).reshape(json.loads(body[:length])["outputs"][0]["shape"])
        return _End(answer.status, age_ms, int(surface_ahead(cells)[0]))
