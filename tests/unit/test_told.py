"""What a device tells of itself that makes no sense is an error of one line, and no defect of ours."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kedge.cli import main
from kedge.deploy.follow import require_done
from kedge.deploy.history import read_history
from kedge.deploy.push import rollback
from kedge.deploy.told import Told, require
from kedge.errors import GateRefusedError, IncompatibleError
from kedge.fleet import inventory
from kedge.targets import Target, host_target
from kedge.transport.base import Channel, Deadline, Door

ROW = {
    "model": "m",
    "state": "serving",
    "version": 1,
    "precision": "fp32",
    "release": "a" * 64,
    "current": "a" * 64,
    "previous": None,
    "problem": None,
}
INFO = {
    "version": "0.1.0",
    "python": "3.12.0",
    "os": "linux",
    "arch": "x86_64",
    "state": "/var/lib/kedge",
    "uptime_s": 1.5,
    "cores": 4,
    "runtimes": {"onnxruntime": None},
    "memory": {"rss_bytes": None},
}
ENTRY = {"sequence": 1, "model": "m", "release": "a" * 64, "step": "begun", "at_s": "when the clock was wrong"}
SWITCHED = {"model": "m", "version": 2, "release": "a" * 64, "previous": "b" * 64, "parity": None}


class Device:
    """A device that answers each request with what stands here for the first word of its path."""

    name = "nano"

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours  # type: ignore[return-value]

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as requests:
            while line := requests.readline():
                while requests.readline().strip():
                    pass
                word = line.split()[1].decode().split("/")[3].partition("?")[0]
                body = json.dumps(self._answers[word]).encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.mark.parametrize(
    ("told", "value"),
    [
        ("models", []),
        ("models", [ROW, {**ROW, "version": None, "release": None, "probation": {"elapsed_s": 1, "seconds": 10}}]),
        ("models", [{**ROW, "news": {"of": ["a later agent"]}}]),
        ("info", INFO),
        ("history", [ENTRY, {**ENTRY, "step": "a later agent's", "version": 3}]),
        ("rollback", SWITCHED),
        ("rollback", {**SWITCHED, "previous": None}),
    ],
)
def test_what_agents_tell_is_taken_as_it_is(told: Told, value: Any) -> None:
    assert require("nano", told, value) is value


@pytest.mark.parametrize(
    ("told", "value"),
    [
        ("models", 5),
        ("models", [5]),
        ("models", [{"model": "m"}]),
        ("models", [{**ROW, "version": True}]),
        ("models", [{**ROW, "release": ["a"]}]),
        ("models", [{**ROW, "probation": {"elapsed_s": "x", "seconds": 10}}]),
        ("models", [{**ROW, "probation": {"seconds": 10}}]),
        ("info", {key: value for key, value in INFO.items() if key != "os"}),
        ("info", {**INFO, "memory": {}}),
        ("info", {**INFO, "uptime_s": float("inf")}),
        ("info", {**INFO, "runtimes": ["onnxruntime"]}),
        ("history", {"m": ENTRY}),
        ("history", [ENTRY, "begun"]),
        ("history", [{**ENTRY, "model": [1]}]),
        ("history", [{**ENTRY, "release": {}}]),
        ("rollback", {**SWITCHED, "previous": []}),
        ("rollback", {**SWITCHED, "version": {}}),
    ],
)
def test_what_makes_no_sense_is_told_as_that(told: Told, value: Any) -> None:
    with pytest.raises(IncompatibleError, match="nano: the agent's answer makes no sense") as caught:
        require("nano", told, value)
    assert "kedge device" in caught.value.hint


def test_a_history_of_nonsense_is_refused_where_it_arrives() -> None:
    assert read_history(Device(history={"entries": [ENTRY]})) == [ENTRY]
    with pytest.raises(IncompatibleError, match="makes no sense"):
        read_history(Device(history={"entries": [{**ENTRY, "model": [1]}]}))


def test_a_rollback_that_says_not_what_it_went_to_is_refused() -> None:
    assert rollback(Device(models=SWITCHED), "m") == SWITCHED
    with pytest.raises(IncompatibleError, match="makes no sense"):
        rollback(Device(models={**SWITCHED, "previous": 1}), "m")


@pytest.mark.parametrize(
    ("told", "code"),
    [({}, 0), ({"models": [{"model": "m"}]}, 7), ({"models": [{**ROW, "precision": 1}]}, 7)],
)
def test_a_status_that_makes_no_sense_is_no_defect_of_kedge(
    told: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(info=INFO, status={"ready": True, "models": [ROW]} | told)

    @contextmanager
    def opened(*_: Any) -> Iterator[tuple[Device, Target]]:
        yield device, host_target()

    monkeypatch.setattr(inventory, "open_device", opened)
    assert main(["status", "--on", "nano"]) == code
    assert "defect" not in capsys.readouterr().err


@pytest.mark.parametrize("state", ["reverted", "refused"])
def test_what_to_do_after_a_deploy_that_ended_badly_is_a_command_that_runs(state: str) -> None:
    error = {"error": "it was taken back", "hint": "see: kedge history --on DEVICE", "kind": "gate"}
    with pytest.raises(GateRefusedError) as caught:
        require_done("nano", {"state": state, "error": error})
    assert caught.value.hint == "see: kedge history --on nano"
