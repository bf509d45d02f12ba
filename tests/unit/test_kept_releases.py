"""Releases that this host keeps: what is removed, what is not, and what many that use them at once see."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kedge.cli import main
from kedge.cli.rolling import _lasting
from kedge.config import cache_dir
from kedge.errors import BadInputError, KedgeError
from kedge.fleet.rollout.ledger import create
from kedge.release.archives import export_release
from kedge.release.bundle import Release, open_release
from kedge.release.kept import KeptReleases, claimed
from kedge.release.remote import fetched, push_to
from tests.conftest import make_release
from tests.support.driven import plan_of


def _keep(release: Release, *, used: float | None = None) -> Path:
    def make(folder: Path) -> None:
        shutil.copytree(release.folder, folder)

    folder = KeptReleases().put(release.digest, make).folder
    if used is not None:
        os.utime(folder, (used, used))
    return folder


def test_what_was_used_longest_ago_goes_first_until_so_much_is_left(tmp_path: Path) -> None:
    kept, now = KeptReleases(), time.time()
    releases = [make_release(tmp_path, version=version) for version in (1, 2, 3)]
    for age_s, release in zip((300, 100, 200), releases, strict=True):
        _keep(release, used=now - age_s)
    assert [each.version for each in kept.entries()] == [2, 3, 1]
    assert {each.model for each in kept.entries()} == {releases[0].manifest.model}
    sizes = [each.size_bytes for each in kept.entries()]
    assert sizes[0] == sum(path.stat().st_size for path in releases[1].folder.iterdir())
    assert [each.version for each in kept.gc(older_than_s=250)] == [1]
    assert [each.version for each in kept.gc(keep_bytes=sizes[0])] == [3]
    assert sorted(os.listdir(kept.folder)) == [releases[1].digest]


def test_what_is_fetched_is_marked_as_used(release: Release, tmp_path: Path) -> None:
    folder = _keep(release, used=time.time() - 5000)
    push_to(release, f"file://{tmp_path}/store")
    fetched({"digest": release.digest, "source": f"file://{tmp_path}/store"})
    assert KeptReleases().gc(older_than_s=1000) == []
    assert folder.exists()


@pytest.mark.parametrize("where", ["the URL", "the folder"])
def test_a_release_in_use_stays_until_nobody_uses_it(release: Release, tmp_path: Path, where: str) -> None:
    folder = _keep(release)
    push_to(release, f"file://{tmp_path}/store")
    source = f"file://{tmp_path}/store" if where == "the URL" else str(folder)
    held = fetched({"digest": release.digest, "source": source})
    assert KeptReleases().gc(keep_bytes=0) == []
    held.verify()
    del held
    assert [each.digest for each in KeptReleases().gc(keep_bytes=0)] == [release.digest]
    assert os.listdir(cache_dir() / "releases") == []


def test_another_process_that_uses_a_release_keeps_it(release: Release) -> None:
    _keep(release)
    program = (
        "import sys\nfrom kedge.release.kept import KeptReleases\n"
        f"held = KeptReleases().use({release.digest!r})\nprint(held is not None, flush=True)\nsys.stdin.read()\n"
    )
    user = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == b"True\n"
        assert KeptReleases().gc(keep_bytes=0) == []
    finally:
        user.kill()
        user.communicate()
    assert len(KeptReleases().gc(keep_bytes=0)) == 1


def test_those_that_fetch_while_others_remove_see_whole_releases(release: Release, tmp_path: Path) -> None:
    push_to(release, f"file://{tmp_path}/store")
    problems: list[Exception] = []
    removed: list[int] = []
    ended = threading.Event()

    def fetch() -> None:
        try:
            for _ in range(15):
                fetched({"digest": release.digest, "source": f"file://{tmp_path}/store"}).verify()
        except Exception as error:  # whatever it is, the test tells
            problems.append(error)

    def remove() -> None:
        try:
            while not ended.is_set():
                removed.append(len(KeptReleases().gc(keep_bytes=0)))
        except Exception as error:  # whatever it is, the test tells
            problems.append(error)

    fetching = [threading.Thread(target=fetch) for _ in range(4)]
    removing = [threading.Thread(target=remove) for _ in range(2)]
    for thread in (*fetching, *removing):
        thread.start()
    for thread in fetching:
        thread.join()
    ended.set()
    for thread in removing:
        thread.join()
    assert problems == []
    assert sum(removed) > 0
    KeptReleases().gc(keep_bytes=0)
    assert os.listdir(cache_dir() / "releases") == []


def test_what_dead_processes_left_is_swept_and_what_is_on_its_way_is_not(release: Release, tmp_path: Path) -> None:
    folder = cache_dir() / "releases"
    other = make_release(tmp_path, version=2)
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom kedge.release.kept import claimed\n"
        f"with claimed(Path({str(folder / release.digest)!r})) as partial:\n"
        "    (partial / 'half').write_bytes(bytes(100))\n    print('claimed', flush=True)\n    time.sleep(60)\n"
    )
    dead = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert dead.stdout is not None
    assert dead.stdout.readline() == b"claimed\n"
    kept = KeptReleases()
    kept.gc(keep_bytes=0)
    assert (folder / f".{release.digest}.partial" / "half").exists()
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    (folder / f".{other.digest}.0123.gone").mkdir()
    kept.gc(keep_bytes=0, needed={release.digest})
    assert sorted(os.listdir(folder)) == [f".{release.digest}.lock", f".{release.digest}.partial"]
    kept.gc(keep_bytes=0)
    assert os.listdir(folder) == []


def test_whoever_waits_for_a_claim_gets_none_once_it_was_made(tmp_path: Path) -> None:
    told: list[Path | None] = []

    def wait() -> None:
        with claimed(tmp_path / "made") as partial:
            told.append(partial)

    with claimed(tmp_path / "made") as partial:
        assert partial is not None
        waiting = threading.Thread(target=wait)
        waiting.start()
        partial.rename(tmp_path / "made")
    waiting.join()
    assert told == [None]
    assert os.listdir(tmp_path) == ["made"]


def test_an_archive_is_unpacked_once_for_all_that_roll_it_out(release: Release, tmp_path: Path) -> None:
    export_release(release, tmp_path / "net.kedge")
    inodes = []

    def unpack() -> None:
        with _lasting(tmp_path / "net.kedge", unpack=True) as given:
            given.verify()
            inodes.append(given.folder.stat().st_ino)

    threads = [threading.Thread(target=unpack) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inodes) == 6
    assert len(set(inodes)) == 1
    assert os.listdir(cache_dir() / "releases") == [release.digest]


def test_an_archive_that_is_damaged_leaves_nothing(release: Release, tmp_path: Path) -> None:
    path = tmp_path / "net.kedge"
    export_release(release, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KedgeError), _lasting(path, unpack=True):
        pass
    assert os.listdir(cache_dir() / "releases") == []


def test_half_an_archive_in_the_way_of_a_fetch_is_no_obstacle(release: Release, tmp_path: Path) -> None:
    push_to(release, f"file://{tmp_path}/store")
    (cache_dir() / "releases" / f".{release.digest}.partial" / "release").mkdir(parents=True)
    assert fetched({"digest": release.digest, "source": f"file://{tmp_path}/store"}).digest == release.digest


def test_a_folder_without_a_manifest_is_an_error_and_can_be_removed(release: Release, tmp_path: Path) -> None:
    folder = _keep(release)
    (folder / "manifest.json").unlink()
    push_to(release, f"file://{tmp_path}/store")
    with pytest.raises(BadInputError, match="is not a release"):
        fetched({"digest": release.digest, "source": f"file://{tmp_path}/store"})
    assert [each.model for each in KeptReleases().entries()] == [None]
    assert len(KeptReleases().gc(keep_bytes=0)) == 1
    assert fetched({"digest": release.digest, "source": f"file://{tmp_path}/store"}).digest == release.digest


def test_the_commands_tell_of_releases_and_leave_those_that_a_rollout_needs(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _keep(release)
    free = make_release(tmp_path, version=2)
    _keep(free)
    assert main(["cache", "list"]) == 0
    shown = capsys.readouterr().out
    assert release.digest[:12] in shown
    assert f"{release.manifest.model} 2" in shown
    assert main(["cache", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["releases"]
    assert listed["folder"] == str(folder.parent)
    assert {each["digest"]: each["version"] for each in listed["entries"]} == {release.digest: 1, free.digest: 2}
    assert {"model", "bytes", "used"} < set(listed["entries"][0])
    ledger = create(replace(plan_of(1), release={"digest": release.digest, "source": str(folder)}))
    with ledger.driving() as pen:
        pen.write({"event": "begun"})
    assert main(["cache", "gc", "--keep-mib", "0", "--json"]) == 0
    removed = json.loads(capsys.readouterr().out)["releases_removed"]
    assert [each["digest"] for each in removed] == [free.digest]
    with ledger.driving() as pen:
        pen.write({"event": "halted", "reason": "too many failed", "hint": "see why"})
        pen.write({"event": "ended", "state": "halted", "reason": "too many failed", "hint": None})
    assert main(["cache", "gc", "--keep-mib", "0"]) == 0
    assert "0 releases let go" in capsys.readouterr().out
    open_release(folder).verify()
    with ledger.driving() as pen:
        pen.write({"event": "abort", "rollback": False})
        pen.write({"event": "ended", "state": "aborted", "reason": None, "hint": None})
    assert main(["cache", "gc", "--keep-mib", "0"]) == 0
    assert "1 releases let go" in capsys.readouterr().out
    assert not folder.exists()
