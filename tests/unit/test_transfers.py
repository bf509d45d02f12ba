from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime.transfers import choose
from tests.support.fake_cuda import DISCRETE, JETSON, UNIFIED

Gains = Mapping[tuple[str, str], float]


def measured(gains: Gains, *, runs: list[dict[str, str]] | None = None) -> Callable[[Mapping[str, str]], float]:
    """10 ms, less what each way gains for each tensor."""

    def measure(modes: Mapping[str, str]) -> float:
        if runs is not None:
            runs.append(dict(modes))
        return 10.0 - sum(gains.get(item, 0.0) for item in modes.items())

    return measure


def test_each_tensor_gets_the_way_that_is_fastest_for_it() -> None:
    gains = {("x", "mapped"): 2.0, ("x", "managed"): 1.0, ("y", "managed"): 0.5, ("y", "mapped"): -3.0}
    chosen = choose("auto", UNIFIED, ["x", "y", "z"], measured(gains))
    assert chosen.modes == {"x": "mapped", "y": "managed", "z": "copy"}
    assert chosen.report["copied_ms"] == 10.0
    assert chosen.report["tried_ms"]["y"] == {"mapped": 13.0, "managed": 9.5}
    assert chosen.report["together_ms"] == 7.5


def test_a_gain_within_the_scatter_of_measurement_is_none() -> None:
    assert choose("auto", UNIFIED, ["x"], measured({("x", "mapped"): 0.1})).modes == {"x": "copy"}


def test_choices_that_do_not_go_together_are_given_up() -> None:
    def measure(modes: Mapping[str, str]) -> float:
        placed = [name for name, mode in modes.items() if mode == "mapped"]
        return {0: 10.0, 1: 8.0, 2: 11.0}[len(placed)]

    chosen = choose("auto", JETSON, ["x", "y"], measure)
    assert chosen.modes == {"x": "copy", "y": "copy"}
    assert chosen.report["together_ms"] == 11.0


def test_ways_that_the_gpu_has_not_are_not_tried_and_said_why() -> None:
    runs: list[dict[str, str]] = []
    chosen = choose("auto", JETSON, ["x"], measured({}, runs=runs))
    assert [run["x"] for run in runs] == ["copy", "mapped"]
    assert chosen.report["refused"] == {
        "managed": "CPU and GPU may not use managed memory at a time here (concurrentManagedAccess is 0)"
    }
    runs.clear()
    assert choose("auto", DISCRETE, ["x"], measured({}, runs=runs)).modes == {"x": "copy"}
    assert runs == []


def test_what_there_is_no_time_to_measure_stays_copied_and_is_not_told_a_figure() -> None:
    clock = itertools.count(step=2)
    chosen = choose("auto", JETSON, ["x", "y"], measured({("y", "mapped"): 9.0}), lambda: float(next(clock)))
    assert chosen.modes == {"x": "copy", "y": "copy"}
    assert chosen.report["tried_ms"] == {"x": {"mapped": 10.0}, "y": {"mapped": None}}


def test_a_way_that_there_is_no_memory_for_is_passed_over_and_other_failures_are_not() -> None:
    def measure(modes: Mapping[str, str]) -> float:
        if "managed" in modes.values():
            raise AgentError("no memory", kind="space")
        if modes["x"] == "mapped":
            return 5.0
        return 10.0

    chosen = choose("auto", UNIFIED, ["x"], measure)
    assert chosen.modes == {"x": "mapped"}
    assert chosen.report["tried_ms"]["x"]["managed"] is None

    def broken(modes: Mapping[str, str]) -> float:
        raise AgentError("the GPU is gone", kind="internal")

    with pytest.raises(AgentError, match="gone"):
        choose("auto", UNIFIED, ["x"], broken)


def test_what_is_asked_for_is_done_without_measuring_or_refused() -> None:
    runs: list[dict[str, str]] = []
    assert choose("managed", UNIFIED, ["x", "y"], measured({}, runs=runs)).modes == {"x": "managed", "y": "managed"}
    assert runs == []
    for device, way in ((JETSON, "managed"), (DISCRETE, "mapped"), (DISCRETE, "managed")):
        with pytest.raises(AgentError, match="cannot be had") as caught:
            choose(way, device, ["x"], measured({}))  # type: ignore[arg-type]
        assert caught.value.kind == "incompatible"
