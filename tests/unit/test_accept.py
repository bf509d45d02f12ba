"""Acceptance: what a release's folder holds, what is recorded, what is mended where bytes have rotted."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.failpoints import FAILPOINTS
from kedge_agent.formats.offer import Offer, Signed
from kedge_agent.store import files as files_module
from kedge_agent.store.accept import accept
from kedge_agent.store.layout import Layout
from kedge_agent.store.objects import is_intact, link_everywhere, place_object
from kedge_agent.store.proof import good_frames
from kedge_agent.store.releases import (
    Acceptance,
    DamagedError,
    has_release,
    read_acceptance,
    read_offer,
    read_release,
    releases_of,
    verify_release,
)
from kedge_agent.store.signers import Verdict
from kedge_agent.wire import FRAME_BYTES
from tests.support.stores import UNSIGNED, Parts, parts_of, put, stage
from tests.unit.test_store import whole

SIGNED = Verdict(True, ("SHA256:aa", "SHA256:bb"), 2)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture
def parts(release: Release, tmp_path: Path) -> Parts:
    return parts_of(release, tmp_path / "parts")


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file in its place, as a disk does: every link to it sees it."""
    path.chmod(0o644)
    with path.open("r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)[0]
        handle.seek(offset)
        handle.write(bytes([byte ^ 1]))
    path.chmod(0o444)


def verify(layout: Layout, digest: str) -> None:
    verify_release(layout, read_release(layout, digest))


def test_an_accepted_release_holds_its_files_its_manifest_and_the_record_of_its_acceptance(
    layout: Layout, parts: Parts
) -> None:
    offer = Offer(signatures=b"-----BEGIN SSH SIGNATURE-----\n", downgrade=Signed(b"{}", b"x"))
    put(layout, parts, offer, SIGNED)
    folder = layout.release(parts.digest)
    assert sorted(os.listdir(folder)) == sorted([*parts.files, "accepted.json", "manifest.json", "offer.json"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}
    accepted = read_acceptance(layout, parts.digest)
    assert (accepted.signed, accepted.keys, accepted.threshold) == (True, SIGNED.keys, 2)
    assert accepted.sequence == 1
    assert read_offer(layout, parts.digest) == offer
    assert os.listdir(layout.incoming) == []


def test_a_release_that_an_older_agent_accepted_counts_as_accepted_and_not_signed(layout: Layout, parts: Parts) -> None:
    put(layout, parts, verdict=SIGNED)
    (layout.release(parts.digest) / "accepted.json").unlink()
    (layout.release(parts.digest) / "offer.json").unlink()
    assert read_acceptance(layout, parts.digest) == Acceptance(signed=False)
    assert read_offer(layout, parts.digest) == Offer()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b'"signed": false', b'"signed": true'),
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: bytes(len(data)),
        lambda data: data.replace(b'"release": "', b'"release": "0'),
    ],
)
def test_a_release_whose_record_is_damaged_is_not_accepted(
    layout: Layout, parts: Parts, damage: Callable[[bytes], bytes]
) -> None:
    put(layout, parts)
    path = layout.release(parts.digest) / "accepted.json"
    data = damage(path.read_bytes())
    assert data != path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(AgentError) as caught:
        read_acceptance(layout, parts.digest)
    assert caught.value.kind == "integrity"
    put(layout, parts)
    assert not read_acceptance(layout, parts.digest).signed


def test_a_record_of_another_release_is_no_record_of_this_one(layout: Layout, release: Release, tmp_path: Path) -> None:
    one, two = (put(layout, parts_of(release, tmp_path, version=version)) for version in (1, 2))
    path = layout.release(two) / "accepted.json"
    path.unlink()
    path.write_bytes((layout.release(one) / "accepted.json").read_bytes())
    with pytest.raises(AgentError, match="damaged"):
        read_acceptance(layout, two)


def test_a_record_of_a_later_agent_with_more_in_it_is_read(layout: Layout, parts: Parts) -> None:
    from kedge_agent.store.releases import _checksum

    put(layout, parts, verdict=SIGNED)
    path = layout.release(parts.digest) / "accepted.json"
    body = json.loads(path.read_bytes()) | {"mood": "good"}
    del body["sha256"]
    path.unlink()
    path.write_text(json.dumps(body | {"sha256": _checksum(body)}))
    assert read_acceptance(layout, parts.digest).signed


def test_signatures_and_downgrades_that_come_later_are_kept_and_ones_that_do_not_come_again_stay(
    layout: Layout, parts: Parts
) -> None:
    signature = b"-----BEGIN SSH SIGNATURE-----\n"
    put(layout, parts)
    put(layout, parts, Offer(signatures=signature), SIGNED)
    assert read_acceptance(layout, parts.digest).signed
    lower = replace(SIGNED, downgrade_floor=3, downgrade_serial=7, downgrade_from=9, downgrade_keys=("SHA256:d",))
    put(layout, parts, Offer(signatures=signature, downgrade=Signed(b'{"lower": 1}')), lower)
    put(layout, parts)
    put(layout, parts, Offer(signatures=signature), replace(SIGNED, downgrade_floor=2, downgrade_serial=5))
    accepted = read_acceptance(layout, parts.digest)
    assert (accepted.signed, accepted.keys) == (True, SIGNED.keys)
    assert (accepted.downgrade_floor, accepted.downgrade_serial, accepted.downgrade_from) == (3, 7, 9)
    assert accepted.downgrade_keys == ("SHA256:d",)
    assert accepted.lowers(9, 6)
    assert not accepted.lowers(9, 7)
    assert not accepted.lowers(10, 6)
    offer = read_offer(layout, parts.digest)
    assert (offer.signatures, offer.downgrade) == (signature, Signed(b'{"lower": 1}'))
    assert accepted.sequence == 5


def test_a_downgrade_that_nobody_was_asked_for_changes_nothing_of_a_signed_acceptance(
    layout: Layout, parts: Parts
) -> None:
    unsigned = Verdict(signed=False, downgrade_floor=1, downgrade_serial=1 << 53, downgrade_from=1 << 53)
    offer = Offer(downgrade=Signed(b"{}"))
    put(layout, parts, offer, unsigned)
    put(layout, parts, Offer(signatures=b"-----BEGIN SSH SIGNATURE-----\n"), SIGNED)
    signed = read_acceptance(layout, parts.digest)
    assert (signed.signed, signed.downgrade_floor) == (True, None)
    put(layout, parts, offer, unsigned)
    assert read_acceptance(layout, parts.digest) == replace(signed, sequence=3)
    assert read_offer(layout, parts.digest).downgrade is None


def test_of_two_signed_acceptances_the_later_counts_unless_the_earlier_has_all_its_keys_and_more(
    layout: Layout, parts: Parts
) -> None:
    both = replace(SIGNED, keys=("SHA256:a", "SHA256:b"))
    for verdict, kept in (
        (both, both.keys),
        (replace(SIGNED, keys=("SHA256:a",)), both.keys),
        (replace(SIGNED, keys=("SHA256:c",)), ("SHA256:c",)),
    ):
        put(layout, parts, Offer(signatures=b"-----BEGIN SSH SIGNATURE-----\n"), verdict)
        assert read_acceptance(layout, parts.digest).keys == kept


def test_releases_of_a_model_come_in_the_order_of_their_acceptance_whatever_the_clock_says(
    layout: Layout, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {version: parts_of(release, tmp_path, version=version) for version in (1, 2, 3)}
    for seconds, version in enumerate((3, 1, 2)):
        monkeypatch.setattr("kedge_agent.store.accept.time.time", lambda back=seconds: 10_000 - 1000 * back)
        put(layout, made[version])
    put(layout, parts_of(release, tmp_path, model="other"))
    assert releases_of(layout, "digits") == [made[version].digest for version in (2, 1, 3)]
    put(layout, made[3])
    assert releases_of(layout, "digits") == [made[version].digest for version in (3, 2, 1)]


def test_damage_is_named_by_file_and_frame_in_every_release_that_shares_it_and_mended_in_all_at_once(
    layout: Layout, release: Release, tmp_path: Path
) -> None:
    weights = os.urandom(3 * FRAME_BYTES + 100)
    live, previous = (parts_of(release, tmp_path, version=version, weights=weights) for version in (2, 1))
    put(layout, previous)
    put(layout, live)
    entry = live.manifest.file("weights.bin")
    flip(layout.object(entry.sha256), FRAME_BYTES + 5)
    flip(layout.object(entry.sha256), 3 * FRAME_BYTES + 99)
    for digest in (live.digest, previous.digest):
        with pytest.raises(DamagedError, match=r"weights\.bin has other bytes .* in frames 1, 3 of 4") as caught:
            verify(layout, digest)
        assert caught.value.damaged == {"weights.bin": [1, 3]}
        assert caught.value.kind == "integrity"
    assert good_frames(layout.object(entry.sha256), entry) == {0, 2}
    assert not is_intact(layout, entry)
    staging = stage(layout, live)
    (staging / entry.sha256).write_bytes(weights)
    accept(layout, live.manifest, live.data, Offer(), UNSIGNED, staging)
    for digest in (live.digest, previous.digest):
        verify(layout, digest)
        assert (layout.release(digest) / "weights.bin").stat().st_ino == layout.object(entry.sha256).stat().st_ino


def test_a_frame_that_the_disk_does_not_return_is_named_and_the_others_are_good(
    layout: Layout, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(release, tmp_path, weights=os.urandom(2 * FRAME_BYTES + 10))
    put(layout, parts)
    entry, real = parts.manifest.file("weights.bin"), os.preadv
    number = layout.object(entry.sha256).stat().st_ino

    def bad_sector(handle: int, buffers: list[memoryview], offset: int) -> int:
        if os.fstat(handle).st_ino == number and offset <= FRAME_BYTES + 4096 < offset + len(buffers[0]):
            raise OSError(errno.EIO, "Input/output error")
        return real(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", bad_sector)
    with pytest.raises(DamagedError, match=r"in frame 1 of 3") as caught:
        verify(layout, parts.digest)
    assert caught.value.damaged == {"weights.bin": [1]}
    assert not is_intact(layout, entry)


def test_an_object_that_is_missing_cut_or_too_long_is_named_so(
    layout: Layout, release: Release, tmp_path: Path
) -> None:
    parts = parts_of(release, tmp_path, weights=b"w" * 1000)
    put(layout, parts)
    path = layout.release(parts.digest) / "weights.bin"
    for content, said in (
        (b"w" * 999, "has 999 bytes, and the manifest names 1000"),
        (b"w" * 1001, "has 1001 bytes"),
        (None, "cannot be read: No such file"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DamagedError, match=said) as caught:
            verify(layout, parts.digest)
        assert caught.value.damaged == {"weights.bin": [] if content and len(content) > 1000 else [0]}
    path.mkdir()
    with pytest.raises(DamagedError):
        verify(layout, parts.digest)
    put(layout, parts)
    verify(layout, parts.digest)


def test_a_manifest_that_rotted_is_replaced_where_it_lies(layout: Layout, parts: Parts) -> None:
    put(layout, parts)
    flip(layout.release(parts.digest) / "manifest.json", 100)
    with pytest.raises(AgentError):
        read_release(layout, parts.digest)
    put(layout, parts)
    verify(layout, parts.digest)


def test_no_name_is_ever_missing_while_an_object_is_replaced(layout: Layout, release: Release, tmp_path: Path) -> None:
    parts = parts_of(release, tmp_path, weights=b"w" * 1000)
    put(layout, parts)
    entry = parts.manifest.file("weights.bin")
    watched = (layout.object(entry.sha256), layout.release(parts.digest) / "weights.bin")
    missed: list[Path] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            missed.extend(path for path in watched if not path.exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(100):
            fresh = tmp_path / "fresh"
            fresh.write_bytes(b"w" * 1000)
            place_object(layout, entry, fresh)
            link_everywhere(layout, {entry.sha256})
    finally:
        ended.set()
        watcher.join()
    assert missed == []
    verify(layout, parts.digest)


def test_a_frame_that_changed_on_the_disk_after_it_arrived_is_found_before_anything_is_accepted(
    layout: Layout, parts: Parts
) -> None:
    staging = stage(layout, parts)
    entry = parts.manifest.file("model.onnx")
    flip(staging / entry.sha256, 7)
    with pytest.raises(AgentError, match="1 frames have other bytes on the device's disk than arrived") as caught:
        accept(layout, parts.manifest, parts.data, Offer(), UNSIGNED, staging)
    assert caught.value.kind == "integrity"
    assert not has_release(layout, parts.digest)
    (staging / entry.sha256).unlink()
    put(layout, parts)
    verify(layout, parts.digest)


def test_a_file_that_could_not_be_synced_is_given_up(
    layout: Layout, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = stage(layout, parts)
    first = parts.manifest.files[0]
    number, real = (staging / first.sha256).stat().st_ino, os.fsync

    def fails(handle: int) -> None:
        if os.fstat(handle).st_ino == number:
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            accept(layout, parts.manifest, parts.data, Offer(), UNSIGNED, staging)
    assert not (staging / first.sha256).exists()
    assert not layout.object(first.sha256).exists()
    put(layout, parts)
    verify(layout, parts.digest)


def test_a_release_whose_name_could_not_be_synced_is_none_until_it_is_accepted_again(
    layout: Layout, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging, release, real = stage(layout, parts), layout.release(parts.digest), os.fsync

    def fails(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}") == str(release.parent) and release.exists():
            raise OSError(errno.EIO, "Input/output error")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            accept(layout, parts.manifest, parts.data, Offer(), UNSIGNED, staging)
    assert not has_release(layout, parts.digest)
    put(layout, parts)
    verify(layout, parts.digest)


def test_everything_is_on_disk_before_the_rename_that_makes_a_release_appear(
    layout: Layout, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = stage(layout, parts)
    synced: list[int] = []
    before: list[set[int]] = []
    real_fsync, real_rename = os.fsync, os.rename
    release = layout.release(parts.digest)

    def fsync(handle: int) -> None:
        real_fsync(handle)
        synced.append(os.fstat(handle).st_ino)

    def rename(source: Path, target: Path) -> None:
        if target == release:
            before.append(set(synced))
            synced.clear()
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    accept(layout, parts.manifest, parts.data, Offer(), UNSIGNED, staging)
    needed = [release, *release.iterdir(), *(layout.object(entry.sha256).parent for entry in parts.manifest.files)]
    assert {path.stat().st_ino for path in needed} <= before[0]
    assert release.parent.stat().st_ino in synced


def test_a_folder_that_somebody_made_and_was_killed_before_it_was_durable_is_made_durable_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    synced: list[Path] = []
    monkeypatch.setattr(files_module, "fsync_directory", synced.append)
    files_module.make_directory(tmp_path / "a" / "b" / "c")
    assert synced == [tmp_path / "a", tmp_path / "a" / "b"]


@pytest.mark.slow
@pytest.mark.parametrize("place", [name for name in FAILPOINTS if name.startswith("accept.")])
def test_a_process_that_is_killed_while_it_accepts_leaves_a_whole_release_or_none(
    layout: Layout, release: Release, place: str
) -> None:
    def receive(failpoints: str) -> int:
        return subprocess.run(
            [sys.executable, "-m", "kedge_agent", "--state", str(layout.root), "receive"],
            input=b"".join(whole(release)) if failpoints else b"".join(whole(release)[:1] + whole(release)[-1:]),
            env={**os.environ, "KEDGE_FAILPOINTS": failpoints},
            capture_output=True,
            timeout=60,
            check=False,
        ).returncode

    assert receive(f"{place}=kill") == -9
    there = has_release(layout, release.digest)
    assert there == (place in ("accept.renamed", "accept.cleaned"))
    if there:
        verify(layout, release.digest)
        read_acceptance(layout, release.digest)
    # All frames were acknowledged, so none is sent again.
    assert receive("") == 0
    verify(layout, release.digest)
    assert not read_acceptance(layout, release.digest).signed
    assert os.listdir(layout.incoming) == []
    assert [name for name in os.listdir(layout.root / "releases") if name.startswith(".")] == []


@pytest.mark.slow
def test_a_process_that_is_killed_between_two_links_it_mends_is_made_up_for_by_the_next_push(
    layout: Layout, release: Release, tmp_path: Path
) -> None:
    live, previous = (parts_of(release, tmp_path, version=version, weights=b"w" * 1000) for version in (2, 1))
    put(layout, previous)
    put(layout, live)
    entry = live.manifest.file("weights.bin")
    flip(layout.object(entry.sha256), 5)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"w" * 1000)
    script = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "from kedge_agent.store.layout import Layout\n"
        "from kedge_agent.store.objects import link_everywhere, place_object\n"
        "from kedge_agent.store.releases import read_release\n"
        "root, digest, fresh = sys.argv[1:]\n"
        "real, turns = os.replace, []\n"
        "def dies(source, target):\n"
        "    turns.append(target)\n"
        "    if len(turns) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(source, target)\n"
        "os.replace = dies\n"
        "layout = Layout(Path(root))\n"
        "entry = read_release(layout, digest).file('weights.bin')\n"
        "place_object(layout, entry, Path(fresh))\n"
        "link_everywhere(layout, {entry.sha256})\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(layout.root), live.digest, str(fresh)], timeout=60, check=False
    )
    assert ended.returncode == -9
    damaged = []
    for digest in (live.digest, previous.digest):
        try:
            verify(layout, digest)
        except DamagedError:
            damaged.append(digest)
    assert len(damaged) == 1
    put(layout, live)
    for digest in (live.digest, previous.digest):
        verify(layout, digest)
        assert not [name for name in os.listdir(layout.release(digest)) if name.startswith(".")]
