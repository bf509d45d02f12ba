"""Connections, byte by byte, over a real Unix socket: framing, limits, slow peers, the way of a body into a slot."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.oip import encode_request
from kedge_agent.serving import body as body_module
from kedge_agent.serving.http import Request, Response, json_response
from kedge_agent.serving.limits import Limits
from kedge_agent.serving.repository import Repository
from kedge_agent.serving.server import HTTPServer, tcp_listener, unix_listener
from kedge_agent.store.layout import Layout
from tests.support import models
from tests.support.served import Client, activated, raw_exchange, serving, socket_path
from tests.unit.test_store import deliver


def echo(request: Request) -> Response:
    """How many bytes there were, and their sum."""
    view = memoryview(bytearray(request.body.left))
    request.read_into(view)
    return json_response({"path": request.path, "bytes": len(view), "sum": sum(view)})


def wait_then_echo(request: Request) -> Response:
    time.sleep(0.5)
    return echo(request)


@pytest.fixture
def echoing() -> Iterator[tuple[HTTPServer, Path]]:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo, Limits(header_bytes=2048, body_bytes=100_000))
        server.start()
        yield server, path
        server.close()


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /x HTTP/1.1", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def test_requests_that_come_in_one_piece_are_answered_one_after_the_other(echoing) -> None:
    _, path = echoing
    answer = raw_exchange(path, post(b"\1\2") + post(b"") + post(b"\3" * 5000) + b"GET /last HTTP/1.1\r\n\r\n")
    assert statuses(answer) == [200] * 4
    assert [int(total) for total in re.findall(rb'"sum": (\d+)', answer)] == [3, 0, 15000, 0]


def test_a_head_that_comes_byte_by_byte_is_the_same_head(echoing) -> None:
    _, path = echoing
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        for byte in b"\r\n" + post(b"\7"):
            connection.sendall(bytes([byte]))
            time.sleep(0.0005)
        assert b'"sum": 7' in connection.recv(4096)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 3000, 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 100001\r\n\r\n", 413),
        (post(b"x", "Content-Encoding: gzip"), 400),
        (post(zlib.compress(b"x")[:-1], "Content-Encoding: deflate"), 400),
        (post(gzip.compress(b"x") + b"more", "Content-Encoding: gzip"), 400),
        (post(gzip.compress(bytes(200_000)), "Content-Encoding: gzip"), 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort", 400),
    ],
    ids=[
        "no request line",
        "chunked",
        "long path",
        "endless header",
        "large body",
        "no gzip",
        "cut deflate",
        "bytes after gzip",
        "gzip bomb",
        "short body",
    ],
)
def test_hostile_framing_is_answered_with_an_error_and_the_connection_closed(echoing, raw: bytes, status: int) -> None:
    _, path = echoing
    answer = raw_exchange(path, raw)
    assert statuses(answer) == [status]
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert statuses(raw_exchange(path, post(b"\1"))) == [200]


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_compressed_body_is_inflated(echoing, encode) -> None:
    _, path = echoing
    name = "gzip" if encode is gzip.compress else "deflate"
    answer = raw_exchange(path, post(encode(b"\2" * 90_000), f"Content-Encoding: {name}"))
    assert b'"bytes": 90000, "sum": 180000' in answer


def test_a_compressed_body_that_nobody_asks_for_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    inflated: list[str] = []
    monkeypatch.setattr(body_module.zlib, "decompressobj", lambda *_: inflated.append("!"))

    def refuse_unseen(request: Request) -> Response:
        return json_response({"error": "no such resource"}, 404)

    with socket_path() as path:
        server = HTTPServer(unix_listener(path), refuse_unseen)
        server.start()
        answer = raw_exchange(path, post(gzip.compress(bytes(1 << 20)), "Content-Encoding: gzip") * 2)
        server.close()
    assert statuses(answer) == [404, 404]
    assert inflated == []


def test_a_bomb_stops_at_64_mb_whatever_a_body_may_have() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo)
        server.start()
        answer = raw_exchange(path, post(gzip.compress(bytes((64 << 20) + 1)), "Content-Encoding: gzip"))
        server.close()
    assert statuses(answer) == [413]


def test_a_client_that_waits_to_be_told_to_send_is_told(echoing) -> None:
    _, path = echoing
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"\1\1\1")
        assert b'"sum": 3' in connection.recv(4096)


def test_a_client_that_waits_is_not_told_when_its_request_is_refused_anyway() -> None:
    def refuse(request: Request) -> Response:
        return json_response({"error": "no"}, 404)

    with socket_path() as path:
        server = HTTPServer(unix_listener(path), refuse)
        server.start()
        answer = raw_exchange(path, b"POST /x HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        server.close()
    assert statuses(answer) == [404]
    assert b"Connection: close" in answer


def test_who_stops_within_a_head_or_a_body_is_hung_up_on() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo, Limits(idle_s=0.3, grace_s=0.2))
        server.start()
        for raw, expected in (
            (b"POST /x HT", []),
            (b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n123", [400]),
            (b"", []),
        ):
            with socket.socket(socket.AF_UNIX) as slow:
                slow.settimeout(10)
                slow.connect(str(path))
                slow.sendall(raw)
                answer = b""
                while part := slow.recv(4096):
                    answer += part
            assert statuses(answer) == expected
        server.close()


def test_who_does_not_take_its_answer_is_hung_up_on_and_the_others_are_served() -> None:
    large = bytes(8 << 20)

    def much(request: Request) -> Response:
        return Response(200, [large]) if request.path == "/much" else json_response({})

    with socket_path() as path:
        server = HTTPServer(unix_listener(path), much, Limits(slowest_bytes_per_s=1 << 30, grace_s=0.3))
        server.start()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(path))
            deaf.sendall(b"GET /much HTTP/1.1\r\n\r\n")
            assert statuses(raw_exchange(path, b"GET / HTTP/1.1\r\n\r\n")) == [200]
            deadline = time.monotonic() + 10
            while server.connections and time.monotonic() < deadline:
                time.sleep(0.02)
            assert server.connections == 0
        server.close()


def test_one_connection_too_many_is_told_to_come_back() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo, Limits(connections=3))
        server.start()
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for connection in crowd:
            connection.connect(str(path))
        # Connections are taken up in order: once the last of these is served, all are counted.
        crowd[-1].sendall(post(b""))
        assert crowd[-1].recv(4096).startswith(b"HTTP/1.1 200")
        answer = raw_exchange(path, b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.split(b"\r\n\r\n")[1])["kind"] == "busy"
        for connection in crowd:
            connection.close()
        while server.connections:
            time.sleep(0.01)
        assert statuses(raw_exchange(path, post(b""))) == [200]
        server.close()


def test_a_handler_that_fails_is_an_error_of_that_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request) -> Response:
        raise ZeroDivisionError

    with socket_path() as path:
        server = HTTPServer(unix_listener(path), broken)
        server.start()
        answer = raw_exchange(path, post(b"12") + post(b"34"))
        server.close()
    assert statuses(answer) == [500, 500]
    assert "ZeroDivisionError" in caplog.text, "a 500 has its cause in the log"


def test_draining_ends_idle_connections_and_lets_the_request_inside_finish() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), wait_then_echo)
        server.start()
        idle, working = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        for connection in (idle, working):
            connection.settimeout(10)
            connection.connect(str(path))
        working.sendall(post(b"\5"))
        while server.connections < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        drained: list[bool] = []
        thread = threading.Thread(target=lambda: drained.append(server.drain(10)))
        thread.start()
        assert idle.recv(10) == b""
        answer = working.recv(4096)
        assert b'"sum": 5' in answer
        assert b"Connection: close" in answer
        idle.close()
        working.close()
        thread.join()
        assert drained == [True]
        with pytest.raises(OSError, match="refused"):
            raw_exchange(path, b"")


def test_draining_says_when_a_request_did_not_finish_in_time() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), wait_then_echo)
        server.start()
        with socket.socket(socket.AF_UNIX) as working:
            working.connect(str(path))
            working.sendall(post(b"\5"))
            time.sleep(0.1)
            assert server.drain(0.05) is False
            server.close()


def test_the_localhost_port_is_of_localhost_alone_and_serves() -> None:
    listener = tcp_listener(port := free_port())
    assert listener.getsockname() == ("127.0.0.1", port)
    server = HTTPServer(listener, echo)
    server.start()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(post(b"\1\1"))
        assert b'"sum": 2' in connection.recv(4096)
    server.close()


def test_a_peer_that_is_not_allowed_is_hung_up_on() -> None:
    import os

    asked: list[tuple[int, int, int]] = []

    def refuse(pid: int, uid: int, gid: int) -> bool:
        asked.append((pid, uid, gid))
        return False

    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo, allowed=refuse)
        server.start()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert connection.recv(10) == b""
        server.close()
    assert asked == [(os.getpid(), os.geteuid(), os.getegid())]


@pytest.fixture
def large_model(tmp_path: Path) -> Iterator[tuple[Repository, Path]]:
    """A model of two million floats in and out: 8 MB a tensor."""
    from kedge.build.release import BuildOptions, build_release
    from kedge.targets import host_target

    model = models.adder(tmp_path / "adder.onnx")
    golden = {"a": np.arange(4, dtype="f4"), "b": np.ones(4, "f4")}
    release: Release = build_release(
        model, host_target(), tmp_path / "adder.release", BuildOptions("adder", 1), golden
    ).release
    layout = Layout(tmp_path / "state")
    deliver(layout, release)
    repository = activated(layout, release)
    with serving(repository, layout) as (_, path):
        yield repository, path


def request_of(count: int) -> tuple[bytes, dict[str, str]]:
    inputs = {"a": np.arange(count, dtype="f4"), "b": np.ones(count, "f4")}
    header, buffers = encode_request(inputs)
    return header + b"".join(buffers), {"Inference_Header_Content_Length": str(len(header))}


def test_the_kernel_writes_a_body_where_the_runtime_reads_it(large_model, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, path = large_model
    received: list[tuple[int, int]] = []
    original = socket.socket.recv_into

    def recv_into(self, view, *rest):
        got = original(self, view, *rest)
        received.append((np.frombuffer(view, np.uint8).ctypes.data, got))
        return got

    monkeypatch.setattr(socket.socket, "recv_into", recv_into)
    client = Client(path)
    body, headers = request_of(2_000_000)
    status, _, _ = client.call("POST", "/v2/models/adder/infer", body, **headers)
    client.close()
    assert status == 200
    pool = repository.get("adder").pool
    while pool.inside:
        time.sleep(0.001)
    ((_, slot),) = pool._idle
    bound = slot.bind({"a": (2_000_000,), "b": (2_000_000,)}).inputs
    for name in ("a", "b"):
        start = bound[name].ctypes.data
        assert start % 256 == 0
        # However many pieces it came in, each was written where the one before it ended.
        parts = [(address, got) for address, got in received if start <= address < start + 8_000_000]
        assert parts[0][0] == start
        assert sum(got for _, got in parts) == 8_000_000
    assert repository.get("adder").statistics.to_json()["copied_tensors"] == 0


def test_what_has_to_be_copied_is_counted(large_model) -> None:
    repository, path = large_model
    client = Client(path)
    body = {"inputs": [{"name": name, "datatype": "FP32", "shape": [2], "data": [1, 2]} for name in ("a", "b")]}
    assert client.infer(body, path="/v2/models/adder/infer")[0] == 200
    client.close()
    assert repository.get("adder").statistics.to_json()["copied_tensors"] == 3, "two inputs and an output, as JSON"


def test_a_request_of_8_mb_costs_python_less_than_64_kb(large_model) -> None:
    _, path = large_model
    body, headers = request_of(1_000_000)
    head = (
        f"POST /v2/models/adder/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {headers['Inference_Header_Content_Length']}\r\n\r\n"
    ).encode()
    answer = bytearray(4 << 20)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))

        def once() -> None:
            connection.sendall(head)
            connection.sendall(body)
            got = 0
            while got < 4_000_000:
                got += connection.recv_into(memoryview(answer)[got:])

        once()
        tracemalloc.start()
        try:
            once()
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            once()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - before < 64 * 1024


def test_who_writes_first_and_is_one_too_many_reads_that_it_is() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo, Limits(connections=1))
        server.start()
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            first.sendall(post(b""))
            assert first.recv(4096).startswith(b"HTTP/1.1 200")
            assert statuses(raw_exchange(path, post(b"\1" * 50_000))) == [503]
        server.close()


def test_who_has_connected_before_the_end_is_still_served() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo)
        # Nobody accepts yet: this one waits in the listener's backlog.
        early = socket.socket(socket.AF_UNIX)
        early.settimeout(10)
        early.connect(str(path))
        early.sendall(post(b"\4"))
        server.start()
        drained = server.drain(10)
        assert b'"sum": 4' in early.recv(4096)
        assert drained
        early.close()


def test_who_connects_without_end_does_not_keep_the_server_from_ending() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo)
        server.start()
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                with socket.socket(socket.AF_UNIX) as connection:
                    try:
                        connection.connect(str(path))
                    except OSError:
                        return

        hammers = [threading.Thread(target=hammer) for _ in range(2)]
        for thread in hammers:
            thread.start()
        time.sleep(0.2)
        begin, tick = time.monotonic(), server.last_tick
        assert begin - tick < 1, "the accepting thread still goes round"
        server._stop_accepting()
        # They would go on for as long as they are let in.
        for thread in hammers:
            thread.join(20)
        ended = [not thread.is_alive() for thread in hammers]
        stop.set()
        server.close()
    assert ended == [True, True]


def test_a_crowd_that_trickles_keeps_nobody_from_being_told() -> None:
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), echo, Limits(connections=1))
        server.start()
        held = [socket.socket(socket.AF_UNIX) for _ in range(30)]
        for connection in held:
            connection.connect(str(path))
            with contextlib.suppress(OSError):
                connection.sendall(b"G")
        for _ in range(5):
            assert statuses(raw_exchange(path, b"")) == [503]
        for connection in held:
            connection.close()
        server.close()


def test_who_resets_its_connection_within_a_body_is_no_failure_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    server = HTTPServer(tcp_listener(port := free_port()), echo)
    server.start()
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.sendall(b"POST /x HTTP/1.1\r\nContent-Length: 100\r\n\r\nabc")
        time.sleep(0.1)
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while server.connections:
        time.sleep(0.01)
    server.close()
    assert caplog.text == ""


def test_only_a_few_compressed_bodies_are_in_memory_at_a_time() -> None:
    inside, go_on = threading.Semaphore(0), threading.Event()

    def hold(request: Request) -> Response:
        size = request.body.left
        inside.release()
        go_on.wait(20)
        return json_response({"bytes": size})

    raw = post(gzip.compress(bytes(1000)), "Content-Encoding: gzip")
    answers: list[bytes] = []
    with socket_path() as path:
        server = HTTPServer(unix_listener(path), hold)
        server.start()
        threads = [threading.Thread(target=lambda: answers.append(raw_exchange(path, raw))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert inside.acquire(timeout=10)
        assert statuses(raw_exchange(path, raw)) == [503]
        go_on.set()
        for thread in threads:
            thread.join()
        assert statuses(raw_exchange(path, raw)) == [200]
        server.close()
    assert [statuses(answer) for answer in answers] == [[200]] * 4
