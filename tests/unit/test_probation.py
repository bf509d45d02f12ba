"""What a release must keep to after the switch: rules on figures, and the watch that gathers them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from kedge_agent.errors import AgentError
from kedge_agent.formats.gates import LatencyGate, ProbationRules
from kedge_agent.formats.latency import LEAST_REQUESTS
from kedge_agent.runtime.pool import Timing
from kedge_agent.serving.probation import Findings, Watch, failing, probation_rules, slow
from kedge_agent.serving.statistics import ModelStatistics

RULES = ProbationRules(60, 0.1)


@pytest.mark.parametrize(
    ("found", "limits", "before_p99_ms", "reason"),
    [
        (Findings(0, 0, None), None, None, None),
        (Findings(2, 2, None), None, None, None),
        (Findings(3, 3, None), None, None, "3 of 3 requests failed in the runtime, more than 10 %"),
        (Findings(100, 10, None), None, None, None),
        (Findings(100, 11, None), None, None, "11 of 100 requests failed"),
        (Findings(500, 0, 9.0), None, 1.0, None),
        (Findings(500, 0, None), LatencyGate(5), None, None),
        (Findings(500, 0, 5.0), LatencyGate(5), None, None),
        (Findings(500, 0, 5.1), LatencyGate(5), None, "is 5.100 ms, above 5 ms"),
        (Findings(500, 0, 5.1), LatencyGate(None, 2), None, None),
        (Findings(500, 0, 5.1), LatencyGate(None, 2), 3.0, None),
        (Findings(500, 0, 6.6), LatencyGate(None, 2), 3.0, "2.20 times that of the release before, above 2 times"),
    ],
)
def test_a_rule_is_broken_by_figures_that_are_there(
    found: Findings, limits: LatencyGate | None, before_p99_ms: float | None, reason: str | None
) -> None:
    said = failing(found, RULES) or slow(found, limits, before_p99_ms)
    assert said is None if reason is None else said is not None and reason in said


def test_a_p99_is_of_the_last_1024_requests_and_of_a_hundred_at_least() -> None:
    statistics = ModelStatistics()
    for number in range(LEAST_REQUESTS):
        assert statistics.recent_p99_ms(LEAST_REQUESTS) is None
        statistics.success(Timing(compute_ns=(number + 1) * 1_000_000), 1, 0, 0)
    assert statistics.recent_p99_ms(LEAST_REQUESTS) == 100
    for _ in range(1024):
        statistics.success(Timing(compute_ns=2_000_000), 1, 0, 0)
    assert statistics.recent_p99_ms(LEAST_REQUESTS) == 2


class Live:
    """What a watch looks at of a live model."""

    def __init__(self, latency: LatencyGate | None = None) -> None:
        self.statistics = ModelStatistics()
        self.pool, self.patience_s, self.stuck_s = self, 60.0, lambda: 0.0
        self.manifest = type("Manifest", (), {"digest": "a" * 64, "gates": type("Gates", (), {"latency": latency})})


def watched(live: Live, seconds: int) -> tuple[Watch, list[dict[str, Any]]]:
    return Watch(live.manifest, lambda: live, ProbationRules(seconds), None), []  # type: ignore[arg-type, return-value]


def test_no_probation_ends_at_once_and_says_what_it_has_seen() -> None:
    watch, told = watched(Live(), 0)
    assert watch.run(told.append) is None
    (event,) = told
    assert (event["event"], event["seconds"], event["requests"], event["p99_ms"]) == ("probation", 0, 0, None)


def test_failures_in_the_runtime_end_it_early_and_what_clients_did_wrong_does_not() -> None:
    live = Live()
    watch, told = watched(live, 600)
    for _ in range(50):
        live.statistics.failure(AgentError("the shape is wrong"), 0)
        live.statistics.failure(AgentError("too many", kind="busy"), 0)
    ended: list[str | None] = []
    thread = threading.Thread(target=lambda: ended.append(watch.run(told.append)))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert watch.findings() == Findings(0, 0, None)
    for _ in range(3):
        live.statistics.failure(None, 0)
    thread.join(10)
    assert ended == ["3 of 3 requests failed in the runtime, more than 1 %"]
    assert told[-1]["errors"] == 3


def test_one_request_that_took_long_is_no_reason_to_go_back() -> None:
    live = Live(LatencyGate(p99_ms=5))
    watch, told = watched(live, 3)
    for number in range(100):
        live.statistics.success(Timing(compute_ns=50_000_000 if number == 50 else 1_000_000), 1, 0, 0)
    ended: list[str | None] = []
    thread = threading.Thread(target=lambda: ended.append(watch.run(told.append)))
    thread.start()
    thread.join(0.5)
    assert watch.findings().p99_ms == 50
    for _ in range(20):
        live.statistics.success(Timing(compute_ns=1_000_000), 1, 0, 0)
    thread.join(10)
    assert ended == [None]


def test_a_release_that_is_slow_still_when_the_time_is_over_goes_back() -> None:
    live = Live(LatencyGate(p99_ms=5))
    watch, told = watched(live, 1)
    for _ in range(100):
        live.statistics.success(Timing(compute_ns=6_000_000), 1, 0, 0)
    assert watch.run(told.append) == "p99 of what clients sent is 6.000 ms, above 5 ms"


def test_the_wall_clock_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, told = watched(Live(), 600)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    thread = threading.Thread(target=watch.run, args=(told.append,))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    watch.cut("stopping")
    watch.cut("rolled-back")
    thread.join(10)
    assert watch.cut_by == "stopping", "the first who ends it says why"


def test_the_release_s_own_word_comes_before_the_device_s() -> None:
    assert probation_rules(None, 10) == ProbationRules(10)
    assert probation_rules(ProbationRules(0, 0.5), 10) == ProbationRules(0, 0.5)
