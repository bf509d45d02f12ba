"""The camera of the driving example: what it shows, what is decided by, and what counts as standing still."""

from __future__ import annotations

import http.server
import importlib
import importlib.util
import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the example's network: needs kedge[optimize]")

from tests.support.environment import lacks

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "driving-perception"
LATE, BUSY = 2, 3


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if importlib.util.find_spec("skimage") is None:
        lacks("examples", "no scikit-image in this environment (pip install 'kedge[examples]')")
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("camera")
    # Every example has a `model`.
    for name in ("camera", "model"):
        sys.modules.pop(name, None)


class Door(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers with the surface that a frame's first pixel names; keeps LATE until it is let go, and refuses BUSY."""

    daemon_threads = True
    request_queue_size = 128
    let_go: threading.Event
    seen: list[int]


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Door

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        surface = body[int(self.headers["Inference-Header-Content-Length"])]
        self.server.seen.append(surface)
        if surface == LATE:
            self.server.let_go.wait(30)
        cells = np.zeros((1, 3, 24, 40), np.float32)
        cells[0, surface % 3] = 1
        head = json.dumps({"outputs": [{"name": "cells", "shape": cells.shape}]}).encode()
        self.send_response(503 if surface == BUSY else 200)
        self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.send_header("Content-Length", str(len(head) + cells.nbytes))
        self.end_headers()
        self.wfile.write(head + cells.tobytes())

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with Door(str(tmp_path / "d"), Answer) as server:
        server.let_go, server.seen = threading.Event(), []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_every_frame_is_shown_in_turn_and_decided_by_what_its_answer_says(
    camera: ModuleType, door: Door, tmp_path: Path
) -> None:
    frames = np.stack([np.full((1, 4, 4), surface, np.uint8) for surface in (0, 1, BUSY)])
    stream = camera.Camera(tmp_path / "d", "road", frames, 60_000.0).play(30, 0.2)
    assert sorted(door.seen) == [0, 0, 1, 1, BUSY, BUSY]
    assert (stream.sent, stream.answered, stream.refused) == (6, 4, 2)
    assert stream.frames.tolist() == stream.surfaces.tolist() == [0, 1, 0, 1]


def test_an_answer_after_the_deadline_is_late_and_nothing_is_decided_by_it(
    camera: ModuleType, door: Door, tmp_path: Path
) -> None:
    frames = np.full((1, 1, 4, 4), LATE, np.uint8)
    timer = threading.Timer(0.5, door.let_go.set)
    timer.start()
    stream = camera.Camera(tmp_path / "d", "road", frames, 50.0).play(20, 0.1)
    timer.join()
    assert (stream.answered, stream.late(50.0), stream.decided_s.tolist()) == (2, 1.0, [])
    assert stream.blind(0.05) == 1.0


@pytest.mark.parametrize(
    ("decided_s", "blind"), [([0.1, 0.6, 1.2, 1.9], 0.0), ([0.1, 0.2, 1.2, 7.0], 0.5), ([], 1.0), ([2.3], 1.0)]
)
def test_an_interval_without_a_decision_is_one_in_which_the_robot_stands(
    camera: ModuleType, decided_s: list[float], blind: float
) -> None:
    nothing = np.array([], np.int64)
    stream = camera.Stream(2.0, 4, 0, np.array([1.0]), np.array(decided_s), nothing, nothing)
    assert stream.blind(0.5) == blind
