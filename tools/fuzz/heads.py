"""Families of tools/fuzz that leave HTTP itself: bytes of any kind, and heads that are odd or contradict themselves."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from tools.fuzz.case import DOORS, Case, paths, pieces, request
from tools.fuzz.device import Device

from kedge_agent.formats.oip import HEADER_LENGTH

__all__ = ["heads", "raw"]

_METHODS = (
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "CONNECT",
    "get",
    "P\x00ST",
    "",
    "X" * 40,
)
_VERSIONS = ("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "http/1.1", "HTTP/1.10", "", "HTTP/11")
_ODD_TARGETS = (
    "",
    "*",
    "http://h/v2",
    "/v2/\x00",
    "//v2",
    "/v2/../v2",
    "/%",
    "/v2?" + "q" * 300,
    "/" + "a" * 20000,
    "/\xff",
)
_LENGTHS = (
    "0",
    "1",
    "-1",
    "+5",
    "5 ",
    "0x5",
    "1e3",
    "٣",
    "99999999999999999999",
    "4294967296",
    "1073741825",
    "",
    "5, 5",
)
_NAMES = (
    *("Host", "Content-Length", "content-length", "Content-Type", "Transfer-Encoding", "Connection", "Expect"),
    *("Content-Encoding", "Accept", "Cookie", HEADER_LENGTH, "X-" + "y" * 300, "Bad Name", "", "Nu\x00l", "Tab\t", ":"),
)
_VALUES = (
    *("close", "keep-alive", "chunked", "identity", "gzip", "deflate", "br", "gzip, gzip", "100-continue", "200-ok"),
    *("*/*", "", "a\x00b", "é", "a" * 9000, "a\r\n folded", "upgrade, close"),
)


def raw(device: Device) -> SearchStrategy[Case]:
    """Bytes of any kind, and good requests with bytes changed, lost, doubled or put in."""
    good = [_good(device, index) for index in range(len(device.models))]

    @st.composite
    def build(draw: DrawFn) -> Case:
        if not draw(st.integers(0, 4)):
            return Case(draw(DOORS), pieces(draw, draw(st.binary(max_size=300))), None)
        data = bytearray(draw(st.sampled_from(good)))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, max(0, len(data) - 1)))
            match draw(st.integers(0, 4)):
                case 0:
                    data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
                case 1:
                    del data[at : at + draw(st.integers(1, 20))]
                case 2:
                    data[at:at] = data[at : at + draw(st.integers(1, 60))]
                case 3:
                    data[at:at] = draw(st.sampled_from((b"\r\n", b"\r", b"\n", b"\x00", b" ", b"\t", b"\xff", b":")))
                case _:
                    del data[at:]
        return Case(draw(DOORS), pieces(draw, bytes(data)), None)

    return build()


def heads(device: Device) -> SearchStrategy[Case]:
    """Odd methods, targets, versions, names and values; lengths that are doubled, contradict each other, or lie."""
    targets = st.one_of(st.sampled_from(paths(device)), st.sampled_from(_ODD_TARGETS))
    header = st.tuples(st.sampled_from(_NAMES), st.one_of(st.sampled_from(_VALUES), st.sampled_from(_LENGTHS)))

    @st.composite
    def build(draw: DrawFn) -> Case:
        line = " ".join((draw(st.sampled_from(_METHODS)), draw(targets), draw(st.sampled_from(_VERSIONS))))
        if draw(st.booleans()):
            line = f"{draw(st.sampled_from(('GET', 'POST')))} {draw(st.sampled_from(paths(device)))} HTTP/1.1"
        headers = draw(st.lists(header, max_size=5))
        if not draw(st.integers(0, 30)):
            headers *= draw(st.integers(2, 60))
        end = draw(st.sampled_from(("\r\n", "\r\n", "\r\n", "\n", "\r")))
        text = end.join((line, *(f"{name}: {value}" for name, value in headers))) + end + end
        body = draw(st.binary(max_size=40)) if draw(st.booleans()) else b""
        return Case(draw(DOORS), pieces(draw, text.encode("utf-8") + body), None)

    return build()


def _good(device: Device, index: int) -> bytes:
    model = device.models[index]
    header, data = model.request()
    return request("POST", f"/v2/models/{model.name}/infer", header + data, ((HEADER_LENGTH, str(len(header))),))
