"""What the agent really answers, against the schemas of the Open Inference Protocol and of Triton's extensions."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from kedge.bench.batches import infer_batches
from kedge.transport.client import AgentClient
from kedge_agent.formats.oip import HEADER_LENGTH
from tests.support import models, oip, triton_models

IMAGE = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8]}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oip.Served]:
    folder = tmp_path_factory.mktemp("oip")
    batched = {"max_batch": 8, "max_delay_us": 100}
    with oip.served(
        folder, {"models": {"batched": batched, "adder": batched}, "shared_memory_prefix": "/kedge-test-"}
    ) as agent:
        agent.deploy(models.classifier(folder / "digits.onnx"), "digits", {"image": models.images(2)})
        agent.deploy(models.classifier(folder / "batched.onnx"), "batched", {"image": models.images(2)})
        agent.deploy(models.adder(folder / "adder.onnx"), "adder", {name: np.ones(2, np.float32) for name in "ab"})
        agent.deploy(triton_models.every_type(folder / "types.onnx"), "types")
        for batch in (1, 2):
            body = {"inputs": [{**IMAGE, "shape": [batch, 1, 8, 8], "data": [0.5] * 64 * batch}]}
            for model in ("digits", "batched"):
                assert oip.call(agent.port, "POST", f"/v2/models/{model}/infer", body).status == 200
        yield agent


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v2", "server-metadata"),
        ("/v2/", "server-metadata"),
        ("/v2/health/live", "live"),
        ("/v2/health/ready", "ready"),
        ("/v2/models/digits/ready", "model-ready"),
        ("/v2/models/digits/versions/1/ready", "model-ready"),
        ("/v2/models/digits", "model-metadata"),
        ("/v2/models/digits/versions/1", "model-metadata"),
        ("/v2/models/types", "model-metadata"),
        ("/v2/models/digits/config", "model-config"),
        ("/v2/models/batched/config", "model-config"),
        ("/v2/models/types/versions/1/config", "model-config"),
        ("/v2/models/digits/stats", "statistics"),
        ("/v2/models/batched/versions/1/stats", "statistics"),
        ("/v2/models/stats", "statistics"),
        ("/v2/systemsharedmemory/status", "shared-memory-status"),
    ],
)
def test_what_is_told_is_as_its_schema_has_it(agent: oip.Served, path: str, schema: str) -> None:
    answer = oip.call(agent.port, "GET", path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    oip.conforms(answer.json, schema)


@pytest.mark.parametrize("route", ["/v2/models/{}/infer", "/v2/models/{}/versions/1/infer"])
@pytest.mark.parametrize(("model", "samples", "status"), [("batched", 8, 200), ("batched", 9, 400), ("digits", 9, 200)])
def test_no_request_has_more_samples_than_are_joined(
    agent: oip.Served, route: str, model: str, samples: int, status: int
) -> None:
    body = {"inputs": [{**IMAGE, "shape": [samples, 1, 8, 8], "data": [0.5] * 64 * samples}]}
    answer = oip.call(agent.port, "POST", route.format(model), body)
    assert answer.status == status
    if status != 200:
        oip.conforms(answer.json, "error")
        assert "a request of 9 samples; batched takes 8 at a time" in answer.json["error"]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_inputs_that_disagree_the_larger_one_counts(agent: oip.Served, order: tuple[str, str]) -> None:
    sizes = {"a": 1, "b": 9}
    inputs = [{"name": name, "datatype": "FP32", "shape": [sizes[name]], "data": [1.0] * sizes[name]} for name in order]
    answer = oip.call(agent.port, "POST", "/v2/models/adder/infer", {"inputs": inputs})
    assert answer.status == 400
    assert "a request of 9 samples" in answer.json["error"]


def test_a_connection_serves_on_after_a_request_that_was_refused_for_its_samples(agent: oip.Served) -> None:
    def failed() -> int:
        told = oip.call(agent.port, "GET", "/v2/models/batched/stats").json["model_stats"]
        return int(told[0]["inference_stats"]["fail"]["count"])

    before = failed()
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=60)
    try:
        for samples, status in ((9, 400), (2, 200), (9, 400), (8, 200)):
            data = np.full((samples, 1, 8, 8), 0.5, "<f4").tobytes()
            tensor = {**IMAGE, "shape": [samples, 1, 8, 8], "parameters": {"binary_data_size": len(data)}}
            head = json.dumps({"inputs": [tensor]}).encode()
            connection.request("POST", "/v2/models/batched/infer", head + data, {HEADER_LENGTH: str(len(head))})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
    finally:
        connection.close()
    assert failed() == before + 2


def test_kedge_infer_sends_no_more_samples_than_the_device_takes(agent: oip.Served) -> None:
    client, images = AgentClient(agent.agent), models.images(20)
    try:
        limited, requests = infer_batches(client, "batched", {"image": images})
        whole, one = infer_batches(client, "digits", {"image": images})
    finally:
        client.close()
    assert (len(requests), len(one)) == (3, 1)
    np.testing.assert_allclose(limited["logits"], whole["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", ["benchmark", "levels"])
def test_nothing_is_measured_with_more_samples_than_a_request_may_have(agent: oip.Served, levels: str) -> None:
    with agent.control() as port:
        answer = oip.call(port, "POST", f"/kedge/v1/models/batched/{levels}", {"batch": 9})
    assert answer.status == 400
    assert "a request of 9 samples" in answer.json["error"]


def test_models_whose_batches_are_limited_compute_in_one_memory(agent: oip.Served) -> None:
    with agent.control() as port:
        told = {name: oip.call(port, "GET", f"/kedge/v1/models/{name}/memory").json for name in ("digits", "batched")}
    assert {name: each["chosen"]["arena"] for name, each in told.items()} == {"digits": "own", "batched": "shared"}


@pytest.mark.parametrize("body", [b"", {}, {"ready": True}])
def test_the_index_is_as_its_schema_has_it(agent: oip.Served, body: Any) -> None:
    answer = oip.call(agent.port, "POST", "/v2/repository/index", body)
    assert len(answer.json) == 4
    oip.conforms(answer.json, "repository-index")


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_requests_and_responses_are_as_their_schemas_have_them(
    agent: oip.Served, binary_in: bool, binary_out: bool
) -> None:
    given = {"parameters": {"binary_data_size": 256}} if binary_in else {"data": [[[[0.5] * 8] * 8]]}
    request = {
        "id": "42",
        "inputs": [{**IMAGE, **given}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": binary_out}}],
    }
    oip.conforms(request, "infer-request")
    header = json.dumps(request).encode()
    data = header + bytes(256) if binary_in else header
    answer = oip.call(agent.port, "POST", "/v2/models/digits/infer", data, {HEADER_LENGTH: str(len(header))})
    assert answer.status == 200
    assert answer.json["id"] == "42"
    assert len(answer.binary) == (16 if binary_out else 0)
    oip.conforms(answer.json, "infer-response")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/models/ghost"),
        ("GET", "/v2/models/ghost/config"),
        ("GET", "/v2/models/ghost/stats"),
        ("GET", "/v2/models/ghost/ready"),
        ("POST", "/v2/models/digits/infer"),
        ("GET", "/v2/models/digits/infer"),
        ("POST", "/v2/repository/models/digits/load"),
        ("GET", "/v2/systemsharedmemory/region/ghost/status"),
        ("POST", "/v2/systemsharedmemory/region/ghost/register"),
        ("POST", "/v2/cudasharedmemory/region/ghost/register"),
    ],
)
def test_errors_are_as_their_schema_has_them(agent: oip.Served, method: str, path: str) -> None:
    answer = oip.call(agent.port, method, path)
    assert answer.status in {400, 403, 404, 405}
    oip.conforms(answer.json, "error")


@pytest.mark.parametrize(
    ("schema", "document"),
    [
        ("infer-request", {"inputs": [IMAGE]}),
        ("infer-request", {"inputs": [{**IMAGE, "data": [1], "parameters": {"binary_data_size": 4}}]}),
        ("infer-request", {"inputs": [{**IMAGE, "data": [None]}]}),
        ("infer-request", {"inputs": [{**IMAGE, "data": [1], "datatype": "FLOAT"}]}),
        ("infer-response", {"model_name": "digits", "outputs": [{**IMAGE, "data": [1], "shape": [-1]}]}),
        ("model-metadata", {"name": "digits", "platform": "x", "inputs": [], "outputs": [], "versions": [1]}),
        ("model-config", {"name": "digits", "platform": "x", "backend": "x", "max_batch_size": "8"}),
        ("repository-index", [{"name": "digits", "state": "ready", "reason": ""}]),
        ("shared-memory-status", [{"name": "mine", "key": "/x", "offset": 0, "byte_size": 0}]),
        ("shared-memory-register", {"key": "/x", "byte_size": 64}),
        ("statistics", {"model_stats": [{"name": "digits"}]}),
        ("error", {"error": ""}),
        ("live", {}),
    ],
)
def test_the_schemas_refuse_what_the_protocol_does(schema: str, document: Any) -> None:
    with pytest.raises(AssertionError):
        oip.conforms(document, schema)


def test_every_schema_is_one_and_names_its_source() -> None:
    files = sorted(oip.SCHEMAS.glob("*.json"))
    assert len(files) >= 13
    for file in files:
        schema = json.loads(file.read_text())
        Draft202012Validator.check_schema(schema)
        assert "kserve/open-inference-protocol" in schema["description"] or "Triton" in schema["description"], file.name
