"""A device's part of a rollout, on real agents: what becomes of it, by its deadline, and what is told of it later."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.deploy.push import deploy
from kedge.fleet.task import run_task
from kedge.fleet.way import open_way
from kedge.release.bundle import Release
from kedge.transport.client import AgentClient
from kedge.transport.hostkeys import HostKey
from kedge_agent.formats.latency import LEAST_REQUESTS
from tests.conftest import make_release
from tests.support.bad_models import X, obedient_release, order, wrong_outputs
from tests.support.deploys import eventually
from tests.support.fleet_tasks import Named, Way, agents, answer_of, task_for

KEYS = {
    *("device", "kind", "state", "reason", "hint", "exit_code", "seconds", "steps", "cpu_s", "worker"),
    *("deployed", "engine", "look"),
}


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Named]:
    with agents(tmp_path / "devices", "one") as made:
        yield made["one"]


def live(agent: Named) -> str | None:
    client = AgentClient(agent)
    try:
        rows = client.get("/kedge/v1/status")["models"]
        return rows[0]["release"] if rows else None
    finally:
        client.close()


def begin(agent: Named, release: Release) -> None:
    """What a host did that died as soon as it had asked for the deploy."""
    from kedge.deploy.sending import send

    send(
        agent,
        release,
        release.offer(),
        progress=lambda done, total: None,
        state=lambda name: None,
        limit_bytes_per_s=None,
        patience_s=1,
    )
    client = AgentClient(agent)
    try:
        client.post("/kedge/v1/deploys", {"release": release.digest})
    finally:
        client.close()


def deploy_state(agent: Named, release: Release) -> str:
    client = AgentClient(agent)
    try:
        return str(client.get(f"/kedge/v1/deploys/{release.digest}?wait=0")["state"])
    finally:
        client.close()


def test_a_device_is_updated_once_and_is_current_after_that(one: Named, release: Release) -> None:
    steps: list[str] = []
    answer = run_task(task_for("one", release), opener=Way({"one": one.state}), step=steps.append)
    assert set(answer) == KEYS
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert (answer["state"], answer["reason"], answer["exit_code"]) == ("updated", None, 0)
    assert answer["deployed"]["release"] == release.digest == live(one)
    assert steps[:3] == ["connect", "fetch", "plan"]
    assert set(steps) == set(answer["steps"])
    assert 0 < sum(answer["steps"].values()) <= answer["seconds"]
    assert answer["worker"].endswith(f":{os.getpid()}")

    # The journal of a device has whole seconds.
    again = answer_of(one, release, first_s=time.time() + 1)
    assert (again["state"], again["deployed"], list(again["steps"])) == ("current", None, ["connect"])


def test_a_release_that_its_gate_refuses_leaves_what_served_before(
    one: Named, release: Release, tmp_path: Path
) -> None:
    answer_of(one, release)
    bad = wrong_outputs(make_release(tmp_path, version=2, seed=1), tmp_path / "bad.release")
    answer = answer_of(one, bad)
    assert (answer["state"], answer["exit_code"]) == ("refused", 5)
    assert "parity" in answer["reason"]
    assert live(one) == release.digest


def test_a_look_tells_what_clients_met_and_nothing_that_was_not_measured(one: Named, tmp_path: Path) -> None:
    release = obedient_release(tmp_path, version=1)
    nothing = answer_of(one, release, "look")
    assert nothing["state"] == "looked"
    assert nothing["look"] == {
        "release": None, "requests": None, "errors": None, "p99_ms": None, "why": "the model is not served"
    }  # fmt: skip

    answer_of(one, release)
    calm = answer_of(one, release, "look")["look"]
    assert (calm["release"], calm["requests"], calm["errors"], calm["p99_ms"]) == (release.digest, 0, 0, None)
    assert calm["why"] == "no request was answered in the last minute"

    client = AgentClient(one)
    try:
        client.infer("digits", {"x": X, "order": order()})
        assert eventually(lambda: "of the 100 requests" in answer_of(one, release, "look")["look"]["why"])
        for _ in range(LEAST_REQUESTS - 1):
            client.infer("digits", {"x": X, "order": order()})
        for _ in range(2):
            with pytest.raises(Exception, match="out of data bounds"):
                client.infer("digits", {"x": X, "order": order(index=9)})
        with pytest.raises(Exception, match="nonsense"):
            client.infer("digits", {"nonsense": np.zeros(1, np.float32)})
    finally:
        client.close()
    assert eventually(lambda: answer_of(one, release, "look")["look"]["p99_ms"] is not None, 10)
    look = answer_of(one, release, "look")["look"]
    # The malformed request reached no runtime.
    assert (look["requests"], look["errors"], look["why"]) == (LEAST_REQUESTS + 2, 2, None)
    assert look["p99_ms"] > 0


def test_a_device_goes_back_only_from_the_rollout_s_own_release(one: Named, tmp_path: Path) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    answer_of(one, first)
    alone = answer_of(one, first, "rollback", first_s=None)
    assert (alone["state"], alone["exit_code"]) == ("rollback_failed", 3)
    assert alone["hint"] == "kedge deploy RELEASE --to one, with one that it is to serve instead"
    first_s = time.time()
    answer_of(one, second)
    back = answer_of(one, second, "rollback", first_s=first_s)
    assert (back["state"], back["reason"], live(one)) == ("rolled_back", None, first.digest)
    twice = answer_of(one, second, "rollback")
    assert twice["state"] == "rolled_back"
    assert "nothing was done" in twice["reason"]
    assert live(one) == first.digest


def test_what_a_device_served_before_the_rollout_is_not_taken_back(one: Named, tmp_path: Path) -> None:
    first, second = (make_release(tmp_path, version=n, seed=n) for n in (1, 2))
    answer_of(one, first)
    answer_of(one, second)
    left = answer_of(one, second, "rollback", first_s=time.time() + 10)
    assert (left["state"], live(one)) == ("rolled_back", second.digest)
    assert left["reason"] == "it served it before this rollout: nothing was done"
    # Of one that said that it was updated, its journal, and with that its clock, is not asked.
    back = answer_of(one, second, "rollback", first_s=None)
    assert (back["state"], back["reason"], live(one)) == ("rolled_back", None, first.digest)


def test_a_device_that_is_about_to_switch_is_waited_for_and_then_taken_back(one: Named, tmp_path: Path) -> None:
    first, second = (obedient_release(tmp_path, version=n, probation_s=n * 30 - 30) for n in (1, 2))
    answer_of(one, first)
    first_s = time.time()
    begin(one, second)
    back = answer_of(one, second, "rollback", first_s=first_s)
    assert (back["state"], back["reason"], live(one)) == ("rolled_back", None, first.digest)
    assert eventually(lambda: deploy_state(one, second) != "running")
    assert live(one) == first.digest


class TestDeploysThatWentOnWhileNobodyListened:
    def test_the_end_of_one_that_was_done_is_told_as_an_update(self, one: Named, release: Release) -> None:
        first_s = time.time()
        begin(one, release)
        assert eventually(lambda: deploy_state(one, release) == "done")
        answer = answer_of(one, release, first_s=first_s)
        assert answer["state"] == "updated"
        assert answer["deployed"]["push_s"] == 0
        assert answer["deployed"]["gates"]

    def test_one_of_before_the_rollout_is_current(self, one: Named, release: Release) -> None:
        deploy(one, release)
        assert answer_of(one, release, first_s=time.time() + 1)["state"] == "current"

    def test_one_that_runs_is_joined(self, one: Named, tmp_path: Path) -> None:
        release = obedient_release(tmp_path, version=1, probation_s=3)
        first_s = time.time()
        begin(one, release)
        assert eventually(lambda: live(one) == release.digest)
        answer = answer_of(one, release, first_s=first_s)
        assert (answer["state"], answer["deployed"]["push_s"]) == ("updated", 0)
        assert answer["deployed"]["probation"]["elapsed_s"] >= 3

    def test_one_that_was_refused_is_not_tried_again_unless_it_is_asked_for_anew(
        self, one: Named, release: Release, tmp_path: Path
    ) -> None:
        bad = wrong_outputs(release, tmp_path / "bad.release")
        first_s = time.time()
        begin(one, bad)
        assert eventually(lambda: deploy_state(one, bad) == "refused")
        told = answer_of(one, bad, first_s=first_s)
        assert (told["state"], told["exit_code"]) == ("refused", 5)
        assert "push" not in told["steps"]
        anew = answer_of(one, bad, first_s=time.time() + 1)
        assert anew["state"] == "refused"
        assert "push" in anew["steps"]

    def test_one_that_was_taken_back_is_not_put_live_again(self, one: Named, tmp_path: Path) -> None:
        first, second = (obedient_release(tmp_path, version=n, probation_s=n * 30 - 30) for n in (1, 2))
        answer_of(one, first)
        first_s = time.time()
        begin(one, second)
        assert eventually(lambda: live(one) == second.digest)
        client = AgentClient(one)
        try:
            for _ in range(4):
                with pytest.raises(Exception, match="out of data bounds"):
                    client.infer("digits", {"x": X, "order": order(index=9)})
        finally:
            client.close()
        assert eventually(lambda: live(one) == first.digest)
        assert eventually(lambda: deploy_state(one, second) == "reverted")
        answer = answer_of(one, second, first_s=first_s)
        assert answer["state"] == "refused"
        assert "back" in answer["reason"]
        assert live(one) == first.digest


class TestDeadlines:
    def test_a_device_that_stops_in_its_probation_is_late_and_goes_on(self, one: Named, tmp_path: Path) -> None:
        release = obedient_release(tmp_path, version=1, probation_s=60)
        assert one.pid is not None
        pid = one.pid

        def stop(step: str) -> None:
            if step == "probation":
                os.kill(pid, signal.SIGSTOP)

        task = task_for("one", release, deadline_s=8.0)
        try:
            answer = run_task(task, opener=Way({"one": one.state}), step=stop)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (answer["state"], answer["exit_code"]) == ("late", 12)
        assert answer["reason"] == "not done after 8 s: the deadline lies within its probation"
        assert "goes on by itself" in answer["hint"]
        # A resume takes the options that the rollout was begun with.
        assert "begin the rollout anew with a longer --deadline" in answer["hint"]
        assert live(one) == release.digest

    def test_a_device_that_is_slow_to_take_what_is_pushed_is_late(self, one: Named, release: Release) -> None:
        answer = answer_of(one, release, deadline_s=2.0, limit_bytes_per_s=100)
        assert (answer["state"], answer["exit_code"]) == ("late", 4)
        assert "push" in answer["reason"]
        assert live(one) is None

    def test_a_device_that_hangs_before_it_greets_is_late(self, release: Release) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            answer = run_task(ssh_task(release, silent.getsockname()[1], deadline_s=2.0), opener=open_way)
        assert (answer["state"], answer["exit_code"]) == ("late", 4)
        assert "connect" in answer["reason"]


def ssh_task(release: Release, port: int, **more: Any) -> dict[str, Any]:
    from kedge.transport.ssh import SshAddress

    key = HostKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIGxvY2FsaG9zdGxvY2FsaG9zdGxvY2FsaG9zdGxvY2Fs")
    address = SshAddress("127.0.0.1", port, "nobody", host_key=key, state="/nowhere", agent=False)
    return task_for("one", release, **{"address": address.to_json(), **more})


def test_nobody_who_answers_is_unreachable_and_a_defect_is_a_failure(release: Release) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    answer = run_task(ssh_task(release, port))
    assert (answer["state"], answer["exit_code"]) == ("unreachable", 4)

    def broken(device: str, way: Any) -> Any:
        raise ZeroDivisionError("of the opener")

    answer = run_task(task_for("one", release), opener=broken)
    assert (answer["state"], answer["exit_code"]) == ("failed", 1)
    assert "ZeroDivisionError: of the opener" in answer["reason"]


def test_many_devices_at_once_are_each_told_of_for_themselves(tmp_path: Path, release: Release) -> None:
    names = [f"d{n}" for n in range(4)]
    with agents(tmp_path / "devices", *names) as made:
        way = Way({name: agent.state for name, agent in made.items()})
        answers: dict[str, Any] = {}

        def work(name: str) -> None:
            answers[name] = run_task(task_for(name, release), opener=way)

        threads = [threading.Thread(target=work, args=[name]) for name in names]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert {name: answer["state"] for name, answer in answers.items()} == dict.fromkeys(names, "updated")
        assert {live(agent) for agent in made.values()} == {release.digest}
