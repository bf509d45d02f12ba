"""A GPU at the power limit that it always reaches at full load is not throttled."""

from __future__ import annotations

from kedge.diagnose.checks.heat import throttling
from tests.support.evidence import data, healthy, judged


def test_a_gpu_at_its_power_limit_is_well_and_that_is_said() -> None:
    document = healthy()
    channel = {"min": 0.0, "mean": 0.62, "max": 1.0, "last": 1.0, "unit": "ratio"}
    data(document, "recorder")["hour"]["channels"]["limit.GPU power cap"] = channel
    finding = throttling(judged(document))
    assert (finding.result, finding.figures["power_cap_share"]) == ("ok", 0.62)
    assert "at its GPU's power limit 62 % of the last hour" in finding.evidence


def test_a_power_limit_that_nothing_tells_of_is_not_told_as_zero() -> None:
    finding = throttling(judged(healthy()))
    assert finding.figures["power_cap_share"] is None
    assert "power limit" not in finding.evidence
