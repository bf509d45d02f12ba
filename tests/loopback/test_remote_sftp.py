"""Releases on a real SSH server, whose host key somebody has seen before."""

from __future__ import annotations

import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.errors import (
    AuthenticationRefusedError,
    HostKeyChangedError,
    IntegrityError,
    UnknownHostKeyError,
    UnreachableError,
)
from kedge.release.remote import fetched, pull_from, push_to
from kedge.transport.base import Deadline
from tests.conftest import make_release
from tests.support.sshd import Sshd, make_sshd, remove_sshd
from tests.support.weights import weighty_release


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    server = make_sshd()
    try:
        yield server
    finally:
        remove_sshd(server)


@pytest.fixture
def home(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has a key that the server takes, and has logged in there before."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    shutil.copy(sshd.key, folder / ".ssh" / "id_ed25519")
    key = " ".join((sshd.folder / "host_key.pub").read_text().split()[:2])
    (folder / ".ssh" / "known_hosts").write_text(f"@cert-authority *.example {key}\n[127.0.0.1]:{sshd.port} {key}\n")
    monkeypatch.setenv("HOME", str(folder))
    return folder


def _url(sshd: Sshd) -> str:
    return f"sftp://{sshd.user}@127.0.0.1:{sshd.port}{sshd.home}/releases"


def test_a_release_goes_to_an_ssh_server_and_back(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    release = weighty_release(tmp_path, version=1)
    assert push_to(release, _url(sshd)).sent_bytes == release.manifest.total_bytes
    assert push_to(release, _url(sshd)).sent_bytes == 0
    pull_from(_url(sshd), release.digest, tmp_path / "back").verify()
    assert fetched({"digest": release.digest, "source": _url(sshd)}).digest == release.digest
    assert not list(sshd.home.rglob("*.partial"))
    sha256 = release.manifest.file("bulk.bin").sha256
    damaged = sshd.home / "releases" / "objects" / "sha256" / sha256[:2] / sha256[2:]
    with damaged.open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(IntegrityError, match=sha256[2:]):
        pull_from(_url(sshd), release.digest, tmp_path / "again")


def test_what_a_killed_push_left_on_an_ssh_server_goes_when_it_is_a_day_old(
    sshd: Sshd, home: Path, tmp_path: Path
) -> None:
    release = make_release(tmp_path, version=1)
    folder = sshd.home / "releases" / "releases" / release.digest
    push_to(release, _url(sshd))
    (folder / "manifest.json").unlink()
    left, fresh = (folder / f"manifest.json.{uuid.uuid4().hex}.partial" for _ in range(2))
    for each in (left, fresh):
        each.write_bytes(b"half")
    os.utime(left, (time.time() - 90000,) * 2)
    push_to(release, _url(sshd))
    assert set(os.listdir(folder)) == {"manifest.json", "offer.json", fresh.name}
    fresh.unlink()


def test_a_server_that_nobody_has_seen_is_refused(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    (home / ".ssh" / "known_hosts").unlink()
    with pytest.raises(UnknownHostKeyError, match="known_hosts"):
        pull_from(_url(sshd), "0" * 64, tmp_path / "back")


def test_a_server_with_another_key_than_before_is_refused(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    other = " ".join((sshd.folder / "user_key.pub").read_text().split()[:2])
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    with pytest.raises(HostKeyChangedError, match="known_hosts"):
        pull_from(_url(sshd), "0" * 64, tmp_path / "back")


def test_a_server_that_takes_none_of_our_keys_says_so(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    (home / ".ssh" / "id_ed25519").unlink()
    with pytest.raises(AuthenticationRefusedError):
        pull_from(_url(sshd), "0" * 64, tmp_path / "back")


def _children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(deeper for each in found for deeper in _children(each))]


@pytest.mark.slow
def test_a_server_that_stops_answering_is_given_up_at_the_deadline(sshd: Sshd, home: Path, tmp_path: Path) -> None:
    release = weighty_release(tmp_path, version=2, bulk_bytes=40_000_000)
    push_to(release, _url(sshd))
    stopped: list[int] = []

    def stop(done: int, total: int) -> None:
        if done > 8_000_000 and not stopped:
            stopped.extend(_children(sshd.process.pid))
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)

    try:
        with pytest.raises(UnreachableError, match="fetching took too long"):
            pull_from(_url(sshd), release.digest, tmp_path / "back", stop, Deadline.after(4, "fetching"))
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert stopped
    pull_from(_url(sshd), release.digest, tmp_path / "back").verify()


def test_a_server_that_stops_answering_before_anything_is_said_is_given_up_at_the_deadline(
    sshd: Sshd, home: Path, tmp_path: Path
) -> None:
    os.kill(sshd.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnreachableError, match="fetching took too long"):
            pull_from(_url(sshd), "0" * 64, tmp_path / "back", deadline=Deadline.after(1, "fetching"))
    finally:
        os.kill(sshd.process.pid, signal.SIGCONT)
