from __future__ import annotations

import time
from pathlib import Path

import pytest

from kedge_agent.formats.trust import Conditions, judge
from kedge_agent.measure.sensors.clocks import find_clocks
from kedge_agent.measure.sensors.processor import read_processor_time
from kedge_agent.measure.sensors.throttle import read_throttles
from kedge_agent.measure.watch import read_conditions, watch
from tests.support.trees import unfold


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    return unfold("x86_laptop", tmp_path / "laptop")


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    return unfold("jetson_orin_nano", tmp_path / "jetson")


def told(root: Path) -> tuple[list[tuple[str, int | None, bool | None]], list[str]]:
    clocks, missing = find_clocks(root)
    return [(clock.name, clock.hz(), clock.locked()) for clock in clocks], missing


def test_of_processors_that_are_clocked_apart_the_fastest_counts(laptop: Path) -> None:
    clocks, missing = told(laptop)
    assert clocks == [("processor", 2_899_951_000, False)]
    assert missing == ["clock of a GPU: none in devfreq here"]


def test_the_clocks_of_a_jetson_are_told_and_that_they_are_locked(jetson: Path) -> None:
    clocks, missing = told(jetson)
    assert clocks == [("processor", 1_510_400_000, True), ("GPU", 624_750_000, True)]
    assert missing == []


def test_a_clock_whose_limits_are_not_told_may_be_locked_or_not(jetson: Path) -> None:
    (jetson / "sys/class/devfreq/17000000.gpu/min_freq").unlink()
    (jetson / "sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq").write_text("1190400\n")
    clocks, _ = told(jetson)
    assert [locked for _, _, locked in clocks] == [False, None]


def test_throttle_counters_of_cores_are_summed_and_the_package_s_is_counted_once(laptop: Path) -> None:
    counters, missing = read_throttles(laptop)
    assert counters == {"thermal throttling of cores": 16, "thermal throttling of the package": 17}
    assert missing == []


def test_over_current_events_of_a_jetson_are_counted_and_other_sensors_are_not(jetson: Path) -> None:
    counters, _ = read_throttles(jetson)
    assert counters == {"over-current oc1": 0, "over-current oc2": 0, "over-current oc3": 41}


def test_processor_time_is_in_seconds_whatever_a_process_is_called(
    laptop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    found = read_processor_time(laptop)
    assert found is not None
    assert found.busy_s == pytest.approx((102030 + 512 + 40960 + 0 + 1024) / 100)
    assert found.stolen_s == 0
    assert found.own_s == pytest.approx((700 + 150 + 30 + 20) / 100)


def test_what_a_device_does_not_tell_is_listed_and_never_zero(tmp_path: Path) -> None:
    conditions = read_conditions(tmp_path)
    assert (conditions.clocks_hz, conditions.throttled, conditions.processor) == ({}, {}, None)
    assert [line.partition(":")[0] for line in conditions.unavailable] == [
        "clock of the processor",
        "clock of a GPU",
        "throttling",
        "other processes",
    ]


@pytest.mark.parametrize("text", ["", "-5\n", "1e9\n", "٣\n", "9" * 30, "12 34\n"])
def test_a_file_that_holds_no_number_is_as_good_as_none(jetson: Path, text: str) -> None:
    (jetson / "sys/class/devfreq/17000000.gpu/cur_freq").write_text(text)
    clocks, missing = told(jetson)
    assert [name for name, _, _ in clocks] == ["processor"]
    assert missing == ["clock of a GPU: none in devfreq here"]


@pytest.mark.parametrize("text", ["", "cpu 1 2\n", "cpu a b c d e f g h\n"])
def test_a_statistic_that_makes_no_sense_is_unavailable(jetson: Path, text: str) -> None:
    (jetson / "proc/stat").write_text(text)
    assert read_processor_time(jetson) is None


def test_readings_travel_as_json_and_come_back(jetson: Path) -> None:
    conditions = read_conditions(jetson)
    assert Conditions.from_json(conditions.to_json()) == conditions
    for damaged in (None, [], {}, conditions.to_json() | {"clocks_hz": {"GPU": "fast"}}):
        with pytest.raises(ValueError, match="not a reading"):
            Conditions.from_json(damaged)


def test_a_watch_has_a_reading_from_before_and_one_from_after(jetson: Path) -> None:
    with watch(jetson) as readings:
        assert len(readings) == 1
        (jetson / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("44\n")
    assert readings[0].throttled["over-current oc3"] == 41
    assert readings[-1].throttled["over-current oc3"] == 44


def test_a_clock_that_moves_only_in_between_is_seen(jetson: Path) -> None:
    current = jetson / "sys/class/devfreq/17000000.gpu/cur_freq"
    with watch(jetson) as readings:
        current.write_text("306000000\n")
        while readings[-1].clocks_hz.get("GPU") != 306_000_000:
            time.sleep(0.01)
        current.write_text("624750000\n")
    (reason,) = judge([1.0] * 200, readings, others=False).reasons
    assert reason.what == "clock"
    assert "between 306 and 625 MHz" in reason.text


def test_the_machine_that_runs_this_tells_what_it_used() -> None:
    first = read_processor_time(Path("/"))
    sum(range(3_000_000))
    second = read_processor_time(Path("/"))
    assert first is not None
    assert second is not None
    assert second.at_s > first.at_s
    assert second.own_s >= first.own_s > 0
    assert second.busy_s >= second.own_s
