"""What was recorded is as old as it is, on devices whose wall clock is wrong whenever they start."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kedge_agent.diagnose.collectors import recorder as collector
from kedge_agent.diagnose.device import Device
from kedge_agent.formats.recording import Encoder, Histogram, ModelRecord, Record, read_boots, read_ends, summarise
from kedge_agent.measure.recorder import reading
from kedge_agent.measure.recorder.places import MINUTES, SECONDS, boot_id, recorder_folder
from kedge_agent.measure.recorder.reading import describe_recorder, read_back, segments_back
from kedge_agent.measure.recorder.ring import Ring, segments

NOW_S, UP_S = 1_795_000_000.0, 1800.0


@pytest.fixture(autouse=True)
def _clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device started half an hour ago."""
    times = SimpleNamespace(time=lambda: NOW_S, clock_gettime=lambda _: UP_S, CLOCK_BOOTTIME=7)
    monkeypatch.setattr(reading, "time", times)


def record(boot: str, at_s: float, monotonic_s: float, seconds: float = 1.0, ms: float = 50.0) -> Record:
    times = Histogram()
    times.record(int(ms * 1e6))
    channels = {f"temperature.{each}": float(monotonic_s) for each in range(20)}
    models = {"digits": ModelRecord("ab" * 32, 1, times, times)}
    return Record(at_s, boot, monotonic_s, seconds, models, channels, units={})


def write(state: Path, ring: str, records: list[Record], *, new_file: bool = False) -> None:
    folder = recorder_folder(state) / ring
    if new_file and (found := segments(folder)):
        (folder / f"{int(found[-1].stem) + 1:010d}.rec").touch()
    made = Ring(folder, 4_000_000, records[0].boot)
    for each in records:
        made.append(each)
    made.close()


def this_start(ring: str, state: Path) -> None:
    step = 60 if ring == MINUTES else 10
    times = range(step, int(UP_S) + 1, step)
    write(state, ring, [record(boot_id(), NOW_S - UP_S + each, float(each), float(step), 5.0) for each in times])


def test_earlier_starts_of_a_device_whose_clock_goes_back_at_each_are_no_part_of_the_last_hour(tmp_path: Path) -> None:
    # Each start of the system begins at the same wall time, and ran for three hours.
    for day in range(5):
        slow = [record(f"boot-{day}", NOW_S - UP_S + each, float(each), 10.0) for each in range(10, 10_801, 10)]
        write(tmp_path, SECONDS, slow)
    this_start(SECONDS, tmp_path)
    told = describe_recorder(tmp_path)
    assert told is not None
    assert told["hour"]["seconds"] == UP_S
    assert told["hour"]["models"]["digits"]["total_p50_ms"] == pytest.approx(5, rel=1 / 64)
    assert told["hour"]["models"]["digits"]["requests"] == 180


def test_what_lies_wholly_before_is_not_even_read_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(8):
        ahead = [record(f"boot-{day}", NOW_S + 86_400 + each, float(each), 10.0) for each in range(10, 10_801, 10)]
        write(tmp_path, SECONDS, ahead, new_file=True)
    this_start(SECONDS, tmp_path)
    opened: list[Path] = []
    read = reading._read
    monkeypatch.setattr(reading, "_read", lambda path: opened.append(path) or read(path))
    assert summarise(read_back(tmp_path, 3600, SECONDS))["seconds"] == UP_S
    assert len(segments(recorder_folder(tmp_path) / SECONDS)) >= 8
    assert len(set(opened)) <= 3


def test_a_clock_that_never_was_set_dates_nothing(tmp_path: Path) -> None:
    write(tmp_path, SECONDS, [record("boot-a", 100.0 + each, float(each)) for each in range(1, 100)])
    this_start(SECONDS, tmp_path)
    assert {each.boot for each in read_back(tmp_path, 6 * 3600, SECONDS)} == {boot_id()}
    # It may have been within that time: who gets the files may judge.
    (data,) = segments_back(tmp_path, 6 * 3600, SECONDS)
    assert [last.boot for _, last in read_boots(data)] == ["boot-a", boot_id()]


def test_a_start_of_the_system_whose_clock_was_set_late_cuts_nothing_off(tmp_path: Path) -> None:
    write(tmp_path, MINUTES, [record("boot-a", NOW_S - 86_400 + 60 * each, 60.0 * each, 60) for each in range(1, 700)])
    late = [record("boot-b", 60.0 * each if each < 3 else NOW_S - 20_000 + 60 * each, 60.0 * each, 60)
            for each in range(1, 100)]  # fmt: skip
    write(tmp_path, MINUTES, late, new_file=True)
    this_start(MINUTES, tmp_path)
    assert len(segments(recorder_folder(tmp_path) / MINUTES)) == 2
    assert len(list(read_back(tmp_path, 3 * 86_400, MINUTES))) == 699 + 99 + 30
    # The two from before it was set are known by those after it.
    assert len(list(read_back(tmp_path, 20_000, MINUTES))) == 99 + 30
    sent = b"".join(segments_back(tmp_path, 3 * 86_400, MINUTES))
    ends = read_ends(sent)
    assert ends is not None
    assert (ends[0].boot, ends[1].boot) == ("boot-a", boot_id())


def test_each_model_is_summed_up_since_its_own_deploy_and_a_ring_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this_start(SECONDS, tmp_path)
    this_start(MINUTES, tmp_path)
    release = "ab" * 32
    ages = {600.0: SECONDS, 1200.0: SECONDS, 1500.0: MINUTES}
    models = [collector._Live("digits", release, None, age_s, ring) for age_s, ring in ages.items()]
    models.append(collector._Live("digits", "cd" * 32, None, 1200.0, SECONDS))
    rings: list[str] = []
    read = collector.read_ages
    monkeypatch.setattr(
        collector, "read_ages", lambda state, age_s, ring: rings.append(ring) or read(state, age_s, ring)
    )
    collector._sum_up(Device(tmp_path), models)
    assert rings == [SECONDS, MINUTES]
    told = [each.since.to_json() for each in models]
    assert [each["seconds"] for each in told] == [610, 1210, 1560, 0]
    assert [each["models"].get("digits", {}).get("requests") for each in told] == [61, 121, 26, None]


def test_each_start_of_the_system_is_told_by_its_first_and_last_record() -> None:
    encoders = {boot: Encoder(boot) for boot in ("a", "b")}
    order = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("a", 4), ("a", 5)]
    data = b"".join(encoders[boot].encode(record(boot, NOW_S + each, float(each))) for boot, each in order)
    told = [(first.boot, first.monotonic_s, last.boot, last.monotonic_s) for first, last in read_boots(data)]
    assert told == [("a", 1, "a", 3), ("b", 1, "b", 1), ("a", 4, "a", 5)]
    assert read_boots(os.urandom(1000)) == []
    # What is torn off costs itself.
    assert read_boots(data[:-3])[-1][1].monotonic_s == 4
