"""A device that is well; an agent that hangs, was stopped, was killed; and a device that is not there.

What the doctor sees of a changed host key, of a key that is not accepted and of a device without an agent is in
`tests/loopback/test_doctor_link.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kedge.release.bundle import Release
from tests.conftest import make_release
from tests.loopback.doctor.conftest import Bench, Local
from tests.support.deploys import eventually
from tests.support.doctors import Doctor, finding, on_device, told

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """It serves a model, and its recorder has begun: until then nobody knows when its counters rose."""
    bench.deploy(make_release(tmp_path_factory.mktemp("release"), version=1))
    assert eventually(lambda: bool(finding(bench.doctor.live(), "recorder")["figures"].get("seconds_last_hour")))
    return bench


@pytest.fixture
def serving(deployed: Bench) -> Iterator[Bench]:
    """It does so again afterwards."""
    yield deployed
    deployed.server.run(f"kill -CONT {deployed.pid()}")
    deployed.start()


def test_of_a_device_that_is_well_over_ssh_nothing_is_amiss(serving: Bench) -> None:
    document = serving.doctor.live()
    assert {each["result"] for each in document["findings"]} <= {"ok", "unknown"}, told(document)
    # What is not known is the kernel's to tell, and it tells root alone.
    unknown = {each["check"] for each in document["findings"] if each["result"] == "unknown"}
    assert unknown <= {"disk-errors", "kernel"}, unknown
    assert finding(document, "models")["evidence"] == "1 model served"
    assert finding(document, "power-mode")["evidence"].endswith("the highest")
    assert document["sentence"] == ""


def test_of_this_machine_that_is_well_nothing_is_at_fault(local: Local, release: Release) -> None:
    done = local.doctor.kedge("deploy", str(release.folder), "--to", "local")
    assert done.returncode == 0, done.stderr
    document = local.doctor.finds_no_fault()
    for check in ("agent", "service", "restarts", "releases", "engines", "runtimes", "models", "recorder"):
        assert finding(document, check)["result"] == "ok", told(document)


def test_an_agent_that_was_stopped_is_the_first_cause_and_is_started_by_the_cure(serving: Bench) -> None:
    serving.run(f"{serving.program} stop")
    first = serving.doctor.names("service")["first_cause"]
    assert first["brief"] == "no agent runs"
    assert_cured(serving, first["cure"])


def test_an_agent_that_hangs_is_the_first_cause_and_goes_on_by_the_cure(serving: Bench) -> None:
    serving.run(f"kill -STOP {serving.pid()}")
    first = serving.doctor.names("service")["first_cause"]
    assert first["brief"] == "the agent is stopped by a signal"
    assert_cured(serving, first["cure"])


def test_an_agent_that_was_killed_is_the_first_cause_and_the_doctor_says_that_it_did_not_end_in_order(
    serving: Bench,
) -> None:
    serving.run(f"kill -KILL {serving.pid()}")
    first = serving.doctor.names("service")["first_cause"]
    assert "it did not end in order" in first["evidence"]
    assert_cured(serving, first["cure"])


def test_libraries_of_the_agent_that_are_gone_are_the_first_cause_and_not_that_it_does_not_run(serving: Bench) -> None:
    site = f"{serving.state}/agent/current/site"
    serving.run(f"rm -r {site}/numpy")
    # It runs still, and would not start again.
    found = finding(serving.doctor.finds_no_fault(), "runtimes")
    assert found["result"] == "warning"
    assert "its files are gone" in found["cause"]
    serving.run(f"{serving.program} stop")
    assert serving.server.run(f"{serving.program} start").returncode != 0
    try:
        first = serving.doctor.names("runtimes")["first_cause"]
        assert first["cure"] == "kedge device provision bench1 --force"
    finally:
        done = serving.doctor.kedge("device", "provision", "bench1", "--force", "--no-service")
    assert done.returncode == 0, done.stderr
    serving.doctor.finds_no_fault()


def test_a_device_that_is_not_there_is_the_first_cause_and_no_other_check_pretends_to_know(bench: Bench) -> None:
    with socket.socket() as nobody:
        # Bound, and nobody listens: the connection is refused.
        nobody.bind(("127.0.0.1", 0))
        key = ("--key", str(bench.server.key))
        address = f"{bench.server.user}@127.0.0.1:{nobody.getsockname()[1]}"
        done = bench.doctor.kedge(
            "device", "add", "gone", address, "--target", "orin-nano-8gb", *key, "--state", "/var/lib/kedge"
        )
        assert done.returncode == 0, done.stderr
        gone = Doctor("gone", bench.doctor.folder, bench.doctor.environment)
        document = gone.names("reachability", offline=False)
    others = [each for each in document["findings"] if each["check"] != "reachability"]
    assert {each["result"] for each in others} == {"unknown"}
    # A snapshot of it cannot be taken, and is no internal error.
    assert gone.kedge("snapshot", "--on", "gone").returncode == 4


def assert_cured(bench: Bench, cure: str) -> None:
    """The command for the device, run there, leaves nothing at fault."""
    bench.run(on_device(cure))
    bench.doctor.finds_no_fault()
