from __future__ import annotations

import json
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.gates import LatencyGate, ParityLimits, ProbationRules
from kedge_agent.formats.manifest import Manifest, ManifestError, manifest_bytes, parse_manifest
from kedge_agent.measure.parity import OutputParity, failures


def with_gates(release: Release, **more: Any) -> Manifest:
    body = json.loads(release.manifest_bytes)
    parity = more.pop("parity", {})
    body["gates"] = {"parity": body["gates"]["parity"] | parity, **more}
    return parse_manifest(manifest_bytes(body))


def test_a_manifest_states_every_gate(release: Release) -> None:
    gates = with_gates(
        release,
        parity={"max_abs_error_max": "0.5", "outputs": [{"name": "logits", "cosine_min": "0.9"}]},
        latency={"p99_ms": "12.5", "p99_ratio_max": "1.5"},
        memory={"peak_bytes": 1 << 28},
        probation={"seconds": 60, "error_share_max": "0.05"},
    ).gates
    assert gates.parity.limits == ParityLimits(0.999, 0.02, 0.5)
    assert gates.parity.of("logits") == ParityLimits(0.9, 0.02, 0.5)
    assert gates.latency == LatencyGate(12.5, 1.5)
    assert gates.memory_peak_bytes == 1 << 28
    assert gates.probation == ProbationRules(60, 0.05)


def test_a_manifest_without_them_leaves_all_but_parity_to_the_device(release: Release) -> None:
    gates = release.manifest.gates
    assert gates.latency is None
    assert gates.memory_peak_bytes is None


@pytest.mark.parametrize(
    "more",
    [
        {"latency": {}},
        {"latency": {"p99_ms": 12}},
        {"latency": {"p99_ms": "-1"}},
        {"memory": {"peak_bytes": 0}},
        {"memory": {}},
        {"probation": {"seconds": -1}},
        {"probation": {"seconds": 1, "error_share_max": "2"}},
        {"probation": {"error_share_max": "0.1"}},
        {"parity": {"outputs": []}},
        {"parity": {"outputs": [{"name": "logits"}]}},
        {"parity": {"outputs": [{"name": "nothing", "cosine_min": "0.5"}]}},
        {"parity": {"max_abs_error_max": "inf"}},
        {"weather": {}},
    ],
    ids=str,
)
def test_a_gate_that_is_malformed_is_refused(release: Release, more: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        with_gates(release, **more)


def test_an_output_is_held_against_its_own_limits(release: Release) -> None:
    parity = with_gates(
        release, parity={"max_abs_error_max": "0.1", "outputs": [{"name": "logits", "max_abs_error_max": "2"}]}
    ).gates.parity
    assert failures(parity, {"logits": OutputParity("logits", 1.0, 1.0, 0.01)}) == []
    assert "absolute error 1 is above 0.1" in failures(parity, {"other": OutputParity("other", 1.0, 1.0, 0.01)})[0]
