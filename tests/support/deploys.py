"""Deploys on a device as fault tests run them: to their end, to where a failpoint kills the agent, and under load."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from kedge.release.bundle import Release
from kedge_agent.formats.offer import Offer
from kedge_agent.store.journal import FINAL_STEPS
from tests.support import receivers
from tests.support.agents import MODEL, Device
from tests.support.bad_models import ask

_WAIT_S = 60.0


def configure(state: Path, **settings: Any) -> None:
    """Write the settings that the agent and the receiving process of a state folder read."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    (state / "agent.json").write_text(json.dumps(settings))


def push(device: Device, release: Release, offer: Offer | None = None) -> None:
    """Push with what is offered beside the release. Raises `receivers.PushError` where the device refuses."""
    receivers.push(device.state, release, offer=offer, **device.environment)


def deploy(device: Device, release: Release) -> dict[str, Any]:
    """Have a pushed release deployed; how it ended, with all of its events."""
    status, said = device.begin_deploy(release)
    assert status == 200, said
    return device.follow_deploy(release)


def must_deploy(device: Device, release: Release) -> dict[str, Any]:
    """Push, deploy, and it must be live at the end."""
    device.push(release)
    ended = deploy(device, release)
    assert ended["state"] == "done", ended
    return ended


def killed(device: Device, act: Callable[[], Any], timeout_s: float = _WAIT_S) -> None:
    """Do what makes the agent reach the place at which it is killed; it must have been."""
    assert device.agent is not None
    process = device.agent.process
    # The answer may or may not have come before the end.
    with contextlib.suppress(OSError, http.client.HTTPException):
        act()
    assert process.wait(timeout_s) == -signal.SIGKILL


def history(device: Device, model: str = MODEL) -> list[dict[str, Any]]:
    """What the device's journal says of a model, oldest first."""
    status, said = device.request("GET", f"/kedge/v1/history?model={model}")
    assert status == 200, said
    return list(said["entries"])


def settled(device: Device, model: str = MODEL, timeout_s: float = _WAIT_S) -> dict[str, Any] | None:
    """The last entry of the journal, once it says how a deploy ended; None where nothing was ever written."""
    deadline = time.monotonic() + timeout_s
    while True:
        entries = history(device, model)
        if not entries or entries[-1]["step"] in FINAL_STEPS:
            return entries[-1] if entries else None
        assert time.monotonic() < deadline, f"nothing ended it: {entries}"
        time.sleep(0.1)


def eventually(holds: Callable[[], bool], timeout_s: float = _WAIT_S) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class Clients:
    """Clients that ask a model for something all the time; what they were answered.

    order: the body of their requests, which may be changed while they run. every: one in so many of each client's
    requests is that order, and the others are harmless.
    """

    def __init__(self, device: Device, number: int, model: str, order: Any, every: int) -> None:
        self._device, self._model, self._every = device, model, every
        self.order = order
        self.answered = 0
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_WAIT_S)
        assert not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        agent = self._device.agent
        assert agent is not None
        connection = http.client.HTTPConnection("agent", timeout=30)
        try:
            connection.sock = agent.connect("infer")
            for turn in count():
                if self._stop.is_set():
                    break
                body = ask(self.order if turn % self._every == 0 else None)
                connection.request("POST", f"/v2/models/{self._model}/infer", json.dumps(body).encode())
                answer = connection.getresponse()
                said = answer.read()
                if answer.status == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"{answer.status}: {said[:500]!r}")
        except (OSError, http.client.HTTPException) as error:
            if not self._stop.is_set():
                self.failed.append(repr(error))
        finally:
            connection.close()


@contextlib.contextmanager
def clients(
    device: Device, number: int = 2, *, model: str = MODEL, order: Any = None, every: int = 1
) -> Iterator[Clients]:
    """Clients of `obedient` that are there while the context is open."""
    made = Clients(device, number, model, order, every)
    made.start()
    try:
        yield made
    finally:
        made.stop()
