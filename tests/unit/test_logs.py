"""What a device sends as its agent's log is read in entries, by level, and steers nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import pytest

from kedge.diagnose.logs import Logs, read_logs
from kedge.errors import IncompatibleError
from kedge.transport.base import Channel, Deadline, Door
from kedge_agent.formats.parts import Part, write_json_part, write_part

LOG = """  File "x.py", line 1, in before
2026-11-26T05:00:00.000Z INFO kedge.daemon serving
2026-11-26T05:00:01.000Z ERROR kedge.http a request failed
Traceback (most recent call last):
  File "x.py", line 3, in handle
ValueError: no
2026-11-26T05:00:02.000Z WARNING kedge.recorder a second was late
"""


class Sent:
    """A device that sends these bytes, whatever it is asked. asked: the words of the last question."""

    name = "nano"
    window_bytes_per_s = float("inf")

    def __init__(self, data: bytes, **end: Any) -> None:
        sink = io.BytesIO()
        write_part(sink, Part.DATA, data)
        write_json_part(sink, Part.END, end)
        self._parts = sink.getvalue()
        self.asked: Sequence[str] = ()

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        self.asked = words
        return self  # type: ignore[return-value]

    def makefile(self, mode: str) -> BinaryIO:
        return io.BytesIO(self._parts)

    def settimeout(self, seconds: float | None) -> None:
        pass

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        raise NotImplementedError

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def read(data: str = LOG, *, left_out: Any = 0, **asked: Any) -> Logs:
    return read_logs(Sent(data.encode(), lines=data.count("\n"), left_out=left_out), **asked)


def test_what_has_no_time_belongs_to_what_was_logged_before_it() -> None:
    told = read()
    assert [(each.at, each.level, len(each.lines)) for each in told.entries] == [
        (None, None, 1),
        ("2026-11-26T05:00:00.000Z", "INFO", 1),
        ("2026-11-26T05:00:01.000Z", "ERROR", 4),
        ("2026-11-26T05:00:02.000Z", "WARNING", 1),
    ]
    assert "\n".join(line for each in told.entries for line in each.shown) + "\n" == LOG


@pytest.mark.parametrize(
    ("level", "levels"), [("warning", ["ERROR", "WARNING"]), ("error", ["ERROR"]), ("critical", [])]
)
def test_a_level_is_told_with_those_above_it_and_tracebacks_stay_whole(level: str, levels: list[str]) -> None:
    entries = read(level=level).entries
    assert [each.level for each in entries] == levels
    assert all(len(each.lines) == 4 for each in entries if each.level == "ERROR")


def test_the_newest_lines_are_told_and_the_others_counted() -> None:
    told = read(LOG, left_out=7, lines=3)
    assert [line for each in told.entries for line in each.shown] == LOG.splitlines()[-3:]
    assert told.left_out == 7 + 4
    assert told.entries[0].at is None


def test_of_a_level_as_many_are_told_as_there_is_room_for_whatever_stands_between_them() -> None:
    quiet = "2026-11-26T05:00:03.000Z DEBUG kedge.http nothing\n" * 5000
    told = read(LOG + quiet, lines=10, level="error")
    assert [each.level for each in told.entries] == ["ERROR"]


def test_nothing_in_a_log_steers_a_terminal() -> None:
    told = read("2026-11-26T05:00:00.000Z INFO kedge a\x1b[2Jb\x07\tc\u202ed\n\x9b31m\r\n")
    assert all(line.isprintable() for each in told.entries for line in each.shown)
    assert json.loads(json.dumps(told.to_json()))["entries"][0]["lines"][0].startswith("kedge a�[2Jb")


@pytest.mark.parametrize("left_out", [-5, "many", None, True, 1.5])
def test_a_count_that_makes_no_sense_is_none(left_out: Any) -> None:
    assert read(left_out=left_out).left_out == 0


def test_an_empty_log_is_no_entry() -> None:
    assert read("").entries == []


def test_a_log_without_end_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="more than"):
        read_logs(Sent(b"x" * (33 << 20)))


def test_what_is_asked_for_is_what_the_device_reads() -> None:
    device = Sent(b"")
    read_logs(device, since_s=90, lines=5)
    assert device.asked == ["logs", "--since", "90", "--lines", "5"]
    read_logs(device, level="error")
    assert device.asked == ["logs", "--since", str(400 * 86_400), "--lines", "100000"]
