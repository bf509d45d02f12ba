"""Collectors that hang, crash, flood or ignore signals: each is cut alone, and the others' outcomes stand."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.diagnose import running
from kedge_agent.diagnose.device import Collected, Device, UnavailableError
from kedge_agent.diagnose.running import Collector, Outcome, run_collectors

LONG = 60.0


def _well(device: Device) -> Collected:
    return Collected({"state": str(device.state)})


def _hangs(_: Device) -> Collected:
    time.sleep(1000)
    raise AssertionError


def _ignores(_: Device) -> Collected:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    time.sleep(1000)
    raise AssertionError


def _crashes(_: Device) -> Collected:
    faulthandler.disable()
    ctypes.string_at(0)
    raise AssertionError


def _is_killed(_: Device) -> Collected:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _exits(_: Device) -> Collected:
    os._exit(0)


def _raises(_: Device) -> Collected:
    raise KeyError("no such thing")


def _is_not_here(_: Device) -> Collected:
    raise UnavailableError("there is no such sensor on this board")


def _floods_with_members(_: Device) -> Collected:
    return Collected({}, ((f"f{place}", bytes(4 << 20)) for place in itertools.count()))


def _floods_with_data(_: Device) -> Collected:
    return Collected({"lines": ["x" * 4000] * 2000})


def _stumbles_over_a_member(_: Device) -> Collected:
    def members() -> Iterator[tuple[str, bytes]]:
        yield "first", b"1"
        raise OSError(5, "Input/output error")

    return Collected({"told": 1}, members())


def _prints(_: Device) -> Collected:
    os.write(1, b"over the parts")
    os.write(2, b"and beside them")
    subprocess.run(["echo", "over the parts"], check=True)
    return Collected({})


def _run(tmp_path: Path, *collectors: Collector, deadline_s: float = LONG) -> dict[str, Outcome]:
    return run_collectors(collectors, Device(tmp_path), deadline_s)


def test_what_a_collector_found_comes_with_its_raw_files(tmp_path: Path) -> None:
    def collect(_: Device) -> Collected:
        return Collected({"figure": 1.5, "nothing": None}, iter([("a/b", b"raw \0 bytes"), ("empty", b"")]))

    told: list[Outcome] = []
    outcomes = run_collectors([Collector("one", collect, LONG)], Device(tmp_path), LONG, told.append)
    assert [outcome.members for outcome in told] == [(("a/b", b"raw \0 bytes"), ("empty", b""))]
    assert outcomes["one"].data == {"figure": 1.5, "nothing": None}
    assert (outcomes["one"].status, outcomes["one"].reason, outcomes["one"].members) == ("ok", None, ())


@pytest.mark.parametrize(
    ("collect", "status", "reason"),
    [
        (_hangs, "timeout", "no end within 0.5 s"),
        (_ignores, "timeout", "no end within 0.5 s"),
        (_crashes, "failed", "it was ended by SIGSEGV"),
        (_is_killed, "failed", "it was ended by SIGKILL; memory may have run out"),
        (_exits, "failed", "it ended without a word"),
        (_raises, "failed", "KeyError: 'no such thing' (test_collectors.py:"),
        (_is_not_here, "unavailable", "there is no such sensor on this board"),
        (_floods_with_members, "failed", "it told more than it may"),
        (_floods_with_data, "failed", "it told more than it may"),
        (_stumbles_over_a_member, "failed", "OSError: [Errno 5] Input/output error"),
    ],
)
def test_one_that_fails_is_told_with_its_reason_and_the_others_are_not_touched(
    tmp_path: Path, collect: object, status: str, reason: str
) -> None:
    deadline_s = 0.5 if status == "timeout" else LONG
    outcomes = _run(
        tmp_path,
        Collector("first", _well, LONG),
        Collector("sick", collect, deadline_s),  # type: ignore[arg-type]
        Collector("last", _well, LONG),
    )
    assert list(outcomes) == ["first", "sick", "last"]
    assert (outcomes["sick"].status, outcomes["sick"].data) == (status, None)
    assert (outcomes["sick"].reason or "").startswith(reason)
    for name in ("first", "last"):
        assert (outcomes[name].status, outcomes[name].data) == ("ok", {"state": str(tmp_path)})


@pytest.mark.parametrize(
    "said",
    [
        b"\x02\x00\x00\x00\x01\xff",
        b"\x02\x00\x00\x00\x04\x00\x01\xff\xff",
        b"\x01\x00\x00\x00\x02[]",
        b"\x01\x00\x00\x00\x02{]",
        b"\x09\x00\x00\x00\x00",
        b"\x01\xff\xff\xff\xff",
        b"\x01\x00",
    ],
)
def test_what_a_library_that_ran_wild_writes_is_no_word_of_its_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    def wild(_collect: object, _device: Device, handle: int) -> None:
        os.write(handle, said)
        os._exit(0)

    monkeypatch.setattr(running, "collect_and_tell", wild)
    outcome = _run(tmp_path, Collector("wild", _well, LONG))["wild"]
    assert (outcome.status, outcome.data) == ("failed", None)
    assert outcome.reason


def test_the_deadline_of_all_ends_those_that_hang_and_those_that_were_not_begun(tmp_path: Path) -> None:
    sick = [Collector(f"hang{place}", _hangs, LONG) for place in range(9)]
    outcomes = _run(tmp_path, Collector("well", _well, LONG), *sick, deadline_s=1.0)
    assert outcomes["well"].status == "ok"
    reasons = [outcomes[each.name].reason for each in sick]
    assert {outcomes[each.name].status for each in sick} == {"timeout"}
    assert set(reasons) == {"the time for all was over", "not begun: the time for all was over"}


def test_what_a_collector_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "child"

    def starts_another(_: Device) -> Collected:
        child = subprocess.Popen(["sleep", "1000"])
        note.write_text(str(child.pid))
        child.wait()
        raise AssertionError

    outcomes = _run(tmp_path, Collector("sick", starts_another, 1.0))
    assert outcomes["sick"].status == "timeout"
    _ends(int(note.read_text()))


def test_collectors_end_with_the_diagnosis_that_is_killed(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from kedge_agent.diagnose.device import Collected, Device
from kedge_agent.diagnose.running import Collector, run_collectors

def hangs(device):
    (device.state / "child").write_text(str(os.getpid()))
    (device.state / "child").rename(device.state / "ready")
    time.sleep(1000)

run_collectors([Collector("sick", hangs, 1000.0)], Device(Path(sys.argv[1])), 1000.0)
"""
    diagnosis = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    while not (tmp_path / "ready").exists():
        assert diagnosis.poll() is None
        time.sleep(0.01)
    diagnosis.kill()
    diagnosis.wait()
    _ends(int((tmp_path / "ready").read_text()))


def test_commands_end_with_the_diagnosis_that_is_killed(tmp_path: Path) -> None:
    command = tmp_path / "slow-command"
    command.write_text('#!/bin/sh\necho $$ > "$1.partial"; mv "$1.partial" "$1"; exec sleep 1000\n')
    command.chmod(0o755)
    program = """
import sys
from pathlib import Path
from kedge_agent.diagnose.device import Collected, Device
from kedge_agent.diagnose.running import Collector, run_collectors

def asks(device):
    return Collected({"said": device.command(*sys.argv[2:], timeout_s=1000.0)})

run_collectors([Collector("asks", asks, 1000.0)], Device(Path(sys.argv[1])), 1000.0)
"""
    words = [sys.executable, "-c", program, str(tmp_path), str(command), str(tmp_path / "ready")]
    diagnosis = subprocess.Popen(words)
    while not (tmp_path / "ready").exists():
        assert diagnosis.poll() is None
        time.sleep(0.01)
    diagnosis.kill()
    diagnosis.wait()
    _ends(int((tmp_path / "ready").read_text()))


def test_standard_output_is_the_host_s_whatever_a_collector_prints(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert _run(tmp_path, Collector("loud", _prints, LONG))["loud"].status == "ok"
    assert capfdbinary.readouterr() == (b"", b"")


def test_a_listener_that_takes_its_time_cuts_nobody(tmp_path: Path) -> None:
    def waits(_: Device) -> Collected:
        time.sleep(0.3)
        return Collected({"members": 1}, [("large", bytes(8 << 20))])

    def slow(outcome: Outcome) -> None:
        # As a host behind a slow line: longer than the other's whole deadline, which cannot write meanwhile.
        if outcome.name == "quick":
            time.sleep(3.0)

    collectors = [Collector("quick", _well, LONG), Collector("waits", waits, 2.5)]
    assert run_collectors(collectors, Device(tmp_path), LONG, slow)["waits"].status == "ok"


def test_where_no_process_can_be_made_each_collector_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(running.os, "fork", refuse)
    outcomes = _run(tmp_path, Collector("one", _well, LONG), Collector("two", _well, LONG))
    assert {outcome.reason for outcome in outcomes.values()} == {
        "no process could be made for it: Resource temporarily unavailable"
    }


def test_what_json_has_no_word_for_becomes_null_or_plain_text(tmp_path: Path) -> None:
    def collect(_: Device) -> Collected:
        values = {"nan": float("nan"), "huge": 1 << 70, "half": "\udc80x", "path": Path("/x"), "long": "y" * 9000}
        return Collected({**values, "tuple": (1, {2})})

    data = _run(tmp_path, Collector("odd", collect, LONG))["odd"].data
    assert data is not None
    assert (data["nan"], data["huge"], data["half"], data["path"], data["tuple"]) == (None, None, "?x", "/x", [1, [2]])
    assert len(data["long"]) == 4096
    json.dumps(data, allow_nan=False).encode()


def test_a_crash_leaves_no_core_on_the_disk(tmp_path: Path) -> None:
    def limit(_: Device) -> Collected:
        import resource

        return Collected({"core": list(resource.getrlimit(resource.RLIMIT_CORE))})

    assert _run(tmp_path, Collector("limit", limit, LONG))["limit"].data == {"core": [0, 0]}


def _ends(pid: int) -> None:
    """Wait until a process has ended; whoever is its parent may not have asked for its status yet."""
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
