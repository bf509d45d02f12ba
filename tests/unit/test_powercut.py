"""The disk of the fault tests keeps what was synced and nothing else; else they would prove nothing."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.store.files import fsync_directory, make_directory, write_atomic
from tests.support.powercut import Disk, mounted
from tests.support.unsynced import PAGE_BYTES, Tree

REG = 0o100644


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path) as made:
        yield made


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_a_file_that_was_synced_in_a_folder_that_was_synced_survives(disk: Disk) -> None:
    (disk.folder / "kept").write_bytes(b"bytes")
    sync(disk.folder / "kept")
    sync(disk.folder)
    disk.cut()
    assert (disk.folder / "kept").read_bytes() == b"bytes"


def test_bytes_that_were_not_synced_are_lost_and_the_name_stays(disk: Disk) -> None:
    path = disk.folder / "file"
    path.write_bytes(b"old")
    sync(path)
    sync(disk.folder)
    path.write_bytes(b"new and longer")
    (disk.folder / "empty").write_bytes(b"never synced")
    sync(disk.folder)
    disk.cut()
    assert path.read_bytes() == b"old"
    assert (disk.folder / "empty").read_bytes() == b""


def test_a_name_whose_folder_was_not_synced_is_lost(disk: Disk) -> None:
    (disk.folder / "file").write_bytes(b"bytes")
    sync(disk.folder / "file")
    disk.cut()
    assert os.listdir(disk.folder) == []


def test_a_rename_without_a_sync_of_its_folder_is_undone(disk: Disk) -> None:
    state = disk.folder / "state"
    write_atomic(state, b"one")
    (disk.folder / "next").write_bytes(b"two")
    sync(disk.folder / "next")
    sync(disk.folder)
    os.replace(disk.folder / "next", state)
    assert state.read_bytes() == b"two"
    disk.cut()
    assert (state.read_bytes(), (disk.folder / "next").read_bytes()) == (b"one", b"two")
    os.replace(disk.folder / "next", state)
    sync(disk.folder)
    disk.cut()
    assert (state.read_bytes(), os.listdir(disk.folder)) == (b"two", ["state"])


def test_a_rename_between_folders_is_never_half_done(disk: Disk) -> None:
    for name in ("from", "to"):
        make_directory(disk.folder / name)
    for synced in ("from", "to"):
        write_atomic(disk.folder / "from" / "file", b"bytes")
        os.replace(disk.folder / "from" / "file", disk.folder / "to" / synced)
        sync(disk.folder / synced)
        disk.cut()
        assert (os.listdir(disk.folder / "from"), (disk.folder / "to" / synced).read_bytes()) == ([], b"bytes")


def test_removals_and_links_are_lost_too_until_their_folder_is_synced(disk: Disk) -> None:
    write_atomic(disk.folder / "file", b"bytes")
    os.link(disk.folder / "file", disk.folder / "link")
    os.symlink("file", disk.folder / "symbolic")
    os.unlink(disk.folder / "file")
    disk.cut()
    assert os.listdir(disk.folder) == ["file"]
    os.link(disk.folder / "file", disk.folder / "link")
    os.symlink("file", disk.folder / "symbolic")
    os.unlink(disk.folder / "file")
    sync(disk.folder)
    disk.cut()
    assert sorted(os.listdir(disk.folder)) == ["link", "symbolic"]
    assert (disk.folder / "link").read_bytes() == b"bytes"
    assert os.readlink(disk.folder / "symbolic") == "file"


def test_a_folder_in_a_folder_that_was_not_synced_is_lost_with_all_that_is_in_it(disk: Disk) -> None:
    (disk.folder / "a" / "b").mkdir(parents=True)
    (disk.folder / "a" / "b" / "file").write_bytes(b"bytes")
    sync(disk.folder / "a" / "b" / "file")
    sync(disk.folder / "a" / "b")
    sync(disk.folder)
    disk.cut()
    assert os.listdir(disk.folder / "a") == []


def test_fdatasync_keeps_bytes_and_size_and_fsync_the_mode_too(disk: Disk) -> None:
    path = disk.folder / "file"
    write_atomic(path, b"bytes", mode=0o600)
    with path.open("ab") as out:
        out.write(b" and more")
        out.flush()
        os.chmod(path, 0o444)
        os.fdatasync(out.fileno())
    disk.cut()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"bytes and more", 0o600)
    os.chmod(path, 0o444)
    sync(path)
    disk.cut()
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_sync_that_fails_says_so_once_and_what_it_was_to_write_is_gone(disk: Disk) -> None:
    path = disk.folder / "file"
    write_atomic(path, b"old")
    disk.fail_sync("/fil*", 2)
    for content, fails in ((b"one", False), (b"two", True)):
        with path.open("r+b") as out:
            out.write(content)
            out.flush()
            if fails:
                with pytest.raises(OSError, match="Input/output"):
                    os.fdatasync(out.fileno())
                os.fdatasync(out.fileno())
            else:
                os.fdatasync(out.fileno())
    assert path.read_bytes() == b"two"
    disk.cut()
    assert path.read_bytes() == b"one"


def test_a_folder_whose_sync_fails_says_so(disk: Disk) -> None:
    make_directory(disk.folder / "a")
    disk.fail_sync("/a")
    with pytest.raises(OSError, match="Input/output"):
        write_atomic(disk.folder / "a" / "file", b"bytes")
    write_atomic(disk.folder / "a" / "file", b"bytes")


def test_what_the_agent_asks_of_a_file_system_is_there(disk: Disk) -> None:
    path = disk.folder / "file"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.posix_fallocate(handle, 0, 10 * PAGE_BYTES)
    os.pwrite(handle, b"end", 10 * PAGE_BYTES - 3)
    assert (path.stat().st_size, path.stat().st_blocks) == (10 * PAGE_BYTES, 80)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[-3:] == b"end"
    os.link(path, disk.folder / "link")
    assert (disk.folder / "link").stat().st_ino == path.stat().st_ino
    assert path.stat().st_nlink == 2
    assert os.statvfs(disk.folder).f_bavail > 0
    os.unlink(path)
    assert os.pread(handle, 3, 10 * PAGE_BYTES - 3) == b"end"
    os.close(handle)


def test_processes_that_use_the_disk_are_dead_when_the_power_is_back(disk: Disk) -> None:
    write = "import sys, time; out = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(600)"
    command = [sys.executable, "-c", write, str(disk.folder / "file")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        disk.cut(process)
        assert process.returncode is not None
    assert os.listdir(disk.folder) == []


def test_with_a_seed_any_part_of_what_was_not_synced_may_survive_and_names_keep_their_order(tmp_path: Path) -> None:
    seen = set()
    for seed in range(60):
        backing = tmp_path / str(seed)
        tree = Tree(backing)
        file = tree.make("/file", REG, 0, 0)
        tree.write(file, b"0" * 3 * PAGE_BYTES, 0)
        tree.sync(file)
        tree.sync_names(tree.find("/"))
        tree.write(file, b"1" * 3 * PAGE_BYTES, 0)
        tree.make("/second", REG, 0, 0)
        tree.make("/third", REG, 0, 0)
        tree.lose(seed)
        again = Tree(backing)
        content = bytes(again.content(again.find("/file")))
        assert set(content) <= set(b"01")
        assert len(content) == 3 * PAGE_BYTES
        names = tuple(sorted(again.find("/").entries))
        assert names in (("file",), ("file", "second"), ("file", "second", "third"))
        seen.add((content[::PAGE_BYTES], names))
    assert len({content for content, _ in seen}) == 8
    assert len({names for _, names in seen}) == 3


def test_a_file_that_shrank_and_grew_again_has_zeros_where_it_was_cut(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    file = tree.make("/file", REG, 0, 0)
    tree.write(file, b"1" * 3 * PAGE_BYTES, 0)
    tree.sync(file)
    tree.sync_names(tree.find("/"))
    tree.resize(file, 10)
    tree.resize(file, 3 * PAGE_BYTES)
    tree.sync(file)
    again = Tree(tmp_path)
    assert bytes(again.content(again.find("/file"))) == b"1" * 10 + bytes(3 * PAGE_BYTES - 10)


def test_the_agent_s_own_ways_of_writing_survive_every_cut(disk: Disk) -> None:
    make_directory(disk.folder / "a" / "b")
    write_atomic(disk.folder / "a" / "b" / "file", b"one")
    disk.cut(seed=1)
    write_atomic(disk.folder / "a" / "b" / "file", b"two")
    disk.cut(seed=2)
    assert (disk.folder / "a" / "b" / "file").read_bytes() == b"two"
    os.rename(disk.folder / "a" / "b", disk.folder / "a" / "c")
    fsync_directory(disk.folder / "a")
    disk.cut(seed=3)
    assert (disk.folder / "a" / "c" / "file").read_bytes() == b"two"
