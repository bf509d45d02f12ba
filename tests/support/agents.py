"""A device in a fault test: its state folder, its agent as a process, and what must hold whatever was done to them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Collection
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kedge.release.bundle import Release
from tests.support.daemon import Agent
from tests.support.receivers import push

MODEL = "digits"

_ANSWER_S = 5.0
_WAIT_S = 60.0
_SWITCH_S = 10.0
_DTYPES = {"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4", "UINT8": "u1", "BOOL": "?"}


class Device:
    """A device whose agent a test starts, kills and starts again; at most one agent runs at a time.

    environment: of every agent and receiving process of this device; an empty value takes a variable away.
    """

    def __init__(self, state: Path, **environment: str) -> None:
        self.state = state
        self.environment = environment
        self.agent: Agent | None = None
        self.answered_s = math.nan

    def start(self, *options: str, failpoints: str = "", **environment: str) -> Agent:
        """Start the agent and wait until it answers and has loaded what it can; `answered_s` says how long that took.

        An agent that a failpoint ends meanwhile is returned as it is: its `greeting` may be empty.
        """
        assert self.agent is None or self.agent.process.poll() is not None, "an agent runs already"
        self._forget()
        began = time.monotonic()
        extra = {"KEDGE_FAILPOINTS": failpoints} if failpoints else {}
        self.agent = Agent(self.state, *options, **{**self.environment, **extra, **environment})
        while self.agent.process.poll() is None and time.monotonic() < began + _WAIT_S:
            with contextlib.suppress(OSError):
                if self.status()["ready"]:
                    break
            time.sleep(0.01)
        self.answered_s = time.monotonic() - began
        assert failpoints or self.agent.process.poll() is None, f"the agent did not start: {self.agent.ends()[1]}"
        return self.agent

    def restart(self, *options: str, orderly: bool = False, failpoints: str = "", **environment: str) -> Agent:
        """Kill the agent where it runs (or stop it in order), and start it; it must answer in time.

        An agent that is killed again and again before it has served for a while takes that for crashes of its own.
        """
        if orderly and self.agent is not None:
            self.stop()
        self.kill()
        agent = self.start(*options, failpoints=failpoints, **environment)
        self.assert_answered_in_time()
        return agent

    def assert_answered_in_time(self) -> None:
        """5 s, and the time to read what the store's live releases weigh, at the rate at which this machine hashes."""
        bound_s = _ANSWER_S + stored_bytes(self.state) / read_bytes_per_s()
        assert self.answered_s <= bound_s, f"answered after {self.answered_s:.1f} s; the bound is {bound_s:.1f} s"

    def kill(self) -> None:
        """SIGKILL, as when the power goes, less what that does to the disk."""
        if self.agent is not None and self.agent.process.poll() is None:
            self.agent.process.send_signal(signal.SIGKILL)
        self._forget()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self.agent is not None
        self.agent.process.terminate()
        code, _ = self.agent.ends()
        self._forget()
        return code

    def _forget(self) -> None:
        if self.agent is not None:
            self.agent.process.communicate(timeout=_WAIT_S)
            self.agent = None

    def request(self, method: str, path: str, body: Any = None, *, door: str = "control") -> tuple[int, Any]:
        """Status and JSON of one request; OSError where nobody answers."""
        assert self.agent is not None
        status, _, answer = self.agent.request(method, path, body, door=door)
        return status, answer

    def status(self) -> Any:
        """What `/kedge/v1/status` says."""
        status, answer = self.request("GET", "/kedge/v1/status")
        assert status == 200, answer
        return answer

    def row(self, model: str = MODEL) -> dict[str, Any] | None:
        """The status of one model; None where the device knows none of this name."""
        return next((row for row in self.status()["models"] if row["model"] == model), None)

    def push(self, release: Release) -> None:
        """Push as the host does, into a receiving process of its own."""
        push(self.state, release, **self.environment)

    def activate(self, release: Release) -> tuple[int, Any]:
        """Switch to a release that was pushed; the answer comes when the switch has happened, or was refused."""
        return self.request("POST", f"/kedge/v1/releases/{release.digest}/activate")

    def rollback(self, model: str = MODEL) -> tuple[int, Any]:
        """Go back to the previous release."""
        return self.request("POST", f"/kedge/v1/models/{model}/rollback")

    def serve(self, release: Release) -> None:
        """Push and activate, which must work."""
        self.push(release)
        status, said = self.activate(release)
        assert status == 200, said

    def begin_deploy(self, release: Release) -> tuple[int, Any]:
        """Start (or join) the device's own steps for a release that was pushed."""
        return self.request("POST", "/kedge/v1/deploys", {"release": release.digest})

    def follow_deploy(self, release: Release, timeout_s: float = _WAIT_S) -> dict[str, Any]:
        """How the device's own steps ended; `events` are all of them."""
        events: list[Any] = []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status, said = self.request("GET", f"/kedge/v1/deploys/{release.digest}?after={len(events)}&wait=5")
            assert status == 200, said
            events += said["events"]
            if said["state"] != "running":
                return {**said, "events": events}
        raise AssertionError(f"the deploy did not end within {timeout_s:g} s: {events}")


def assert_invariant(
    state: Path, agent: Agent, expected: Collection[str | None], *, model: str = MODEL, safe: bool = False
) -> dict[str, Any] | None:
    """The invariant of the store; returns the model's row of the status.

    The agent's API answers. `state.json` names a release of which every file has the recorded hash and which serves,
    or the agent says what is wrong with that one and serves another that is whole, or the model is in safe mode.

    Args:
        expected: digests of releases that may be live; None in it: the model may be unknown to the device.
        safe: whether safe mode (no release serves, the API is alive) is among what may be.
    """
    while True:
        row = _settled_row(state, agent, model)
        try:
            return _held(state, agent, row, expected, model, safe=safe)
        except AssertionError:
            # A deploy that nobody waits for may have switched meanwhile.
            now = _settled_row(state, agent, model)
            if now is None or row is None or now["release"] == row["release"]:
                raise


def _held(
    state: Path,
    agent: Agent,
    row: dict[str, Any] | None,
    expected: Collection[str | None],
    model: str,
    *,
    safe: bool,
) -> dict[str, Any] | None:
    assert agent.request("GET", "/v2/health/live")[0] == 200
    if row is None:
        assert None in expected, f"{model} is gone"
        assert not (state / "models" / model / "state.json").is_file()
        return None
    live = row["release"]
    if live is None:
        assert safe, f"{model} is not served: {row}"
        assert row["problem"], row
        return row
    assert live in expected, f"{live[:12]} is live; allowed are {[each and each[:12] for each in expected]}: {row}"
    damage = damaged_files(state, live)
    assert not damage, f"the live release {live[:12]} is damaged: {damage}"
    assert_serves(state, agent, live, model)
    return row


def _settled_row(state: Path, agent: Agent, model: str) -> dict[str, Any] | None:
    """The model's row of the status, once it serves what `state.json` names, or says why it does not."""
    deadline = time.monotonic() + _SWITCH_S
    while True:
        code, _, answer = agent.request("GET", "/kedge/v1/status", door="control")
        assert code == 200, answer
        assert answer["ready"], answer
        row: dict[str, Any] | None = next((row for row in answer["models"] if row["model"] == model), None)
        recorded = recorded_state(state, model)
        if row is None or row["problem"] or (recorded is not None and recorded["current"] == row["release"]):
            return row
        # In the midst of a switch, the state has been renamed and requests go to the former release for a moment more.
        assert time.monotonic() < deadline, f"state.json names {recorded}, and nothing is said of it: {row}"
        time.sleep(0.05)


def assert_serves(state: Path, agent: Agent, release: str, model: str = MODEL) -> None:
    """A request of the golden inputs is answered with the golden outputs of this very release."""
    folder = state / "releases" / release
    golden = json.loads((folder / "manifest.json").read_bytes())["golden"]
    inputs = [
        {
            "name": tensor["name"],
            "datatype": tensor["datatype"],
            "shape": tensor["shape"],
            "data": _tensor(folder, tensor).ravel().tolist(),
        }
        for tensor in golden["inputs"]
    ]
    status, _, answer = agent.request("POST", f"/v2/models/{model}/infer", {"inputs": inputs})
    assert status == 200, answer
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    for tensor in golden["outputs"]:
        expected = _tensor(folder, tensor).ravel()
        np.testing.assert_allclose(outputs[tensor["name"]], expected, rtol=1e-2, atol=1e-2)


def _tensor(folder: Path, tensor: dict[str, Any]) -> np.ndarray:
    return np.frombuffer((folder / tensor["file"]).read_bytes(), _DTYPES[tensor["datatype"]])


def recorded_state(state: Path, model: str = MODEL) -> dict[str, Any] | None:
    """What `state.json` holds; None where it holds nothing that can be read."""
    try:
        body = json.loads((state / "models" / model / "state.json").read_bytes())
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def damaged_files(state: Path, release: str) -> list[str]:
    """Files of an accepted release that are not what its manifest names; judged without the agent's own code."""
    folder = state / "releases" / release
    try:
        data = (folder / "manifest.json").read_bytes()
    except OSError as error:
        return [f"manifest.json: {error}"]
    if hashlib.sha256(data).hexdigest() != release:
        return ["manifest.json"]
    out = []
    for entry in json.loads(data)["files"]:
        try:
            found = hashlib.sha256((folder / entry["name"]).read_bytes()).hexdigest()
        except OSError as error:
            out.append(f"{entry['name']}: {error}")
            continue
        if found != entry["sha256"]:
            out.append(entry["name"])
    return out


def stored_bytes(state: Path) -> int:
    """What the releases that the models' states name weigh: what a start may have to read, current and previous."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for model in os.listdir(state / "models"):
            recorded = recorded_state(state, model) or {}
            for digest in (recorded.get("current"), recorded.get("previous")):
                folder = state / "releases" / str(digest)
                if folder.is_dir():
                    total += sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return total


@cache
def read_bytes_per_s() -> float:
    """How fast this machine reads and hashes a file; measured once."""
    size = 32 * 1024 * 1024
    with TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(os.urandom(size))
        began = time.monotonic()
        with path.open("rb") as handle:
            hashlib.sha256(handle.read())
        return size / (time.monotonic() - began)
