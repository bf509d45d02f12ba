"""What runs beside the agent on the gateway: it cuts a sensor's signal into windows, asks, and raises alarms."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import model
import numpy as np
from numpy.typing import NDArray

_AGREEING = 4
_GIVE_UP_S = 5.0
_PAUSE_S = 0.02


class Gateway:
    """The agent's door for inference, by the Open Inference Protocol; as many threads as want to may ask."""

    def __init__(self, door: Path, served: str) -> None:
        self._door, self._served = str(door), served
        self._own = threading.local()

    def classify(self, window: NDArray[np.float32]) -> int | None:
        """The class of one window [1, 2048]; None where the agent gave no answer, asked again for 5 s."""
        tensor = {"name": "vibration", "datatype": "FP32", "shape": [1, *window.shape]}
        tensor["parameters"] = {"binary_data_size": window.nbytes}
        head = json.dumps({"inputs": [tensor]}).encode()
        give_up = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                body = self._ask("POST", "infer", head + window.tobytes(), len(head))
                return int(np.argmax(body["outputs"][0]["data"]))
            except (OSError, http.client.HTTPException, _RefusedError):
                self._own.connection = None
            if time.monotonic() > give_up:
                return None
            time.sleep(_PAUSE_S)

    def drift(self) -> dict[str, Any]:
        """What the agent counted of the model's input: `share` outside of what was calibrated, and `warning`."""
        statistics = self._ask("GET", "stats")["model_stats"][0]
        drift: dict[str, Any] = statistics["drift"][0]
        return drift

    def _ask(self, method: str, what: str, body: bytes = b"", head_bytes: int | None = None) -> dict[str, Any]:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = http.client.HTTPConnection("agent")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_GIVE_UP_S)
            connection.sock.connect(self._door)
        headers = {} if head_bytes is None else {"Inference-Header-Content-Length": str(head_bytes)}
        connection.request(method, f"/v2/models/{self._served}/{what}", body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != http.client.OK:
            raise _RefusedError(said.decode(errors="replace"))
        document: dict[str, Any] = json.loads(said)
        return document


class _RefusedError(Exception):
    pass


@dataclass
class Watch:
    """One sensor. An alarm is raised once, when four windows one after another name the same fault.

    alarms: (what, second of the signal at which it was raised). A window without an answer is an alarm too, "blind":
    whoever hears nothing must be able to take it for health.
    """

    gateway: Gateway
    signal: NDArray[np.float32]
    alarms: list[tuple[str, float]] = field(default_factory=list)
    windows: int = 0
    unanswered: int = 0

    def run(self) -> None:
        """Follow the signal as it comes: a window each 85 ms."""
        began = time.monotonic()
        said: list[int] = []
        for first in range(0, len(self.signal) - model.WINDOW + 1, model.HOP):
            end_s = (first + model.WINDOW) / model.RATE_HZ
            time.sleep(max(0.0, began + end_s - time.monotonic()))
            answer = self.gateway.classify(self.signal[None, first : first + model.WINDOW])
            self.windows += 1
            if answer is None:
                self.unanswered += 1
                self._raise("blind", end_s)
                said.clear()
                continue
            said = [*said, answer][-_AGREEING:]
            if answer != 0 and said.count(answer) == _AGREEING:
                self._raise(model.CLASSES[answer], end_s)

    def _raise(self, what: str, second: float) -> None:
        if what not in {known for known, _ in self.alarms}:
            self.alarms.append((what, second))
