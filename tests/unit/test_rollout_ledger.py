"""What a rollout's ledger bears: torn lines, full disks, other versions, and nonsense."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from kedge.config import state_dir
from kedge.errors import BadInputError, IncompatibleError, IntegrityError
from kedge.fleet.rollout import ledger as ledgers
from kedge.fleet.rollout.drive import drive, resume
from kedge.fleet.rollout.events import ENDS
from kedge.fleet.rollout.ledger import Ledger, create, find, rollouts
from kedge.fleet.rollout.machine import Rollout
from kedge.fleet.rollout.options import Options
from kedge.fleet.rollout.plan import make_plan
from tests.support.driven import RELEASE, Fleet, plan_of, pool


def driven(count: int = 3, **options: Any) -> Ledger:
    ledger = create(plan_of(count, Options(**options)))
    with pool() as executor:
        drive(ledger, executor, work=Fleet())
    return ledger


def test_rollouts_are_found_by_their_id_and_the_newest_by_none() -> None:
    assert rollouts() == []
    with pytest.raises(BadInputError, match="no rollout yet"):
        find(None)
    made = [
        create(
            make_plan(
                [_Named()],
                model="digits",
                version=1,
                digest=RELEASE,
                source="/srv/r",
                options=Options(),
                created_s=1_795_680_000.0 + at,
            )
        ).id
        for at in (5, 0, 3600)
    ]
    (state_dir() / "rollouts" / "notes").mkdir()
    assert [each.id for each in rollouts()] == [made[2], made[0], made[1]]
    assert find(None).id == made[2]
    assert find(made[1]).plan.id == made[1]
    for wrong in ("20261126-000000-000000", "../../etc", "notes"):
        with pytest.raises(BadInputError, match="no rollout"):
            find(wrong)


class _Named:
    name, target = "d0000", "cpu"

    def way(self) -> dict[str, Any]:
        return {"local": True}


def test_a_torn_last_line_is_not_read_and_is_cut_off_by_the_next_driver() -> None:
    ledger = create(plan_of(3, Options(max_failures=1)))
    with pool() as executor:
        drive(ledger, executor, work=Fleet({"d0001": "late"}))
        path = ledger.folder / "events.ndjson"
        whole, document = path.read_bytes(), ledger.read().to_json()
        for torn in (b"{", b'{"event":"ended","at_s":1', whole.splitlines()[-1]):
            path.write_bytes(whole + torn)
            assert ledger.read().to_json() == document
        assert resume(ledger, executor, work=Fleet()).to_json()["counts"] == {"updated": 3}
    lines = path.read_bytes().splitlines()
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[]\n",
        b'{"event":"task","at_s":1.0,"device":"nobody","kind":"deploy"}\n',
        b'{"event":"task","at_s":1.0,"device":"d0000","kind":"look"}\n',
        b'{"event":"wave","at_s":1.0,"wave":7}\n',
        b'{"event":"wave","at_s":"now","wave":1}\n',
        b'{"event":"answer","at_s":1.0,"answer":{"device":"d0000","kind":"deploy"}}\n',
        b'{"event":"ended","at_s":1.0,"state":"perfect","reason":null,"hint":null}\n',
        b"[" * 100_000 + b"\n",
        b'{"event":"' + b"x" * (2 << 20) + b'"}\n',
    ],
)
def test_a_line_that_cannot_be_is_named_as_damage(line: bytes) -> None:
    ledger = driven()
    path = ledger.folder / "events.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(IntegrityError, match="line 3"):
        ledger.read()
    with pytest.raises(IntegrityError), ledger.driving():
        pass


def test_events_of_a_later_kedge_are_named_as_that() -> None:
    ledger = driven()
    with (ledger.folder / "events.ndjson").open("ab") as file:
        file.write(b'{"event":"teleported","at_s":1.0}\n')
    with pytest.raises(IncompatibleError, match="teleported"):
        ledger.read()


def test_a_damaged_plan_is_named_as_that() -> None:
    ledger = driven()
    (ledger.folder / "plan.json").write_text('{"kedge_rollout_plan": 1')
    with pytest.raises(IntegrityError, match=r"plan\.json is damaged"):
        Ledger(ledger.folder).read()


def test_an_event_that_the_disk_does_not_take_does_not_count_and_the_rollout_can_be_resumed() -> None:
    ledger = create(plan_of(8, Options(concurrency=1)))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that may not grow: the kernel writes a part of the line, and then says so, as on a full disk.
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pool() as executor, pytest.raises(BadInputError, match="cannot be driven on") as caught:
            drive(ledger, executor, work=Fleet())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert "resume" in caught.value.hint
    path = ledger.folder / "events.ndjson"
    assert path.read_bytes().endswith(b"}\n")
    told = ledger.read().to_json(driven=False)
    assert told["state"] == "interrupted"
    assert 0 < told["counts"].get("updated", 0) < 8
    with pool() as executor:
        assert resume(ledger, executor, work=Fleet()).to_json()["counts"] == {"updated": 8}


def test_a_rollout_that_the_disk_has_no_room_for_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledgers.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        create(plan_of(1))
    assert rollouts() == []


def test_a_request_to_end_that_is_damaged_is_still_a_request() -> None:
    ledger = create(plan_of(3))
    (ledger.folder / "abort").write_text("{")
    with pool() as executor:
        assert drive(ledger, executor, work=Fleet()).to_json()["counts"] == {"not_begun": 3}


def test_what_the_ledger_holds_is_for_its_owner_alone() -> None:
    ledger = driven()
    assert os.stat(ledger.folder).st_mode & 0o777 == 0o700


def test_what_a_task_follows_from_is_on_the_disk_before_a_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loose: list[str] = []
    synced: list[str] = []
    to_disk = os.fdatasync

    def syncs(handle: int) -> None:
        to_disk(handle)
        synced.extend(loose)
        loose.clear()

    class Watched(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            assert not loose, args
            return super().submit(fn, *args, **kwargs)

    def hear(rollout: Rollout, event: Mapping[str, Any]) -> None:
        if event["event"] in (*ENDS, "rollback"):
            loose.append(event["event"])

    monkeypatch.setattr(os, "fdatasync", syncs)
    ledger = create(plan_of(4, Options(canary=("1", "100%"), concurrency=1, on_halt="rollback", pause_s=0.01)))
    with Watched(4) as executor:
        drive(ledger, executor, work=Fleet({"d0002": "failed"}), hear=hear)
    assert {"answer", "watch", "gates", "halted", "rollback", "ended"} <= set(synced)
    assert loose == []
