"""The systemd unit: what systemd thinks of it, and whether the agent can live with what it forbids."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.cli import main
from kedge_agent.errors import AgentError
from kedge_agent.unit import UnitOptions, unit_text
from tests.support.daemon import Agent, free_port, spinning
from tests.support.environment import systemd_analyze

CONFINED = Path(__file__).parents[1] / "support" / "confined.py"
COMMAND = ["/usr/bin/env", "kedge-agent", "--state", "/var/lib/kedge", "serve"]


def unit(**options: Any) -> str:
    return unit_text(UnitOptions(COMMAND, **options))


def values(text: str, key: str) -> list[str]:
    """The values of a key, in order."""
    return [line.split("=", 1)[1] for line in text.splitlines() if line.startswith(f"{key}=")]


@pytest.mark.parametrize("state", ["/var/lib/kedge", "/srv/agent"])
@pytest.mark.parametrize("hardware", ["cpu", "gpu", "jetson"])
@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "port"])
def test_systemd_accepts_the_unit_and_finds_little_exposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hardware: Any, state: str, tcp: bool
) -> None:
    analyze = systemd_analyze()
    path = tmp_path / "kedge-agent.service"
    path.write_text(unit(state=Path(state), hardware=hardware, tcp=tcp))
    said = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    said = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    overall = next(line for line in said.stdout.splitlines() if "Overall exposure level" in line)
    score = float(overall.split(": ")[1].split()[0])
    with capsys.disabled():
        doors = "port" if tcp else "socket alone"
        sys.stdout.write(f"\n  exposure of {state}, {hardware}, {doors}: {score}")
    assert score < (1.5 if hardware == "cpu" and not tcp else 2.0)


def test_the_unit_outlasts_the_draining_and_is_started_again_ever_more_slowly() -> None:
    assert int(values(unit(drain_s=90), "TimeoutStopSec")[0]) > 90
    assert values(unit(), "Restart") == ["on-failure"]
    assert values(unit(), "StartLimitIntervalSec") == ["0"]
    # Wrong settings or options do not get better by trying again.
    assert values(unit(), "RestartPreventExitStatus") == ["2 3"]
    # An older systemd would complain of keys it does not know.
    assert values(unit(systemd=249), "RestartSteps") == values(unit(), "RestartSteps") == []
    assert values(unit(systemd=254), "RestartSteps") == ["6"]


def test_a_port_and_a_gpu_open_what_they_need_and_no_more() -> None:
    alone, port = unit(), unit(tcp=True)
    assert values(alone, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert values(alone, "PrivateNetwork") == ["yes"]
    assert values(port, "RestrictAddressFamilies") == ["AF_UNIX AF_INET"]
    assert values(port, "PrivateNetwork") == []
    assert (values(port, "IPAddressDeny"), values(port, "IPAddressAllow")) == (["any"], ["localhost"])
    assert values(alone, "MemoryDenyWriteExecute") == values(alone, "PrivateDevices") == ["yes"]
    for hardware, node in (("gpu", "char-nvidia* rw"), ("jetson", "/dev/nvmap rw")):
        text = unit(hardware=hardware)
        assert values(text, "MemoryDenyWriteExecute") == ["no"]
        assert values(text, "PrivateDevices") == []
        assert values(text, "DevicePolicy") == ["closed"]
        assert node in values(text, "DeviceAllow")
        assert values(text, "LimitMEMLOCK") == ["infinity"]


def test_only_the_system_s_agent_has_its_sockets_in_run() -> None:
    assert values(unit(), "RuntimeDirectory") == ["kedge"]
    other = unit(state=Path("/srv/agent"))
    assert values(other, "RuntimeDirectory") == []
    assert values(other, "ReadWritePaths") == ["/srv/agent /tmp"]
    assert values(other, "PrivateTmp") == ["no"]


@pytest.mark.parametrize("user", ["root", "", "a b", "k\nUser=root"])
def test_a_user_that_is_none_or_root_is_refused(user: str) -> None:
    with pytest.raises(AgentError, match="no name of an unprivileged user"):
        unit(user=user)


@pytest.mark.parametrize("state", ["relative", "/srv/my agent", "/srv/%h", "/srv/a\nUser=root"])
def test_a_state_folder_that_a_unit_cannot_have_is_refused(state: str) -> None:
    with pytest.raises(AgentError, match="cannot have the state folder"):
        unit(state=Path(state))


def test_an_agent_in_a_home_folder_is_refused_because_the_service_would_not_see_it() -> None:
    with pytest.raises(AgentError, match="within a home folder") as caught:
        unit_text(UnitOptions(["/home/me/venv/bin/python", "-m", "kedge_agent", "serve"]))
    assert "/opt/kedge" in caught.value.hint


def test_odd_words_of_the_command_are_quoted_for_systemd() -> None:
    text = unit_text(UnitOptions(["/opt/my agent/bin/kedge-agent", "100%", "$HOME", 'say "x"']))
    assert values(text, "ExecStart") == ['"/opt/my agent/bin/kedge-agent" 100%% $$HOME "say \\"x\\""']


def test_the_command_prints_a_unit_for_the_settings_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "agent.json"
    config.write_text('{"tcp_port": 8000, "drain_s": 45}')
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-m", "kedge_agent", "unit"])
    monkeypatch.setattr(sys, "argv", ["kedge_agent", "unit"])
    assert main(["unit", "--user", "camera", "--config", str(config)]) == 0
    text = capsys.readouterr().out
    assert values(text, "ExecStart") == [
        f"/usr/bin/python3 -m kedge_agent --state /var/lib/kedge serve --config {config}"
    ]
    assert values(text, "User") == ["camera"]
    assert values(text, "RestrictAddressFamilies") == ["AF_UNIX AF_INET"]
    assert int(values(text, "TimeoutStopSec")[0]) > 45
    config.write_text("{")
    assert main(["unit", "--config", str(config)]) == 3


@cache
def system_calls(name: str) -> frozenset[str]:
    """The system calls of a set of systemd's, or the one of this name."""
    if not name.startswith("@"):
        return frozenset({name})
    said = subprocess.run(
        [systemd_analyze(), "syscall-filter", "--no-pager", name],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rows = [row.strip() for row in said.stdout.splitlines()[1:]]
    return frozenset().union(*(system_calls(row) for row in rows if row and not row.startswith("#")))


def rules(text: str) -> dict[str, Any]:
    """What the unit asks of the kernel, as systemd reads it: lines add, those that begin with ~ take away."""
    allowed: set[str] = set()
    for line in values(text, "SystemCallFilter"):
        named = frozenset().union(*(system_calls(word) for word in line.lstrip("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    families = [int(getattr(socket, word)) for word in values(text, "RestrictAddressFamilies")[0].split()]
    no_jit = values(text, "MemoryDenyWriteExecute") == ["yes"]
    return {"allowed": sorted(allowed), "families": families, "no_jit": no_jit}


@pytest.mark.parametrize("tcp", [False, True], ids=["socket", "port"])
def test_the_agent_serves_under_the_very_filters_of_its_unit(tmp_path: Path, tcp: bool) -> None:
    port = free_port() if tcp else 0
    config = tmp_path / "agent.json"
    config.write_text(json.dumps({"tcp_port": port or None}))
    prefix = [sys.executable, str(CONFINED), json.dumps(rules(unit(tcp=tcp))), "--"]
    agent = Agent(tmp_path / "state", "--config", str(config), prefix=prefix)
    try:
        assert agent.greeting.startswith(b"KEDGE"), agent.ends()
        assert "Seccomp:\t2" in Path(f"/proc/{agent.pid}/status").read_text()
        agent.serve(spinning(tmp_path))
        assert agent.spin(3, port=port)[0] == 200
        agent.process.terminate()
        assert agent.ends() == (0, "")
    finally:
        agent.close()


def test_the_agent_s_child_processes_run_under_the_filters(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from kedge_agent.child import Limits, run_child; "
        "ended = run_child('operator:eq', pathlib.Path(sys.argv[1]), {}, Limits(30, 1 << 34, 10)); "
        "print(ended.answer, ended.code, ended.printed)"
    )
    filters = [sys.executable, str(CONFINED), json.dumps(rules(unit())), "--"]
    command = [*filters, sys.executable, "-c", program, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (said.stdout, said.stderr) == ("False 0 ()\n", "")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_INET)", "not supported"),
        ("import os; os.chroot('/')", "PermissionError"),
        ("import os; os.setuid(os.getuid())", "PermissionError"),
    ],
)
def test_the_filters_forbid_what_they_are_for(program: str, error: str) -> None:
    command = [sys.executable, str(CONFINED), json.dumps(rules(unit())), "--", sys.executable, "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1
    assert error in said.stderr.splitlines()[-1]
