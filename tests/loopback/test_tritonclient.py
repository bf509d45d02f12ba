"""An unmodified `tritonclient[http]` against the real agent, over its localhost port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from kedge.model.session import ReferenceModel
from kedge_agent import __version__
from tests.support import models, oip, triton_models

IMAGES = models.images(3)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oip.Served]:
    folder = tmp_path_factory.mktemp("triton")
    with oip.served(folder, {"models": {"slow": {"queue": 1}}}) as agent:
        agent.deploy(models.classifier(folder / "digits.onnx"), "digits", {"image": IMAGES}, version=7)
        agent.deploy(triton_models.simple(folder / "simple.onnx"), "simple")
        agent.deploy(triton_models.every_type(folder / "types.onnx"), "types")
        agent.deploy(triton_models.slow(folder / "slow.onnx"), "slow", {"steps": np.array([1])})
        yield agent


@pytest.fixture(scope="module")
def strings(agent: oip.Served, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a served model of strings."""
    model = triton_models.strings(tmp_path_factory.mktemp("strings") / "strings.onnx")
    agent.deploy(model, "strings", {"text": np.array(["a", "b"], object)})
    return "strings"


@pytest.fixture
def client(agent: oip.Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{agent.port}", concurrency=4) as client:
        yield client


@pytest.fixture
def control(agent: oip.Served) -> Iterator[triton.InferenceServerClient]:
    with agent.control() as port, triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


@pytest.fixture(scope="module")
def logits(agent: oip.Served) -> np.ndarray:
    return ReferenceModel(agent.state.parent / "digits.onnx").run({"image": IMAGES})["logits"]


def every_value() -> dict[str, np.ndarray]:
    """For each input of the model of every type, values at both ends of its range."""
    out = {}
    for name in triton_models.NUMERIC:
        if name == "BOOL":
            out["in_bool"] = np.array([True, False, True])
            continue
        dtype = np.dtype({"FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(name, name.lower()))
        ends = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        out[f"in_{name.lower()}"] = np.array([ends.min, 1, ends.max], dtype)
    return out


def given(name: str, values: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def pair() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 3, np.int32)


# ---- health and metadata -------------------------------------------------------------------------------------------


def test_server_and_models_are_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "7")
    assert not client.is_model_ready("digits", "1")
    assert not client.is_model_ready("ghost")


def test_the_server_says_what_it_is_and_which_extensions_it_has(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("kedge-agent", __version__)
    assert {"binary_tensor_data", "model_configuration", "model_repository", "statistics"} <= set(
        metadata["extensions"]
    )
    assert "cuda_shared_memory" not in metadata["extensions"]


def test_a_model_s_metadata_name_its_tensors(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("digits")
    assert metadata["versions"] == ["7"]
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]
    assert client.get_model_metadata("digits", "7") == metadata


def test_a_model_s_configuration_agrees_with_its_metadata(client: triton.InferenceServerClient) -> None:
    config, metadata = client.get_model_config("digits"), client.get_model_metadata("digits")
    assert (config["name"], config["platform"], config["backend"]) == ("digits", "onnxruntime_onnx", "onnxruntime")
    # Where Triton batches, the dimension of the batch is not among the dims.
    leave_out = 1 if config["max_batch_size"] > 0 else 0
    for side, tensors in (("input", metadata["inputs"]), ("output", metadata["outputs"])):
        assert [tensor["dims"] for tensor in config[side]] == [tensor["shape"][leave_out:] for tensor in tensors]
        assert [tensor["data_type"] for tensor in config[side]] == ["TYPE_FP32"]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert client.get_model_config("digits", "7") == config


# ---- inference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tensors_travel_as_json_or_binary_in_either_direction(
    client: triton.InferenceServerClient, logits: np.ndarray, binary_in: bool, binary_out: bool | None
) -> None:
    wanted = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("digits", [given("image", IMAGES, binary=binary_in)], outputs=wanted)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, rtol=1e-4, atol=1e-5)
    # Without any output named, tritonclient asks for all of them in binary.
    assert ("data" in result.get_output("logits")) == (binary_out is False)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"]) == ("digits", "7")


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_arrives_and_returns_unchanged(client: triton.InferenceServerClient, binary: bool) -> None:
    values = every_value()
    wanted = [triton.InferRequestedOutput(name.replace("in_", "out_"), binary_data=binary) for name in values]
    result = client.infer("types", [given(*item, binary=binary) for item in values.items()], outputs=wanted)
    for name, array in values.items():
        returned = result.as_numpy(name.replace("in_", "out_"))
        assert returned.dtype == array.dtype
        np.testing.assert_array_equal(returned, array)


def test_json_and_binary_inputs_are_mixed_in_one_request(client: triton.InferenceServerClient) -> None:
    a, b = pair()
    wanted = [
        triton.InferRequestedOutput("difference", binary_data=False),
        triton.InferRequestedOutput("sum", binary_data=True),
    ]
    result = client.infer("simple", [given("a", a, binary=False), given("b", b)], outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    outputs = result.get_response()["outputs"]
    assert [output["name"] for output in outputs] == ["difference", "sum"]
    assert ["data" in output for output in outputs] == [True, False]


def test_inputs_may_come_in_any_order_and_outputs_be_a_part(client: triton.InferenceServerClient) -> None:
    a, b = pair()
    wanted = [triton.InferRequestedOutput("difference")]
    result = client.infer("simple", [given("b", b), given("a", a)], outputs=wanted)
    np.testing.assert_array_equal(result.as_numpy("difference"), a - b)
    assert result.as_numpy("sum") is None


def test_a_request_s_id_comes_back(client: triton.InferenceServerClient) -> None:
    a, b = pair()
    answer = client.infer("simple", [given("a", a), given("b", b)], request_id="frame 42 é").get_response()
    assert answer["id"] == "frame 42 é"
    assert "id" not in client.infer("simple", [given("a", a), given("b", b)]).get_response()


def test_a_raw_body_is_the_one_input_of_one_sample(agent: oip.Served, logits: np.ndarray) -> None:
    raw = {oip.HEADER_LENGTH: "0"}
    answer = oip.call(agent.port, "POST", "/v2/models/digits/infer", IMAGES[:1].tobytes(), raw)
    assert answer.status == 200
    (output,) = answer.json["outputs"]
    assert output["shape"] == [1, 4]
    # The answer is binary, because nobody could say otherwise.
    assert output["parameters"] == {"binary_data_size": 16}
    np.testing.assert_allclose(np.frombuffer(answer.binary, "<f4"), logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "size"), [("digits", 255), ("simple", 64)])
def test_a_raw_body_that_does_not_fit_or_fits_several_inputs_is_refused(
    agent: oip.Served, model: str, size: int
) -> None:
    answer = oip.call(agent.port, "POST", f"/v2/models/{model}/infer", bytes(size), {oip.HEADER_LENGTH: "0"})
    assert answer.status == 400
    assert answer.json["error"]


@pytest.mark.parametrize("binary", [True, False])
def test_strings_travel_as_json_or_binary(client: triton.InferenceServerClient, strings: str, binary: bool) -> None:
    text = np.array(["eins", "zwei €", "", "drei" * 500], object)
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("twice", "same")]
    result = client.infer(strings, [given("text", text, binary=binary)], outputs=wanted)
    same, twice = result.as_numpy("same"), result.as_numpy("twice")
    assert [as_text(item) for item in same] == list(text)
    assert [as_text(item) for item in twice] == [*text, *text]
    assert client.get_model_config(strings)["input"][0]["data_type"] == "TYPE_STRING"


def test_a_raw_body_is_the_one_string_without_its_length(agent: oip.Served, strings: str) -> None:
    text = "zwei €".encode()
    answer = oip.call(agent.port, "POST", f"/v2/models/{strings}/infer", text, {oip.HEADER_LENGTH: "0"})
    assert answer.status == 200
    assert [output["shape"] for output in answer.json["outputs"]] == [[1], [2]]
    # In an answer every string has its length before it.
    assert answer.binary == (len(text).to_bytes(4, "little") + text) * 3


def as_text(item: bytes | str) -> str:
    return item.decode() if isinstance(item, bytes) else item


def test_nan_and_infinity_travel_in_binary_alone(client: triton.InferenceServerClient) -> None:
    values = {**every_value(), "in_fp32": np.array([np.nan, np.inf, -np.inf], np.float32)}
    tensors = [given(*item) for item in values.items()]
    result = client.infer("types", tensors, outputs=[triton.InferRequestedOutput("out_fp32")])
    np.testing.assert_array_equal(result.as_numpy("out_fp32"), values["in_fp32"])
    with pytest.raises(InferenceServerException, match="NaN") as refused:
        client.infer("types", tensors, outputs=[triton.InferRequestedOutput("out_fp32", binary_data=False)])
    assert refused.value.status() == "400"


def test_a_tensor_without_elements_is_a_tensor(client: triton.InferenceServerClient) -> None:
    empty = {name: array[:0] for name, array in every_value().items()}
    result = client.infer("types", [given(*item) for item in empty.items()])
    assert result.as_numpy("out_fp64").shape == (0,)


def test_parameters_of_no_meaning_here_are_ignored(client: triton.InferenceServerClient) -> None:
    a, b = pair()
    result = client.infer(
        "simple",
        [given("a", a), given("b", b)],
        sequence_id=5,
        sequence_start=True,
        sequence_end=True,
        priority=2,
        timeout=30_000_000,
        parameters={"camera": "north", "gain": 3},
        query_params={"trace": "yes"},
        headers={"X-Request-From": "a test"},
    )
    np.testing.assert_array_equal(result.as_numpy("sum"), a + b)


def test_classes_instead_of_scores_are_refused_and_not_passed_over(client: triton.InferenceServerClient) -> None:
    # Whoever asks for classes cannot read scores: silence would be a wrong answer.
    wanted = [triton.InferRequestedOutput("logits", class_count=2)]
    with pytest.raises(InferenceServerException, match="classification") as refused:
        client.infer("digits", [given("image", IMAGES)], outputs=wanted)
    assert refused.value.status() == "400"
    assert "classification" not in client.get_server_metadata()["extensions"]


def test_a_request_that_waits_longer_than_its_timeout_is_refused(
    agent: oip.Served, client: triton.InferenceServerClient
) -> None:
    def run(steps: int, microseconds: int | None) -> oip.Answer:
        body = {"inputs": [{"name": "steps", "datatype": "INT64", "shape": [1], "data": [steps]}]}
        if microseconds is not None:
            body["parameters"] = {"timeout": microseconds}
        return oip.call(agent.port, "POST", "/v2/models/slow/infer", body)

    long = threading.Thread(target=run, args=(1500, None))
    long.start()
    refused = None
    while refused is None and long.is_alive():
        answer = run(1, 1000)
        refused = answer if answer.status != 200 else None
    long.join()
    assert refused is not None
    assert refused.status == 503
    assert refused.json["error"]
    assert run(1, 30_000_000).status == 200


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_is_inflated_and_its_answer_is_plain(
    client: triton.InferenceServerClient, algorithm: str
) -> None:
    # So compressible that the JSON alone is longer than the body: the header's length counts inflated bytes.
    image = np.zeros((200, 1, 8, 8), np.float32)
    plain = client.infer("digits", [given("image", image)]).as_numpy("logits")
    result = client.infer(
        "digits",
        [given("image", image)],
        request_id="x" * 200,
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("logits"), plain)


def test_requests_that_are_sent_at_once_are_answered_each_with_its_own(client: triton.InferenceServerClient) -> None:
    values = [np.full((1, 16), number, np.int32) for number in range(40)]
    none = np.zeros((1, 16), np.int32)
    handles = [
        client.async_infer("simple", [given("a", value), given("b", none)], request_id=str(index))
        for index, value in enumerate(values)
    ]
    for index, handle in enumerate(handles):
        result = handle.get_result(timeout=30)
        assert result.get_response()["id"] == str(index)
        np.testing.assert_array_equal(result.as_numpy("sum"), values[index])


def test_many_clients_of_one_model_get_their_own_answers(agent: oip.Served) -> None:
    wrong: list[object] = []

    def one(seed: int) -> None:
        with triton.InferenceServerClient(f"127.0.0.1:{agent.port}") as mine:
            a = np.random.default_rng(seed).integers(0, 1000, (4, 16)).astype(np.int32)
            for _ in range(20):
                result = mine.infer("simple", [given("a", a), given("b", a)])
                if not np.array_equal(result.as_numpy("sum"), 2 * a):
                    wrong.append(seed)

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_the_asyncio_client_works_too(agent: oip.Served, logits: np.ndarray) -> None:
    async def run() -> np.ndarray:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{agent.port}") as client:
            assert await client.is_model_ready("digits")
            result = await client.infer("digits", [given("image", IMAGES)])
            return result.as_numpy("logits")

    np.testing.assert_allclose(asyncio.run(run()), logits, rtol=1e-4, atol=1e-5)


# ---- statistics ----------------------------------------------------------------------------------------------------


def test_statistics_count_what_was_asked(client: triton.InferenceServerClient) -> None:
    def of_digits() -> dict:
        (row,) = client.get_inference_statistics("digits", "7")["model_stats"]
        return row

    before, began_ms = of_digits(), time.time() * 1000
    for batch in (3, 3, 1):
        client.infer("digits", [given("image", IMAGES[:batch])])
    after = of_digits()
    assert (after["name"], after["version"]) == ("digits", "7")
    assert after["execution_count"] - before["execution_count"] == 3
    assert after["inference_count"] - before["inference_count"] == 7
    assert abs(after["last_inference"] - began_ms) < 60_000
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        now, then = after["inference_stats"][part], before["inference_stats"][part]
        assert now["count"] - then["count"] == 3
        assert now["ns"] >= then["ns"]
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    batches = {row["batch_size"]: row["compute_infer"]["count"] for row in after["batch_stats"]}
    assert batches[3] >= 2
    assert batches[1] >= 1
    everything = client.get_inference_statistics()["model_stats"]
    assert {"digits", "simple", "types", "slow"} <= {row["name"] for row in everything}


def test_a_refused_request_counts_as_failed_and_not_as_answered(client: triton.InferenceServerClient) -> None:
    (before,) = client.get_inference_statistics("simple")["model_stats"]
    with pytest.raises(InferenceServerException):
        client.infer("simple", [given("a", pair()[0])])
    (after,) = client.get_inference_statistics("simple")["model_stats"]
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert after["inference_stats"]["success"] == before["inference_stats"]["success"]
    assert after["inference_count"] == before["inference_count"]
