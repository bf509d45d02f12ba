"""An agent that a release crashes, again and again."""

from __future__ import annotations

import contextlib
import http.client
import signal
from pathlib import Path

import pytest

from tests.loopback.doctor.conftest import Local
from tests.support.bad_models import ask, crash, obedient_release
from tests.support.deploys import must_deploy
from tests.support.doctors import commands, finding

pytestmark = pytest.mark.slow


def crash_it(local: Local) -> None:
    """A client whose request ends the agent; it is started again, as systemd does."""
    agent = local.device.agent
    assert agent is not None
    with contextlib.suppress(OSError, http.client.HTTPException):
        agent.request("POST", "/v2/models/digits/infer", ask(crash()))
    assert agent.process.wait(30) in (-signal.SIGFPE, -signal.SIGSEGV)
    local.device.restart()


def test_a_release_that_crashes_the_agent_over_and_over_is_the_first_cause_and_is_named(
    local: Local, tmp_path: Path
) -> None:
    release = obedient_release(tmp_path, version=1)
    local.device.start()
    must_deploy(local.device, release)
    crash_it(local)
    # One may have been an accident.
    document = local.doctor.finds_no_fault()
    assert finding(document, "restarts")["result"] == "warning"
    crash_it(local)
    document = local.doctor.names("restarts")
    first = document["first_cause"]
    assert first["figures"]["crashes_last_hour"] == 2
    assert release.digest[:12] in first["evidence"]
    assert "digits" in first["cause"]
    # The agent serves it no more, and there is nothing to go back to.
    assert finding(document, "models")["result"] == "fault"
    assert list(commands(first["cure"])) == [["kedge", "deploy", "RELEASE", "--to", "local"]]
    good = obedient_release(tmp_path, version=2)
    done = local.doctor.kedge("deploy", str(good.folder), "--to", "local")
    assert done.returncode == 0, done.stderr
    # That it crashed in the last hour remains true.
    document = local.doctor.finds_no_fault()
    assert finding(document, "models")["result"] == "ok"
    assert finding(document, "restarts")["result"] == "warning"
    # And if that one crashes too, it is said again.
    for _ in range(2):
        crash_it(local)
    again = local.doctor.names("restarts", offline=False)["first_cause"]
    assert good.digest[:12] in again["evidence"]


def test_a_release_that_was_taken_back_for_its_crashes_is_the_first_cause_and_is_not_rolled_back_to(
    local: Local, tmp_path: Path
) -> None:
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    local.device.start()
    for release in (first, second):
        must_deploy(local.device, release)
    for _ in range(2):
        crash_it(local)
    cause = local.doctor.names("restarts")["first_cause"]
    assert second.digest[:12] in cause["evidence"]
    # The agent went back by itself: `kedge rollback` would return to what crashes.
    row = local.device.row()
    assert row is not None
    assert (row["release"], row["previous"]) == (first.digest, second.digest)
    assert list(commands(cause["cure"])) == [["kedge", "deploy", "RELEASE", "--to", "local"]]


def test_an_agent_that_ends_again_and_again_without_a_model_s_doing_stands_in_safe_mode_which_a_deploy_ends(
    local: Local, tmp_path: Path
) -> None:
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    agent = local.device.start()
    must_deploy(local.device, first)
    for _ in range(6):
        agent.process.kill()
        agent.process.wait(30)
        agent = local.device.restart()
    cause = local.doctor.names("restarts")["first_cause"]
    assert cause["brief"] == "safe mode"
    assert list(commands(cause["cure"])) == [["kedge", "deploy", "RELEASE", "--to", "local"]]
    must_deploy(local.device, second)
    document = local.doctor.finds_no_fault()
    assert finding(document, "models")["result"] == "ok"
    assert finding(document, "restarts")["result"] == "warning"
