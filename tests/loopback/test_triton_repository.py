"""Triton's model repository extension on the control door, as `ssh -L` brings it to an unmodified `tritonclient`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from kedge.transport.base import Deadline
from tests.support import models, oip, triton_models

IMAGE = models.images(1)


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oip.Served]:
    folder = tmp_path_factory.mktemp("repository")
    with oip.served(folder) as agent:
        agent.deploy(models.classifier(folder / "digits.onnx"), "digits", {"image": IMAGE}, version=7)
        agent.deploy(triton_models.simple(folder / "simple.onnx"), "simple")
        yield agent


@pytest.fixture
def client(agent: oip.Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{agent.port}") as client:
        yield client


@pytest.fixture
def control(agent: oip.Served) -> Iterator[triton.InferenceServerClient]:
    with agent.control() as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def classify(client: triton.InferenceServerClient) -> np.ndarray:
    tensor = triton.InferInput("image", list(IMAGE.shape), "FP32").set_data_from_numpy(IMAGE)
    return client.infer("digits", [tensor]).as_numpy("logits")


def row(client: triton.InferenceServerClient, name: str) -> dict:
    (found,) = [row for row in client.get_model_repository_index() if row["name"] == name]
    return found


def test_the_index_lists_what_can_be_served(agent: oip.Served, client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert sorted((row["name"], row["version"], row["state"], row["reason"]) for row in index) == [
        ("digits", "7", "READY", ""),
        ("simple", "1", "READY", ""),
    ]
    assert oip.call(agent.port, "POST", "/v2/repository/index", {"ready": True}).json == index


def test_a_model_is_unloaded_and_loaded_again(
    agent: oip.Served, client: triton.InferenceServerClient, control: triton.InferenceServerClient
) -> None:
    before = classify(client)
    control.unload_model("digits")
    assert not client.is_model_ready("digits")
    assert client.is_model_ready("simple")
    with pytest.raises(InferenceServerException, match=r"not loaded|unloaded") as refused:
        classify(client)
    assert refused.value.status() in {"400", "404"}
    assert (row(client, "digits")["state"], row(client, "digits")["reason"]) == ("UNAVAILABLE", "unloaded")
    ready = oip.call(agent.port, "POST", "/v2/repository/index", {"ready": True}).json
    assert [row["name"] for row in ready] == ["simple"]
    control.load_model("digits")
    assert client.is_model_ready("digits")
    np.testing.assert_array_equal(classify(client), before)
    assert row(client, "digits")["state"] == "READY"


def test_loading_a_model_that_is_loaded_already_keeps_it_serving(
    client: triton.InferenceServerClient, control: triton.InferenceServerClient
) -> None:
    before = classify(client)
    control.load_model("digits")
    np.testing.assert_array_equal(classify(client), before)


def test_what_is_unloaded_already_may_be_unloaded_again_and_dependents_may_be_named(
    client: triton.InferenceServerClient, control: triton.InferenceServerClient
) -> None:
    control.unload_model("digits", unload_dependents=True)
    control.unload_model("digits")
    assert not client.is_model_ready("digits")
    with pytest.raises(InferenceServerException, match="no model named") as refused:
        control.unload_model("absent")
    assert refused.value.status() == "404"


def test_a_client_cannot_bring_a_model_or_a_configuration_of_its_own(
    client: triton.InferenceServerClient, control: triton.InferenceServerClient
) -> None:
    before = classify(client)
    attempts = [
        {"config": "{}"},
        {"config": "{}", "files": {"file:1/model.onnx": b"not one"}},
        {"files": {"file:1/model.onnx": b"not one"}},
    ]
    for overrides in attempts:
        with pytest.raises(InferenceServerException) as refused:
            control.load_model("digits", **overrides)
        assert refused.value.status() == "400"
    np.testing.assert_array_equal(classify(client), before)


def test_only_models_that_were_accepted_are_loaded(control: triton.InferenceServerClient) -> None:
    for change in (control.load_model, control.unload_model):
        with pytest.raises(InferenceServerException, match="ghost") as refused:
            change("ghost")
        assert refused.value.status() == "404"


def test_the_inference_doors_do_not_control_the_repository(
    agent: oip.Served, client: triton.InferenceServerClient
) -> None:
    with oip.forwarded(agent.state, "infer") as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as other:
        for door in (client, other):
            for change in (door.load_model, door.unload_model):
                with pytest.raises(InferenceServerException) as refused:
                    change("digits")
                assert refused.value.status() == "403"
    assert client.is_model_ready("digits")


def test_an_unloaded_model_is_loaded_again_when_the_agent_starts_anew(
    agent: oip.Served, control: triton.InferenceServerClient
) -> None:
    control.unload_model("digits")
    agent.agent.close()
    agent.agent.start(Deadline.after(60, "starting the agent again"))
    with triton.InferenceServerClient(f"127.0.0.1:{agent.port}") as client:
        deadline = Deadline.after(30, "loading")
        while not client.is_server_ready():
            assert deadline.remaining()
        assert client.is_model_ready("digits")
