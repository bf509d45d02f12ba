"""The flight recorder's rings stay within their bounds and outlive what happens to the process; nobody waits for it."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.formats.recording import Histogram, ModelRecord, Record, Start, read_records
from kedge_agent.measure.recorder import recorder as module
from kedge_agent.measure.recorder.cost import CPU_SHARE, Cost
from kedge_agent.measure.recorder.places import MINUTES, SECONDS, boot_id, recorder_folder
from kedge_agent.measure.recorder.reading import describe_recorder, newest_starts, read_back, segments_back
from kedge_agent.measure.recorder.recorder import Recorder
from kedge_agent.measure.recorder.ring import Ring, segments
from kedge_agent.serving.metrics import render_recorder
from kedge_agent.store import files
from tests.support.powercut import Disk, mounted
from tests.support.stores import fill, small_disk

RELEASE, OTHER = "ab" * 32, "cd" * 32
LIMIT = 4_000_000
BEGAN = Start("0.1.0", 4711, "start")

# Appends records until it is killed, and says after each one how many there are; after every tenth it syncs.
WRITER = """
import sys, time
from pathlib import Path
from kedge_agent.formats.recording import Record
from kedge_agent.measure.recorder.ring import Ring
ring = Ring(Path(sys.argv[1]), 4_000_000, "boot")
first = int(sys.argv[2])
for number in range(first, first + 100_000):
    ring.append(Record(1.79e9 + number, "boot", float(number), 1.0, channels={"a": 1.0, "b": number}, units={}))
    if number % 10 == 9:
        ring.sync()
    print(number, flush=True)
"""


def second(number: int, release: str = RELEASE, **changes: object) -> Record:
    times = Histogram()
    # What does not repeat is packed no better than what a device records.
    for each in os.urandom(60):
        times.record(1_000_000 + 20_000 * each)
    models = {"digits": ModelRecord(release, 7, times, times)}
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    channels = {"temperature.cpu": 40.0 + number % 9, "memory.available": float(number)}
    return Record(time.time() - 1000 + number, boot_id(), now - 1000 + number, 1.0, models, channels, units={})


def taken_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def told(folder: Path) -> list[Record]:
    return [each for path in segments(folder) for each in read_records(path.read_bytes())]


def numbers(folder: Path) -> list[int]:
    return [round(each.at_s - 1.79e9) for each in told(folder)]


class Writer:
    """A process that writes to a ring until it is killed."""

    def __init__(self, folder: Path, first: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(first)], stdout=subprocess.PIPE, text=True
        )

    def wait_for(self, number: int) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if int(line) >= number:
                return
        raise AssertionError("the writer ended")

    def last(self) -> int:
        """The last record that it said was there, once it is dead."""
        assert self.process.stdout is not None
        lines = [line for line in self.process.stdout.read().split("\n")[:-1] if line]
        self.process.wait()
        self.process.stdout.close()
        return int(lines[-1]) if lines else -1


def test_a_ring_never_takes_more_than_it_may_and_drops_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    def replaced(source: str, target: Path) -> None:
        # Both the file that is packed and what it was packed into are there now.
        nonlocal most
        most = max(most, taken_bytes(tmp_path))
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", replaced)
    ring = Ring(tmp_path / "recorder" / "seconds", 600_000, boot_id())
    (tmp_path / "recorder").mkdir()
    for number in range(12_000):
        ring.append(second(number))
        if number % 50 == 0:
            most = max(most, taken_bytes(tmp_path))
            assert ring.bytes == taken_bytes(tmp_path)
    ring.close()
    assert 450_000 < most <= 600_000
    channels = [each.channels["memory.available"] for each in told(ring.folder)]
    assert channels == list(range(12_000 - len(channels), 12_000))
    assert 3000 < len(channels) < 12_000


def test_daemons_that_begin_again_and_again_go_on_with_the_same_file(tmp_path: Path) -> None:
    for number in range(30):
        ring = Ring(tmp_path / "recorder" / "seconds", LIMIT, boot_id())
        ring.append(Record(time.time(), boot_id(), 1.0, 0.0, start=Start("0.1.0", number, "after-crash")))
        ring.append(second(number))
        ring.close()
    assert len(segments(ring.folder)) == 1
    starts = [each.start.pid for each in told(ring.folder) if each.start is not None]
    assert starts == list(range(30))
    assert len(told(ring.folder)) == 60


def test_what_somebody_left_who_was_killed_while_packing_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "recorder" / "seconds"
    folder.mkdir(parents=True)
    (folder / ".0000000003.rec.x1y2z3").write_bytes(bytes(100_000))
    (folder / "notes").write_bytes(b"somebody's own")
    ring = Ring(folder, LIMIT, boot_id())
    ring.append(second(1))
    ring.close()
    assert sorted(path.name for path in folder.iterdir()) == ["0000000000.rec", "notes"]


@pytest.mark.parametrize("after", [0, 7, 333, 2500])
def test_a_process_that_is_killed_loses_no_record_that_it_has_written(tmp_path: Path, after: int) -> None:
    folder = tmp_path / "recorder" / "seconds"
    folder.parent.mkdir()
    writer = Writer(folder)
    writer.wait_for(after)
    writer.process.kill()
    last = max(writer.last(), after)
    found = numbers(folder)
    assert found == list(range(len(found)))
    # It may have been killed between the write and the word.
    assert last <= found[-1] <= last + 1
    again = Writer(folder, first=found[-1] + 1)
    again.wait_for(found[-1] + 20)
    again.process.kill()
    again.last()
    assert numbers(folder)[: len(found) + 20] == list(range(len(found) + 20))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "cut") as made:
        yield made


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_power_cut_loses_no_record_that_was_synced_and_the_next_daemon_goes_on(disk: Disk, seed: int | None) -> None:
    folder = disk.folder / "recorder" / "seconds"
    writer = Writer(folder)
    writer.wait_for(95)
    disk.cut(writer.process, seed=seed)
    last = writer.last()
    found = numbers(folder)
    assert set(range((max(last, 95) + 1) // 10 * 10)) <= set(found)
    assert found == sorted(set(found))
    again = Writer(folder, first=100_000)
    again.wait_for(100_040)
    again.process.kill()
    again.last()
    assert set(range(100_000, 100_040)) <= set(numbers(folder))
    assert found == [each for each in numbers(folder) if each < 100_000]


class Sensors:
    """What a test has the sensors say."""

    def __init__(self) -> None:
        self.throttles = 0
        self.samples = 0

    @property
    def channels(self) -> Mapping[str, str]:
        return {"temperature.cpu": "°C", "throttle.oc1": "count"}

    def sample(self, now_s: float | None = None) -> dict[str, float]:
        self.samples += 1
        return {"temperature.cpu": 41.5, "throttle.oc1": float(self.throttles)}

    def close(self) -> None:
        pass


class Flight:
    """A recorder that a test moves on by itself, a second at a time."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.release = RELEASE
        self.left: list[dict[str, ModelRecord]] = []
        self.sensors = Sensors()
        self.recorder = Recorder(recorder_folder(state), self._take, lambda: self.sensors, LIMIT, BEGAN)

    def _take(self) -> list[dict[str, ModelRecord]]:
        left, self.left = self.left, []
        return [*left, {"digits": self.did()}]

    def did(self, ms: float = 2.0) -> ModelRecord:
        times = Histogram()
        times.record(int(ms * 1e6))
        return ModelRecord(self.release, 7, times, times)

    def pass_seconds(self, count: int) -> None:
        for _ in range(count):
            self.recorder._second(1.0)

    def said(self, ring: str = SECONDS) -> list[Record]:
        return [each for each in told(recorder_folder(self.state) / ring) if each.start is None]


@pytest.fixture
def flight(tmp_path: Path) -> Iterator[Flight]:
    (tmp_path / "state").mkdir()
    made = Flight(tmp_path / "state")
    yield made
    made.recorder._finish()


class Clock:
    """The recorder's monotonic clock, which stands still but for its waits; its other clocks are the real ones."""

    def __init__(self) -> None:
        self.now = 1024.0

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return self.now

    def ended_after(self, seconds: float) -> threading.Event:
        """An event that is set so long after now."""
        clock, end = self, self.now + seconds

        class Ended(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                assert timeout is not None
                clock.now = min(clock.now + timeout, end)
                return clock.now >= end

        return Ended()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def wait_until(good: Callable[[], object]) -> None:
    """The bound tells a hang."""
    deadline = time.monotonic() + 50
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_thread_records_each_second_until_it_is_closed_and_then_lets_go(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.recorder.start()
    wait_until(lambda: len(flight.said()) >= 3)
    flight.recorder.close()
    # It ends by itself after what it is writing; the bound tells a hang.
    flight.recorder._thread.join(60)
    assert not flight.recorder._thread.is_alive()
    said = flight.said()
    assert all(0 < each.seconds <= module._LONGEST_S for each in said)
    assert said[-1].channels["temperature.cpu"] == 41.5
    assert said[-1].channels["memory.agent_rss"] > 1e6
    assert said[-1].units["memory.agent_rss"] == "bytes"
    # What there was of the minute is written at the end.
    assert sum(each.seconds for each in flight.said(MINUTES)) == pytest.approx(sum(each.seconds for each in said))
    assert [each.start for each in newest_starts(tmp_path, 10)] == [BEGAN]


def test_a_record_is_taken_each_second_and_once_more_at_the_end(flight: Flight, clock: Clock) -> None:
    flight.recorder._ended = clock.ended_after(3.25)
    flight.recorder._taken = clock.monotonic()
    flight.recorder._run()
    assert [each.seconds for each in flight.said()] == [1.0, 1.0, 1.0, 0.25]


def test_how_a_daemon_began_is_on_the_disk_before_its_first_second(tmp_path: Path) -> None:
    flight = Flight(tmp_path)
    flight.recorder.start()
    deadline = time.monotonic() + 20
    while not newest_starts(tmp_path, 10) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert flight.said() == []
    assert newest_starts(tmp_path, 10)[0].start == BEGAN
    flight.recorder.close()


def test_an_agent_that_was_stopped_has_a_gap_and_no_long_second(flight: Flight, clock: Clock) -> None:
    flight.recorder._taken = clock.monotonic()
    for away_s in (86, 2):
        clock.now += away_s
        flight.recorder._pass()
    assert [each.seconds for each in flight.said()] == [module._LONGEST_S, 2.0]


def test_seconds_become_minutes(flight: Flight) -> None:
    flight.pass_seconds(125)
    minutes = flight.said(MINUTES)
    assert [each.seconds for each in minutes] == [60.0, 60.0]
    assert minutes[0].models["digits"].total.count == 60
    assert minutes[0].highs["temperature.cpu"] == 41.5
    assert len(flight.said()) == 125


def test_no_minute_has_two_releases_of_a_model(flight: Flight) -> None:
    flight.pass_seconds(30)
    flight.left = [{"digits": flight.did(ms=9.0)}]
    flight.release = OTHER
    flight.pass_seconds(30)
    flight.recorder._end_minute()
    first, second = flight.said(MINUTES)
    assert (first.models["digits"].release, second.models["digits"].release) == (RELEASE, OTHER)
    # What the old one did last is still its own.
    assert (first.models["digits"].total.count, second.models["digits"].total.count) == (31, 30)
    assert flight.recorder.last_minute()["digits"].total.count == 30


def test_a_second_in_which_a_counter_rose_is_a_throttled_one(flight: Flight) -> None:
    flight.pass_seconds(2)
    flight.sensors.throttles = 3
    flight.pass_seconds(2)
    assert [each.throttled for each in flight.said()] == [None, 0.0, 1.0, 0.0]


def test_a_disk_that_is_full_is_said_once_and_recorded_on_when_it_has_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", 1 << 20) as state:
        flight = Flight(state)
        flight.pass_seconds(3)
        filler = fill(state)
        with caplog.at_level(logging.INFO):
            flight.pass_seconds(200)
            assert not flight.recorder.writes
            monkeypatch.setattr(module, "_AGAIN_S", 0.0)
            flight.recorder._again = 0.0
            flight.pass_seconds(3)
            assert [each.levelname for each in caplog.records] == ["ERROR"]
            filler.unlink()
            before = len(flight.said())
            flight.pass_seconds(5)
        assert flight.recorder.writes
        assert [each.levelname for each in caplog.records] == ["ERROR", "INFO"]
        assert len(flight.said()) == before + 5
        flight.recorder._finish()


def test_a_disk_that_cannot_be_written_or_does_not_sync_stops_nothing_but_the_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "small", 1 << 20) as state:
        subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
        flight = Flight(state)
        flight.pass_seconds(3)
        assert not flight.recorder.writes
        assert len(caplog.records) == 1
        assert flight.recorder.sampled() is not None
        assert flight.recorder.last_minute()["digits"].total.count == 3
        assert describe_recorder(state) is None


def test_a_disk_that_does_not_sync_is_said_once(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    flight = Flight(disk.folder)
    flight.pass_seconds(2)
    disk.fail_sync("/recorder/seconds/*")
    flight.recorder._synced = 0.0
    flight.pass_seconds(2)
    assert not flight.recorder.writes
    assert len(caplog.records) == 1
    flight.recorder._again = 0.0
    flight.pass_seconds(1)
    assert flight.recorder.writes
    flight.recorder._finish()


def test_a_folder_that_somebody_removed_is_noticed_and_made_again_but_a_state_folder_is_not(
    flight: Flight, caplog: pytest.LogCaptureFixture
) -> None:
    flight.pass_seconds(2)
    shutil.rmtree(recorder_folder(flight.state))
    flight.recorder._synced = 0.0
    flight.pass_seconds(2)
    assert not flight.recorder.writes
    flight.recorder._again = 0.0
    flight.pass_seconds(2)
    assert flight.recorder.writes
    assert len(flight.said()) == 2
    shutil.rmtree(flight.state)
    flight.recorder._synced = 0.0
    flight.pass_seconds(1)
    flight.recorder._again = 0.0
    flight.pass_seconds(1)
    assert not flight.state.exists()
    assert [each.levelname for each in caplog.records] == ["ERROR", "ERROR"]


def test_a_recorder_that_costs_too_much_reads_sensors_less_often_and_again_when_it_does_not(flight: Flight) -> None:
    cost = Cost()
    assert cost.cpu_share is None
    for _ in range(240):
        cost.add(2 * CPU_SHARE, 1.0)
    assert cost.cpu_share == pytest.approx(2 * CPU_SHARE)
    assert cost.every == 16
    for _ in range(120):
        cost.add(0.0, 1.0)
    assert cost.every == 4
    flight.recorder._cost = cost
    flight.pass_seconds(8)
    assert flight.sensors.samples == 2
    assert [bool(each.channels) for each in flight.said()].count(True) == 2


def test_what_goes_wrong_within_a_second_is_said_once_and_the_next_second_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flight = Flight(tmp_path)
    good = flight._take
    calls = iter([False, True, False, True])

    def take() -> list[dict[str, ModelRecord]]:
        if next(calls, True):
            return good()
        raise RuntimeError("a defect")

    flight.recorder._take = take
    flight.recorder.start()
    time.sleep(4.4)
    flight.recorder.close()
    assert 1 <= len(flight.said()) <= 4
    assert len([each for each in caplog.records if "a defect" in str(each.exc_info)]) == 1


def test_a_recorder_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.2)
    flight = Flight(tmp_path)
    reached, released = threading.Event(), threading.Event()

    def sample(now_s: float | None = None) -> dict[str, float]:
        reached.set()
        assert released.wait(60)
        return {}

    monkeypatch.setattr(flight.sensors, "sample", sample)
    flight.recorder.start()
    assert reached.wait(60)
    flight.recorder.close()
    # Nor does whoever asks for metrics meanwhile.
    assert flight.recorder.last_minute() == {}
    assert flight.recorder.sampled() is None
    released.set()
    flight.recorder._thread.join(60)


def test_a_recorder_that_hangs_writes_nothing_and_knows_nothing_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HANGS_S", 2.5)
    flight = Flight(tmp_path)
    hangs, released = threading.Event(), threading.Event()
    sync = os.fdatasync

    def stuck(handle: int) -> None:
        if hangs.is_set():
            assert released.wait(60)
        sync(handle)

    monkeypatch.setattr(os, "fdatasync", stuck)
    flight.recorder.start()
    wait_until(flight.recorder.sampled)
    hangs.set()
    flight.recorder._synced = 0.0
    wait_until(lambda: not flight.recorder.writes)
    assert flight.recorder.sampled() is None
    assert flight.recorder.last_minute() == {}
    said = render_recorder(flight.recorder)
    assert "kedge_recorder_writing 0\n" in said
    assert "kedge_sensor" not in said
    released.set()
    wait_until(lambda: flight.recorder.writes)
    assert flight.recorder.sampled() is not None
    flight.recorder.close()


def test_a_sensor_with_a_defect_costs_the_readings_and_no_second(
    flight: Flight, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flight.pass_seconds(1)
    good = flight.sensors.sample

    def sample(now_s: float | None = None) -> dict[str, float]:
        raise AttributeError("nvmlDeviceGetCurrentClocksEventReasons")

    monkeypatch.setattr(flight.sensors, "sample", sample)
    flight.pass_seconds(3)
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    monkeypatch.setattr(flight.sensors, "sample", good)
    flight.pass_seconds(1)
    said = flight.said()
    assert ["temperature.cpu" in each.channels for each in said] == [True, False, False, False, True]
    assert sum(each.models["digits"].total.count for each in said) == 5
    assert [each.throttled for each in said] == [None, None, None, None, 0.0]
    assert said[1].channels["memory.agent_rss"] > 1e6


def test_sensors_that_cannot_even_be_opened_are_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flight = Flight(tmp_path)
    calls = iter([False, False, True])

    def opened() -> Sensors:
        if next(calls):
            return flight.sensors
        raise RuntimeError("a library with a defect")

    flight.recorder._open_sensors = opened
    flight.pass_seconds(4)
    assert ["temperature.cpu" in each.channels for each in flight.said()] == [False, False, True, True]
    assert flight.said()[-1].units["temperature.cpu"] == "°C"
    assert len(caplog.records) == 1
    flight.recorder._finish()


def test_a_recording_reaches_back_as_far_as_was_asked_for(tmp_path: Path) -> None:
    ring = Ring(recorder_folder(tmp_path) / SECONDS, 1_000_000, boot_id())
    for number in range(1000):
        ring.append(second(number))
    ring.close()
    assert len(list(read_back(tmp_path, 100.5, SECONDS))) in (99, 100, 101)
    assert len(list(read_back(tmp_path, 5000, SECONDS))) == 1000
    assert len(segments(ring.folder)) > 2
    assert len(list(segments_back(tmp_path, 10, SECONDS))) <= 2
    described = describe_recorder(tmp_path)
    assert described is not None
    assert described["status"]["files"] == len(segments(ring.folder))
    assert described["status"]["last_s"] - described["status"]["first_s"] == pytest.approx(999, abs=1)
    assert described["hour"]["seconds"] == 1000
    assert described["recent"]["seconds"] == pytest.approx(300, abs=1)


def test_where_nothing_was_recorded_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert list(read_back(tmp_path, 3600)) == []
    assert describe_recorder(tmp_path) is None
    assert newest_starts(tmp_path, 5) == []
