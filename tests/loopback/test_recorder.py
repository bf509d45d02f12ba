"""The flight recorder of a real agent: what it did is on the disk, whatever becomes of it, and is read without it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.deploy.agent_bundle import Bundle
from kedge.diagnose.asking import ask
from kedge.release.bundle import Release
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from kedge_agent.formats.recording import Record, read_records, summarise
from kedge_agent.measure.recorder.places import MINUTES, SECONDS
from kedge_agent.measure.recorder.reading import newest_starts, read_back
from tests.conftest import make_release
from tests.support import models
from tests.support.agents import Device, assert_serves
from tests.support.powercut import mounted
from tests.support.stores import fill, small_disk
from tests.support.upgrades import Slotted, bundle_of


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "state")
    yield made
    made.kill()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("release"), version=1)


def infer(device: Device, count: int) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": models.images(1).ravel().tolist()}
    for _ in range(count):
        status, said = device.request("POST", "/v2/models/digits/infer", {"inputs": [tensor]}, door="infer")
        assert status == 200, said


def seconds(state: Path) -> list[Record]:
    return [each for each in read_back(state, 3600, SECONDS) if each.start is None]


def requests(state: Path, name: str = "digits") -> int:
    return sum(each.models[name].total.count for each in seconds(state) if name in each.models)


def waits(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def asked(state: Path, since_s: int) -> tuple[list[Record], dict[str, Any]]:
    """As a host asks; no agent need run."""
    data = bytearray()
    words = ["recording", "--since", str(since_s)]
    told = ask(LocalAgent(state), words, Deadline.after(60, "asking"), data.extend, limit_bytes=64 << 20)
    return list(read_records(bytes(data))), dict(told.end)


def test_what_was_answered_and_refused_is_in_the_recording_to_the_last_request(
    device: Device, release: Release
) -> None:
    device.start()
    device.serve(release)
    infer(device, 50)
    assert device.request("POST", "/v2/models/digits/infer", {}, door="infer")[0] == 400
    # What the recorder itself costs is known after its first second.
    waits(lambda: requests(device.state) >= 50 and len(seconds(device.state)) > 1)
    assert device.agent is not None
    device.agent.process.send_signal(signal.SIGKILL)
    records, end = asked(device.state, 600)
    figures = summarise(records)["models"]["digits"]
    assert (figures["release"], figures["version"]) == (release.digest, 1)
    assert figures["requests"] == 50
    assert figures["failures"] == {"bad_input": 1}
    assert 0 < figures["compute_p50_ms"] <= figures["total_p50_ms"]
    assert (end["encoding"], end["resolution_s"]) == ("raw", 1)
    assert end["from_s"] == records[0].at_s
    assert end["to_s"] == records[-1].at_s
    channels = summarise(records)["channels"]
    assert channels["memory.agent_rss"]["last"] > 10e6
    assert 0 < channels["recorder.cpu_share"]["last"] < 1


def test_how_each_daemon_began_is_recorded(device: Device) -> None:
    device.start()
    waits(lambda: len(newest_starts(device.state, 10)) == 1)
    device.restart()
    waits(lambda: len(newest_starts(device.state, 10)) == 2)
    device.restart(orderly=True)
    waits(lambda: len(newest_starts(device.state, 10)) == 3)
    starts = [each.start for each in newest_starts(device.state, 10) if each.start is not None]
    assert [each.how for each in starts] == ["start", "after-crash", "start"]
    assert device.agent is not None
    assert starts[-1].pid == device.agent.process.pid


def test_requests_around_a_switch_count_for_the_release_that_answered_them(
    device: Device, release: Release, tmp_path: Path
) -> None:
    second = make_release(tmp_path, version=2, seed=2)
    device.start()
    device.serve(release)
    infer(device, 15)
    waits(lambda: requests(device.state) >= 15)
    infer(device, 5)
    device.serve(second)
    infer(device, 30)
    waits(lambda: requests(device.state) >= 50)
    by_release = dict.fromkeys((release.digest, second.digest), 0)
    for each in seconds(device.state):
        for did in each.models.values():
            by_release[did.release] += did.total.count
    assert by_release == {release.digest: 20, second.digest: 30}
    device.stop()
    minutes = [each for each in read_back(device.state, 3600, MINUTES) if each.start is None]
    releases = [{did.release for did in each.models.values()} for each in minutes]
    assert [each for each in releases if each] == [{release.digest}, {second.digest}]


def test_a_recording_that_is_off_makes_no_file_and_metrics_say_nothing_of_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "agent.json").write_text('{"recorder": {"enabled": false}}')
    device = Device(state)
    device.start()
    time.sleep(1.5)
    device.stop()
    assert not (state / "recorder").exists()
    records, end = asked(state, 600)
    assert (records, end["from_s"], end["to_s"]) == ([], None, None)


def test_who_asks_for_longer_than_six_hours_is_told_minutes_to_the_last_request(
    device: Device, release: Release
) -> None:
    device.start()
    device.serve(release)
    infer(device, 5)
    device.stop()
    records, end = asked(device.state, 7 * 86_400)
    assert end["resolution_s"] == 60
    assert summarise(records)["models"]["digits"]["requests"] == 5


@pytest.mark.slow
def test_a_power_cut_costs_ten_seconds_at_the_most(tmp_path: Path, release: Release) -> None:
    with mounted(tmp_path) as disk:
        device = Device(disk.folder / "state")
        device.start()
        device.serve(release)
        waits(lambda: len(seconds(device.state)) >= 14, 60)
        said = seconds(device.state)
        assert device.agent is not None
        disk.cut(device.agent.process)
        left = seconds(device.state)
        assert left == said[: len(left)]
        assert len(said) - len(left) <= 11
        assert [each.start.how for each in newest_starts(device.state, 10) if each.start] == ["start"]
        device.restart()
        waits(lambda: len(seconds(device.state)) > len(left) + 2)
        assert seconds(device.state)[: len(left)] == left
        device.kill()


@pytest.mark.slow
def test_the_agent_serves_on_where_the_recording_finds_no_room(tmp_path: Path, release: Release) -> None:
    with small_disk(tmp_path / "small", 48 << 20) as folder:
        device = Device(folder / "state")
        device.start()
        device.serve(release)
        filler = fill(folder)
        waits(lambda: "nothing is recorded" in (folder / "state" / "agent.log").read_text(errors="replace"), 90)
        assert device.agent is not None
        assert_serves(device.state, device.agent, release.digest)
        assert device.request("GET", "/kedge/v1/status")[0] == 200
        filler.unlink()
        device.stop()


@pytest.mark.slow
def test_the_agent_that_takes_over_records_on_where_the_one_before_it_ended(tmp_path: Path, release: Release) -> None:
    first, second = (bundle_of(tmp_path / version, version) for version in ("1.0.0", "2.0.0"))
    device = _slotted(tmp_path / "state", first, release)
    try:
        device.accept(second)
        device.start()
        device.answers()
        waits(lambda: len(seconds(device.state)) >= 2)
        device.upgrade(second)
        assert device.outcome(second)["state"] == "committed"
        waits(lambda: len(newest_starts(device.state, 10)) == 2)
        starts = [each.start for each in newest_starts(device.state, 10) if each.start is not None]
        assert [(each.version, each.how) for each in starts] == [("1.0.0", "start"), ("2.0.0", "takeover")]
        waits(lambda: device.serving() == {release.manifest.model: release.digest})
        before = len(seconds(device.state))
        waits(lambda: len(seconds(device.state)) > before + 1)
        # Two daemons never wrote at a time.
        times = [each.monotonic_s for each in read_back(device.state, 3600, SECONDS)]
        assert times == sorted(times)
    finally:
        device.close()


def _slotted(state: Path, bundle: Bundle, release: Release) -> Slotted:
    device = Slotted(state, bundle)
    device.install(release)
    return device
