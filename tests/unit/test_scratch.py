"""Folders of trials: gone afterwards, and those of agents that were killed are found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.measure.scratch import scratch_folder, sweep

LONG_AGO = time.time() - 7200
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


def age(folder: Path) -> None:
    os.utime(folder, (LONG_AGO, LONG_AGO))


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
    age(folder)
    assert sweep([tmp_path]) == 0
    assert (folder / "inputs.bin").exists()
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert sweep([tmp_path]) == 1
    assert not folder.exists()


def test_nothing_is_removed_that_is_young_or_another_s_or_no_folder_of_ours(tmp_path: Path) -> None:
    kept = tmp_path / "precious"
    kept.mkdir()
    (kept / "file").write_text("x")
    young, link, file = (tmp_path / f"kedge-apart-{name}" for name in ("young", "link", "file"))
    young.mkdir()
    link.symlink_to(kept)
    file.write_text("x")
    age(file)
    age(kept)
    assert sweep([tmp_path, tmp_path / "missing"]) == 0
    if os.geteuid() == 0:
        theirs = tmp_path / "kedge-apart-theirs"
        theirs.mkdir()
        os.chown(theirs, 12345, 12345)
        age(theirs)
        assert sweep([tmp_path]) == 0
        assert theirs.exists()
    assert young.exists()
    assert link.is_symlink()
    assert (kept / "file").read_text() == file.read_text() == "x"
