"""Releases at a URL: what a store may do to them, and what several hosts at once may not."""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedge.cli.app import main
from kedge.config import cache_dir
from kedge.errors import BadInputError, IntegrityError, KedgeError, UnreachableError
from kedge.release.bundle import Release, open_release
from kedge.release.kept import claimed
from kedge.release.remote import fetched, pull_from, push_to, require_readable
from kedge.release.urls import RemoteFolder
from kedge.transport.base import Deadline
from kedge_agent.formats.offer import Signed
from kedge_agent.wire import FRAME_BYTES
from tests.conftest import make_release
from tests.support.weights import weighty_release


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def _object(store: Path, release: Release, index: int = 0) -> Path:
    sha256 = release.manifest.files[index].sha256
    return store / "objects" / "sha256" / sha256[:2] / sha256[2:]


def _source(release: Release, where: str) -> dict[str, str]:
    return {"digest": release.digest, "source": where}


def test_a_release_comes_back_byte_for_byte(release: Release, url: str, tmp_path: Path) -> None:
    put = push_to(release, url)
    assert put.sent_bytes + put.skipped_bytes == release.manifest.total_bytes
    found = pull_from(url, release.digest, tmp_path / "back")
    assert found.manifest_bytes == release.manifest_bytes
    assert {p.name: p.read_bytes() for _, p in found.files()} == {p.name: p.read_bytes() for _, p in release.files()}
    assert sorted(os.listdir(found.folder)) == sorted(os.listdir(release.folder))


def test_a_second_push_sends_nothing_and_another_version_sends_what_differs(url: str, tmp_path: Path) -> None:
    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2)
    push_to(first, url)
    assert push_to(first, url).sent_bytes == 0
    shared = {entry.sha256 for entry in first.manifest.files} & {entry.sha256 for entry in second.manifest.files}
    put = push_to(second, url)
    assert shared
    assert put.skipped_bytes >= sum(e.size_bytes for e in second.manifest.files if e.sha256 in shared)
    assert pull_from(url, second.digest, tmp_path / "back").digest == second.digest


def test_signatures_that_came_after_the_push_come_with_the_next(release: Release, url: str) -> None:
    push_to(release, url)
    here = fetched(_source(release, url))
    assert here.offer().downgrade is None
    (release.folder / "downgrade.json").write_bytes(b"{}")
    (release.folder / "downgrade.json.sig").write_bytes(b"signed")
    assert push_to(release, url).sent_bytes == 0
    again = fetched(_source(release, url))
    assert again.folder == here.folder
    assert again.offer().downgrade == Signed(b"{}", b"signed")


def test_an_object_that_was_left_half_is_sent_again(release: Release, store: Path, tmp_path: Path) -> None:
    push_to(release, f"file://{store}")
    path = _object(store, release)
    path.write_bytes(path.read_bytes()[:-1])
    assert push_to(release, f"file://{store}").sent_bytes == release.manifest.files[0].size_bytes
    assert pull_from(f"file://{store}", release.digest, tmp_path / "back").digest == release.digest


@pytest.mark.parametrize("damage", [lambda data: b"x" + data[1:], lambda data: data[:-1], lambda data: b""])
def test_a_damaged_object_is_refused_by_name_and_nothing_is_made(
    release: Release, store: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    push_to(release, f"file://{store}")
    path = _object(store, release)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match=release.manifest.files[0].sha256[2:]):
        pull_from(f"file://{store}", release.digest, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_object_that_never_ends_is_read_as_far_as_the_manifest_names(
    release: Release, store: Path, tmp_path: Path
) -> None:
    push_to(release, f"file://{store}")
    with _object(store, release).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(IntegrityError):
        pull_from(f"file://{store}", release.digest, tmp_path / "back")
    assert sum(path.stat().st_size for path in (tmp_path / ".back.partial").iterdir()) <= release.manifest.total_bytes


def test_another_manifest_under_this_name_is_refused(tmp_path: Path, store: Path) -> None:
    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2)
    push_to(first, f"file://{store}")
    (store / "releases" / first.digest / "manifest.json").write_bytes(second.manifest_bytes)
    with pytest.raises(IntegrityError, match=first.digest):
        pull_from(f"file://{store}", first.digest, tmp_path / "back")


@pytest.mark.parametrize("name", ["manifest.json", "offer.json"])
def test_a_document_without_end_is_refused(release: Release, store: Path, tmp_path: Path, name: str) -> None:
    push_to(release, f"file://{store}")
    with (store / "releases" / release.digest / name).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(KedgeError, match="more than"):
        pull_from(f"file://{store}", release.digest, tmp_path / "back")


def test_an_offer_of_nonsense_is_refused(release: Release, store: Path, tmp_path: Path) -> None:
    push_to(release, f"file://{store}")
    (store / "releases" / release.digest / "offer.json").write_text(json.dumps({"kind": "agent of chaos"}))
    with pytest.raises(IntegrityError, match=r"offer\.json"):
        pull_from(f"file://{store}", release.digest, tmp_path / "back")


def test_a_release_whose_push_was_cut_is_not_there(
    release: Release, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = RemoteFolder.put
    sent: list[str] = []

    def cut(self: RemoteFolder, name: str, path: Path, progress: Any) -> None:
        if sent:
            raise UnreachableError("the line was cut")
        sent.append(name)
        put(self, name, path, progress)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteFolder, "put", cut)
        with pytest.raises(UnreachableError):
            push_to(release, url)
    with pytest.raises(BadInputError, match="no release"):
        pull_from(url, release.digest, tmp_path / "back")
    assert push_to(release, url).skipped_bytes > 0
    assert pull_from(url, release.digest, tmp_path / "back").digest == release.digest


def test_a_pull_goes_on_where_the_last_one_was_cut(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = weighty_release(tmp_path, version=1)
    push_to(release, f"file://{store}")
    asked: list[int] = []
    blocks = RemoteFolder.blocks

    def watched(self: RemoteFolder, name: str, offset: int, size: int) -> Any:
        asked.append(offset)
        return blocks(self, name, offset, size)

    monkeypatch.setattr(RemoteFolder, "blocks", watched)

    def cut(done: int, total: int) -> None:
        if done > 2 * FRAME_BYTES:
            raise UnreachableError("the line was cut")

    with pytest.raises(UnreachableError):
        pull_from(f"file://{store}", release.digest, tmp_path / "back", cut)
    asked.clear()
    assert pull_from(f"file://{store}", release.digest, tmp_path / "back").digest == release.digest
    assert max(asked) >= 2 * FRAME_BYTES
    assert not (tmp_path / ".back.partial").exists()


def test_what_was_damaged_in_an_interrupted_pull_is_fetched_again(store: Path, tmp_path: Path) -> None:
    release = weighty_release(tmp_path, version=1)
    push_to(release, f"file://{store}")
    partial = tmp_path / ".back.partial"
    partial.mkdir()
    for entry in release.manifest.files:
        (partial / entry.name).write_bytes(os.urandom(entry.size_bytes + 10))
    (partial / "of another release").write_bytes(b"")
    pull_from(f"file://{store}", release.digest, tmp_path / "back").verify()


def test_many_that_ask_at_once_fetch_it_once(release: Release, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to(release, f"file://{store}")
    asked: list[str] = []
    blocks = RemoteFolder.blocks

    def watched(self: RemoteFolder, name: str, offset: int, size: int) -> Any:
        asked.append(name)
        return blocks(self, name, offset, size)

    monkeypatch.setattr(RemoteFolder, "blocks", watched)
    found: list[Release] = []

    def fetch() -> None:
        found.append(fetched(_source(release, f"file://{store}")))

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(asked) == len(set(asked))
    assert os.listdir(cache_dir() / "releases") == [release.digest]


def test_what_was_fetched_serves_when_the_store_is_gone(release: Release, store: Path, tmp_path: Path) -> None:
    push_to(release, f"file://{store}")
    here = fetched(_source(release, f"file://{store}"))
    store.rename(tmp_path / "elsewhere")
    assert fetched(_source(release, f"file://{store}")).folder == here.folder


def test_waiting_for_another_pull_ends_at_the_deadline(release: Release, store: Path, tmp_path: Path) -> None:
    push_to(release, f"file://{store}")
    with claimed(tmp_path / "back", None) as partial:
        assert partial is not None
        with pytest.raises(UnreachableError, match="fetching took too long"):
            pull_from(f"file://{store}", release.digest, tmp_path / "back", deadline=Deadline.after(0.3, "fetching"))


def test_what_killed_pushes_left_goes_when_it_is_a_day_old(release: Release, store: Path) -> None:
    path = _object(store, release)
    path.parent.mkdir(parents=True)
    left, fresh = (path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial") for _ in range(2))
    other = path.with_name("of somebody else.partial")
    for each in (left, fresh, other):
        each.write_bytes(b"half")
    for each in (left, other):
        os.utime(each, (time.time() - 90000,) * 2)
    push_to(release, f"file://{store}")
    assert set(os.listdir(path.parent)) == {path.name, fresh.name, other.name}


def test_many_that_push_at_once_leave_one_whole_release(release: Release, url: str, tmp_path: Path) -> None:
    problems: list[Exception] = []

    def push() -> None:
        try:
            push_to(release, url)
        except Exception as error:  # whatever it is, the test tells
            problems.append(error)

    threads = [threading.Thread(target=push) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    pull_from(url, release.digest, tmp_path / "back").verify()
    assert not list(tmp_path.rglob("*.partial"))


def test_a_folder_that_holds_another_release_by_now_is_refused(tmp_path: Path) -> None:
    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2)
    assert fetched(_source(first, str(first.folder))).digest == first.digest
    with pytest.raises(IntegrityError, match="holds the release"):
        fetched(_source(first, str(second.folder)))


def test_whether_a_host_can_read_a_release_is_said_without_fetching_it(release: Release, store: Path) -> None:
    with pytest.raises(BadInputError, match="no release"):
        require_readable(_source(release, f"file://{store}"))
    push_to(release, f"file://{store}")
    require_readable(_source(release, f"file://{store}"))
    assert not (cache_dir() / "releases").exists()


@pytest.mark.parametrize("url", ["sftp://me:geheim@host/x", "s3://key:geheim@bucket/x", "https://host/x?sig=geheim"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(
    release: Release, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "push", str(release.folder), "--to", url]) == 3
    said = capsys.readouterr()
    assert "password or a query" in said.err
    assert "geheim" not in said.out + said.err


@pytest.mark.parametrize(
    ("url", "code"),
    [("nosuch://x/y", 3), ("gs://bucket/x", 7), ("sftp://127.0.0.1:1/x", 4)],
    ids=str,
)
def test_a_url_that_cannot_be_used_is_an_error_of_one_line(
    release: Release, url: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "push", str(release.folder), "--to", url]) == code
    assert url in capsys.readouterr().err


def test_the_commands_push_and_pull(release: Release, store: Path, tmp_path: Path, capsys: Any) -> None:
    url = f"file://{store}"
    assert main(["release", "push", str(release.folder), "--to", url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "release": release.digest,
        "url": url,
        "sent_bytes": told["sent_bytes"],
        "skipped_bytes": release.manifest.total_bytes - told["sent_bytes"],
    }
    assert main(["release", "pull", release.digest, "--from", url, "-o", str(tmp_path / "back"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == release.digest
    open_release(tmp_path / "back").verify()
    assert main(["release", "pull", "digits", "--from", url, "-o", str(tmp_path / "other")]) == 3
    assert "no release's digest" in capsys.readouterr().err
    assert main(["release", "pull", release.digest, "-o", str(tmp_path / "other")]) == 2
