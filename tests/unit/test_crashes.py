"""Marks that a process leaves behind, read by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kedge_agent.store.crashes import Marks
from kedge_agent.store.layout import Layout

RELEASE = "a" * 64
OTHER = "b" * 64

_DIES = """
import os, signal, sys
from pathlib import Path
from kedge_agent.store.crashes import Marks
from kedge_agent.store.layout import Layout
marks = Marks(Layout(Path(sys.argv[1])))
for name, release, inside in (("cat", sys.argv[2], sys.argv[4]), ("dog", sys.argv[3], "")):
    marker = marks.marker(name, release)
    seat = marker.enter()
    if not inside:
        marker.leave(seat)
os.kill(os.getpid(), signal.SIGKILL)
"""


def dies(state: Path, *, inside: bool) -> None:
    """A process that is killed, while it runs the model `cat` or runs nothing."""
    said = subprocess.run([sys.executable, "-c", _DIES, str(state), RELEASE, OTHER, "x" if inside else ""], check=False)
    assert said.returncode == -signal.SIGKILL


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_a_process_that_is_killed_leaves_behind_what_it_was_running(layout: Layout) -> None:
    dies(layout.root, inside=True)
    found = Marks(layout)
    assert found.unclean
    assert found.blamed == {("cat", RELEASE)}
    assert found.crashes("cat", RELEASE) == 1
    assert found.crashes("dog", OTHER) == 0
    assert found.anonymous == 0


def test_an_end_outside_of_every_run_belongs_to_no_model(layout: Layout) -> None:
    for _ in range(3):
        dies(layout.root, inside=False)
    marks = Marks(layout)
    assert marks.anonymous == 3
    assert marks.blamed == frozenset()


def test_crashes_in_a_row_are_counted_until_the_model_has_served_well(layout: Layout) -> None:
    dies(layout.root, inside=True)
    dies(layout.root, inside=True)
    marks = Marks(layout)
    assert marks.crashes("cat", RELEASE) == 2
    marks.forget("dog")
    assert marks.crashes("cat", RELEASE) == 2
    marks.forget("cat")
    assert marks.crashes("cat", RELEASE) == 0


def test_an_end_in_order_leaves_nothing(layout: Layout) -> None:
    dies(layout.root, inside=True)
    marks = Marks(layout)
    marks.marker("cat", RELEASE).enter()
    marks.close()
    again = Marks(layout)
    assert not again.unclean
    assert again.blamed == frozenset()
    assert (again.crashes("cat", RELEASE), again.anonymous) == (0, 0)


def test_the_first_process_of_all_finds_nothing(layout: Layout) -> None:
    marks = Marks(layout)
    assert not marks.unclean
    assert marks.crashes("cat", RELEASE) == 0


def test_what_was_running_when_the_power_went_is_not_to_blame(layout: Layout) -> None:
    dies(layout.root, inside=True)
    file = layout.root / "running"
    data = bytearray(file.read_bytes())
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    assert boot in data
    file.write_bytes(data.replace(boot, b"0" * len(boot)))
    marks = Marks(layout)
    assert not marks.unclean
    assert marks.blamed == frozenset()


@pytest.mark.parametrize("length", [0, 10, 100_000])
def test_a_file_that_is_none_of_ours_counts_for_nothing(layout: Layout, length: int) -> None:
    (layout.root / "running").write_bytes(b"\xff" * length)
    assert not Marks(layout).unclean
    assert not (Marks(layout).blamed)


def test_a_folder_in_its_place_keeps_no_crash_from_being_counted(layout: Layout) -> None:
    (layout.root / "running").mkdir()
    Marks(layout).marker("cat", RELEASE).enter()
    assert Marks(layout).crashes("cat", RELEASE) == 1


def test_of_several_that_were_running_none_has_crashed_and_each_may_have(layout: Layout) -> None:
    for times in (1, 2):
        marks = Marks(layout)
        for model, release in (("cat", RELEASE), ("dog", OTHER)):
            marks.marker(model, release).enter()
        found = Marks(layout)
        assert found.blamed == found.suspects == {("cat", RELEASE), ("dog", OTHER)}
        assert (found.crashes("cat", RELEASE), found.doubts("cat", RELEASE)) == (0, times)
    found.pardon("cat", RELEASE)
    assert found.suspects == {("dog", OTHER)}


def test_what_was_loaded_and_did_nothing_was_present(layout: Layout) -> None:
    Marks(layout).marker("cat", RELEASE)
    found = Marks(layout)
    assert found.present == {("cat", RELEASE)}
    assert found.blamed == found.suspects == frozenset()
    assert Marks(layout).present == frozenset(), "it was not loaded again"


def test_a_load_that_did_not_end_is_doubted_after_an_end_in_order_too(layout: Layout) -> None:
    marks = Marks(layout)
    marks.marker("cat", RELEASE).enter()
    marks.close({("cat", RELEASE)})
    marks.close()
    again = Marks(layout)
    assert not again.unclean
    assert (again.crashes("cat", RELEASE), again.doubts("cat", RELEASE)) == (0, 1)


def test_a_place_that_cannot_be_written_keeps_no_agent_from_running(layout: Layout) -> None:
    (layout.root / "running").symlink_to(layout.root / "nothing")
    marks = Marks(layout)
    marker = marks.marker("cat", RELEASE)
    marker.leave(marker.enter())
    marker.close()
    marks.close()


def test_more_releases_than_there_is_room_for_are_served_all_the_same(layout: Layout) -> None:
    marks = Marks(layout)
    markers = [marks.marker("cat", f"{number:064x}") for number in range(300)]
    seats = [marker.enter() for marker in markers]
    for marker, seat in zip(markers, seats, strict=True):
        marker.leave(seat)
        marker.close()
    marker = marks.marker("dog", OTHER)
    marker.enter()
    assert Marks(layout).blamed == {("dog", OTHER)}, "those that are served no more make room"


def test_a_release_that_is_loaded_twice_is_marked_until_both_are_gone(layout: Layout) -> None:
    marks = Marks(layout)
    old, new = marks.marker("cat", RELEASE), marks.marker("cat", RELEASE)
    seat = new.enter()
    old.close()
    assert Marks(layout).blamed == {("cat", RELEASE)}
    new.leave(seat)
    assert os.path.getsize(layout.root / "running") > 4096
