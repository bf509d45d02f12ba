"""What the inference doors refuse: each with its status, a JSON `error`, and an agent that serves on."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support import models, oip, triton_models

INFER = "/v2/models/simple/infer"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[oip.Served]:
    folder = tmp_path_factory.mktemp("errors")
    settings = {"models": {"simple": {"queue": 1}}, "limits": {"body_bytes": 1 << 20}}
    with oip.served(folder, settings) as agent:
        agent.deploy(triton_models.simple(folder / "simple.onnx"), "simple")
        agent.deploy(models.classifier(folder / "digits.onnx"), "digits", {"image": models.images(1)})
        yield agent


def tensor(name: str = "a", **changes: Any) -> dict[str, Any]:
    whole = {"name": name, "datatype": "INT32", "shape": [1, 16], "data": list(range(16)), **changes}
    return {key: value for key, value in whole.items() if value is not None}


def pair(*tensors: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"inputs": list(tensors or (tensor("a"), tensor("b"))), **more}


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


BAD_REQUESTS: dict[str, Any] = {
    "not JSON": b"{",
    "not UTF-8": b'{"inputs": "\xff"}',
    "two keys of one name": b'{"inputs": [], "inputs": []}',
    "NaN, which is not JSON": b'{"inputs": [], "parameters": {"x": NaN}}',
    "nested without end": b"[" * 100_000,
    "nothing": b"",
    "no object": [],
    "no inputs": {},
    "inputs that are no list": {"inputs": {"a": 1}},
    "inputs that are no objects": {"inputs": ["a"]},
    "a missing input": pair(tensor("a")),
    "an input too many": pair(tensor("a"), tensor("b"), tensor("c")),
    "an input given twice": pair(tensor("a"), tensor("a")),
    "an input without a name": pair(tensor("a"), tensor(None)),
    "an input without a shape": pair(tensor("a"), tensor("b", shape=None)),
    "an input without a datatype": pair(tensor("a"), tensor("b", datatype=None)),
    "an input without data": pair(tensor("a"), tensor("b", data=None)),
    "another datatype": pair(tensor("a"), tensor("b", datatype="FP32")),
    "a datatype that there is not": pair(tensor("a"), tensor("b", datatype="INT31")),
    "another rank": pair(tensor("a"), tensor("b", shape=[16])),
    "another fixed size": pair(tensor("a"), tensor("b", shape=[2, 8])),
    "a negative size": pair(tensor("a"), tensor("b", shape=[-1, 16])),
    "a size that is no integer": pair(tensor("a"), tensor("b", shape=[1.0, 16])),
    "a size that is true": pair(tensor("a"), tensor("b", shape=[True, 16])),
    "too few values": pair(tensor("a"), tensor("b", data=[1])),
    "values that are no integers": pair(tensor("a"), tensor("b", data=[0.5] * 16)),
    "values that are text": pair(tensor("a"), tensor("b", data=["1"] * 16)),
    "values out of range": pair(tensor("a"), tensor("b", data=[1 << 31] * 16)),
    "data of uneven depth": pair(tensor("a"), tensor("b", data=[[1], 2, 3])),
    "an output that there is not": pair(outputs=[{"name": "product"}]),
    "outputs that are no objects": pair(outputs=["sum"]),
    "batches that do not match": pair(tensor("a"), tensor("b", shape=[2, 16], data=[0] * 32)),
    "binary data that are not there": pair(tensor("a"), binary(64, name="b")),
    "half of what shared memory takes": pair(
        tensor("a"), tensor("b", data=None, parameters={"shared_memory_region": "mine"})
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_makes_no_sense_is_answered_400(agent: oip.Served, name: str) -> None:
    refused(agent, oip.call(agent.port, "POST", INFER, BAD_REQUESTS[name]), 400)


def refused(agent: oip.Served, answer: oip.Answer, status: int) -> None:
    assert answer.status == status, answer.body[:300]
    assert answer.headers["Content-Type"] == "application/json"
    oip.conforms(answer.json, "error")
    assert oip.call(agent.port, "POST", INFER, pair()).status == 200


@pytest.mark.parametrize(
    ("length", "size"),
    [("1000000", 64), ("-1", 64), ("ten", 64), ("", 64), ("0x10", 64), ("9" * 30, 64), ("10", 64), (None, 63)],
)
def test_a_header_length_that_is_not_the_json_s_is_answered_400(
    agent: oip.Served, length: str | None, size: int
) -> None:
    header = json.dumps(pair(tensor("a"), binary(64, name="b"))).encode()
    headers = {oip.HEADER_LENGTH: str(len(header)) if length is None else length}
    refused(agent, oip.call(agent.port, "POST", INFER, header + bytes(size), headers), 400)


@pytest.mark.parametrize("announced", [63, 65, -64, "64", 1 << 62, None, True, 6.4])
def test_binary_data_of_another_size_than_the_shape_is_answered_400(agent: oip.Served, announced: Any) -> None:
    header = json.dumps(pair(tensor("a"), binary(announced, name="b"))).encode()
    answer = oip.call(agent.port, "POST", INFER, header + bytes(64), {oip.HEADER_LENGTH: str(len(header))})
    refused(agent, answer, 400)


def test_a_tensor_whose_data_are_in_two_places_is_answered_400(agent: oip.Served) -> None:
    header = json.dumps(pair(tensor("a"), tensor("b", parameters={"binary_data_size": 64}))).encode()
    answer = oip.call(agent.port, "POST", INFER, header + bytes(64), {oip.HEADER_LENGTH: str(len(header))})
    refused(agent, answer, 400)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/ghost/infer", 404),
        ("POST", "/v2/models/simple/versions/2/infer", 404),
        ("GET", "/v2/models/ghost", 404),
        ("GET", "/v2/models/simple/versions/2", 404),
        ("GET", "/v2/models/simple/versions/99999999999999999999", 404),
        ("GET", "/v2/models/ghost/ready", 404),
        ("GET", "/v2/models/ghost/config", 404),
        ("GET", "/v2/models/ghost/stats", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/", 404),
        ("GET", "/v2/trace/setting", 404),
        ("GET", "/v2/logging", 404),
        ("GET", "/kedge/v1/status", 404),
        ("POST", f"/kedge/v1/releases/{'0' * 64}/activate", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
        ("POST", "/v2", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/repository/models/simple/load", 403),
        ("POST", "/v2/repository/models/simple/unload", 403),
    ],
)
def test_what_is_not_here_or_not_for_this_door_is_told(agent: oip.Served, method: str, path: str, status: int) -> None:
    refused(agent, oip.call(agent.port, method, path), status)


def test_a_body_over_the_limit_is_answered_413(agent: oip.Served) -> None:
    refused(agent, oip.call(agent.port, "POST", INFER, b" " * ((1 << 20) + 1)), 413)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_body_that_inflates_over_the_limit_is_answered_413(agent: oip.Served, algorithm: str) -> None:
    bomb = {"gzip": gzip.compress, "deflate": zlib.compress}[algorithm](b" " * (64 << 20))
    refused(agent, oip.call(agent.port, "POST", INFER, bomb, {"Content-Encoding": algorithm}), 413)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("gzip", b"not gzip"), ("deflate", b"nor zlib"), ("gzip", gzip.compress(b"{}", mtime=0)[:-4]), ("br", b"x")],
)
def test_a_body_that_cannot_be_inflated_is_refused(agent: oip.Served, encoding: str, body: bytes) -> None:
    answer = oip.call(agent.port, "POST", INFER, body, {"Content-Encoding": encoding})
    assert answer.status in {400, 415}
    refused(agent, answer, answer.status)


NO_HTTP = {
    "a body of unknown length": b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a body of two lengths": b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a body of a negative length": b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "a version that there is not": b"GET /v2 HTTP/9.9\r\n\r\n",
    "spaces too many": b"GET  /v2  HTTP/1.1\r\n\r\n",
    "no request line": b"nonsense\r\n\r\n",
    "a header without a colon": b"GET /v2 HTTP/1.1\r\nno colon\r\n\r\n",
    "a method that there is not": b"BREW /v2 HTTP/1.1\r\n\r\n",
    "headers without end": b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_bytes_that_are_no_http_are_answered_as_json_and_the_connection_ends(agent: oip.Served, name: str) -> None:
    with socket.create_connection(("127.0.0.1", agent.port), timeout=20) as connection:
        connection.sendall(NO_HTTP[name])
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert 400 <= int(head.split()[1]) < 600
    oip.conforms(json.loads(body), "error")
    assert agent.alive()


def test_requests_beyond_the_queue_are_answered_503_until_others_have_left(agent: oip.Served) -> None:
    header = json.dumps(pair(tensor("a"), binary(64, name="b"))).encode()
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(header) + 64}\r\n"
        f"{oip.HEADER_LENGTH}: {len(header)}\r\n\r\n"
    ).encode()
    # Who has sent the JSON has a place; the tensor that is still to come keeps it.
    holders = [socket.create_connection(("127.0.0.1", agent.port), timeout=20) for _ in range(8)]
    try:
        for holder in holders:
            holder.sendall(head + header)
        answer = until(lambda: oip.call(agent.port, "POST", INFER, pair()), 503)
        oip.conforms(answer.json, "error")
        assert oip.call(agent.port, "POST", "/v2/models/digits/infer", {"inputs": []}).status == 400
    finally:
        for holder in holders:
            holder.close()
    until(lambda: oip.call(agent.port, "POST", INFER, pair()), 200)


def until(attempt: Any, status: int) -> oip.Answer:
    deadline = time.monotonic() + 20
    while True:
        answer = attempt()
        if answer.status == status:
            return answer
        assert time.monotonic() < deadline, f"still {answer.status}: {answer.body[:300]!r}"
        time.sleep(0.02)


def test_tritonclient_reads_status_and_message_of_an_error(agent: oip.Served) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{agent.port}") as client:
        attempts = [
            lambda: client.get_model_metadata("ghost"),
            lambda: client.get_model_config("ghost"),
            lambda: client.get_inference_statistics("ghost"),
            lambda: client.infer("ghost", []),
            client.get_trace_settings,
            client.get_log_settings,
        ]
        for attempt in attempts:
            with pytest.raises(InferenceServerException) as found:
                attempt()
            assert found.value.status() == "404"
            assert found.value.message()
            assert "decoding the response" not in found.value.message()
        # The connection is the same one all along.
        assert client.is_server_live()


def test_a_web_page_in_a_browser_on_the_device_cannot_use_the_port(agent: oip.Served) -> None:
    body = json.dumps(pair()).encode()
    for header in ({"Origin": "http://example.com"}, {"Host": "evil.example.com"}, {"Host": "localhost.example:80"}):
        refused = oip.call(agent.port, "POST", INFER, body, header)
        assert (refused.status, refused.json["kind"]) == (403, "forbidden")
    assert oip.call(agent.port, "POST", INFER, body).status == 200
