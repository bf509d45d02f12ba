"""/metrics as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import models, oip

IMAGE = models.images(3)
LABELS = {"model": "digits", "version": "7"}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[oip.Served]:
    with oip.served(tmp_path) as agent:
        agent.deploy(models.classifier(tmp_path / "digits.onnx"), "digits", {"image": IMAGE}, version=7)
        yield agent


def scraped(agent: oip.Served) -> dict[tuple[str, str], float]:
    """Values by a sample's name, without `_total`, and its labels beyond model and version."""
    answer = oip.call(agent.port, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    out: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation, f"{family.name} has no HELP"
        assert family.type != "unknown", f"{family.name} has no TYPE"
        for sample in family.samples:
            more = dict(sample.labels)
            if "model" in more:
                assert {name: more.pop(name) for name in LABELS} == LABELS
            key = (sample.name.removesuffix("_total"), ",".join(f"{name}={value}" for name, value in more.items()))
            assert key not in out, f"{key} is there twice"
            out[key] = sample.value
    return out


def infer(agent: oip.Served, batch: int) -> None:
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [batch, 1, 8, 8], "data": [0.5] * 64 * batch}]}
    assert oip.call(agent.port, "POST", "/v2/models/digits/infer", body).status == 200


def test_counters_move_as_requests_are_made(agent: oip.Served) -> None:
    before = scraped(agent)
    for batch in (1, 1, 3):
        infer(agent, batch)
    assert oip.call(agent.port, "POST", "/v2/models/digits/infer", {}).status == 400
    after = scraped(agent)

    def moved(name: str, labels: str = "") -> float:
        return after[name, labels] - before.get((name, labels), 0)

    assert moved("nv_inference_request_success") == 3
    assert moved("nv_inference_request_failure", "reason=bad_input") == 1
    assert moved("nv_inference_count") == 5
    assert moved("nv_inference_exec_count") == 3
    whole = moved("nv_inference_request_duration_us")
    parts = [
        moved(f"nv_inference_{part}_duration_us")
        for part in ("queue", "compute_input", "compute_infer", "compute_output")
    ]
    assert min(parts) >= 0
    assert moved("nv_inference_compute_infer_duration_us") > 0
    assert sum(parts) <= whole * 1.001
    assert after["nv_inference_pending_request_count", ""] == 0


def test_the_histogram_of_latency_counts_every_answer_once(agent: oip.Served) -> None:
    name = "kedge_inference_request_duration_seconds"
    for _ in range(5):
        infer(agent, 1)
    now = scraped(agent)
    buckets = {
        labels.removeprefix("le="): value for (sample, labels), value in now.items() if sample == f"{name}_bucket"
    }
    bounds = sorted(buckets, key=float)
    assert bounds[-1] == "+Inf"
    assert [buckets[bound] for bound in bounds] == sorted(buckets.values())
    assert buckets["+Inf"] == now[f"{name}_count", ""] == 5
    assert now[f"{name}_sum", ""] == pytest.approx(now["nv_inference_request_duration_us", ""] / 1e6, rel=1e-6)


def test_a_model_that_is_unloaded_has_no_metrics_and_what_is_unknown_is_left_out(agent: oip.Served) -> None:
    with agent.control() as port:
        assert oip.call(port, "POST", "/v2/repository/models/digits/unload").status == 200
    now = scraped(agent)
    assert not [name for name, _ in now if name.startswith("nv_inference")]
    assert now["process_resident_memory_bytes", ""] > 1e6
