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

    ages_ms: from a frame's exposure until its answer was here, of all answers. refused: frames that made way for a
    newer one, or met a full queue. acted_ms: ages of the frames that the vehicle acted upon. surfaces: what it took for
    the surface in front of its wheels, of those.
    """

    sent: int
    refused: int
    ages_ms: NDArray[np.float64]
    acted_ms: NDArray[np.float64]
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


class Camera:
    """Sends a frame at a rate to the agent's door for inference, by the Open Inference Protocol over HTTP."""

    def __init__(self, door: Path, model: str, frame: NDArray[np.uint8], deadline_ms: float) -> None:
        tensor = {"name": "frame", "datatype": "UINT8", "shape": frame.shape}
        tensor["parameters"] = {"binary_data_size": frame.nbytes}
        wanted = {"name": "cells", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        self._body = head + frame.tobytes()
        self._headers = {"Inference-Header-Content-Length": str(len(head))}
        self._door, self._path, self._deadline_ms = str(door), f"/v2/models/{model}/infer", deadline_ms
        self._own = threading.local()

    def play(self, rate_per_s: float, seconds: float) -> Stream:
        """Play the camera, and see every frame to its end."""
        sent = int(rate_per_s * seconds)
        began = time.monotonic() + 0.1
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            waiting = []
            for number in range(sent):
                exposed = began + number / rate_per_s
                time.sleep(max(0.0, exposed - time.monotonic()))
                waiting.append(pool.submit(self._ask, exposed))
        ends = [each.result() for each in waiting]
        answers = [(age_ms, surface) for status, age_ms, surface in ends if status == _OK]
        acted = [(age_ms, surface) for age_ms, surface in answers if surface is not None]
        return Stream(
            sent,
            sum(status == _BUSY for status, _, _ in ends),
            np.array([age_ms for age_ms, _ in answers]),
            np.array([age_ms for age_ms, _ in acted]),
            np.array([surface for _, surface in acted], np.int64),
        )

    def _ask(self, exposed: float) -> tuple[int, float, int | None]:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("agent")
            self._own.connection.sock = socket.socket(socket.AF_UNIX)
            self._own.connection.sock.connect(self._door)
        self._own.connection.request("POST", self._path, self._body, self._headers)
        answer = self._own.connection.getresponse()
        body = answer.read()
        age_ms = (time.monotonic() - exposed) * 1e3
        # Whatever the device promises: who acts looks at the frame's age first.
        if answer.status != _OK or age_ms > self._deadline_ms:
            return answer.status, age_ms, None
        length = int(answer.headers["Inference-Header-Content-Length"])
        cells = np.frombuffer(body, np.float32, offset=length).reshape(json.loads(body[:length])["outputs"][0]["shape"])
        return answer.status, age_ms, int(surface_ahead(cells)[0])
