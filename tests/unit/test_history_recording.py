"""A recording that a host fetched is on one line of time, in few steps, honest about what is missing, and bounded."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import click
import pytest

from kedge.cli.units import parse_duration
from kedge.diagnose.recording import recording_of, step_for
from kedge_agent.formats.recording import ModelRecord, Record, pack
from tests.support.recordings import (
    BEGIN_S,
    BOOT,
    LOST,
    NEW,
    OLD,
    SECONDS,
    THROTTLED,
    encoded,
    histogram,
    recorded,
    started,
    two_hours,
)

pytest.importorskip("hypothesis", reason="needs hypothesis (pip install hypothesis)")
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("3d", 259_200), ("1.5h", 5400)]
)
def test_a_time_is_read_as_people_write_it(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-2h", "2 weeks", "0s", "401d", "1e9s", "2h30m"])
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_duration(text)


@pytest.mark.parametrize(("since_s", "steps", "step_s"), [(7200, 300, 30), (7200, 60, 120), (60, 300, 1), (90, 60, 2)])
def test_a_step_is_a_round_time_that_makes_few_enough_steps(since_s: int, steps: int, step_s: float) -> None:
    assert step_for(since_s, steps) == step_s


def test_the_longest_time_has_few_enough_steps_too() -> None:
    assert 400 * 86_400 / step_for(400 * 86_400, 60) <= 60


def test_steps_sum_up_what_was_recorded_and_a_gap_has_none() -> None:
    told = recording_of(two_hours(), SECONDS, steps=120)
    assert told is not None
    assert (told.from_s, told.to_s, told.step_s) == (BEGIN_S, BEGIN_S + SECONDS, 60)
    assert told.gaps == [(BEGIN_S + LOST.start - 1, BEGIN_S + LOST.stop - 1)]
    assert all(not BEGIN_S + LOST.start + 60 < step.at_s < BEGIN_S + LOST.stop for step in told.steps)
    asked = sum(step.models["digits"].total.count for step in told.steps)
    assert asked == 5 * (SECONDS - len(LOST)) == told.summary["models"]["digits"]["requests"] + 5 * 1999
    assert all(before.at_s < after.at_s for before, after in pairwise(told.steps))
    assert [start.start and start.start.how for start in told.starts] == ["after-crash"]
    assert told.summary["throttles"] == {"over-current oc1": len(THROTTLED)}
    assert told.jumps == []


def test_the_time_since_the_last_record_is_a_gap() -> None:
    told = recording_of(two_hours(), SECONDS, now_s=BEGIN_S + SECONDS + 3600)
    assert told is not None
    assert told.gaps[-1] == (BEGIN_S + SECONDS, BEGIN_S + SECONDS + 3600)
    soon = recording_of(two_hours(), SECONDS, now_s=BEGIN_S + SECONDS + 2)
    assert soon is not None
    assert len(soon.gaps) == 1


def test_a_minute_without_a_record_is_no_gap_where_minutes_are_recorded() -> None:
    minutes = encoded([replace(recorded(60 * each), seconds=60.0) for each in range(1, 11)])
    told = recording_of(minutes, 3600, now_s=BEGIN_S + 659, resolution_s=60)
    assert told is not None
    assert told.gaps == []


def test_a_clock_that_was_set_bends_nothing_and_is_told() -> None:
    """It stood at 1970 until a time server was reached."""
    early = [replace(recorded(each), at_s=100.0 + each) for each in range(1, 61)]
    told = recording_of(encoded([*early, *(recorded(each) for each in range(61, 121))]), 600)
    assert told is not None
    assert told.summary["seconds"] == 120
    assert told.gaps == []
    assert [(at_s, round(by_s)) for at_s, by_s in told.jumps] == [(BEGIN_S + 61, BEGIN_S - 100)]
    assert told.summary["clock_jumps"] == 1
    assert [step.at_s for step in told.steps] == sorted(step.at_s for step in told.steps)


def test_of_an_earlier_start_of_the_system_its_own_clock_counts() -> None:
    before = [replace(recorded(each), boot="earlier", monotonic_s=5e6 + each) for each in range(1, 11)]
    told = recording_of(encoded(before, "earlier") + encoded([replace(recorded(60), monotonic_s=30.0)]), 600)
    assert told is not None
    assert told.summary["seconds"] == 11
    assert told.gaps == [(BEGIN_S + 10, BEGIN_S + 59)]
    assert told.jumps == []


def test_an_earlier_start_whose_clock_was_ahead_does_not_lie_over_this_one() -> None:
    before = [replace(recorded(each), boot="earlier") for each in range(50, 60)]
    told = recording_of(encoded(before, "earlier") + encoded([replace(recorded(60), monotonic_s=30.0)]), 600)
    assert told is not None
    assert told.summary["seconds"] == 1


def test_one_model_alone_is_told_where_it_is_asked_for() -> None:
    told = recording_of(two_hours(), SECONDS, model="detector")
    assert told is not None
    assert set(told.summary["models"]) == {"detector"}
    assert all(set(step.models) <= {"detector"} for step in told.steps)
    assert any(not step.models for step in told.steps)


def test_nothing_recorded_is_no_recording() -> None:
    assert recording_of(b"", 60) is None
    assert recording_of(b"rot" * 1000, 60) is None


def test_a_start_alone_is_told() -> None:
    told = recording_of(encoded([started(5, "start")]), 60)
    assert told is not None
    assert (list(told.steps), len(told.starts)) == ([], 1)


def test_the_document_is_json_whatever_was_recorded() -> None:
    from tests.support.schemas import validate

    told = recording_of(two_hours(), SECONDS)
    assert told is not None
    document = {"device": "nano", "model": None, "entries": [], "entries_why": None, "recording_why": None}
    validate({**document, "problems": [], "recording": told.to_json()}, "history")
    step = told.to_json()["steps"][0]
    assert step["models"]["digits"]["release"] == OLD
    assert step["channels"]["load.gpu"] == {"mean": 0.8, "min": 0.8, "max": 0.8}
    assert told.to_json()["steps"][-1]["models"]["digits"]["release"] == NEW


def test_a_device_that_makes_up_times_and_models_is_bounded() -> None:
    def lie(number: int) -> Record:
        models = {f"m{number}-{each}": ModelRecord(OLD, 1, histogram(1), histogram(1)) for each in range(20)}
        return Record(1e11 - number * 1e7, BOOT, float(number), 1e9, models, {"temperature.x": -3e38})

    told = recording_of(encoded([lie(each) for each in range(200)]), 400 * 86_400, steps=60)
    assert told is not None
    assert len(told.steps) <= 61
    assert len({name for step in told.steps for name in step.models}) <= 16
    json.dumps(told.to_json(), allow_nan=False)


finite = st.floats(0, 1e11, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda at_s, monotonic_s, seconds, value: Record(
                at_s, BOOT, monotonic_s, seconds, {}, {"clock.cpu": value}, units={"clock.cpu": "Hz"}
            ),
            finite,
            finite,
            st.floats(0, 2.0**36, allow_nan=False, width=32),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
        ),
        max_size=30,
    ),
    st.integers(1, 400 * 86_400),
    st.integers(1, 300),
    st.one_of(st.none(), finite),
)
def test_whatever_records_say_their_steps_are_in_order_and_few(
    records: list[Record], since_s: int, steps: int, now_s: float | None
) -> None:
    told = recording_of(encoded(records), since_s, steps=steps, now_s=now_s)
    if told is None:
        return
    assert len(told.steps) <= steps + 2
    times = [step.at_s for step in told.steps]
    assert all(told.from_s < each <= told.to_s for each in times)
    document: dict[str, Any] = json.loads(json.dumps(told.to_json(), allow_nan=False))
    assert math.isfinite(document["step_s"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_recording_with_rot_in_it_is_told_as_far_as_it_is_whole(data: st.DataObject) -> None:
    packed = bytearray(pack(encoded([recorded(each) for each in range(1, 30)])))
    for _ in range(data.draw(st.integers(1, 5))):
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    told = recording_of(bytes(packed), 3600)
    assert told is None or told.summary["seconds"] <= 29
