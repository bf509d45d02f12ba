"""Which release a model serves: prepared switches, cuts and full disks, and what is told when the record is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.formats.offer import Offer
from kedge_agent.store.journal import Journal
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import (
    ModelState,
    go_back,
    list_models,
    named_releases,
    prepare_back,
    prepare_switch,
    read_state,
    state_to_come,
    switch,
    way_back,
    write_state,
)
from kedge_agent.store.recovery import recover_state
from kedge_agent.store.signers import Verdict
from tests.support.stores import fill, parts_of, put, small_disk

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
OLD = ModelState(A, C, floor=3, downgrade=11)
NEW = ModelState(B, A, floor=3, downgrade=11)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


def folder_of(layout: Layout) -> Path:
    return layout.model("digits")


def current_link(layout: Layout) -> str:
    return os.path.basename(os.readlink(folder_of(layout) / "current"))


def test_a_prepared_switch_changes_nothing_until_it_is_made_and_can_be_undone(layout: Layout) -> None:
    write_state(layout, "digits", OLD)
    prepare_switch(layout, "digits", NEW, OLD)
    assert read_state(layout, "digits") == OLD
    assert (state_to_come(layout, "digits"), way_back(layout, "digits")) == (NEW, None)
    assert named_releases(layout, "digits") == {A, B, C}
    switch(layout, "digits")
    assert (read_state(layout, "digits"), way_back(layout, "digits")) == (NEW, OLD)
    assert current_link(layout) == B
    go_back(layout, "digits")
    assert read_state(layout, "digits") == OLD
    assert current_link(layout) == A
    assert sorted(os.listdir(folder_of(layout))) == ["current", "state.json"]
    with pytest.raises(FileNotFoundError):
        go_back(layout, "digits")
    assert read_state(layout, "digits") == OLD


def test_a_switch_with_no_way_back_leaves_none_of_an_earlier_one(layout: Layout) -> None:
    write_state(layout, "digits", OLD)
    write_state(layout, "digits", NEW, OLD)
    write_state(layout, "digits", ModelState(C, B))
    assert way_back(layout, "digits") is None
    assert named_releases(layout, "digits") == {B, C}


def test_a_switch_that_was_prepared_and_not_made_leaves_the_way_back_that_there_was(layout: Layout) -> None:
    write_state(layout, "digits", NEW, OLD)
    prepare_switch(layout, "digits", ModelState(C, B), NEW)
    assert way_back(layout, "digits") == OLD
    prepare_switch(layout, "digits", ModelState(C, B), None)
    assert way_back(layout, "digits") == OLD
    go_back(layout, "digits")
    assert read_state(layout, "digits") == OLD
    prepare_back(layout, "digits", NEW)
    assert (read_state(layout, "digits"), way_back(layout, "digits")) == (OLD, NEW)
    prepare_back(layout, "digits", None)
    assert way_back(layout, "digits") is None


def test_a_switch_that_nobody_prepared_takes_no_way_back_away(layout: Layout) -> None:
    write_state(layout, "digits", NEW, OLD)
    with pytest.raises(FileNotFoundError):
        switch(layout, "digits")
    assert (read_state(layout, "digits"), way_back(layout, "digits")) == (NEW, OLD)


def test_a_state_that_nobody_put_in_force_never_stands_beside_another_way_back(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(layout, "digits", OLD)
    prepare_switch(layout, "digits", NEW, OLD)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kedge_agent.store.models.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        prepare_switch(layout, "digits", ModelState(C, A), OLD)
    assert state_to_come(layout, "digits") is None
    assert read_state(layout, "digits") == OLD


def test_a_state_written_before_there_was_a_floor_is_read(layout: Layout) -> None:
    folder_of(layout).mkdir(parents=True)
    (folder_of(layout) / "state.json").write_text(json.dumps({"schema": 1, "current": A, "previous": None}))
    assert read_state(layout, "digits") == ModelState(A, None, 0, 0)


@pytest.mark.parametrize(
    "change", [{"floor": -1}, {"floor": 1.5}, {"floor": True}, {"downgrade": "3"}, {"floor": 1 << 60}, {"previous": ""}]
)
def test_a_state_with_something_else_in_it_is_damaged(layout: Layout, change: dict[str, object]) -> None:
    folder_of(layout).mkdir(parents=True)
    body = {"schema": 2, "current": A, "previous": None, "floor": 0, "downgrade": 0} | change
    (folder_of(layout) / "state.json").write_text(json.dumps(body))
    with pytest.raises(AgentError, match="damaged"):
        read_state(layout, "digits")


@pytest.mark.parametrize("name", ["state.json", "state.back", "state.next", "state.undo", "current"])
def test_a_folder_in_the_place_of_any_of_its_files_is_moved_aside_by_the_next_switch(layout: Layout, name: str) -> None:
    write_state(layout, "digits", OLD)
    path = folder_of(layout) / name
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "x").touch()
    if name == "state.json":
        with pytest.raises(AgentError, match="damaged"):
            read_state(layout, "digits")
    prepare_switch(layout, "digits", NEW, OLD)
    switch(layout, "digits")
    assert read_state(layout, "digits") == NEW
    assert way_back(layout, "digits") == OLD
    assert current_link(layout) == B
    go_back(layout, "digits")
    assert read_state(layout, "digits") == OLD


def test_a_file_in_the_place_of_the_folder_of_models_is_no_model(layout: Layout) -> None:
    layout.root.mkdir()
    (layout.root / "models").touch()
    assert list_models(layout) == []


def test_with_a_full_disk_nothing_can_be_prepared_and_what_was_prepared_goes_both_ways(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        layout = Layout(disk / "state")
        write_state(layout, "digits", OLD)
        prepare_switch(layout, "digits", NEW, OLD)
        filler = fill(disk)
        switch(layout, "digits")
        assert read_state(layout, "digits") == NEW
        go_back(layout, "digits")
        assert read_state(layout, "digits") == OLD
        # What the two states took is free by now.
        fill(disk)
        with pytest.raises(OSError, match="No space"):
            prepare_switch(layout, "digits", NEW, OLD)
        assert read_state(layout, "digits") == OLD
        filler.unlink()
        write_state(layout, "digits", NEW, OLD)
        assert read_state(layout, "digits") == NEW


def test_a_switch_is_durable_when_it_returns_and_says_so_when_it_may_not_be(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(layout, "digits", OLD)
    done: list[tuple[str, str]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        real_fsync(handle)
        done.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))

    def replace(source: Path, target: Path) -> None:
        real_replace(source, target)
        done.append(("rename", str(target)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    prepare_switch(layout, "digits", NEW, OLD)
    folder, files = str(folder_of(layout)), [str(folder_of(layout) / name) for name in ("state.undo", "state.next")]
    assert [what for what in done if what[0] == "rename"] == [("rename", name) for name in files]
    for name in files:
        assert done[done.index(("rename", name)) - 1][0] == "sync"
        assert done[done.index(("rename", name)) + 1] == ("sync", folder)
    done.clear()
    switch(layout, "digits")
    renamed = [("rename", str(folder_of(layout) / name)) for name in ("state.back", "state.json")]
    assert done[:3] == [*renamed, ("sync", folder)]

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        go_back(layout, "digits")
    assert read_state(layout, "digits") == OLD


@pytest.mark.parametrize(
    ("place", "act", "expected"), [("deploy.renamed", "switch", NEW), ("revert.renamed", "go_back", OLD)]
)
def test_a_process_that_is_killed_right_after_the_rename_has_switched(
    layout: Layout, place: str, act: str, expected: ModelState
) -> None:
    if act == "switch":
        write_state(layout, "digits", OLD)
        prepare_switch(layout, "digits", NEW, OLD)
    else:
        write_state(layout, "digits", NEW, OLD)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kedge_agent.store import models\n"
        "from kedge_agent.store.layout import Layout\n"
        "getattr(models, sys.argv[2])(Layout(Path(sys.argv[1])), 'digits')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(layout.root), act],
        env={**os.environ, "KEDGE_FAILPOINTS": f"{place}=kill"},
        timeout=60,
        check=False,
    )
    assert ended.returncode == -9
    assert read_state(layout, "digits") == expected
    write_state(layout, "digits", NEW)
    assert current_link(layout) == B


# What is told when state.json is lost.


@pytest.fixture
def stored(layout: Layout, release: Release, tmp_path: Path) -> list[str]:
    """Digests of three accepted releases, of the versions 1, 2 and 3."""
    return [put(layout, parts_of(release, tmp_path, version=version)) for version in (1, 2, 3)]


def lose(layout: Layout) -> None:
    path = folder_of(layout) / "state.json"
    path.unlink(missing_ok=True)
    path.mkdir()


def deployed(layout: Layout, journal: Journal, release: str, previous: str | None, floor: int, *steps: str) -> None:
    """The records and renames of a deploy, up to the last step."""
    back = None
    if previous is not None:
        back = read_state(layout, "digits")
    for step in steps:
        if step == "switching":
            prepare_switch(layout, "digits", ModelState(release, previous, floor), back)
        journal.append("digits", release, step)
        if step == "switched":
            switch(layout, "digits")
        if step == "reverted":
            go_back(layout, "digits")


_WHOLE = ("begun", "gated", "switching", "switched", "committed")


def test_a_lost_state_is_what_the_journal_last_committed(layout: Layout, stored: list[str]) -> None:
    journal = Journal(layout)
    deployed(layout, journal, stored[0], None, 0, *_WHOLE)
    deployed(layout, journal, stored[1], stored[0], 1, *_WHOLE)
    lose(layout)
    assert recover_state(layout, "digits", journal) == ModelState(stored[1], stored[0], 2, 0)
    write_state(layout, "digits", ModelState(stored[1], stored[0], 2))
    for step in ("begun", "refused"):
        journal.append("digits", stored[2], step)
    lose(layout)
    assert recover_state(layout, "digits", Journal(layout)) == ModelState(stored[1], stored[0], 2, 0)


def test_a_lost_state_of_a_deploy_under_way_is_what_was_in_force(layout: Layout, stored: list[str]) -> None:
    journal = Journal(layout)
    deployed(layout, journal, stored[0], None, 0, *_WHOLE)
    deployed(layout, journal, stored[1], stored[0], 1, *_WHOLE[:3])
    lose(layout)
    found = recover_state(layout, "digits", journal)
    assert found is not None
    assert (found.current, found.floor) == (stored[0], 1)
    switch(layout, "digits")
    lose(layout)
    found = recover_state(layout, "digits", journal)
    assert found is not None
    assert (found.current, found.previous) == (stored[1], stored[0])


def test_a_lost_state_after_a_deploy_was_reverted_or_rolled_back_is_the_one_before(
    layout: Layout, stored: list[str]
) -> None:
    journal = Journal(layout)
    deployed(layout, journal, stored[0], None, 0, *_WHOLE)
    deployed(layout, journal, stored[1], stored[0], 1, *_WHOLE)
    deployed(layout, journal, stored[2], stored[1], 2, *_WHOLE[:4], "reverting", "reverted")
    lose(layout)
    assert recover_state(layout, "digits", journal) == ModelState(stored[1], stored[0], 2, 0)
    write_state(layout, "digits", ModelState(stored[0], stored[1], 2))
    journal.append("digits", stored[1], "rolled-back", to=stored[0])
    lose(layout)
    assert recover_state(layout, "digits", journal) == ModelState(stored[0], stored[1], 2, 0)
    write_state(layout, "digits", ModelState(stored[0], stored[1], 2))
    deployed(layout, journal, stored[2], stored[0], 2, *_WHOLE)
    for release in (stored[2], stored[0]):
        journal.append("digits", release, "reverted")
    lose(layout)
    found = recover_state(layout, "digits", journal)
    assert found is not None
    assert (found.current, found.floor) == (stored[1], 3)


def test_a_lost_state_with_a_lost_journal_is_what_the_link_and_the_way_back_tell(
    layout: Layout, stored: list[str]
) -> None:
    journal = Journal(layout)
    deployed(layout, journal, stored[0], None, 0, *_WHOLE)
    deployed(layout, journal, stored[1], stored[0], 1, *_WHOLE)
    lose(layout)
    (layout.root / "journal").unlink()
    assert recover_state(layout, "digits", Journal(layout)) == ModelState(stored[1], stored[0], 0, 0)
    (folder_of(layout) / "current").unlink()
    (folder_of(layout) / "current").mkdir()
    assert recover_state(layout, "digits", Journal(layout)) == ModelState(stored[0], None, 0, 0)


def test_a_downgrade_that_was_committed_lowers_the_floor_of_a_recovered_state_too(
    layout: Layout, release: Release, stored: list[str], tmp_path: Path
) -> None:
    journal = Journal(layout)
    deployed(layout, journal, stored[2], None, 0, *_WHOLE)
    put(
        layout,
        parts_of(release, tmp_path, version=1),
        Offer(),
        Verdict(False, downgrade_floor=1, downgrade_serial=9, downgrade_from=9),
    )
    deployed(layout, journal, stored[0], stored[2], 3, *_WHOLE)
    lose(layout)
    assert recover_state(layout, "digits", journal) == ModelState(stored[0], stored[2], 1, 9)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
)
def test_whoever_reads_a_state_waits_for_nobody(layout: Layout, make: Callable[[Path], None]) -> None:
    folder_of(layout).mkdir(parents=True)
    make(folder_of(layout) / "state.json")
    with pytest.raises(AgentError, match="damaged"):
        read_state(layout, "digits")
    write_state(layout, "digits", OLD)
    assert read_state(layout, "digits") == OLD


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"{"),
        lambda path: path.write_bytes(b'{"current": "../../etc", "previous": null}'),
        lambda path: (path.unlink(missing_ok=True), path.mkdir()),
    ],
)
def test_nothing_is_told_where_all_is_lost_or_of_releases_that_are_not_here(
    layout: Layout, damage: Callable[[Path], object]
) -> None:
    journal = Journal(layout)
    assert recover_state(layout, "digits", journal) is None
    deployed(layout, journal, A, None, 0, *_WHOLE)
    deployed(layout, journal, B, A, 0, *_WHOLE)
    for name in ("state.json", "state.back"):
        damage(folder_of(layout) / name)
    assert recover_state(layout, "digits", journal) is None
