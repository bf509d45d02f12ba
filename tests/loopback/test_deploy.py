"""`kedge deploy` against the real agent: what it tells, joins and picks up, and how it ends when the link is cut."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.build.gates import GateOptions
from kedge.build.release import BuildOptions, build_release
from kedge.cli import main
from kedge.config import state_dir
from kedge.deploy import follow
from kedge.deploy.history import read_history
from kedge.deploy.push import Deployed, deploy, rollback
from kedge.deploy.releases import read_floor
from kedge.errors import (
    BadInputError,
    GateRefusedError,
    IncompatibleError,
    IntegrityError,
    OutcomeUnknownError,
    UnreachableError,
)
from kedge.release.bundle import Release, open_release
from kedge.release.signing import downgrade
from kedge.report.history_text import deploys_of
from kedge.targets import host_target
from kedge.transport.base import Channel, Deadline, Door
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent, ProcessChannel
from kedge_agent.wire import FRAME_BYTES
from tests.conftest import make_release
from tests.support import models
from tests.support.schemas import validate


class CutTransport:
    """The way to a real agent, which can be cut: the far ends of open channels die, and no other opens."""

    name = "local"

    def __init__(self, agent: LocalAgent) -> None:
        self.agent = agent
        self.cut = False
        self._open: list[Channel] = []

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        self._require()
        return self._kept(self.agent.open_door(door, deadline))

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        self._require()
        channel, protocol = self.agent.open_receive(deadline)
        return self._kept(channel), protocol

    def close(self) -> None:
        for channel in self._open:
            channel.close()

    def break_once(self) -> None:
        for channel in self._open:
            assert isinstance(channel, ProcessChannel)
            channel._process.kill()

    def break_off(self) -> None:
        self.cut = True
        self.break_once()

    def _require(self) -> None:
        if self.cut:
            raise UnreachableError("local: the link is cut")

    def _kept(self, channel: Channel) -> Channel:
        self._open.append(channel)
        return channel


def gated(folder: Path, version: int, **gates: Any) -> Release:
    model = models.classifier(folder / f"gated-{version}.onnx", seed=version)
    options = BuildOptions("digits", version, GateOptions(**gates))
    golden = {"image": models.images()}
    return build_release(model, host_target(), folder / f"gated-{version}.release", options, golden).release


def live(agent: LocalAgent) -> Mapping[str, Any]:
    client = AgentClient(agent)
    with contextlib.closing(client):
        rows: list[Mapping[str, Any]] = client.get("/kedge/v1/status")["models"]
        return rows[0] if rows else {"release": None, "probation": None}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_deploy_tells_before_and_after_every_gate_and_the_probation(local_agent: LocalAgent, tmp_path: Path) -> None:
    first, second = make_release(tmp_path, version=1), gated(tmp_path, 2, probation_s=1, p99_ms="10000")
    deploy(local_agent, first)
    events: list[Mapping[str, Any]] = []
    done = deploy(local_agent, second, event=events.append)
    validate(done.to_json(), "deploy")
    assert done.before is not None
    assert done.after is not None
    assert (done.before["release"], done.before["version"]) == (first.digest, 1)
    assert done.before["size_bytes"] == first.manifest.total_bytes
    assert all(done.before[name] > 0 for name in ("p99_ms", "peak_bytes"))
    assert (done.after["release"], done.after["runtime"], done.after["precision"]) == (
        second.digest,
        "onnxruntime",
        "fp32",
    )
    assert {gate["gate"]: gate["passed"] for gate in done.gates} == {"parity": True, "latency": True, "memory": True}
    assert done.probation is not None
    assert (done.probation["seconds"], done.probation["errors"]) == (1, 0)
    assert done.probation["p99_ms"] is None
    assert done.limits["latency"] == {"p99_ms": "10000"}
    assert done.signed is False
    assert [event["gate"] for event in events if event["event"] == "gate"] == ["parity", "latency", "memory"]
    assert any(event["event"] == "probation" for event in events)


def test_a_gate_that_refuses_is_the_error_and_the_next_run_tries_again(local_agent: LocalAgent, tmp_path: Path) -> None:
    release = gated(tmp_path, 1, probation_s=0, p99_ms="0.000001")
    for _ in range(2):
        states: list[str] = []
        with pytest.raises(GateRefusedError, match="latency gate"):
            deploy(local_agent, release, state=states.append)
        assert states[:4] == ["plan", "push", "verify", "stage"]
    history = deploys_of(read_history(local_agent, "digits"))
    assert [each["step"] for each in history] == ["refused", "refused"]
    assert "latency gate" in history[0]["reason"]


def test_a_link_that_is_lost_for_a_moment_costs_nothing(local_agent: LocalAgent, tmp_path: Path) -> None:
    link = CutTransport(local_agent)
    release = gated(tmp_path, 1, probation_s=2)
    states: list[str] = []

    def state(name: str) -> None:
        states.append(name)
        if name == "probation":
            link.break_off()
            threading.Timer(0.7, lambda: setattr(link, "cut", False)).start()

    done = deploy(link, release, state=state)
    assert states == ["plan", "push", "verify", "stage", "gate", "switch", "probation", "done"]
    assert done.probation is not None
    assert done.probation["seconds"] == 2
    link.close()


def test_a_link_that_stays_cut_leaves_the_device_to_finish_and_the_same_deploy_tells_the_end(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    link = CutTransport(local_agent)
    release = gated(tmp_path, 1, probation_s=1)

    def state(name: str) -> None:
        if name == "stage":
            link.break_off()

    with pytest.raises(OutcomeUnknownError, match="connection was lost") as unknown:
        deploy(link, release, state=state, patience_s=0.5)
    assert "the same command" in unknown.value.hint
    wait_until(lambda: live(local_agent)["probation"] is None and live(local_agent)["release"] == release.digest)
    states: list[str] = []
    done = deploy(local_agent, release, state=states.append)
    assert "push" not in states
    assert states[-1] == "done"
    assert done.after is not None
    assert done.sent_bytes == 0
    assert len(deploys_of(read_history(local_agent))) == 1
    # The end was told: what comes now is another deploy.
    deploy(local_agent, release)
    assert len(deploys_of(read_history(local_agent))) == 2


def test_a_refusal_that_nobody_saw_is_told_by_the_same_deploy_once(local_agent: LocalAgent, tmp_path: Path) -> None:
    link = CutTransport(local_agent)
    release = gated(tmp_path, 1, probation_s=0, p99_ms="0.000001")

    def state(name: str) -> None:
        if name == "stage":
            link.break_off()

    with pytest.raises(OutcomeUnknownError):
        deploy(link, release, state=state, patience_s=0.2)
    wait_until(lambda: read_history(local_agent)[-1]["step"] == "refused")
    states: list[str] = []
    with pytest.raises(GateRefusedError, match="latency gate"):
        deploy(local_agent, release, state=states.append)
    assert "push" not in states
    assert len(deploys_of(read_history(local_agent))) == 1


def test_a_deploy_that_runs_is_joined(local_agent: LocalAgent, tmp_path: Path) -> None:
    release = gated(tmp_path, 1, probation_s=3)
    early = deploy(local_agent, release, wait=False)
    assert early.probation is None
    assert early.after is not None
    assert early.after["release"] == release.digest
    assert live(local_agent)["probation"]["seconds"] == 3
    states: list[str] = []
    done = deploy(local_agent, release, state=states.append)
    assert "push" not in states
    assert done.probation is not None
    assert len(deploys_of(read_history(local_agent))) == 1


def test_one_that_is_not_waited_for_tells_what_was_before_and_owes_no_end(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    first, second = make_release(tmp_path, version=1), gated(tmp_path, 2, probation_s=300)
    deploy(local_agent, first)
    done = deploy(local_agent, second, wait=False)
    validate(done.to_json(), "deploy")
    assert done.before is not None
    assert done.before["release"] == first.digest
    rollback(local_agent, "digits")
    again = deploy(local_agent, second, wait=False)
    assert again.sent_bytes == 0
    assert live(local_agent)["release"] == second.digest


def test_whoever_went_back_from_a_release_by_hand_is_not_told_so_by_its_next_deploy(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    first, second = make_release(tmp_path, version=1), gated(tmp_path, 2, probation_s=300)
    deploy(local_agent, first)

    def interrupt(name: str) -> None:
        if name == "probation":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deploy(local_agent, second, state=interrupt)
    rollback(local_agent, "digits")
    states: list[str] = []
    deploy(local_agent, second, state=states.append, wait=False)
    assert "push" in states
    assert live(local_agent)["release"] == second.digest


def test_a_device_that_cannot_be_asked_has_not_been_asked(local_agent: LocalAgent, tmp_path: Path) -> None:
    class PushesOnly(CutTransport):
        def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
            opened = super().open_receive(deadline)
            self.cut = True
            return opened

    link = PushesOnly(local_agent)
    release = make_release(tmp_path, version=1)
    with pytest.raises(UnreachableError, match="the link is cut"):
        deploy(link, release, patience_s=0.5)
    assert read_history(local_agent) == []
    assert not list((state_dir() / "deploys").glob("*"))


def test_a_push_that_breaks_off_goes_on_by_itself_and_sends_nothing_twice(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    model = models.padded(tmp_path / "big.onnx", 40_000_000)
    options = BuildOptions("big", 1, GateOptions(probation_s=0))
    release = build_release(model, host_target(), tmp_path / "r", options).release
    link = CutTransport(local_agent)
    broken = False

    def progress(done: int, total: int) -> None:
        nonlocal broken
        if done and not broken:
            broken = True
            link.break_once()

    done = deploy(link, release, progress=progress)
    assert broken
    # A frame whose acknowledgement was lost may be there all the same; it is not sent again, and not counted as sent.
    total = release.manifest.total_bytes
    assert total - 3 * FRAME_BYTES <= done.sent_bytes <= total
    assert live(local_agent)["release"] == release.digest
    link.close()


def test_what_a_device_would_refuse_for_certain_is_refused_before_it_is_sent(
    local_agent: LocalAgent, release: Release
) -> None:
    foreign = replace(release, manifest=replace(release.manifest, platform_arch="aarch64"))
    states: list[str] = []
    with pytest.raises(IncompatibleError, match="the release is for linux/aarch64"):
        deploy(local_agent, foreign, state=states.append)
    assert states == ["plan"]


def test_a_device_that_asks_for_signatures_is_sent_nothing_unsigned(tmp_path: Path, release: Release) -> None:
    state = tmp_path / "device"
    state.mkdir()
    (state / "agent.json").write_text(json.dumps({"releases": {"signatures": "required"}}))
    agent = LocalAgent(state)
    agent.start(Deadline.after(60, "starting the agent"))
    try:
        with pytest.raises(IntegrityError, match="takes signed releases only") as refused:
            deploy(agent, release)
        assert "kedge release sign" in refused.value.hint
        assert str(release.folder) not in refused.value.hint
        assert not list((state / "releases").glob("*")) if (state / "releases").exists() else True
    finally:
        agent.close()


def test_an_older_version_needs_to_be_wanted(local_agent: LocalAgent, tmp_path: Path) -> None:
    old, new = make_release(tmp_path, version=1), make_release(tmp_path, version=2, seed=5)
    third = make_release(tmp_path, version=3, seed=6)
    for release in (new, third):
        deploy(local_agent, release)
    with pytest.raises(IntegrityError, match="version") as refused:
        deploy(local_agent, old)
    assert "--allow-downgrade" in refused.value.hint
    assert read_floor(local_agent, "digits") == (3, 0)
    assert read_floor(local_agent, "another") == (0, 0)
    with pytest.raises(IntegrityError, match="from version 2 at most"):
        deploy(local_agent, old, downgrade=downgrade(old, None, 2))
    # The clock of another host was wrong; this one's is not, and counts all the same.
    ahead = int(time.time()) + 1_000_000_000
    assert deploy(local_agent, old, downgrade=downgrade(old, None, 3, ahead)).version == 1
    assert read_floor(local_agent, "digits") == (1, ahead + 1)
    deploy(local_agent, new)
    fourth = make_release(tmp_path, version=4, seed=7)
    deploy(local_agent, fourth)
    deploy(local_agent, third, downgrade=downgrade(third, None, *read_floor(local_agent, "digits")))
    assert read_floor(local_agent, "digits") == (3, ahead + 2)
    deploy(local_agent, fourth)
    assert rollback(local_agent, "digits")["release"] == third.digest


def test_the_history_tells_deploys_and_rollbacks_in_order(local_agent: LocalAgent, tmp_path: Path) -> None:
    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2, seed=5)
    for release in (first, second):
        deploy(local_agent, release)
    rollback(local_agent, "digits")
    told = deploys_of(read_history(local_agent, "digits"))
    assert [(each["release"], each["step"]) for each in told] == [
        (first.digest, "committed"),
        (second.digest, "committed"),
        (second.digest, "rolled-back"),
    ]
    assert told[-1]["to"] == first.digest
    assert read_history(local_agent, "another") == []
    with pytest.raises(BadInputError, match="no model's name"):
        read_history(local_agent, "no such name")


# From the command line, on the device `local`


def test_the_command_tells_events_and_the_result_is_the_documented_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = gated(tmp_path, 1, probation_s=1)
    assert main(["deploy", str(release.folder), "--to", "local", "--events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == ["plan", "push", "verify", "stage", "gate", "switch", "probation", "done"]
    assert {"progress", "gate", "probation"} <= {event["event"] for event in events}
    assert events[-1]["event"] == "result"
    validate(events[-1]["result"], "deploy")
    assert not list((state_dir() / "deploys").iterdir())


def test_the_commands_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_release(tmp_path, version=1), gated(tmp_path, 2, probation_s=1, max_abs_error_max="1")
    assert main(["deploy", str(first.folder), "--to", "local", "--limit", "100Mbit"]) == 0
    assert "nothing: this is the model's first release" in capsys.readouterr().out
    assert main(["deploy", str(second.folder), "--to", "local"]) == 0
    shown = capsys.readouterr().out
    for words in (first.digest[:12], second.digest[:12], "parity of logits", "≤ 1", "passed: 1 s", "0 requests"):
        assert words in shown
    assert main(["history", "--on", "local"]) == 0
    shown = capsys.readouterr().out
    for release in (first, second):
        row = next(line for line in shown.splitlines() if release.digest[:12] in line)
        assert row.split()[-1] == "live"
    assert main(["status", "--on", "local"]) == 0
    shown = capsys.readouterr().out
    assert "none are asked for" in shown
    assert second.digest[:12] in shown


def test_a_refusal_in_words_says_the_device_s_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = gated(tmp_path, 1, probation_s=0, p99_ms="0.000001")
    assert main(["deploy", str(release.folder), "--to", "local", "--json"]) == 5
    assert "latency gate" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main(["history", "--on", "local"]) == 0
    assert "refused: latency gate" in capsys.readouterr().out
    assert main(["deploy", str(release.folder), "--to", "local", "--key", "k"]) == 3


def test_an_interrupt_ends_the_command_and_says_that_the_device_goes_on(tmp_path: Path) -> None:
    release = gated(tmp_path, 1, probation_s=30)
    command = [sys.executable, "-m", "kedge", "deploy", str(release.folder), "--to", "local", "--events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stdout:
            if json.loads(line)["event"] == "probation":
                break
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
        assert running.wait(30) == 130
    assert "the same command picks up" in said


def test_going_back_to_the_first_release_within_a_probation_leaves_nothing_to_go_back_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_release(tmp_path, version=1), gated(tmp_path, 2, probation_s=300)
    assert main(["deploy", str(first.folder), "--to", "local", "--quiet"]) == 0
    assert main(["deploy", str(second.folder), "--to", "local", "--no-wait", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["rollback", "digits", "--on", "local"]) == 0
    shown = capsys.readouterr().out
    assert f"version 1, release {first.digest[:12]}" in shown
    assert "nothing" in shown


def test_an_interrupt_before_the_device_says_anything_is_known_to_leave_it_at_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "deploy_state", interrupted)
    assert main(["deploy", str(make_release(tmp_path, version=1).folder), "--to", "local"]) == 130
    assert "the same command picks up" in capsys.readouterr().err


def test_an_archive_is_deployed_as_a_folder_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = make_release(tmp_path, version=1)
    archive = tmp_path / "digits.kedge"
    assert main(["release", "export", str(release.folder), "-o", str(archive), "--quiet"]) == 0
    assert main(["deploy", str(archive), "--to", "local", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == release.digest


def test_what_was_deployed_is_plain_json(local_agent: LocalAgent, release: Release) -> None:
    done: Deployed = deploy(local_agent, open_release(release.folder))
    json.dumps(done.to_json(), allow_nan=False)
