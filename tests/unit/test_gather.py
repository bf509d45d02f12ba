"""What this host saw of a device that is reached, and whose agent's program does not tell its facts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from kedge.diagnose import gather as gathering
from kedge.diagnose.doctor import diagnose
from kedge.diagnose.gather import gather
from kedge.errors import AgentMissingError
from kedge.transport.base import Channel, Deadline
from tests.support.doctors import assert_can_be_done
from tests.unit.test_logs import Sent


class Silent(Sent):
    """A device on which the agent's program is started and says nothing."""

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        while deadline.remaining():
            time.sleep(0.02)
        raise AssertionError


class Broken(Sent):
    """A device on which the agent's program cannot run, and says so over several lines."""

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        raise AgentMissingError("nano: the agent cannot be used: Traceback\n  line\r\nImportError: \x1b[2J")


def test_a_start_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_CONNECT_S", 0.2)
    monkeypatch.setattr(gathering, "_DEVICE_S", 0)
    first = diagnose(gather(Silent(b""), None)).first_cause
    assert first is not None
    assert (first.check, first.brief) == ("agent", "the agent's program does not start")
    assert first.cause.startswith("its start hangs")
    assert_can_be_done(first.cure)


def test_what_a_broken_agent_says_is_one_line_without_anything_that_steers_a_terminal() -> None:
    first = diagnose(gather(Broken(b""), None)).first_cause
    assert first is not None
    assert first.evidence == "the agent cannot be used: Traceback line ImportError: �[2J"
    assert first.cause.startswith("none is installed, or it is damaged")
