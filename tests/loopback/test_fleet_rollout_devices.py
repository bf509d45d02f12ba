"""What stands for a fleet in tests behaves as one: devices in networks of their own, and simulated ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.deploy.push import deploy, rollback
from kedge.errors import GateRefusedError, UnreachableError
from kedge.release.bundle import Release
from tests.conftest import make_release
from tests.support.agents import assert_invariant
from tests.support.fleets import Fleet, fleet
from tests.support.simulated import open_simulated, plant, simulated_way


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("base"), version=1)


@pytest.fixture(scope="module")
def devices(base: Release) -> Iterator[Fleet]:
    with fleet(2, base) as made:
        yield made


@pytest.mark.slow
def test_devices_of_a_fleet_have_nothing_in_common_but_the_network(
    devices: Fleet, base: Release, tmp_path: Path
) -> None:
    one, other = devices.devices
    release = make_release(tmp_path, version=2, seed=3)
    devices.kedge("deploy", str(release.folder), "--to", one.name)
    assert_invariant(one.state, one.agent, {release.digest})
    assert_invariant(other.state, other.agent, {base.digest})
    assert one.run("hostname").stdout.strip() == one.name
    assert one.host_key() != other.host_key()
    assert not set(one.processes()) & set(other.processes())


@pytest.mark.slow
def test_a_pulled_cable_makes_one_device_unreachable_until_it_is_back(devices: Fleet) -> None:
    one, other = devices.devices
    one.cable.down()
    try:
        devices.kedge("status", "--on", one.name, code=4)
        devices.kedge("status", "--on", other.name)
    finally:
        one.cable.up()
    devices.kedge("status", "--on", one.name)


@pytest.mark.slow
def test_a_frozen_device_goes_on_where_it_was(devices: Fleet) -> None:
    one = devices.devices[0]
    before = one.processes()
    one.freeze()
    try:
        assert {_state(pid) for pid in one.processes()[2:]} <= {"T"}
    finally:
        one.thaw()
    assert one.processes() == before
    assert one.status()["ready"]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_simulated_device_is_deployed_to_and_goes_back_as_a_real_one(base: Release, tmp_path: Path) -> None:
    release = make_release(tmp_path, version=2, seed=3)
    way = simulated_way(tmp_path)
    with open_simulated("s1", way) as transport:
        first = deploy(transport, base)
        second = deploy(transport, release)
        assert (first.previous, second.previous) == (None, base.digest)
        assert second.sent_bytes > 0
        assert second.skipped_bytes > 0
    # Whoever comes next finds it as it was left.
    with open_simulated("s1", way) as transport:
        assert rollback(transport, "digits")["release"] == base.digest


def test_a_simulated_device_refuses_bytes_that_the_manifest_does_not_name(base: Release, tmp_path: Path) -> None:
    from kedge.transport.base import Deadline
    from kedge_agent.wire import FRAME_HEADER, MESSAGE_HEADER, Message, read_message

    with open_simulated("s1", simulated_way(tmp_path)) as transport:
        channel, _ = transport.open_receive(Deadline.after(5, "opening"))
        reader = channel.makefile("rb")

        def say(kind: Message, payload: bytes) -> None:
            channel.sendall(MESSAGE_HEADER.pack(kind, len(payload)) + payload)

        say(Message.MANIFEST, base.manifest_bytes)
        assert read_message(reader.read)[0] is Message.WANT
        with pytest.raises(BrokenPipeError):
            say(Message.FRAME, FRAME_HEADER.pack(0, 0, 0) + bytes(base.manifest.files[0].size_bytes))
        kind, said = read_message(reader.read)
        assert kind is Message.ERROR
        assert b"another hash" in bytes(said)


@pytest.mark.parametrize(
    ("fault", "error"), [("unreachable", UnreachableError), ("cut", UnreachableError), ("gate", GateRefusedError)]
)
def test_a_planted_fault_of_a_simulated_device_shows_as_a_real_one_s(
    base: Release, tmp_path: Path, fault: str, error: type[Exception]
) -> None:
    plant(tmp_path, "s1", fault)
    with open_simulated("s1", simulated_way(tmp_path)) as transport, pytest.raises(error):
        deploy(transport, base, patience_s=0)
