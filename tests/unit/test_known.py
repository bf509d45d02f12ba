"""What a device is known by: each kind for itself, so that one that cannot be had unmasks no other."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.diagnose import known as known_module
from kedge_agent.diagnose.device import Collected, Device, UnavailableError
from kedge_agent.diagnose.known import known_of
from kedge_agent.diagnose.running import Collector
from kedge_agent.diagnose.snapshot import write_snapshot
from kedge_agent.formats.parts import Part, read_parts

LONG = 60.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A recorded tree of a device."""
    files = {
        "etc/hostname": "cam-lab-77\n",
        "etc/passwd": "odd:x:²:1000:::\nannlee:x:1000:1000:Ann Lee:/home/annlee:/bin/sh\n",
        "etc/hosts": "203.0.113.5 nas-lab-3\n",
        "sys/class/net/eth0/address": "3c:6d:66:7e:57:02\n",
    }
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    return tmp_path / "root"


def test_a_user_without_a_number_hides_no_other(root: Path, tmp_path: Path) -> None:
    found = known_of(Device(tmp_path, root), LONG)

    assert found.whole
    assert found.values["user"] == ["annlee", "Ann Lee"]
    assert found.values["host"] == ["cam-lab-77", "nas-lab-3"]


def test_secrets_of_the_environment_are_known_though_the_state_folder_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_PASSWORD", "Canary9931env")
    found = known_of(Device(tmp_path, silent=True), LONG)

    assert found.outcome.status == "ok"
    assert "Canary9931env" in found.values["secret"]


def test_without_the_daemon_s_secrets_texts_go_home_and_without_the_device_s_names_none_does(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(device: Device) -> Collected:
        raise UnavailableError("no answer")

    def failing(kind: str) -> tuple[Collector, ...]:
        return tuple(Collector(each.name, fails, LONG) if each.name == kind else each for each in whole)

    whole = known_module.KNOWN
    log = Collector("logs", lambda device: Collected({}, [("logs/a.log", b"on cam-lab-77\n")]), LONG)
    monkeypatch.setattr(known_module, "KNOWN", failing("secret"))
    told = manifest_of(tmp_path, root, log)
    monkeypatch.setattr(known_module, "KNOWN", failing("host"))
    untold = manifest_of(tmp_path, root, log)

    assert told["known"] == {"status": "unavailable", "reason": "secret: no answer", "ms": told["known"]["ms"]}
    assert [each["name"] for each in told["collectors"]["logs"]["members"]] == ["facts/logs.json", "logs/a.log"]
    assert untold["known"]["status"] == "unavailable"
    assert untold["state"] == "<left out>"
    assert untold["collectors"]["logs"]["members"] == []
    assert {each["why"] for each in untold["collectors"]["logs"]["left_out"]} == {
        "what is to be masked could not be found out"
    }


def manifest_of(state: Path, root: Path, collector: Collector) -> dict[str, Any]:
    sink = io.BytesIO()
    write_snapshot(state, sink, LONG, (collector,), root)
    sink.seek(0)
    (end,) = [body for kind, body in read_parts(sink.read) if kind is Part.END]
    assert isinstance(end, dict)
    return end
