"""A recording reads back as it was written, whatever was torn, rotten or made up about it; and sums up honestly."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from kedge_agent.formats.recording import (
    Encoder,
    Histogram,
    ModelRecord,
    Record,
    Skipped,
    Start,
    latest_models,
    pack,
    read_ends,
    read_records,
    read_starts,
    resample,
    summarise,
)
from kedge_agent.formats.recording_frames import MAX_RECORDING_BYTES, Kind, frame
from kedge_agent.measure.recorder.places import MINUTES, SECONDS, SHARES

pytest.importorskip("hypothesis", reason="needs hypothesis (pip install hypothesis)")
from hypothesis import given, settings
from hypothesis import strategies as st

BOOT = "c0ffee00-1234-4321-abcd-123456789abc"
AT_S = 1_795_000_000.0
OLD, NEW = "ab" * 32, "cd" * 32
UNITS = {"temperature.cpu": "°C", "memory.available": "bytes", "throttle.oc1": "count"}


def histogram(*ms: float) -> Histogram:
    out = Histogram()
    for each in ms:
        out.record(int(each * 1e6))
    return out


def second(number: int, *, release: str = OLD, ms: Sequence[float] = (1.0, 2.0), **changes: Any) -> Record:
    model = ModelRecord(release, 7, histogram(*(each + 0.5 for each in ms)), histogram(*ms), {"busy": 1}, number % 3)
    channels = {"temperature.cpu": 40.0 + number, "memory.available": 4096.0 * number, "throttle.oc1": number // 4}
    record = Record(AT_S + number, BOOT, 1000.0 + number, 1.0, {"digits": model}, channels, units=UNITS, throttled=0.0)
    return replace(record, **changes)


def start(number: int, how: str = "start") -> Record:
    return Record(AT_S + number, BOOT, 1000.0 + number, 0.0, start=Start("0.1.0", 4711, how))


def encoded(records: Sequence[Record]) -> bytes:
    encoder = Encoder(BOOT)
    return b"".join(encoder.start(each) if each.start else encoder.encode(each) for each in records)


def test_records_are_read_back_as_they_were_written_packed_or_not() -> None:
    records = [start(0), *(second(number) for number in range(1, 700)), start(700, "after-crash"), second(701)]
    data = encoded(records)
    skipped = Skipped()
    assert list(read_records(data, skipped)) == records
    packed = pack(data)
    assert list(read_records(packed, skipped)) == records
    assert skipped == Skipped()
    assert len(packed) < len(data) / 2
    assert pack(packed) == packed
    assert list(read_starts(packed)) == [records[0], records[-2]]
    assert read_ends(packed) == read_ends(data) == (records[0], records[-1])


def test_files_of_a_ring_are_read_one_after_another_and_each_alone() -> None:
    encoder = Encoder(BOOT)
    files = []
    for first in (0, 10, 20):
        encoder.begin()
        files.append(b"".join(encoder.encode(second(number)) for number in range(first, first + 10)))
    assert list(read_records(pack(files[0]) + files[1] + files[2])) == [second(number) for number in range(30)]
    assert list(read_records(files[2])) == [second(number) for number in range(20, 30)]


def test_names_that_come_later_and_models_that_go_are_told_from_each_other() -> None:
    other = ModelRecord(NEW, 8, histogram(3.0), histogram(3.0))
    records = [
        second(1),
        second(2, models={"other": other}, channels={"clock.gpu": 918e6}, units={"clock.gpu": "Hz"}),
        second(3, models={}, channels={}),
        second(4, release=NEW),
    ]
    told = list(read_records(encoded(records)))
    assert [each.models for each in told] == [each.models for each in records]
    assert [each.channels for each in told] == [each.channels for each in records]
    assert told[1].units["clock.gpu"] == "Hz"


def test_a_reading_has_the_seven_digits_of_single_precision_and_none_that_were_not_read() -> None:
    channels = {"temperature.cpu": 41.2, "memory.available": 23_142_174_720.0}
    (told,) = read_records(encoded([second(1, channels=channels)]))
    assert told.channels["temperature.cpu"] == 41.2
    assert told.channels["memory.available"] == pytest.approx(23_142_174_720, rel=1e-6)
    assert "throttle.oc1" not in told.channels


def test_a_torn_tail_costs_the_record_that_was_torn() -> None:
    records = [second(number) for number in range(20)]
    data = encoded(records)
    whole = len(encoded(records[:-1]))
    for end in range(whole, len(data)):
        skipped = Skipped()
        assert list(read_records(data[:end], skipped)) == records[:-1]
        assert skipped.bytes == end - whole
    # The next daemon goes on behind it.
    assert list(read_records(data[: whole + 20] + encoded([second(20)]))) == [*records[:-1], second(20)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rot_costs_the_frame_it_is_in_and_what_follows_is_read(data: st.DataObject) -> None:
    records = [second(number) for number in range(40)]
    whole = bytearray(encoded(records))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    skipped = Skipped()
    told = list(read_records(bytes(whole), skipped))
    table = 2 * len(encoded(records[:1])) - len(encoded(records[:2]))
    assert skipped.bytes + skipped.frames > 0
    assert all(each in records for each in told)
    # Where the table rots, every record until the next one of 600 goes with it.
    assert len(told) == (39 if at >= table else 0)


def test_rot_in_a_packed_file_costs_one_block() -> None:
    records = [second(number) for number in range(3000)]
    packed = bytearray(pack(encoded(records)))
    packed[len(packed) // 2] ^= 1
    skipped = Skipped()
    told = list(read_records(bytes(packed), skipped))
    assert 0 < 3000 - len(told) < 1000
    assert told[0], told[-1] == (records[0], records[-1])
    assert skipped.damaged > 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 300))
def test_bytes_that_anybody_made_up_do_no_harm(noise: bytes, cut: int) -> None:
    good = encoded([start(0), second(1)])
    made_up = b"".join(frame(kind, noise) for kind in Kind)
    told = list(read_records(noise + made_up + good[cut:] + noise + good))
    assert told[-2:] == [start(0), second(1)]
    pack(noise + made_up)
    read_ends(noise + made_up)


def hostile() -> Iterator[tuple[str, bytes]]:
    table = {"boot": BOOT, "channels": [["a", "b"]], "models": [["m", OLD, 1]], "kinds": ["busy"]}

    def tabled(**changes: Any) -> bytes:
        return frame(Kind.TABLE, json.dumps({**table, **changes}).encode())

    yield "names that would steer a terminal", tabled(channels=[["\x1b[2J", ""]])
    yield "a name of a megabyte", tabled(boot="x" * 60_000)
    yield "no version", tabled(models=[["m", OLD, "1"]])
    yield "a version below zero", tabled(models=[["m", OLD, -1]])
    yield "a list", frame(Kind.TABLE, b"[]")
    yield "too few fields", frame(Kind.TABLE, b"{}")
    yield "nesting", frame(Kind.TABLE, b"[" * 50_000)
    yield "a start that is none", frame(Kind.START, b'{"at_s": 1e400}')
    yield "a start with text for a time", frame(Kind.START, b'{"at_s": "x", "boot": "", "monotonic_s": 0}')
    yield "a record without its table", frame(Kind.RECORD, bytes(64))
    yield "a bomb", frame(Kind.PACKED, zlib.compress(bytes(64 << 20)))
    yield "packed within packed", frame(Kind.PACKED, zlib.compress(frame(Kind.PACKED, zlib.compress(b"kRc1"))))
    yield "no zlib", frame(Kind.PACKED, b"kedge")
    yield "a stream that was cut", frame(Kind.PACKED, zlib.compress(encoded([second(1)]))[:-5])


@pytest.mark.parametrize(("what", "data"), list(hostile()), ids=[what for what, _ in hostile()])
def test_hostile_frames_are_passed_over(what: str, data: bytes) -> None:
    skipped = Skipped()
    assert list(read_records(data + encoded([second(1)]), skipped)) == [second(1)]
    if what != "packed within packed":
        assert skipped.frames == 1


def test_a_record_with_times_or_readings_that_cannot_be_is_passed_over_or_loses_them() -> None:
    whole = [second(1), second(2, at_s=float("nan")), second(3, monotonic_s=-1.0), second(4, seconds=float("inf"))]
    skipped = Skipped()
    assert list(read_records(encoded(whole), skipped)) == [second(1)]
    assert skipped.frames == 3
    (told,) = read_records(encoded([second(1, channels={"temperature.cpu": float("inf")}, throttled=7.0)]))
    assert told.channels == {}
    assert told.throttled is None


def test_frames_that_never_add_up_do_not_keep_the_reader_busy() -> None:
    lying = frame(Kind.RECORD, bytes(100))[:13].replace(b"\x64\0\0\0", (250_000).to_bytes(4, "little"))
    data = lying * 200_000
    skipped = Skipped()
    assert list(read_records(data, skipped)) == []
    assert skipped.damaged < 20_000
    assert skipped.bytes == len(data)


def test_what_unpacks_to_more_than_a_recording_may_is_left_out() -> None:
    block = frame(Kind.PACKED, zlib.compress(frame(Kind(1), bytes(200_000))))
    count = MAX_RECORDING_BYTES // 200_000 + 10
    skipped = Skipped()
    assert list(read_records(block * count, skipped)) == []
    assert skipped.frames >= count


def test_merged_seconds_are_one_with_their_means_extremes_sums_and_newest_counts() -> None:
    records = [second(number) for number in range(1, 11)]
    (merged,) = (each for each in resample(records, 1e9))
    assert merged.seconds == 10
    assert merged.at_s == records[-1].at_s
    assert merged.channels == {
        "temperature.cpu": 45.5,
        "memory.available": 4096 * 5.5,
        "throttle.oc1": 2.0,
    }
    assert (merged.lows["temperature.cpu"], merged.highs["temperature.cpu"]) == (41.0, 50.0)
    model = merged.models["digits"]
    assert model.total.count == model.compute.count == 20
    assert model.failures == {"busy": 10}
    assert model.waiting == 2
    assert list(read_records(encoded([merged]))) == [merged]
    # A record of its own is left as it was.
    assert records[0] == second(1)


def test_resampling_keeps_gaps_starts_and_everything_that_was_counted() -> None:
    records = [start(0), *(second(number) for number in (*range(1, 101), *range(301, 401)))]
    told = list(resample(records, 60.0))
    assert told[0].start is not None
    steps = [each for each in told if each.start is None]
    assert sum(each.seconds for each in steps) == 200
    assert sum(each.models["digits"].total.count for each in steps) == 400
    assert all(0 < each.seconds <= 60 for each in steps)
    gaps = [later.at_s - later.seconds - sooner.at_s for sooner, later in pairwise(steps)]
    assert max(gaps) >= 140
    assert sorted(gaps)[-2] < 1
    # Minutes that were merged before merge into the same hours as seconds do.
    assert list(resample(steps, 3600.0)) == list(resample([each for each in records if not each.start], 3600.0))


def test_a_summary_says_what_happened() -> None:
    records = [second(number, ms=[1.0] * 98 + [9.0] * 2) for number in range(1, 101)]
    told = summarise([start(0), *records])
    assert (told["from_s"], told["to_s"], told["seconds"]) == (AT_S, AT_S + 100, 100.0)
    model = told["models"]["digits"]
    assert model["requests"] == 10_000
    assert model["failures"] == {"busy": 100}
    assert model["compute_p50_ms"] == pytest.approx(1.0, rel=1 / 64)
    assert model["compute_p99_ms"] == pytest.approx(9.0, rel=1 / 64)
    assert model["total_p50_ms"] == pytest.approx(1.5, rel=1 / 64)
    assert told["channels"]["temperature.cpu"] == {"min": 41, "mean": 90.5, "max": 140, "last": 140, "unit": "°C"}
    assert told["throttles"] == {"oc1": 25}
    assert told["throttled_share"] == 0.0
    assert (told["gaps"], told["clock_jumps"]) == (0, 0)
    json.dumps(told, allow_nan=False)


def test_a_summary_of_nothing_invents_nothing() -> None:
    told = summarise([start(0)])
    assert told["from_s"] is told["to_s"] is told["throttled_share"] is None
    assert told["models"] == told["channels"] == told["throttles"] == {}
    idle = summarise([second(1, ms=(), throttled=None, channels={})])
    assert idle["models"]["digits"]["requests"] == 0
    assert idle["models"]["digits"]["total_p99_ms"] is None
    assert idle["throttled_share"] is None


def test_a_summary_s_figures_are_of_the_last_release_alone() -> None:
    records = [second(number, ms=[1.0] * 100) for number in range(10)]
    records += [second(number, release=NEW, ms=[5.0] * 100) for number in range(10, 20)]
    # The old one answered the last of its requests when the new one served already.
    records += [second(20, ms=[1.0] * 500, seconds=0.0, channels={}), second(21, release=NEW, ms=[5.0])]
    model = summarise(records)["models"]["digits"]
    assert model["release"] == NEW
    assert model["requests"] == 1001
    assert model["total_p50_ms"] == pytest.approx(5.5, rel=1 / 64)
    assert latest_models(records)["digits"].total.count == 1001
    (merged,) = resample(records, 1e9)
    assert merged.models["digits"].release == NEW
    assert merged.models["digits"].total.count == 2501


def test_gaps_starts_of_the_system_and_jumps_of_the_clock_are_told_apart() -> None:
    jumped = [second(number, at_s=AT_S + number + 3600) for number in (12, 13)]
    rebooted = [second(20, boot="another", monotonic_s=12.0), second(21, boot="another", monotonic_s=13.0)]
    told = summarise([second(1), second(2), second(10), second(11), *jumped, *rebooted])
    assert told["clock_jumps"] == 1
    assert told["gaps"] == 2


def test_counters_of_throttling_that_begin_anew_take_nothing_away() -> None:
    counts = [5, 5, 8, 0, 2]
    records = [second(number, channels={"throttle.oc1": float(count)}) for number, count in enumerate(counts)]
    assert summarise(records)["throttles"] == {"oc1": 5}


def test_the_share_of_throttled_time_is_weighted_by_time() -> None:
    long = second(120, seconds=60.0, throttled=0.5)
    assert summarise([second(1, throttled=1.0), second(2, throttled=None), long])["throttled_share"] == pytest.approx(
        31 / 61
    )


def test_a_day_of_seconds_and_weeks_of_minutes_fit_into_what_the_rings_have() -> None:
    """10 channels, 2 models that answer 10 requests a second each."""
    drawn = random.Random(7)  # noqa: S311
    channels = {f"temperature.{number}": "°C" for number in range(9)} | {"memory.available": "bytes"}

    def busy(number: int, seconds: float, requests: int) -> Record:
        models = {}
        for name in ("a", "b"):
            times = [drawn.lognormvariate(0, 0.2) * 4 for _ in range(requests)]
            models[name] = ModelRecord(OLD, 1, histogram(*(each + 0.3 for each in times)), histogram(*times))
        values = {name: 45 + drawn.random() for name in channels}
        extremes = {"lows": values, "highs": values} if seconds > 1 else {}
        at_s = AT_S + number * seconds
        return Record(at_s, BOOT, at_s, seconds, models, values, units=channels, throttled=0.0, **extremes)

    def per_record(seconds: float, count: int, requests: int) -> float:
        return len(pack(encoded([busy(number, seconds, requests) for number in range(count)]))) / count

    room = {name: 32e6 * share - 2 * (256 << 10) for name, share in SHARES.items()}
    a_second, a_minute = per_record(1.0, 2000, 10), per_record(60.0, 300, 600)
    assert room[SECONDS] / a_second > 2 * 86_400, f"{a_second:.0f} bytes a second"
    assert room[MINUTES] / a_minute > 3 * 7 * 1440, f"{a_minute:.0f} bytes a minute"
