"""Cameras of one site: each sends the crops of its frames to every model, and its next frame once all have answered."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CAMERAS = 8

Answers = dict[tuple[str, int], tuple[int, ...]]


@dataclass
class Played:
    """What became of the cameras' requests.

    frames: of which every model's answer came. failed: requests that were answered with anything but 200.
    answers: classes by model and number of the frame, as first given. changed: answers by model that were others.
    """

    frames: int = 0
    seconds: float = 0.0
    failed: int = 0
    answers: Answers = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)

    @property
    def frames_per_s(self) -> float:
        """Of all cameras together."""
        return self.frames / self.seconds


class Cameras:
    """Eight cameras that film the same frames, each from another one on.

    Args:
        door: the agent's socket for inference.
        crops: what each model is sent of a frame: [frames, crops a frame, 1, side, side], by the model's name.
    """

    def __init__(self, door: Path, crops: Mapping[str, NDArray[np.uint8]]) -> None:
        self._door = door
        self._bodies = {name: [_body(each) for each in every] for name, every in crops.items()}
        self._frames = min(len(every) for every in crops.values())
        self._guard = threading.Lock()

    def play(self, seconds: float, expected: Answers | None = None) -> Played:
        """Film for so long; answers are held against the expected ones, where there are any."""
        with self.playing(expected) as played:
            time.sleep(seconds)
        return played

    @contextmanager
    def playing(self, expected: Answers | None = None) -> Iterator[Played]:
        """Film while the context lasts; what became of it is complete when it ends."""
        played, stop, began = Played(answers=dict(expected or {})), threading.Event(), time.monotonic()
        threads = [threading.Thread(target=self._film, args=(number, stop, played)) for number in range(CAMERAS)]
        for thread in threads:
            thread.start()
        try:
            yield played
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            played.seconds = time.monotonic() - began

    def _film(self, number: int, stop: threading.Event, played: Played) -> None:
        frame = number * self._frames // CAMERAS
        with ExitStack() as stack:
            connections = {name: stack.enter_context(_connected(self._door)) for name in self._bodies}
            while not stop.is_set():
                for name, connection in connections.items():
                    head, body = self._bodies[name][frame]
                    connection.request("POST", f"/v2/models/{name}/infer", body, head)
                found = {name: _classes(connection.getresponse()) for name, connection in connections.items()}
                with self._guard:
                    self._count(found, frame, played)
                frame = (frame + 1) % self._frames

    def _count(self, found: Mapping[str, tuple[int, ...] | None], frame: int, played: Played) -> None:
        for name, classes in found.items():
            if classes is None:
                played.failed += 1
            elif played.answers.setdefault((name, frame), classes) != classes:
                played.changed[name] = played.changed.get(name, 0) + 1
        played.frames += all(classes is not None for classes in found.values())


@contextmanager
def _connected(door: Path) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(door))
        yield connection
    finally:
        connection.close()


def _body(crops: NDArray[np.uint8]) -> tuple[dict[str, str], bytes]:
    """A request of the Open Inference Protocol, its tensor in binary."""
    sizes = {"binary_data_size": crops.nbytes}
    tensor = {"name": "crop", "datatype": "UINT8", "shape": crops.shape, "parameters": sizes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + crops.tobytes()


def _classes(answer: http.client.HTTPResponse) -> tuple[int, ...] | None:
    """The class of each crop; None where the request failed."""
    data = answer.read()
    if answer.status != 200:
        return None
    length = int(answer.headers["Inference-Header-Content-Length"])
    (scores,) = json.loads(data[:length])["outputs"]
    return tuple(np.frombuffer(data[length:], "<f4").reshape(scores["shape"]).argmax(1).tolist())
