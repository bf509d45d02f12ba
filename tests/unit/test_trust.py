from __future__ import annotations

from dataclasses import replace

import pytest

from kedge_agent.formats.latency import percentile_index
from kedge_agent.formats.trust import Conditions, ProcessorTime, Reason, judge

STEADY = [1.0 + 0.001 * (index % 3) for index in range(300)]
QUIET = Conditions({"processor": 2_000_000_000}, {"processor": True}, {"oc3": 41}, ProcessorTime(100, 50, 0, 20))
LATER = replace(QUIET, processor=ProcessorTime(103, 53, 0, 23))


def reasons(samples: list[float], *readings: Conditions, others: bool = True) -> list[str]:
    return [reason.what for reason in judge(samples, readings or (QUIET, LATER), others=others).reasons]


def test_a_steady_result_on_a_quiet_device_is_stable() -> None:
    verdict = judge(STEADY, (QUIET, LATER)).to_json()
    assert verdict["stable"] is True
    assert verdict["reasons"] == []
    assert verdict["unavailable"] == []
    assert verdict["clocks"] == [
        {"name": "processor", "min_hz": 2_000_000_000, "max_hz": 2_000_000_000, "readings": 2, "locked": True}
    ]


def test_samples_that_scatter_by_more_than_one_per_cent_are_a_reason_with_its_figure() -> None:
    (reason,) = judge([1.0, 1.03] * 100, (QUIET, LATER)).reasons
    assert reason.what == "cov"
    assert reason.figures["cov"] == pytest.approx(0.015 / 1.015)
    assert "1.5 %" in reason.text


def test_up_to_a_hundred_samples_are_too_few_for_p99() -> None:
    assert percentile_index(100, 99) == 99, "it is the largest"
    assert reasons(STEADY[:100]) == ["samples"]
    assert percentile_index(101, 99) == 99
    assert reasons(STEADY[:101]) == []


def test_a_second_half_that_is_slower_than_the_first_is_drift() -> None:
    drifting = [1.0] * 200 + [1.06] * 200
    found = judge(drifting, (QUIET, LATER)).reasons
    assert [reason.what for reason in found] == ["cov", "drift"]
    assert found[1].figures == {"first_median_ms": 1.0, "second_median_ms": 1.06}
    assert "+6.0 %" in found[1].text
    assert "drift" not in reasons([1.0, 1.06] * 200)


def test_a_clock_that_moved_in_between_is_a_reason_though_it_came_back() -> None:
    dipped = replace(QUIET, clocks_hz={"processor": 1_800_000_000})
    (reason,) = judge(STEADY, (QUIET, dipped, LATER)).reasons
    assert (reason.what, reason.figures) == ("clock", {"min_hz": 1_800_000_000, "max_hz": 2_000_000_000})
    jitter = replace(QUIET, clocks_hz={"processor": 1_950_000_000})
    assert reasons(STEADY, QUIET, jitter, LATER) == []


def test_a_throttle_counter_that_moved_is_a_reason_and_one_that_stands_is_none() -> None:
    moved = replace(LATER, throttled={"oc3": 44, "new": 7})
    (reason,) = judge(STEADY, (QUIET, moved)).reasons
    assert reason.what == "throttle"
    assert "oc3 counted 3 more" in reason.text


def test_time_that_other_processes_took_is_a_reason_and_our_own_is_not() -> None:
    busy = replace(LATER, processor=ProcessorTime(103, 54.5, 0, 23))
    (reason,) = judge(STEADY, (QUIET, busy)).reasons
    assert reason.what == "others"
    assert reason.figures["cores"] == pytest.approx(0.5)
    assert reasons(STEADY, QUIET, busy, others=False) == []
    stolen = replace(LATER, processor=ProcessorTime(103, 53, 0.9, 23))
    for others in (True, False):
        assert reasons(STEADY, QUIET, stolen, others=others) == ["stolen"], "no other process of this system is it"


def test_less_than_a_second_tells_nothing_of_other_processes() -> None:
    tick = replace(LATER, processor=ProcessorTime(100.0007, 50.01, 0, 20))
    found = judge(STEADY, (replace(QUIET, processor=ProcessorTime(100, 50, 0, 20)), tick))
    assert found.reasons == ()
    assert any("too short" in line for line in found.unavailable)


def test_what_could_not_be_looked_at_is_listed_once() -> None:
    blind = Conditions(unavailable=("throttling: no counter here",))
    assert judge(STEADY, (blind, blind)).unavailable == ("throttling: no counter here",)
    (line,) = judge(STEADY, ()).unavailable
    assert "nothing was read" in line
    assert "other processes" in judge(STEADY, (QUIET, LATER), others=False).unavailable[0]


def test_what_the_caller_found_comes_first() -> None:
    verdict = judge(STEADY, (QUIET, LATER), more=[Reason("overload", "too much", {"asked_per_s": 9})])
    assert verdict.to_json()["stable"] is False
    assert verdict.reasons[0].what == "overload"
