"""What the dashboard and the alerts ask Prometheus for is what the agent tells; both are as their readers want them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kedge_agent.measure.sensors.figures import UNITS
from tests.support import models, oip

FOLDER = Path(__file__).parents[2] / "docs" / "monitoring"
IMAGE = models.images(3)
METRIC = re.compile(r"\b(?:kedge|nv|process)_[a-z0-9_]+")
ENDINGS = re.compile(r"_(?:bucket|sum|count)$")
PANEL = {"id", "type", "title", "gridPos"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oip.Served]:
    folder = tmp_path_factory.mktemp("agent")
    with oip.served(folder) as agent:
        agent.deploy(models.classifier(folder / "digits.onnx"), "digits", {"image": IMAGE}, version=7)
        body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.5] * 64}]}
        for _ in range(20):
            assert oip.call(agent.port, "POST", "/v2/models/digits/infer", body).status == 200
        deadline = time.monotonic() + 30
        while "kedge_inference_last_minute_seconds{" not in text(agent) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield agent


def text(agent: oip.Served) -> str:
    return oip.call(agent.port, "GET", "/metrics").body.decode()


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def queries() -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    asked += [each["expr"] for each in dashboard()["annotations"]["list"]]
    asked += [each["query"]["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"]
    # An expression ends where the next key of its rule begins.
    alerts = (FOLDER / "alerts.yml").read_text()
    return asked + [each.strip() for each in re.findall(r"expr:(.*?)\n +\w+:", alerts, re.DOTALL)]


def test_sensors_and_the_recorder_are_in_the_metrics(agent: oip.Served) -> None:
    families = {family.name: family for family in text_string_to_metric_families(text(agent))}
    channels = {sample.labels["channel"]: sample for sample in families["kedge_sensor"].samples}
    assert channels["memory.available"].value > 1e6
    assert channels["memory.available"].labels["unit"] == "bytes"
    assert channels["memory.agent_rss"].value > 1e6
    kinds = {*UNITS, "recorder"}
    assert {name.partition(".")[0] for name in channels} <= kinds
    latency = {
        (sample.labels["part"], sample.labels["quantile"]): sample.value
        for sample in families["kedge_inference_last_minute_seconds"].samples
        if (sample.labels["model"], sample.labels["version"]) == ("digits", "7")
    }
    assert latency.keys() == {(part, quantile) for part in ("total", "compute") for quantile in ("0.5", "0.99")}
    assert 0 < latency["compute", "0.5"] <= latency["compute", "0.99"] <= latency["total", "0.99"]
    counted = {
        sample.labels["version"]: sample.value for sample in families["kedge_inference_last_minute_requests"].samples
    }
    assert counted.keys() == {"7"}
    assert counted["7"] >= 1
    assert families["kedge_recorder_bytes"].samples[0].value > 0
    assert families["kedge_recorder_writing"].samples[0].value == 1
    assert 0 < families["kedge_recorder_cpu_ratio"].samples[0].value < 1


def test_both_doors_tell_the_same_metrics_and_each_once(agent: oip.Served) -> None:
    with agent.control() as port:
        over_control = oip.call(port, "GET", "/metrics").body.decode()
    heads = re.findall(r"# TYPE (\S+)", over_control)
    assert len(heads) == len(set(heads))
    assert set(heads) == set(re.findall(r"# TYPE (\S+)", text(agent)))


def test_every_metric_that_is_asked_for_is_one_that_the_agent_tells(agent: oip.Served) -> None:
    told = set(re.findall(r"# TYPE (\S+)", text(agent)))
    asked = {name for query in queries() for name in METRIC.findall(query)}
    assert len(asked) > 12
    assert {name for name in asked if name not in told and ENDINGS.sub("", name) not in told} == set()


def test_every_channel_that_is_asked_for_is_of_a_kind_that_sensors_have() -> None:
    asked = {kind for query in queries() for kind in re.findall(r'channel=~?"([a-z]+)', query)}
    assert len(asked) > 5
    assert asked <= UNITS.keys()


def test_the_document_names_every_metric_of_the_agent_s_own(agent: oip.Served) -> None:
    document = (FOLDER.parent / "monitoring.md").read_text()
    own = {name for name in re.findall(r"# TYPE (\S+)", text(agent)) if name.startswith("kedge_")}
    assert {name for name in own if f"`{name}`" not in document} == set()


def test_the_dashboard_is_as_grafana_s_classic_model_has_it() -> None:
    board = dashboard()
    assert board["id"] is None
    assert board["schemaVersion"] >= 36
    assert board["uid"] == "kedge-devices"
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    identifiers = [panel["id"] for panel in panels()]
    assert len(identifiers) == len(set(identifiers))
    for panel in panels():
        assert panel.keys() >= PANEL
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == source
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(references) == len(set(references))
        assert all(target["datasource"] == source for target in panel["targets"])
        used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])))
        assert used <= {"device", "model", "__rate_interval"}


def test_panels_fit_into_the_grid_and_none_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
