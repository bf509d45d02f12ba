"""The journal: what is written stays written, through cuts, flipped bits, full disks and compaction."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge_agent.failpoints import FAILPOINTS
from kedge_agent.store import journal as journal_module
from kedge_agent.store.journal import STEPS, Journal, read_unfinished
from kedge_agent.store.layout import Layout
from tests.support.stores import fill, small_disk

SIZE = 256 * 1024
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


def path_of(layout: Layout) -> Path:
    return layout.root / "journal"


def steps(journal: Journal) -> list[tuple[str, str]]:
    return [(entry.release[0], entry.step) for entry in journal.history()]


def test_records_are_found_again_with_what_they_tell_and_the_file_keeps_its_size(layout: Layout) -> None:
    journal = Journal(layout)
    first = journal.append("digits", A, "begun", previous=None)
    journal.append("digits", A, "committed", figures={"p99_ms": 1.25, "outputs": [{"cosine": 1.0}]})
    journal.append("other", B, "begun")
    assert (first.sequence, first.body) == (1, {"previous": None})
    again = Journal(layout)
    assert again.history() == journal.history()
    assert again.history("digits")[1].body["figures"] == {"p99_ms": 1.25, "outputs": [{"cosine": 1.0}]}
    journal.append("other", C, "switched")
    journal.append("other", B, "gated")
    assert [(entry.release, entry.step) for entry in journal.unfinished()] == [(C, "switched"), (B, "gated")]
    assert read_unfinished(layout) == {B, C}
    assert path_of(layout).stat().st_size == SIZE
    assert path_of(layout).stat().st_blocks * 512 >= SIZE


def test_a_step_that_does_not_exist_is_never_written(layout: Layout) -> None:
    with pytest.raises(ValueError, match="celebrated"):
        Journal(layout).append("digits", A, "celebrated")


@pytest.mark.parametrize("cut", [1, 5, 9, 10, 40, -1])
def test_a_record_that_a_power_cut_tore_is_none_and_the_next_one_takes_its_place(layout: Layout, cut: int) -> None:
    journal = Journal(layout)
    journal.append("digits", A, "begun")
    before = path_of(layout).read_bytes().rstrip(b"\0")
    journal.append("digits", A, "committed", reason="y" * 300)
    whole = path_of(layout).read_bytes().rstrip(b"\0")
    torn = whole[: len(before) + cut] if cut > 0 else whole[:cut]
    path_of(layout).write_bytes(torn.ljust(SIZE, b"\0"))
    again = Journal(layout)
    assert steps(again) == [("a", "begun")]
    assert path_of(layout).read_bytes().rstrip(b"\0") == before
    again.append("digits", A, "refused")
    assert steps(Journal(layout)) == [("a", "begun"), ("a", "refused")]


def test_a_record_whose_end_reached_the_disk_and_whose_beginning_did_not_is_none(layout: Layout) -> None:
    journal = Journal(layout)
    journal.append("digits", A, "begun")
    before = len(path_of(layout).read_bytes().rstrip(b"\0"))
    journal.append("digits", A, "committed", reason="y" * 900)
    data = bytearray(path_of(layout).read_bytes())
    data[before : before + 512] = bytes(512)
    path_of(layout).write_bytes(data)
    again = Journal(layout)
    assert steps(again) == [("a", "begun")]
    again.append("digits", A, "refused")
    assert steps(Journal(layout)) == [("a", "begun"), ("a", "refused")]


def test_a_bit_that_flips_in_one_record_takes_no_other(layout: Layout) -> None:
    journal = Journal(layout)
    for release in (A, B, C):
        journal.append("digits", release, "begun")
        journal.append("digits", release, "refused")
    data = bytearray(path_of(layout).read_bytes())
    middle = data.index(b'"release": "b')
    data[middle + 12] ^= 1
    path_of(layout).write_bytes(data)
    again = Journal(layout)
    assert [entry.sequence for entry in again.history()] == [1, 2, 4, 5, 6]
    assert again.append("digits", A, "begun").sequence == 7
    assert [entry.sequence for entry in Journal(layout).history()] == [1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("content", [b"", b"x", b"\n" * SIZE, os.urandom(SIZE), b"\xff" * (2 * SIZE), b"0" * SIZE])
def test_a_file_that_is_no_journal_is_made_one(layout: Layout, content: bytes) -> None:
    layout.root.mkdir()
    path_of(layout).write_bytes(content)
    journal = Journal(layout)
    assert journal.history() == []
    journal.append("digits", A, "begun")
    assert steps(Journal(layout)) == [("a", "begun")]
    assert path_of(layout).stat().st_size == SIZE


def test_a_record_in_the_place_of_an_older_one_with_a_good_checksum_is_not_taken_twice(layout: Layout) -> None:
    journal = Journal(layout)
    for step in ("begun", "gated", "refused"):
        journal.append("digits", A, step)
    lines = path_of(layout).read_bytes().rstrip(b"\0").splitlines(keepends=True)
    path_of(layout).write_bytes(b"".join([*lines, lines[0], lines[1]]).ljust(SIZE, b"\0"))
    assert [entry.sequence for entry in Journal(layout).history()] == [1, 2, 3]


def test_a_folder_in_its_place_is_moved_aside(layout: Layout) -> None:
    path_of(layout).mkdir(parents=True)
    (path_of(layout) / "x").touch()
    journal = Journal(layout)
    journal.append("digits", A, "begun")
    assert steps(Journal(layout)) == [("a", "begun")]
    assert read_unfinished(layout) == {A}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_in_its_place_is_neither_waited_for_nor_written_to(
    layout: Layout, make: Callable[[Path], None]
) -> None:
    layout.root.mkdir()
    make(path_of(layout))
    journal = Journal(layout)
    journal.append("digits", A, "begun")
    assert steps(Journal(layout)) == [("a", "begun")]
    assert path_of(layout).is_file()
    assert not path_of(layout).is_symlink()


def test_a_link_to_another_file_in_its_place_is_replaced_and_that_file_left_alone(layout: Layout) -> None:
    Journal(layout).append("digits", A, "begun")
    other = layout.root.parent / "other"
    path_of(layout).rename(other)
    before = other.read_bytes()
    path_of(layout).symlink_to(other)
    journal = Journal(layout)
    journal.append("digits", A, "refused")
    assert steps(Journal(layout)) == [("a", "begun"), ("a", "refused")]
    assert other.read_bytes() == before


def test_what_cannot_be_said_in_json_or_is_too_long_does_not_keep_a_deploy_from_ending(layout: Layout) -> None:
    journal = Journal(layout)
    journal.append("digits", A, "refused", worst=math.inf, odd=[math.nan], reason="because " * 1000)
    journal.append("digits", A, "refused", outputs=["x" * 900] * 100)
    first, second = Journal(layout).history()
    assert (first.body["worst"], first.body["odd"], len(first.body["reason"])) == ("inf", ["nan"], 1000)
    assert (second.step, second.body) == ("refused", {})


def test_a_full_file_keeps_its_latest_records_the_numbers_and_deploys_that_have_not_ended(layout: Layout) -> None:
    journal = Journal(layout)
    journal.append("old", C, "switched")
    for number in range(2000):
        journal.append("digits", (A, B)[number % 2], "begun", reason="y" * 300)
        journal.append("digits", (A, B)[number % 2], "refused")
        assert path_of(layout).stat().st_size == SIZE
    again = Journal(layout)
    assert again.history() == journal.history()
    assert again.history()[-1].sequence == 4001
    assert len(again.history()) > 100
    assert [entry.release for entry in again.unfinished()] == [C]
    assert not list(layout.root.glob(".journal.*"))


def test_a_deploy_that_began_has_room_for_all_of_its_records(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(layout)
    while journal._end < SIZE - 1000:
        journal.append("digits", A, "refused", reason="y" * 300)
    journal.append("digits", A, "begun")
    monkeypatch.setattr(journal_module, "write_atomic", lambda *_, **__: pytest.fail("no room"))
    for step in ("gated", "switching", "switched", "reverting", "reverted"):
        journal.append("digits", A, step, outputs=["x" * 900] * 15)


@pytest.mark.parametrize("place", ["journal.append", "journal.written", "journal.synced"])
@pytest.mark.parametrize("step", ["begun", "switching"])
def test_a_process_killed_while_it_writes_leaves_the_record_whole_or_none(
    layout: Layout, place: str, step: str
) -> None:
    assert place in FAILPOINTS
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kedge_agent.store.journal import Journal\n"
        "from kedge_agent.store.layout import Layout\n"
        "journal = Journal(Layout(Path(sys.argv[1])))\n"
        "journal.append('digits', 'b' * 64, sys.argv[2])\n"
    )
    Journal(layout).append("digits", A, "committed")
    ended = subprocess.run(
        [sys.executable, "-c", script, str(layout.root), step],
        env={**os.environ, "KEDGE_FAILPOINTS": f"{place}=kill"},
        timeout=60,
        check=False,
    )
    assert ended.returncode == -9
    found = steps(Journal(layout))
    assert found[0] == ("a", "committed")
    # A kill loses nothing that was handed to the kernel.
    assert found[1:] == ([] if place == "journal.append" else [("b", step)])


def test_a_record_that_could_not_be_synced_is_none_and_the_file_is_given_up(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(layout)
    journal.append("digits", A, "begun")
    before = path_of(layout).stat().st_ino

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="Input/output"):
            journal.append("digits", A, "gated")
    assert steps(journal) == [("a", "begun")]
    journal.append("digits", A, "refused")
    assert path_of(layout).stat().st_ino != before
    assert steps(Journal(layout)) == [("a", "begun"), ("a", "refused")]


def test_on_a_full_disk_records_are_written_until_the_file_is_full_and_then_that_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        layout = Layout(disk / "state")
        journal = Journal(layout)
        journal.append("digits", A, "begun")
        filler = fill(disk)
        for step in ("gated", "switching", "switched", "committed"):
            journal.append("digits", A, step)
        assert [step for _, step in steps(Journal(layout))] == ["begun", "gated", "switching", "switched", "committed"]
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012
            while True:
                journal.append("digits", A, "refused", reason="y" * 500)
        count = len(journal.history())
        assert len(Journal(layout).history()) == count
        filler.unlink()
        journal.append("digits", B, "begun")
        assert steps(Journal(layout))[-1] == ("b", "begun")


def test_a_torn_record_on_a_full_disk_keeps_no_later_one_from_being_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        layout = Layout(disk / "state")
        Journal(layout).append("digits", A, "begun")
        with path_of(layout).open("r+b") as handle:
            handle.seek(len(path_of(layout).read_bytes().rstrip(b"\0")))
            handle.write(b'12345678 {"sequence": 2, "mod')
        fill(disk)
        journal = Journal(layout)
        journal.append("digits", A, "refused")
        assert steps(Journal(layout)) == [("a", "begun"), ("a", "refused")]


def test_a_journal_that_cannot_be_made_says_so_when_something_is_to_be_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        layout = Layout(disk / "state")
        layout.root.mkdir()
        filler = fill(disk)
        journal = Journal(layout)
        with pytest.raises(OSError, match="No space left"):
            journal.append("digits", A, "begun")
        filler.unlink()
        journal.append("digits", A, "begun")
        assert steps(Journal(layout)) == [("a", "begun")]


def test_threads_may_write_at_once(layout: Layout) -> None:
    journal = Journal(layout)

    def write(model: str) -> None:
        for _ in range(20):
            for step in STEPS:
                journal.append(model, A, step)

    threads = [threading.Thread(target=write, args=(f"m{index}",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = Journal(layout).history()
    assert history == journal.history()
    sequences = [entry.sequence for entry in history]
    assert sequences == sorted(set(sequences))
    assert sequences[-1] == 4 * 20 * len(STEPS)
