"""The HTTP surface, over a real Unix socket, in this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.formats.oip import HEADER_LENGTH, decode_response, encode_request, parse_server_timing
from kedge_agent.formats.tensors import TensorSpec
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.serving.http import Request
from kedge_agent.serving.repository import Repository
from kedge_agent.serving.routes import inference_handler
from kedge_agent.serving.shared_memory import Regions
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, read_state, write_state
from tests.conftest import make_release
from tests.support import models
from tests.support.served import Client, activated, deploys_of, serving
from tests.unit.test_store import deliver


@pytest.fixture
def served(tmp_path: Path, release: Release) -> Iterator[tuple[Client, Repository, Layout]]:
    layout = Layout(tmp_path / "state")
    deliver(layout, release)
    repository = activated(layout, release)
    with serving(repository, layout) as (_, path):
        client = Client(path)
        yield client, repository, layout
        client.close()


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64, **changes}


def binary_tensor(size: int) -> dict[str, Any]:
    return {key: value for key, value in tensor(parameters={"binary_data_size": size}).items() if key != "data"}


def test_health_metadata_and_readiness_are_the_open_inference_protocol_s(served) -> None:
    client, _, _ = served
    assert client.call("GET", "/v2/health/live")[0] == 200
    assert client.call("GET", "/v2/health/ready")[0] == 200
    assert client.call("GET", "/v2/models/digits/ready")[0] == 200
    assert json.loads(client.call("GET", "/v2")[2])["extensions"][0] == "binary_tensor_data"
    for path in ("/v2/models/digits", "/v2/models/digits/versions/1"):
        body = json.loads(client.call("GET", path)[2])
        assert body["versions"] == ["1"]
        assert body["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        assert body["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 4]}]


def test_json_and_binary_tensors_give_the_same_outputs(served) -> None:
    client, _, _ = served
    images = models.images(2)
    status, _, body = client.infer({"id": "a7", "inputs": [tensor(shape=[2, 1, 8, 8], data=images.tolist())]})
    assert status == 200
    answer = json.loads(body)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a7", "digits", "1")
    as_json = np.array(answer["outputs"][0]["data"], "f4").reshape(2, 4)
    header, buffers = encode_request({"image": images})
    status, headers, body = client.call(
        "POST", "/v2/models/digits/infer", header + bytes(buffers[0]), Inference_Header_Content_Length=str(len(header))
    )
    assert status == 200
    as_binary = decode_response(memoryview(body), int(headers[HEADER_LENGTH]))["logits"]
    np.testing.assert_array_equal(as_binary, as_json)


def test_every_response_says_where_its_time_went(served) -> None:
    client, _, _ = served
    _, headers, _ = client.infer({"inputs": [tensor()]})
    timing = parse_server_timing(headers["Server-Timing"])
    assert set(timing) == {"queue", "input", "compute", "output"}
    assert timing["compute"] > 0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "not a list of tensors"),
        ([], "not a JSON object"),
        ({"inputs": []}, "missing: 'image'"),
        ({"inputs": [tensor(name="other")]}, "unexpected input 'other'"),
        ({"inputs": [tensor(), tensor()]}, "unexpected input 'image'"),
        ({"inputs": [tensor(shape=[1, 1, 8, 9])]}, "wants shape"),
        ({"inputs": [tensor(shape=[-1, 1, 8, 8])]}, "not a list of sizes"),
        ({"inputs": [tensor(shape="1")]}, "not a list of sizes"),
        ({"inputs": [tensor(shape=[True, 1, 8, 8])]}, "not a list of sizes"),
        ({"inputs": [tensor(datatype="INT8")]}, "got INT8"),
        ({"inputs": [tensor(datatype=None)]}, "datatype is missing"),
        ({"inputs": [tensor(data=[0.5] * 63)]}, "63 values"),
        ({"inputs": [tensor(data=["x"] * 64)]}, "no tensor"),
        ({"inputs": [tensor(data=[[1, 2], [3]])]}, "no tensor"),
        ({"inputs": [{k: v for k, v in tensor().items() if k != "data"}]}, "neither data nor"),
        ({"inputs": [binary_tensor(256)]}, "body carries 0"),
        ({"inputs": [binary_tensor(255)]}, "its shape needs 256"),
        ({"inputs": [tensor()], "outputs": [{"name": "nope"}]}, "unexpected output"),
        ({"inputs": [tensor()], "outputs": 7}, "not a list of tensors"),
    ],
)
def test_a_malformed_request_is_refused_with_400_and_the_connection_goes_on(served, body: Any, reason: str) -> None:
    client, _, _ = served
    status, _, answer = client.infer(body)
    assert status == 400
    assert reason in json.loads(answer)["error"]
    assert client.call("GET", "/v2/health/live")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/absent", 404),
        ("GET", "/v2/models/digits/versions/9", 404),
        ("POST", "/v2/models/absent/infer", 404),
        ("POST", "/v2/models/digits/versions/2/infer", 404),
        ("GET", "/", 404),
        ("GET", "/v2/models/../../etc/passwd", 404),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/models/digits/infer", 405),
        ("POST", f"/kedge/v1/releases/{'0' * 64}/activate", 404),
        ("POST", "/kedge/v1/models/digits/rollback", 404),
        ("POST", "/kedge/v1/models/digits/benchmark", 200),
        ("GET", "/kedge/v1/models/digits/golden?batch=0", 400),
        ("GET", "/kedge/v1/models/digits/golden?sql=1", 400),
        ("DELETE", "/v2", 501),
    ],
)
def test_statuses_are_right_and_errors_are_json(served, method: str, path: str, status: int) -> None:
    client, _, _ = served
    body = json.dumps({"duration_ms": 1, "warmup_ms": 1, "min_runs": 1}).encode() if path.endswith("benchmark") else b""
    got, _, answer = client.call(method, path, body)
    assert got == status
    assert (got == 200) or json.loads(answer)["error"]


def test_a_client_that_hangs_up_inside_its_body_costs_nobody_a_slot(served) -> None:
    client, _, _ = served
    header, _ = encode_request({"image": models.images(1)})
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(str(client.path))
            lengths = f"Content-Length: {len(header) + 256}\r\nInference-Header-Content-Length: {len(header)}\r\n\r\n"
            hasty.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\n" + lengths.encode() + header + b"\0" * 100)
    assert client.infer({"inputs": [tensor()]})[0] == 200


def test_activation_switches_and_rollback_returns(served, tmp_path: Path) -> None:
    client, repository, layout = served
    first = repository.get("digits").manifest.digest
    second = make_release(tmp_path, version=2, seed=5)
    deliver(layout, second)
    before = json.loads(client.infer({"inputs": [tensor()]})[2])["outputs"][0]["data"]
    status, _, body = client.call("POST", f"/kedge/v1/releases/{second.digest}/activate")
    report = json.loads(body)
    assert (status, report["version"], report["previous"]) == (200, 2, first)
    assert report["parity"][0]["cosine"] > 0.999
    assert report["load"]["load_ms"] > 0
    assert json.loads(client.infer({"inputs": [tensor()]})[2])["outputs"][0]["data"] != before
    assert client.call("POST", "/kedge/v1/models/digits/rollback")[0] == 200
    assert json.loads(client.infer({"inputs": [tensor()]})[2])["outputs"][0]["data"] == before
    assert switched_to(layout) == (first, second.digest)


def test_activating_the_live_release_again_keeps_the_way_back(served, tmp_path: Path) -> None:
    _, repository, layout = served
    first = repository.get("digits").manifest.digest
    second = make_release(tmp_path, version=2, seed=5)
    deliver(layout, second)
    deploys_of(repository, layout).activate(second.digest)
    deploys_of(repository, layout).activate(second.digest)
    assert switched_to(layout) == (second.digest, first)


def test_a_release_whose_outputs_differ_is_refused_by_the_gate_and_the_live_one_serves_on(
    served, tmp_path: Path
) -> None:
    client, repository, layout = served
    live = repository.get("digits").manifest.digest
    second = make_release(tmp_path, version=2, seed=5)
    wrong = tmp_path / "digits-2.release"
    (wrong / "golden-out-0.bin").write_bytes(np.ones(8 * 4, "f4").tobytes())
    lying = rewritten(second, wrong)
    deliver(layout, lying)
    status, _, body = client.call("POST", f"/kedge/v1/releases/{lying.digest}/activate")
    assert status == 412
    answer = json.loads(body)
    assert answer["kind"] == "gate"
    assert "cosine" in answer["error"]
    assert repository.get("digits").manifest.digest == live
    assert switched_to(layout) == (live, None)
    assert client.infer({"inputs": [tensor()]})[0] == 200


def rewritten(release: Release, folder: Path) -> Release:
    """The same release with its files hashed anew: a manifest that is true of wrong content."""
    from kedge.release.bundle import write_release

    body = json.loads(release.manifest_bytes)
    del body["files"]
    sources = {entry.name: (folder / entry.name).read_bytes() for entry in release.manifest.files}
    return write_release(folder.with_suffix(".wrong"), sources, body)


def test_a_release_for_another_processor_is_refused(served, tmp_path: Path) -> None:
    _, repository, layout = served
    body = json.loads(make_release(tmp_path, version=2).manifest_bytes)
    body["platform"]["arch"] = "riscv64"
    (tmp_path / "digits-2.release" / "manifest.json").write_text(json.dumps(body))
    from kedge.release.bundle import open_release

    foreign = open_release(tmp_path / "digits-2.release")
    deliver(layout, foreign)
    with pytest.raises(AgentError, match="riscv64") as caught:
        deploys_of(repository, layout).activate(foreign.digest)
    assert caught.value.kind == "incompatible"


def restarted(layout: Layout) -> Repository:
    onnx = OnnxRuntime()
    repository = Repository(layout, {onnx.name: onnx}, threads=1)
    repository.start()
    return repository


def test_a_restarted_agent_serves_what_it_served(served) -> None:
    _, repository, layout = served
    again = restarted(layout)
    assert again.get("digits").manifest.digest == repository.get("digits").manifest.digest
    again.close()


def test_bit_rot_in_the_live_release_falls_back_to_the_previous_one_and_says_so(served, tmp_path: Path) -> None:
    _, repository, layout = served
    first = repository.get("digits").manifest.digest
    second = make_release(tmp_path, version=2, seed=5)
    deliver(layout, second)
    deploys_of(repository, layout).activate(second.digest)
    rotten = layout.release(second.digest) / "model.onnx"
    rotten.chmod(0o644)
    rotten.write_bytes(rotten.read_bytes()[:-1] + b"\0")
    again = restarted(layout)
    assert again.get("digits").manifest.digest == first
    assert "other bytes" in again.status()[0]["problem"]
    third = make_release(tmp_path, version=3, seed=9)
    deliver(layout, third)
    deploys = deploys_of(again, layout)
    assert deploys.activate(third.digest)["previous"] == first, "the way back must lead to what worked"
    assert deploys.rollback("digits")["release"] == first
    again.close()


def test_an_activation_waits_for_the_start_and_is_not_overwritten_by_it(
    served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, layout = served
    second = make_release(tmp_path, version=2, seed=5)
    deliver(layout, second)
    onnx = OnnxRuntime()
    again = Repository(layout, {onnx.name: onnx}, threads=1)
    loading, go_on = threading.Event(), threading.Event()
    stage = again.stage

    asked: list[str] = []

    def slow(model: str, digest: str):
        asked.append(digest)
        loading.set()
        assert go_on.wait(10)
        return stage(model, digest)

    monkeypatch.setattr(again, "stage", slow)
    starter = threading.Thread(target=again.start)
    starter.start()
    assert loading.wait(10)
    activation = threading.Thread(target=deploys_of(again, layout).activate, args=(second.digest,))
    activation.start()
    time.sleep(0.2)
    assert asked == [layout_current(layout)], "the activation must not load while the start does"
    go_on.set()
    starter.join()
    activation.join()
    assert again.get("digits").manifest.digest == second.digest
    again.close()


def switched_to(layout: Layout) -> tuple[str, str | None]:
    """The live release and the one before."""
    state = read_state(layout, "digits")
    assert state is not None
    return state.current, state.previous


def layout_current(layout: Layout) -> str:
    state = read_state(layout, "digits")
    assert state is not None
    return state.current


def test_when_nothing_can_be_served_the_agent_still_answers_and_says_why(served) -> None:
    _, repository, layout = served
    rotten = layout.release(repository.get("digits").manifest.digest) / "model.onnx"
    rotten.unlink()
    write_state(layout, "ghost", ModelState("e" * 64, "f" * 64))
    again = restarted(layout)
    rows = {row["model"]: row for row in again.status()}
    assert rows["digits"]["state"] == rows["ghost"]["state"] == "failed"
    assert "model.onnx" in rows["digits"]["problem"]
    with pytest.raises(AgentError, match="cannot be served"):
        again.get("digits")
    assert again.ready.is_set()


def rehearsing(layout: Layout) -> Repository:
    onnx = OnnxRuntime()
    return Repository(layout, {onnx.name: onnx}, threads=1, rehearse=True)


def test_what_goes_live_was_loaded_and_run_in_a_child_process_first(served, tmp_path: Path) -> None:
    _, _, layout = served
    second = make_release(tmp_path, version=2, seed=5)
    deliver(layout, second)
    repository = rehearsing(layout)
    repository.start()
    trial = deploys_of(repository, layout).activate(second.digest)["load"]["rehearsal"]
    assert trial["load_ms"] > 0
    assert trial["run_ms"] > 0
    assert trial["peak_rss_bytes"] > 1 << 20
    repository.close()


def test_a_model_that_its_runtime_cannot_load_is_refused_in_the_child_and_never_loaded_here(
    served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, live, layout = served
    broken = make_release(tmp_path, version=2, seed=5)
    (tmp_path / "digits-2.release" / "model.onnx").write_bytes(b"no model")
    lying = rewritten(broken, tmp_path / "digits-2.release")
    deliver(layout, lying)
    repository = rehearsing(layout)
    repository.start()
    loaded: list[Path] = []
    monkeypatch.setattr(OnnxRuntime, "load", lambda self, path, options: loaded.append(path))
    with pytest.raises(AgentError, match="refuses the model") as caught:
        deploys_of(repository, layout).activate(lying.digest)
    assert caught.value.kind == "incompatible"
    assert loaded == []
    assert repository.get("digits").manifest.digest == live.get("digits").manifest.digest
    repository.close()


def test_a_start_tries_a_model_that_may_have_ended_the_agent_in_a_child_first(served) -> None:
    _, _, layout = served
    first = rehearsing(layout)
    first.start()
    assert first.get("digits").load["rehearsal"] is None, "a usual start is not slowed down"
    first.close()
    again = rehearsing(layout)
    again.start(suspects={("digits", layout_current(layout))})
    assert again.get("digits").load["rehearsal"]["load_ms"] > 0
    again.close()


def test_a_disk_that_is_full_keeps_no_model_from_being_loaded(served, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, layout = served

    def full(path: Path, data: bytes, mode: int = 0o644) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kedge_agent.store.models.write_atomic", full)
    again = restarted(layout)
    assert again.status()[0]["state"] == "serving"
    again.close()


def test_a_scalar_beside_a_free_batch_does_not_count_samples(served, monkeypatch: pytest.MonkeyPatch) -> None:
    from kedge_agent.serving import golden

    recorded = {"x": np.zeros((2, 4), "f4"), "rate": np.array(16000, "i8"), "big": np.zeros((1, 1 << 20), "f4")}
    _, repository, layout = served
    manifest = repository.get("digits").manifest
    specs = [TensorSpec("x", "FP32", (-1, 4)), TensorSpec("rate", "INT64", ())]
    monkeypatch.setattr(golden, "read_golden", lambda *_: {name: recorded[name] for name in ("x", "rate")})
    made, batch = golden.golden_batch(layout, manifest, specs, 3)
    assert (made["x"].shape, made["rate"].shape, batch) == ((3, 4), (), 3)
    monkeypatch.setattr(golden, "read_golden", lambda *_: {"big": recorded["big"]})
    with pytest.raises(AgentError, match="more than") as caught:
        golden.golden_batch(layout, manifest, [TensorSpec("big", "FP32", (-1, 1 << 20))], 4096)
    assert caught.value.kind == "too_large"


def test_only_one_activation_runs_at_a_time(served, monkeypatch: pytest.MonkeyPatch) -> None:
    _, repository, layout = served
    monkeypatch.setattr("kedge_agent.serving.repository._PATIENCE_S", 0.1)
    deploys = deploys_of(repository, layout)
    with repository.changing("digits"), pytest.raises(AgentError, match="under way") as caught:
        deploys.activate(repository.get("digits").manifest.digest)
    assert caught.value.kind == "busy"


def test_no_request_is_lost_while_releases_are_switched(served, tmp_path: Path) -> None:
    client, repository, layout = served
    second = make_release(tmp_path, version=2, seed=5)
    deliver(layout, second)
    digests = [second.digest, repository.get("digits").manifest.digest]
    statuses: list[int] = []
    stop = threading.Event()

    def hammer() -> None:
        mine = Client(client.path)
        while not stop.is_set():
            statuses.append(mine.infer({"inputs": [tensor()]})[0])
        mine.connection.close()

    hammers = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in hammers:
        thread.start()
    deploys = deploys_of(repository, layout)
    for number in range(20):
        deploys.activate(digests[number % 2])
    stop.set()
    for thread in hammers:
        thread.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_the_inference_door_has_no_control_routes(tmp_path: Path) -> None:
    repository = Repository(Layout(tmp_path), {}, threads=1)
    handler = inference_handler(repository, Regions())
    for method, path in (("POST", "/kedge/v1/models/digits/rollback"), ("GET", "/kedge/v1/status")):
        with pytest.raises(AgentError) as caught:
            handler(Request(method, path, "", {}, None))  # type: ignore[arg-type]
        assert caught.value.kind == "not_found"
