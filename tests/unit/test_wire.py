from __future__ import annotations

import io
import struct

import pytest

from kedge_agent import wire


def reader(data: bytes):
    source = io.BytesIO(data)

    def exactly(size: int) -> bytes:
        got = source.read(size)
        if len(got) < size:
            raise EOFError
        return got

    return exactly


def test_a_greeting_survives_the_way() -> None:
    greeting = wire.Greeting((1, 2), "9.9", "no disk", "add one", "space")
    line = wire.render_greeting(greeting)
    assert line.startswith(wire.GREETING_PREFIX)
    assert line.endswith(b"\n")
    assert wire.parse_greeting(line) == greeting


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"protocols": 1}', b'{"protocols": [true]}', b"nonsense"])
def test_a_malformed_greeting_is_refused(body: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.parse_greeting(wire.GREETING_PREFIX + body)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": 1, "a": 2}',
        b"1.5",
        b"NaN",
        b"-Infinity",
        b"1e3",
        b'{"a": 123456789012345678901}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_json_that_could_be_read_two_ways_or_without_end_is_refused(text: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.parse_json(text)


def test_json_longer_than_its_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(wire.WireError, match="exceeds the limit"):
        wire.parse_json(b"[" + b" " * 100 + b"]", limit=50)


def test_floats_are_read_only_where_they_are_allowed() -> None:
    assert wire.parse_json(b"[1.5]", floats=True) == [1.5]


def test_a_message_of_unknown_type_is_refused() -> None:
    with pytest.raises(wire.WireError, match="unknown message type 99"):
        wire.read_message(reader(struct.pack(">BI", 99, 0)))


@pytest.mark.parametrize("kind", list(wire.Message))
def test_no_message_may_announce_more_than_its_limit(kind: wire.Message) -> None:
    header = wire.MESSAGE_HEADER.pack(kind, wire.message_limit(kind) + 1)
    with pytest.raises(wire.WireError, match="exceeds the limit"):
        wire.read_message(reader(header))


def test_a_message_that_ends_early_is_an_end_of_file() -> None:
    with pytest.raises(EOFError):
        wire.read_message(reader(wire.MESSAGE_HEADER.pack(wire.Message.WANT, 10) + b"abc"))


def test_every_fault_the_agent_reports_has_the_sdk_s_exit_code() -> None:
    from kedge.errors import error_of_kind

    for kind, fault in wire.FAULTS.items():
        error = error_of_kind(kind, "message", "hint")
        assert int(error.exit_code) == fault.exit_code, kind
