"""A device's part of a rollout over a real OpenSSH server: devices that hang, keys that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.fleet.inventory import Inventory
from kedge.fleet.task import run_task
from kedge.release.bundle import Release, write_release
from kedge.transport.address import SshAddress
from tests.loopback.test_ssh import with_agent
from tests.support.environment import lacks
from tests.support.fleet_tasks import task_for
from tests.support.sshd import UID

pytestmark = pytest.mark.slow

PLACES = ["connect", "push", "gate"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshAddress]:
    """A device with an agent."""
    folder = tmp_path_factory.mktemp("ssh")
    with with_agent(folder):
        yield Inventory(folder / "config" / "kedge" / "devices.toml").get("bench1").address


def answer_of(address: SshAddress, release: Release, kind: str = "deploy", **more: Any) -> dict[str, Any]:
    step = more.pop("step", lambda name: None)
    return run_task({**task_for("bench1", release, kind, **more), "address": address.to_json()}, step=step)


def signal_all(name: str) -> None:
    """To every process of the device's user."""
    subprocess.run(["pkill", f"-{name}", "-u", str(UID)], check=False, timeout=30)


@pytest.mark.parametrize("at", PLACES)
def test_a_device_that_hangs_is_late_and_what_became_of_it_is_told_when_it_is_tasked_again(
    address: SshAddress, release: Release, tmp_path: Path, at: str
) -> None:
    if os.geteuid() != 0:
        lacks("root", "only root can stop the processes of the device's user, and no others")
    body = json.loads(release.manifest_bytes)
    del body["files"]
    # The device has those of the other places already.
    body["version"] = 1 + PLACES.index(at)
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in release.files()}
    large = write_release(tmp_path / at, {**sources, "more.bin": os.urandom(24 << 20)}, body)

    first_s = time.time()

    def step(name: str) -> None:
        if name == at:
            signal_all("STOP")

    try:
        late = answer_of(address, large, deadline_s=4.0, first_s=first_s, step=step)
    finally:
        signal_all("CONT")
    assert late["state"] == "late", late
    assert at in late["reason"]
    assert late["exit_code"] == (12 if at == "gate" else 4)

    again = answer_of(address, large, first_s=first_s)
    assert again["state"] == "updated", again
    # The journal of a device has whole seconds.
    assert answer_of(address, large, first_s=time.time() + 1)["state"] == "current"


def test_a_key_that_is_not_accepted_is_a_failure_and_no_device_that_is_away(
    address: SshAddress, release: Release, tmp_path: Path
) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    answer = answer_of(replace(address, identity=tmp_path / "key", agent=False), release)
    assert (answer["state"], answer["exit_code"]) == ("failed", 9)


def test_a_host_key_that_is_not_the_pinned_one_is_a_failure(address: SshAddress, release: Release) -> None:
    assert address.host_key is not None
    other = replace(address.host_key, blob=address.host_key.blob[:-8] + "AAAAAAAA")
    answer = answer_of(replace(address, host_key=other), release)
    assert (answer["state"], answer["exit_code"]) == ("failed", 6)


def test_no_agent_there_is_a_failure(address: SshAddress, release: Release) -> None:
    answer = answer_of(replace(address, state="/nowhere"), release)
    assert (answer["state"], answer["exit_code"]) == ("failed", 14)
