"""The head of a request, as text."""

from __future__ import annotations

import pytest

from kedge_agent.serving.head import HeadError, parse_head


def head(*lines: str, request: str = "POST /v2/models/m/infer?x=1 HTTP/1.1") -> bytes:
    return "\r\n".join([request, *lines]).encode("latin-1")


def test_a_head_is_taken_apart() -> None:
    parsed = parse_head(head("Host: a", "CONTENT-length:  12 ", "X-Y: 1", "x-y: 2"))
    assert (parsed.method, parsed.path, parsed.query) == ("POST", "/v2/models/m/infer", "x=1")
    assert (parsed.content_length, parsed.keep_alive, parsed.expects_continue) == (12, True, False)
    assert parsed.headers["x-y"] == "1, 2"


@pytest.mark.parametrize(
    ("request_line", "headers", "keep"),
    [
        ("GET / HTTP/1.1", [], True),
        ("GET / HTTP/1.1", ["Connection: keep-alive, Close"], False),
        ("GET / HTTP/1.0", [], False),
        ("GET / HTTP/1.0", ["Connection: keep-alive"], False),
    ],
)
def test_a_connection_is_kept_as_the_client_wishes(request_line: str, headers: list[str], keep: bool) -> None:
    assert parse_head(head(*headers, request=request_line)).keep_alive is keep


@pytest.mark.parametrize(
    ("lines", "status", "reason"),
    [
        (["Transfer-Encoding: chunked"], 400, "Transfer-Encoding"),
        (["Content-Length: 5", "Content-Length: 5"], 400, "two headers content-length"),
        (["Content-Length: 5, 5"], 400, "bad Content-Length"),
        (["Content-Length: +5"], 400, "bad Content-Length"),
        (["Content-Length: -5"], 400, "bad Content-Length"),
        (["Content-Length: 9999999999999999"], 400, "bad Content-Length"),
        (["Content-Length: \xb2"], 400, "bad Content-Length"),
        (["Inference-Header-Content-Length: 1", "inference-header-content-length: 2"], 400, "two headers"),
        (["Host: a", " folded"], 400, "header line"),
        (["Name : value"], 400, "header line"),
        (["no colon"], 400, "header line"),
        ([": empty name"], 400, "header line"),
        (["X: a\x00b"], 400, "header line"),
        (["X: a\nY: b"], 400, "header line"),
        (["Expect: miracles"], 417, "expectation"),
        (["Content-Encoding: br"], 415, "not taken"),
        ([f"X-{number}: 1" for number in range(101)], 431, "more than 100"),
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(lines: list[str], status: int, reason: str) -> None:
    with pytest.raises(HeadError, match=reason) as caught:
        parse_head(head(*lines))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /v2 HTTP/9.9", 400),
        ("GET  /v2 HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("get / HTTP/1.1", 400),
        ("GET http://a/ HTTP/1.1", 400),
        ("GET /\x80 HTTP/1.1", 400),
        ("nonsense", 400),
        ("", 400),
        ("DELETE /v2 HTTP/1.1", 501),
    ],
)
def test_a_request_line_that_is_none_is_refused(line: str, status: int) -> None:
    with pytest.raises(HeadError) as caught:
        parse_head(head(request=line))
    assert caught.value.status == status
