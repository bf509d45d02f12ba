"""The daemon as its owner meets it: settings, signals, the port, systemd's watchdog, users and groups."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.doors import Doors
from kedge_agent.serving.http import Request, Response, json_response
from kedge_agent.settings import Settings
from kedge_agent.store.layout import Layout
from tests.support.daemon import NOBODY, Agent, as_nobody, free_port, spinning
from tests.support.stores import fill, small_disk
from tests.unit.test_store import deliver

LONG = 10**12


class Manager:
    """What systemd listens on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hear(self, timeout_s: float) -> dict[str, str]:
        """The next message; empty when none came in time."""
        self._socket.settimeout(timeout_s)
        try:
            text = self._socket.recv(4096).decode()
        except TimeoutError:
            return {}
        return dict(line.split("=", 1) for line in text.splitlines())

    def until(self, key: str, timeout_s: float = 30) -> dict[str, str]:
        """The next message that says `key`."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            if key in (said := self.hear(left)):
                return said
        pytest.fail(f"systemd heard no {key} within {timeout_s} s")

    def falls_silent(self, seconds: float, timeout_s: float = 30) -> bool:
        """Whether there comes a time of so many seconds without a word that the agent is alive."""
        end = time.monotonic() + timeout_s
        last = time.monotonic()
        while time.monotonic() < end:
            if "WATCHDOG" in self.hear(0.1):
                last = time.monotonic()
            if time.monotonic() - last > seconds:
                return True
        return False

    def close(self) -> None:
        self._socket.close()


Start = Callable[..., Agent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(*options: str, **more: Any) -> Agent:
            agent = Agent(tmp_path / "state", *options, **more)
            stack.callback(agent.close)
            return agent

        yield begin


@pytest.fixture
def manager() -> Iterator[Manager]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    manager = Manager(folder / "notify")
    yield manager
    manager.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return spinning(tmp_path_factory.mktemp("spin"))


def settings(tmp_path: Path, **body: Any) -> Path:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(body))
    return path


def refused(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def eventually(holds: Callable[[], bool], timeout_s: float = 20) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def seconds(call: Callable[[], Any]) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def computing(agent: Agent) -> bool:
    """Whether the agent has used the processor for a while of late."""
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rsplit(")", 1)[1].split()
    before = int(fields[11])
    time.sleep(0.3)
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) - before > 5


# --- systemd ---------------------------------------------------------------------------------------------------------


def test_systemd_hears_that_the_agent_is_ready_alive_reloading_and_stopping(start: Start, manager: Manager) -> None:
    agent = start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="500000")
    assert manager.until("READY")["READY"] == "1"
    assert manager.until("STATUS")["STATUS"] == "serving"
    for _ in range(3):
        assert manager.until("WATCHDOG")["WATCHDOG"] == "1"
    before = time.monotonic_ns() // 1000
    agent.process.send_signal(signal.SIGHUP)
    assert before <= int(manager.until("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    manager.until("READY")
    agent.process.send_signal(signal.SIGTERM)
    manager.until("STOPPING")
    assert agent.ends() == (0, "")
    assert "watchdog" not in agent.log


def test_without_a_watchdog_none_is_fed(start: Start, manager: Manager) -> None:
    start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="500000", WATCHDOG_PID="1")
    manager.until("READY")
    assert manager.falls_silent(1.5)


def test_an_agent_that_can_accept_nobody_does_not_feed_the_watchdog(start: Start, manager: Manager) -> None:
    agent = start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="500000")
    manager.until("WATCHDOG")
    soft, hard = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
    # No more descriptors: what a leak comes to in the end.
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, hard))
    assert manager.falls_silent(2)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (soft, hard))
    manager.until("WATCHDOG")
    assert eventually(lambda: "all is well again" in agent.log)
    assert "the watchdog is not fed: infer.sock does not answer" in agent.log


def test_a_request_that_computes_for_ever_ends_the_feeding(
    start: Start, manager: Manager, spin: Release, tmp_path: Path
) -> None:
    config = settings(tmp_path, stuck_s=1, drain_s=0)
    agent = start("--config", str(config), NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="500000")
    agent.serve(spin)
    manager.until("WATCHDOG")
    agent.spin(3)
    client = threading.Thread(target=lambda: _ignored(lambda: agent.spin(LONG)))
    client.start()
    assert manager.falls_silent(2)
    assert "the watchdog is not fed: a request has been computing for" in agent.log
    # The agent answers all the while: it is not the door that is stuck.
    assert agent.request("GET", "/v2/health/live")[0] == 200
    # What systemd does next: the threads say where they stood.
    agent.process.send_signal(signal.SIGABRT)
    code, errors = agent.ends()
    client.join()
    assert code == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in errors
    assert "onnxruntime" in errors


def _ignored(call: Callable[[], Any]) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        call()


# --- settings and signals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('{"tcp_prot": 1}', "there is no setting tcp_prot", "did you mean tcp_port?"),
        ('{"drain_s": 1e9}', "drain_s is 1000000000.0; it is a number from 0 to 3600", "docs/agent.md"),
    ],
)
def test_an_agent_with_bad_settings_does_not_start(
    start: Start, tmp_path: Path, text: str, message: str, hint: str
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    agent = start("--config", str(path))
    assert agent.greeting == b""
    code, errors = agent.ends()
    assert code == 3
    assert errors.splitlines()[0] == f"kedge-agent: error: {path}: {message}"
    assert hint in errors.splitlines()[1]
    assert len(errors.splitlines()) == 2


def test_a_port_that_is_taken_keeps_the_agent_from_starting(start: Start, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        agent = start("--config", str(settings(tmp_path, tcp_port=other.getsockname()[1])))
        code, errors = agent.ends()
    assert code == 13
    assert "cannot be listened on" in errors
    assert not (agent.sockets / "infer.sock").exists()


def test_the_port_serves_inference_on_localhost_alone_and_no_control(start: Start, tmp_path: Path) -> None:
    port = free_port()
    agent = start("--config", str(settings(tmp_path, tcp_port=port)))
    assert agent.request("GET", "/v2/health/live", port=port)[0] == 200
    assert agent.request("GET", "/kedge/v1/status", port=port)[0] == 404
    assert agent.request("POST", "/kedge/v1/models/digits/rollback", port=port)[0] == 404
    listening = [
        row.split()[1]
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A"
    ]
    assert listening == [f"0100007F:{port:04X}"]
    assert f":{port:04X} " not in Path("/proc/net/tcp6").read_text()


def test_sighup_opens_moves_and_closes_the_port(start: Start, tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    path = settings(tmp_path)
    agent = start("--config", str(path))
    assert refused(first)
    settings(tmp_path, tcp_port=first)
    agent.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: not refused(first))
    with socket.create_connection(("127.0.0.1", first), timeout=10) as open_connection:
        open_connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert open_connection.recv(4096).startswith(b"HTTP/1.1 200")
        settings(tmp_path, tcp_port=second)
        agent.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: refused(first) and not refused(second))
        assert open_connection.recv(1) == b""
    settings(tmp_path)
    agent.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: refused(second))
    assert agent.request("GET", "/v2/health/live")[0] == 200


@pytest.mark.parametrize("bad", ['{"tcp_port": "here"}', '{"no": 1}', "", '{"tcp_port": %d}'])
def test_bad_settings_at_sighup_are_logged_and_change_nothing(start: Start, tmp_path: Path, bad: str) -> None:
    port = free_port()
    path = settings(tmp_path, tcp_port=port, limits={"connections": 7})
    agent = start("--config", str(path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        path.write_text(bad % other.getsockname()[1] if "%" in bad else bad)
        agent.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: "the old settings stay" in agent.log)
        assert eventually(lambda: told_settings(agent)["problem"])
    assert agent.request("GET", "/v2/health/live", port=port)[0] == 200
    settings(tmp_path)
    agent.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: refused(port))
    assert told_settings(agent) == {"file": str(path), "problem": None}


def told_settings(agent: Agent) -> dict[str, Any]:
    return agent.request("GET", "/kedge/v1/info", door="control")[2]["settings"]


def test_the_limit_of_a_body_holds_from_sighup_on(start: Start, tmp_path: Path) -> None:
    agent = start("--config", str(settings(tmp_path)))
    settings(tmp_path, limits={"body_bytes": 1024})
    agent.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: "settings were read again" in agent.log)
    assert agent.request("POST", "/v2/models/x/infer", {"inputs": ["x" * 2000]})[0] == 413


def test_the_limit_of_connections_holds_from_sighup_on(start: Start, tmp_path: Path) -> None:
    agent = start("--config", str(settings(tmp_path)))
    settings(tmp_path, limits={"connections": 1})
    agent.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: "settings were read again" in agent.log)
    with agent.connect("infer"), agent.connect("infer") as second:
        # It is told so before it says anything.
        assert second.recv(12) == b"HTTP/1.1 503"


def test_the_shared_memory_prefix_holds_from_sighup_on(start: Start, tmp_path: Path) -> None:
    path = settings(tmp_path)
    agent = start("--config", str(path))
    assert "system_shared_memory" not in agent.request("GET", "/v2")[2]["extensions"]
    settings(tmp_path, shared_memory_prefix="/kedge_")
    agent.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: "system_shared_memory" in agent.request("GET", "/v2")[2]["extensions"])


def test_sigterm_closes_the_doors_at_once_and_answers_the_requests_inside(
    start: Start, spin: Release, tmp_path: Path
) -> None:
    port = free_port()
    agent = start("--config", str(settings(tmp_path, drain_s=120, tcp_port=port)))
    agent.serve(spin)
    turns = 5000 * int(4 / min(seconds(lambda: agent.spin(5000)) for _ in range(3)))
    answers: list[Any] = []
    clients = [
        threading.Thread(target=lambda where=where: answers.append(agent.spin(turns, **where)))
        for where in ({}, {"port": port})
    ]
    with agent.connect("infer") as idle:
        for client in clients:
            client.start()
        assert eventually(lambda: computing(agent))
        agent.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: refused(port), 2)
        with pytest.raises(FileNotFoundError):
            agent.connect("infer")
        assert idle.recv(1) == b""
    for client in clients:
        client.join()
    assert [status for status, _, _ in answers] == [200, 200]
    assert [headers["Connection"] for _, headers, _ in answers] == ["close", "close"]
    assert agent.ends() == (0, "")


def test_requests_that_do_not_end_in_time_are_cut_and_the_exit_code_says_so(
    start: Start, spin: Release, tmp_path: Path
) -> None:
    agent = start("--config", str(settings(tmp_path, drain_s=0.5)))
    agent.serve(spin)
    client = threading.Thread(target=lambda: _ignored(lambda: agent.spin(LONG)))
    client.start()
    assert eventually(lambda: computing(agent))
    agent.process.send_signal(signal.SIGTERM)
    code, errors = agent.ends()
    client.join()
    assert code == 13
    assert "cut requests that did not end within 0.5 s" in errors
    assert not agent.sockets.exists()


def test_an_agent_with_a_file_of_settings_starts_on_a_full_disk(tmp_path: Path) -> None:
    named, other = settings(tmp_path), tmp_path / "other.json"
    other.write_text("{}")
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        for config in (named, named, other):
            agent = Agent(disk / "state", "--config", str(config))
            try:
                assert agent.greeting
                agent.process.send_signal(signal.SIGTERM)
                assert agent.ends()[0] == 0
            finally:
                agent.close()
            fill(disk)


def test_an_agent_in_the_background_is_started_and_stopped_with_its_settings(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "settings.json"
    agent = [sys.executable, "-m", "kedge_agent", "--state", str(tmp_path / "state")]

    def run(command: str) -> subprocess.CompletedProcess[str]:
        command_line = [*agent, command, "--config", str(path)]
        return subprocess.run(command_line, capture_output=True, text=True, timeout=60, check=False)

    path.write_text("{}}")
    said = run("start")
    assert said.returncode == 14
    assert "the agent did not start" in said.stderr
    assert "not valid JSON" in said.stderr
    settings(tmp_path, tcp_port=port)
    assert run("start").returncode == 0
    try:
        assert not refused(port)
    finally:
        assert run("stop").returncode == 0
    assert refused(port)


# --- users and groups ------------------------------------------------------------------------------------------------


def test_the_agent_runs_as_an_unprivileged_user(spin: Release) -> None:
    prefix = as_nobody()
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    deliver(Layout(folder), spin)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    agent = Agent(folder, prefix=prefix, uid=NOBODY)
    try:
        assert agent.greeting.startswith(b"KEDGE"), agent.ends()
        rows = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
        uids = next(row.split()[1:] for row in rows if row.startswith("Uid:"))
        assert uids == [str(NOBODY)] * 4
        path = f"/kedge/v1/releases/{spin.digest}/activate"
        assert agent.request("POST", path, door="control")[0] == 200
        status, _, said = agent.spin(2)
        assert (status, said["outputs"][0]["data"]) == (200, [64.0])
        agent.process.send_signal(signal.SIGTERM)
        assert agent.ends() == (0, "")
    finally:
        agent.close()
        shutil.rmtree(folder)


def test_the_doors_are_for_owner_and_group_and_control_for_administrators(tmp_path: Path) -> None:
    prefix = as_nobody()
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.door)
        return json_response({})

    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    doors = Doors(folder, answer, answer, Settings())
    try:
        for door in ("infer", "control"):
            assert stat.S_IMODE(doors.path(door).stat().st_mode) == 0o660
            assert ask(prefix, doors.path(door)) == "PermissionError"
            assert ask([], doors.path(door)) == "200"
            # As for a member of the group, whom the socket lets in.
            doors.path(door).chmod(0o666)
        assert ask(prefix, doors.path("infer")) == "200"
        assert ask(prefix, doors.path("control")) == "nothing"
        assert asked == ["infer", "control", "infer"]
    finally:
        doors.close()
        folder.rmdir()


def ask(prefix: Sequence[str], path: Path) -> str:
    """Status of a request that a process of its own makes, or what it met instead."""
    program = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "try:\n"
        "    s.connect(sys.argv[1])\n"
        "    s.sendall(b'GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n')\n"
        "    print((s.recv(99).split() + [b'', b'nothing'])[1].decode())\n"
        "except (PermissionError, ConnectionError) as error:\n"
        "    print('nothing' if isinstance(error, ConnectionError) else type(error).__name__)\n"
    )
    command = [*prefix, sys.executable, "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


def test_status_says_where_the_sockets_are(start: Start) -> None:
    agent = start()
    command = [sys.executable, "-m", "kedge_agent", "--state", str(agent.state), "status"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert said["sockets"] == str(agent.sockets)
    assert Path(said["sockets"], "infer.sock").is_socket()
