"""A model's last five minutes beside its last hour: what is over is no fault, and what has just begun is one."""

from __future__ import annotations

from typing import Any

import pytest

from kedge.diagnose.checks.latency import drifting, latency
from kedge.diagnose.evidence import Evidence
from kedge.diagnose.finding import Finding
from tests.support.evidence import NOW_S, data, healthy, judged, slow


def spoilt(*, hour: float = 1.0, p50: float = 1.0, p99: float = 1.0, requests: int = 3000) -> dict[str, Any]:
    """Times what it was: the hour's 99th percentile, and both of the last five minutes."""
    document = slow(healthy(), hour)
    told = data(document, "recorder")
    camera = {**told["hour"]["models"]["camera"], "requests": requests}
    camera |= {"compute_p50_ms": 12.0 * p50, "compute_p99_ms": 14.8 * p99}
    told["recent"] = {**told["hour"], "seconds": 300, "models": {"camera": camera}}
    return document


def look(evidence: Evidence) -> Finding:
    [found] = latency(evidence)
    return found


def test_what_was_slow_within_the_hour_and_is_no_more_is_a_warning() -> None:
    evidence = judged(spoilt(hour=2.3))
    finding = look(evidence)
    assert (finding.result, finding.brief) == ("warning", "p99 2.3 × what it was")
    assert "in the last hour" in finding.evidence
    assert finding.evidence.endswith("as it was in the last five minutes")
    assert finding.figures["recent_p50_ratio"] == 1.0
    assert not drifting(evidence)


@pytest.mark.parametrize("recent", [{"p50": 2.0, "p99": 2.3}, {"p99": 1.6}])
def test_what_is_slow_still_is_a_fault(recent: dict[str, float]) -> None:
    evidence = judged(spoilt(hour=2.3, **recent))
    assert look(evidence).result == "fault"
    assert "five minutes" not in look(evidence).evidence
    assert drifting(evidence)


def test_a_median_that_has_doubled_within_five_minutes_is_a_fault_before_the_hour_tells() -> None:
    evidence = judged(spoilt(p50=2.5, p99=2.6))
    finding = look(evidence)
    assert (finding.result, finding.brief) == ("fault", "p50 2.5 × what it was")
    assert "30 ms of compute in the last five minutes" in finding.evidence
    assert drifting(evidence)
    assert look(judged(spoilt(p50=1.6))).result == "warning"


def test_a_few_slow_ones_in_five_minutes_are_no_fault() -> None:
    assert look(judged(spoilt(p99=4.0))).result == "ok"


def test_five_minutes_of_few_requests_say_nothing() -> None:
    assert look(judged(spoilt(hour=2.3, requests=60))).result == "fault"
    assert look(judged(spoilt(p50=3.0, requests=60))).result == "ok"


def test_five_minutes_in_part_before_the_deploy_say_nothing() -> None:
    document = spoilt(p50=3.0)
    since = data(document, "recorder")["since_deploy"]["camera"]
    since["at_deploy"]["at_s"] = int(NOW_S) - 200
    since["from_s"] = NOW_S - 199.5
    assert look(judged(document)).result == "ok"
