"""What feeds systemd's watchdog, and what does not."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.serving.http import Request, Response, json_response
from kedge_agent.serving.limits import Limits
from kedge_agent.serving.server import HTTPServer, unix_listener
from kedge_agent.systemd import Notifier
from kedge_agent.watchdog import Watchdog, ask_health


@dataclass
class Loop:
    last_tick: float


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def heard(folder: Path) -> Iterator[Callable[[], str]]:
    """The next message that systemd hears; "" when none comes within half a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(0.5)

        def hear() -> str:
            try:
                return manager.recv(4096).decode()
            except TimeoutError:
                return ""

        yield hear


def notifier(folder: Path, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": str(folder / "notify"), **more})


def watchdog(notifier: Notifier, **more: Callable[..., object]) -> Watchdog:
    given = {
        "ask": lambda timeout_s: None,
        "loops": lambda: [Loop(time.monotonic())],
        "stuck_s": lambda: 0.0,
        "limit_s": lambda: 300.0,
        "lost": lambda: None,
        **more,
    }
    return Watchdog(notifier, 0.1, **given)


def served(path: Path, handler: Callable[[Request], Response], limits: Limits | None = None) -> HTTPServer:
    server = HTTPServer(unix_listener(path), handler, limits)
    server.start()
    return server


def test_an_agent_that_is_well_is_reported_alive_again_and_again(folder: Path, heard: Callable[[], str]) -> None:
    dog = watchdog(notifier(folder))
    dog.start()
    assert [heard() for _ in range(3)] == ["WATCHDOG=1"] * 3
    dog.close()
    dog.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ask": lambda timeout_s: "no answer"}, "no answer"),
        ({"loops": lambda: [Loop(time.monotonic()), Loop(time.monotonic() - 60)]}, "the accepting thread is stuck"),
        ({"stuck_s": lambda: 301.0}, "a request has been computing for 301 s, more than the 300 s of stuck_s"),
        ({"stuck_s": lambda: 1 / 0}, "ZeroDivisionError"),
        ({"lost": lambda: "CUDA_ERROR_ILLEGAL_ADDRESS"}, "the GPU is lost to this process: CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_an_agent_that_is_not_well_is_reported_once_and_is_not_fed(
    folder: Path,
    heard: Callable[[], str],
    caplog: pytest.LogCaptureFixture,
    wrong: dict[str, Callable[..., object]],
    said: str,
) -> None:
    dog = watchdog(notifier(folder), **wrong)
    dog.start()
    assert said in heard()
    assert heard() == ""
    dog.close()
    assert [said in record.getMessage() for record in caplog.records].count(True) == 1


def test_an_agent_that_gets_well_is_fed_again(folder: Path, heard: Callable[[], str]) -> None:
    ill = threading.Event()
    ill.set()
    dog = watchdog(notifier(folder), ask=lambda timeout_s: "not now" if ill.is_set() else None)
    dog.start()
    assert "not now" in heard()
    ill.clear()
    assert [heard() for _ in range(3)] == ["WATCHDOG=1", "STATUS=serving", "WATCHDOG=1"]
    dog.close()


def test_the_time_to_answer_and_the_time_between_two_looks_fit_into_a_period(folder: Path) -> None:
    given: list[float] = []
    dog = watchdog(notifier(folder), ask=given.append)
    assert dog.problem() is None
    assert given[0] + 0.1 / 2 < 0.1


def test_health_is_asked_through_the_socket(folder: Path) -> None:
    asked: list[str] = []

    def handler(request: Request) -> Response:
        asked.append(f"{request.method} {request.path}")
        return json_response({"live": True})

    server = served(folder / "s", handler)
    assert ask_health(folder / "s", 5) is None
    assert asked == ["GET /v2/health/live"]
    server.close()


def test_a_door_that_is_full_answers(folder: Path) -> None:
    server = served(folder / "s", lambda request: json_response({}), Limits(connections=1))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "s"))
        while not server.connections:
            time.sleep(0.01)
        assert ask_health(folder / "s", 5) is None
    server.close()


def test_an_error_silence_and_a_closed_door_are_no_answer(folder: Path) -> None:
    assert "does not answer" in (ask_health(folder / "none", 5) or "")

    def broken(request: Request) -> Response:
        raise AgentError("broken", kind="internal")

    server = served(folder / "s", broken)
    assert "HTTP/1.1 500" in (ask_health(folder / "s", 5) or "")
    server.close()
    with unix_listener(folder / "silent"):
        assert "does not answer within 0.1 s" in (ask_health(folder / "silent", 0.1) or "")


def test_a_watchdog_for_another_process_is_none_of_ours(folder: Path) -> None:
    usec = "30000000"
    assert notifier(folder, WATCHDOG_USEC=usec).watchdog_s == 30
    assert notifier(folder, WATCHDOG_USEC=usec, WATCHDOG_PID=str(os.getpid())).watchdog_s == 30
    assert notifier(folder, WATCHDOG_USEC=usec, WATCHDOG_PID="1").watchdog_s is None
    assert notifier(folder, WATCHDOG_USEC="0").watchdog_s is None
    assert notifier(folder, WATCHDOG_USEC="soon").watchdog_s is None
    assert notifier(folder).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": usec}).watchdog_s is None


def test_systemd_is_told_line_by_line_and_its_absence_hurts_nobody(folder: Path, heard: Callable[[], str]) -> None:
    told = notifier(folder)
    told.ready("two\nlines")
    assert heard() == "READY=1\nSTATUS=two lines"
    told.stopping("x")
    assert heard() == "STOPPING=1\nSTATUS=x"
    Notifier({}).alive()
    Notifier({"NOTIFY_SOCKET": str(folder / "gone")}).alive()


def test_an_abstract_address_is_understood(folder: Path) -> None:
    name = f"kedge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).alive()
        assert manager.recv(99) == b"WATCHDOG=1"
