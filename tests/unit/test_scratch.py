"""Folders of trials: gone afterwards, and those of agents that were killed are found."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from kedge_agent.measure import scratch
from kedge_agent.measure.scratch import scratch_folder, sweep
from kedge_agent.serving.housekeeping import tidy_later
from kedge_agent.store.layout import Layout
from kedge_agent.store.rules import ReleaseRules
from tests.support.environment import lacks

if TYPE_CHECKING:
    from kedge_agent.serving.site import Site

PROGRAM = """\
import sys
from pathlib import Path
from kedge_agent.measure.scratch import scratch_folder

with scratch_folder(1, [Path(sys.argv[1])]) as folder:
    (folder / "inputs.bin").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process in its folder."""
    words = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == tmp_path
        yield process, folder
        process.kill()


def test_a_folder_is_its_user_s_alone_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch_folder(1, [tmp_path]) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_goes_where_there_is_room_and_nowhere_else(tmp_path: Path) -> None:
    with scratch_folder(1, [tmp_path / "missing", tmp_path]) as folder:
        assert folder.parent == tmp_path
    with pytest.raises(OSError, match="no folder for temporary files has room"), scratch_folder(1 << 60, [tmp_path]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_system_s_own_folder_is_taken_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scratch_folder(1) as folder:
        assert folder.parent == tmp_path


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(
    held: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, folder = held
    assert sweep([tmp_path]) == 0
    assert (folder / "inputs.bin").exists()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert sweep([tmp_path]) == 1
    assert not folder.exists()


def test_what_a_killed_process_left_goes_before_the_next_folder_is_made(
    held: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, folder = held
    process.kill()
    process.wait(10)
    with scratch_folder(1, [tmp_path]) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert not folder.exists()


def test_a_folder_that_a_sweep_took_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, came = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if how == fcntl.LOCK_SH and not came:
            came.append(sweep([tmp_path]))
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch_folder(1, [tmp_path]) as folder:
        assert came == [1]
        assert list(tmp_path.iterdir()) == [folder]
        assert sweep([tmp_path]) == 0


def test_an_agent_that_tidies_up_removes_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, state = tmp_path / "kedge-apart-left", tmp_path / "state"
    left.mkdir()
    monkeypatch.setattr(scratch, "_places", lambda: (tmp_path,))
    repository = SimpleNamespace(live=list)
    tidy_later(cast("Site", SimpleNamespace(layout=Layout(state), rules=ReleaseRules, repository=repository)))
    end = time.monotonic() + 20
    while left.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not left.exists()


def test_where_folders_cannot_be_locked_they_are_made_and_no_sweep_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_handle: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refused)
    with scratch_folder(1, [tmp_path]) as folder:
        assert sweep([tmp_path]) == 0
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_listed_keeps_no_other_from_being_cleared(tmp_path: Path) -> None:
    left = tmp_path / "kedge-apart-left"
    left.mkdir()
    assert sweep([tmp_path / ("x" * 300), tmp_path / "missing", tmp_path]) == 1
    assert not left.exists()


def test_nothing_is_removed_that_is_no_folder_of_ours(tmp_path: Path) -> None:
    kept = tmp_path / "precious"
    kept.mkdir()
    (kept / "file").write_text("x")
    link, file = tmp_path / "kedge-apart-link", tmp_path / "kedge-apart-file"
    link.symlink_to(kept)
    file.write_text("x")
    assert sweep([tmp_path]) == 0
    assert link.is_symlink()
    assert (kept / "file").read_text() == file.read_text() == "x"


def test_another_user_s_folder_is_left_alone(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        lacks("root", "only root can give a folder away")
    theirs = tmp_path / "kedge-apart-theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    assert sweep([tmp_path]) == 0
    assert theirs.is_dir()
