"""`kedge deploy` to several devices, and `kedge rollout`: the real agent, and devices that are not there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kedge.build.release import BuildOptions, build_release
from kedge.cli import main
from kedge.config import config_dir
from kedge.errors import ExitCode
from kedge.fleet.rollout.drive import drive
from kedge.fleet.rollout.ledger import create, rollouts
from kedge.fleet.rollout.options import Options
from kedge.release.archives import export_release
from kedge.release.bundle import Release
from kedge.targets import load_target
from tests.conftest import make_release
from tests.support import models
from tests.support.bad_models import obedient_release
from tests.support.deploys import eventually
from tests.support.driven import Fleet, plan_of, pool
from tests.support.keys import make_key
from tests.support.pages import self_contained
from tests.support.schemas import validate


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return make_release(tmp_path, version=1)


@pytest.fixture
def fleet() -> None:
    """Beside `local`, two devices at a port where nobody listens."""
    config_dir().mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (config_dir() / "devices.toml").write_text(
        "".join(
            f'[{name}]\nhost = "127.0.0.1"\nport = 1\nuser = "nobody"\ntarget = "cpu-generic-x86_64"\n'
            f'host_key = "{key}"\nstate = "/nowhere"\ngroups = ["gone"]\n\n'
            for name in ("cam-1", "cam-2")
        )
    )


def kedge(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, words)])
    return code, *capsys.readouterr()


def states(document: Any) -> dict[str, str]:
    return {each["device"]: each["state"] for each in document["devices"]}


def test_a_rollout_to_a_device_that_serves_is_done_and_its_document_is_as_its_schema_says(
    release: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, news = kedge(capsys, "deploy", release.folder, "--to", "local", "--canary", "100%", "--json")
    document = json.loads(told)
    validate(document, "rollout")
    assert (code, document["state"], states(document)) == (0, "done", {"local": "updated"})
    assert news.startswith("wave 1 of 1: 1 updated; passed in ")
    # A journal has whole seconds.
    time.sleep(1.1)
    code, told, _ = kedge(capsys, "deploy", release.folder, "--to", "local", "--canary", "100%", "--json", "-q")
    assert states(json.loads(told)) == {"local": "current"}


def test_a_failure_halts_it_and_resume_leaves_out_what_failed(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    to = ("--to", "cam-1,local", "--canary", "1,100%")
    code, told, _ = kedge(capsys, "deploy", release.folder, *to)
    assert code == ExitCode.FLEET
    assert "halted" in told
    assert "✗ unreachable" in told
    code, told, _ = kedge(capsys, "rollout", "status", "--json")
    document = json.loads(told)
    assert (code, states(document)) == (0, {"cam-1": "unreachable", "local": "waiting"})
    assert document["devices"][0]["hint"]

    code, told, _ = kedge(capsys, "rollout", "resume", document["id"][-6:], "--skip-failed", "--json")
    document = json.loads(told)
    assert (code, document["state"]) == (ExitCode.FLEET, "done")
    assert states(document) == {"cam-1": "unreachable", "local": "updated"}

    page = tmp_path / "rollout.html"
    assert kedge(capsys, "rollout", "status", "--watch", "--html", page)[0] == ExitCode.FLEET
    assert "cam-1" in self_contained(page.read_text()).text


def test_events_are_the_ledger_s_and_the_document_is_the_last(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told, news = kedge(
        capsys, "deploy", release.folder, "--to", "local,@gone", "--max-failures", 2, "--deadline", "60s", "--events"
    )
    lines = [json.loads(line) for line in told.splitlines()]
    written = (rollouts()[0].folder / "events.ndjson").read_text().splitlines()
    assert lines[:-1] == [json.loads(line) for line in written]
    assert lines[-1]["event"] == "result"
    assert states(lines[-1]["result"]) == {"local": "updated", "cam-1": "unreachable", "cam-2": "unreachable"}
    assert (code, news) == (ExitCode.FLEET, "")


def test_a_dry_run_touches_nothing(release: Release, fleet: None, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("deploy", release.folder, "--to", "local,@gone", "--canary", "1,100%", "--dry-run")
    code, told, _ = kedge(capsys, *given, "--json")
    plan = json.loads(told)
    assert (code, [each["devices"] for each in plan["waves"]]) == (0, [["local"], ["cam-1", "cam-2"]])
    assert rollouts() == []
    assert "cam-1, cam-2" in kedge(capsys, *given)[1]


def test_an_aborted_rollout_is_not_resumed_and_its_devices_go_back_where_asked(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert kedge(capsys, "deploy", release.folder, "--to", "local", "-q")[0] == 0
    later = make_release(tmp_path, version=2, seed=1)
    assert kedge(capsys, "deploy", later.folder, "--to", "local,cam-1,cam-2", "--canary", "1,2,3", "-q")[0] == 11
    code, told, _ = kedge(capsys, "rollout", "abort", "--rollback", "--json")
    document = json.loads(told)
    # Of one that does not answer nobody knows whether it has the release.
    assert (code, document["state"]) == (ExitCode.FLEET, "aborted")
    assert states(document) == {"local": "rolled_back", "cam-1": "rollback_failed", "cam-2": "not_begun"}
    code, told, _ = kedge(capsys, "status", "--on", "local", "--json")
    assert json.loads(told)["models"][0]["version"] == 1
    code, _, news = kedge(capsys, "rollout", "resume")
    assert code == ExitCode.BAD_INPUT
    assert "was aborted" in news
    assert kedge(capsys, "rollout", "abort")[0] == ExitCode.BAD_INPUT


def test_an_abort_whose_rollbacks_fail_is_no_success(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    # It is the first release of its model: there is nothing to go back to.
    assert kedge(capsys, "deploy", release.folder, "--to", "local,cam-1", "--canary", "1,2", "-q")[0] == 11
    code, told, _ = kedge(capsys, "rollout", "abort", "--rollback", "--json")
    document = json.loads(told)
    assert (document["state"], states(document)["local"]) == ("aborted", "rollback_failed")
    assert code == ExitCode.FLEET


def test_an_abort_is_a_success_where_nothing_is_left_to_take_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pool() as executor:
        drive(create(plan_of(2, Options(concurrency=1))), executor, work=Fleet({"d0001": "failed"}))
    code, told, _ = kedge(capsys, "rollout", "abort", "--rollback", "--json")
    document = json.loads(told)
    assert (code, document["state"]) == (ExitCode.OK, "aborted")
    # The agent that this plan's devices have in common never had the release.
    assert states(document) == {"d0000": "rolled_back", "d0001": "failed"}


def test_an_end_that_a_driver_does_not_hear_any_more_is_made_all_the_same() -> None:
    ledger = create(plan_of(2, Options(concurrency=1)))
    with pool() as executor:
        drive(ledger, executor, work=Fleet({"d0000": "failed"}))
    words = [sys.executable, "-m", "kedge", "rollout", "abort", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        with ledger.driving():
            assert eventually(lambda: ledger.asked_abort() is not None)
        told, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(told)["state"]) == (ExitCode.OK, "aborted")
    assert ledger.asked_abort() is None


def test_a_resume_says_that_an_end_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = create(plan_of(2, Options(concurrency=1)))
    with pool() as executor:
        drive(ledger, executor, work=Fleet({"d0000": "failed"}))
    ledger.ask_abort(rollback=False)
    code, told, news = kedge(capsys, "rollout", "resume", "--json")
    assert (code, json.loads(told)["state"]) == (ExitCode.FLEET, "aborted")
    assert news.startswith("an end of it was asked for")


def test_a_rollout_of_an_archive_can_be_resumed_when_its_archive_is_gone(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    archive = tmp_path / "digits.kedge"
    export_release(release, archive)
    assert kedge(capsys, "deploy", archive, "--to", "cam-1,local", "--canary", "1,2", "-q")[0] == ExitCode.FLEET
    archive.unlink()
    code, told, _ = kedge(capsys, "rollout", "resume", "--skip-failed", "--json")
    assert (code, states(json.loads(told))["local"]) == (ExitCode.FLEET, "updated")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "@nobody"), "no group named '@nobody'"),
        (("--to", "local", "--canary", "1%,50%"), ""),
        (("--to", "local,cam-1", "--canary", "1"), "end before all 2 devices"),
        (("--to", "local", "--attest", "nokey"), "the key nokey does not exist"),
        (("--to", "local", "--source", "file:///nowhere"), "there is no release"),
    ],
)
def test_what_cannot_be_begun_is_one_line_and_a_hint_and_leaves_no_ledger(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    if not says:
        # All of one device is one device, whichever share comes first.
        assert kedge(capsys, "deploy", release.folder, *words, "--dry-run", "-q")[0] == 0
        return
    code, told, news = kedge(capsys, "deploy", release.folder, *words)
    assert (code, told) == (ExitCode.BAD_INPUT, "")
    error, hint = news.splitlines()
    assert says in error
    assert hint.startswith("  hint: ")
    assert rollouts() == []


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_deadline_that_ends_before_the_probation_is_refused_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    release = obedient_release(tmp_path, version=1, probation_s=20)
    given = ("deploy", release.folder, "--to", "local", *more, "--deadline")
    code, told, news = kedge(capsys, *given, "20s")
    assert (code, told) == (ExitCode.BAD_INPUT, "")
    assert "a deadline of 20 s ends before the release's probation of 20 s" in news
    assert "hint: --deadline 2m, or build it with a shorter --probation" in news
    assert rollouts() == []
    assert kedge(capsys, *given, "2m", "--dry-run")[0] == 0


def test_an_engine_of_a_worker_needs_a_url_to_come_back_by_and_whom_that_trusts_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.classifier(tmp_path / "net.onnx", batch=1)
    options = BuildOptions("net", on_device=True)
    planned = build_release(model, load_target("rtx-ada-2000"), tmp_path / "net", options).release
    key = make_key(tmp_path, "signer")
    given = ("deploy", planned.folder, "--to", "local", "--cluster", "tcp://127.0.0.1:1", "--attest", key.path)
    code, told, news = kedge(capsys, *given, "--dry-run")
    assert (code, told) == (ExitCode.BAD_INPUT, "")
    assert "comes back from its worker by a URL" in news
    code, _, news = kedge(capsys, *given, "--source", "file:///nowhere", "--dry-run")
    assert (code, news) == (
        0,
        "this host signs the engine that a worker says its device built: whom you trust is in docs/cluster.md\n",
    )


def test_a_part_of_a_name_that_several_have_is_refused(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert kedge(capsys, "deploy", release.folder, "--to", "cam-1,cam-2", "-q")[0] == ExitCode.FLEET
    code, _, news = kedge(capsys, "rollout", "status", rollouts()[0].id[:4])
    assert code == ExitCode.BAD_INPUT
    assert "2 rollouts have" in news
    assert kedge(capsys, "rollout", "status", rollouts()[1].id)[0] == 0
    assert kedge(capsys, "rollout", "list")[1].count("2 unreachable") == 2


def test_ctrl_c_says_how_to_go_on_and_its_code_is_130(
    release: Release, fleet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("deploy", str(release.folder), "--to", "local", "--pause", "2m")
    process = subprocess.Popen(
        [sys.executable, "-m", "kedge", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(each.read().this_wave.state == "watching" for each in _begun()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, news = process.communicate(timeout=30)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "kedge rollout resume" in news
    assert json.loads(kedge(capsys, "rollout", "status", "--json")[1])["state"] == "interrupted"


def _begun() -> list[Any]:
    return [each for each in rollouts() if each.read().wave]
