"""Archives that lie, end early, never end, or are something else; on the device and on the host."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.archive import write_archive
from kedge_agent.formats.offer import AGENT, Offer, offer_bytes
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release
from tests.support.deploys import configure, deploy
from tests.support.keys import allow, make_key, offer_of

_HEAD = struct.Struct(">8sIII32s")


def archive_of(release: Release, offer: Offer | None = None) -> bytes:
    out = io.BytesIO()
    write_archive(out, offer or Offer(), release.manifest_bytes, lambda entry: release.folder / entry.name)
    return out.getvalue()


def packed(
    manifest: bytes,
    content: bytes = b"",
    *,
    offer: bytes | None = None,
    version: int = 1,
    offer_says: int | None = None,
    manifest_says: int | None = None,
) -> bytes:
    """An archive of these very parts, whatever they are worth; `…_says`: another length than the part has."""
    offer = offer_bytes(Offer()) if offer is None else offer
    lengths = (
        len(offer) if offer_says is None else offer_says,
        len(manifest) if manifest_says is None else manifest_says,
    )
    return _HEAD.pack(b"KEDGEREL", version, *lengths, hashlib.sha256(manifest).digest()) + offer + manifest + content


def borders(release: Release, archive: bytes) -> list[int]:
    """Where each part of an archive ends."""
    _, _, offer, manifest, _ = _HEAD.unpack_from(archive)
    ends = [8, 12, _HEAD.size, _HEAD.size + offer, _HEAD.size + offer + manifest]
    seen = set()
    for entry in release.manifest.files:
        if entry.sha256 not in seen:
            seen.add(entry.sha256)
            ends.append(ends[-1] + entry.size_bytes)
    assert ends[-1] == len(archive)
    return ends


def imported(state: Path, archive: bytes | Path) -> subprocess.CompletedProcess[bytes]:
    """`kedge-agent import -`, or of a file."""
    command = [sys.executable, "-m", "kedge_agent", "--state", str(state), "import"]
    given = archive if isinstance(archive, bytes) else None
    return subprocess.run(
        [*command, "-" if given is not None else str(archive)],
        input=given,
        capture_output=True,
        check=False,
        timeout=60,
        cwd="/",
    )


def on_host(path: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`kedge release import`."""
    return subprocess.run(
        [sys.executable, "-m", "kedge", "release", "import", str(path), "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def nothing_was_taken(state: Path, live: Release) -> None:
    """Releases and objects are those of the live one."""
    assert sorted(path.name for path in (state / "releases").iterdir()) == [live.digest]
    named = {entry.sha256 for entry in live.manifest.files}
    stored = {path.parent.name + path.name for path in (state / "objects" / "sha256").glob("??/*")}
    assert stored == named


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return obedient_release(tmp_path, version=2)


def begin(device: Device, folder: Path) -> Release:
    """What is live: taken from an archive itself, which works."""
    first = obedient_release(folder, version=1)
    done = imported(device.state, archive_of(first))
    assert done.returncode == 0, done.stderr
    device.start()
    assert deploy(device, first)["state"] == "done"
    return first


@pytest.fixture
def live(device: Device, tmp_path: Path) -> Release:
    return begin(device, tmp_path)


class Serving(NamedTuple):
    """A device that serves, and what is live on it."""

    device: Device
    live: Release


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """For all who find it, and leave it, as it is."""
    folder = tmp_path_factory.mktemp("serving")
    device = Device(folder / "state")
    try:
        yield Serving(device, begin(device, folder))
    finally:
        device.kill()


def with_manifest(release: Release, change: Callable[[dict[str, Any]], None]) -> bytes:
    """An archive whose manifest is not what the writer would have written."""
    body = json.loads(release.manifest_bytes)
    change(body)
    return packed(json.dumps(body).encode(), archive_of(release)[borders(release, archive_of(release))[4] :])


def named(name: str) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        old = body["files"][0]["name"]
        body["files"][0]["name"] = name
        for tensor in (*body["golden"]["inputs"], *body["golden"]["outputs"], *body["artefacts"]):
            if tensor["file"] == old:
                tensor["file"] = name

    return change


def sized(size: int) -> Callable[[dict[str, Any]], None]:
    return lambda body: body["files"][0].update(bytes=size)


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../etc/cron.d/kedge", "* * * * * root true")
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("../../etc/cron.d/kedge")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    return out.getvalue()


BAD_NAMES = [
    "../model.onnx",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "A.onnx",
    "manifest.json",
    "accepted.json",
    "offer.json",
    "manifest.json.sig",
    "downgrade.json",
    "a" * 129,
    "a\u0000b",
    "a\nb",
    "ä.onnx",
    "con:x",
]

LIES: dict[str, Callable[[Release], bytes]] = {
    "nothing": lambda release: b"",
    "one byte": lambda release: b"K",
    "zeros": lambda release: bytes(1 << 20),
    "a zip": lambda release: zipped(),
    "a tar": lambda release: tarred(),
    "another magic": lambda release: b"KEDGEREM" + archive_of(release)[8:],
    "a version to come": lambda release: packed(release.manifest_bytes, version=2),
    "a manifest of 4 GiB": lambda release: packed(release.manifest_bytes, manifest_says=0xFFFFFFFF),
    "a manifest of more than may be": lambda release: packed(release.manifest_bytes, manifest_says=(16 << 20) + 1),
    "an offer of 4 GiB": lambda release: packed(release.manifest_bytes, offer_says=0xFFFFFFFF),
    "a manifest of no length": lambda release: packed(b""),
    "a manifest that is none": lambda release: packed(b"{}"),
    "a manifest that is cut by its length": lambda release: packed(
        release.manifest_bytes, manifest_says=len(release.manifest_bytes) - 1
    ),
    "an offer that is none": lambda release: packed(release.manifest_bytes, offer=b"[]"),
    "an offer with half a character": lambda release: packed(
        release.manifest_bytes,
        offer=rb'{"kind": "release", "encodings": [0], "signatures": "",'
        rb' "base": {"document": "\ud800", "signatures": ""}}',
    ),
    "another manifest than its header names": lambda release: archive_of(release).replace(
        b'"version": 2', b'"version": 3'
    ),
    "an offer of an agent": lambda release: packed(release.manifest_bytes, offer=offer_bytes(Offer(kind=AGENT))),
    "files in another order": lambda release: with_manifest(release, lambda body: body["files"].reverse()),
    "a file that is longer than it says": lambda release: with_manifest(
        release, lambda body: body["files"][-1].update(bytes=body["files"][-1]["bytes"] - 1)
    ),
    "a negative size": lambda release: with_manifest(release, sized(-1)),
    "a size of 64 bits": lambda release: with_manifest(release, sized((1 << 64) - 1)),
    "a size of a tebibyte": lambda release: with_manifest(release, sized(1 << 40)),
    "a size that is no number": lambda release: with_manifest(release, lambda body: body["files"][0].update(bytes="9")),
    "a file twice": lambda release: with_manifest(release, lambda body: body["files"].append(body["files"][0])),
    "deep JSON": lambda release: packed(b'{"kedge":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    **{
        f"a file named {name[:20]!r}": lambda release, name=name: with_manifest(release, named(name))
        for name in BAD_NAMES
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_is_refused_in_one_line_and_nothing_of_it_is_taken(
    serving: Serving, release: Release, tmp_path: Path, lie: str
) -> None:
    device, live = serving
    data = LIES[lie](release)
    done = imported(device.state, data)
    assert done.returncode in (3, 6, 8), done.stderr
    errors = done.stderr.decode()
    assert errors.startswith("kedge-agent: error: "), errors
    assert "Traceback" not in errors
    nothing_was_taken(device.state, live)
    path = tmp_path / "x.kedge"
    path.write_bytes(data)
    host = on_host(path, tmp_path / "out")
    assert host.returncode in (3, 6, 8), host.stderr
    assert "Traceback" not in host.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    assert_invariant(device.state, device.agent, {live.digest})


@pytest.mark.slow
def test_an_archive_that_is_cut_anywhere_is_refused_and_the_whole_one_is_taken_after_it(
    device: Device, live: Release, release: Release, tmp_path: Path
) -> None:
    archive = archive_of(release)
    cuts = sorted({cut for end in borders(release, archive) for cut in (end - 1, end, end + 1)} - {len(archive) + 1})
    path = tmp_path / "cut.kedge"
    for cut in cuts:
        if cut >= len(archive):
            continue
        path.write_bytes(archive[:cut])
        done = imported(device.state, path)
        assert done.returncode in (3, 6), (cut, done.stderr)
        assert not (device.state / "releases" / release.digest).exists()
    host = on_host(path, tmp_path / "out")
    assert host.returncode == 6, host.stderr
    assert not (tmp_path / "out").exists()
    assert_invariant(device.state, device.agent, {live.digest})
    done = imported(device.state, archive)
    assert done.returncode == 0, done.stderr
    assert deploy(device, release)["state"] == "done"
    assert_invariant(device.state, device.agent, {release.digest})


@pytest.mark.parametrize("more", [b"\0", b"K", b"\n", bytes(1 << 20)], ids=["zero", "letter", "newline", "a mebibyte"])
def test_the_first_byte_too_many_is_one_too_many(
    serving: Serving, release: Release, tmp_path: Path, more: bytes
) -> None:
    device, live = serving
    data = archive_of(release) + more
    done = imported(device.state, data)
    assert done.returncode == 6, done.stderr
    nothing_of_it = device.state / "releases" / release.digest
    assert not nothing_of_it.exists()
    path = tmp_path / "x.kedge"
    path.write_bytes(data)
    assert on_host(path, tmp_path / "out").returncode == 6
    assert not (tmp_path / "out").exists()
    assert_invariant(device.state, device.agent, {live.digest})


@pytest.mark.slow
def test_a_flipped_bit_in_any_part_of_a_signed_archive_is_found(
    device: Device, live: Release, release: Release, tmp_path: Path
) -> None:
    alice = make_key(tmp_path, "alice")
    signers = allow(tmp_path / "allowed_signers", [("digits", alice)])
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(signers)})
    archive = archive_of(release, offer_of(release, alice))
    ends = borders(release, archive)
    for begin, end in zip([0, *ends], ends, strict=False):
        data = bytearray(archive)
        data[(begin + end) // 2] ^= 4
        done = imported(device.state, bytes(data))
        assert done.returncode in (3, 6), (begin, end, done.stderr)
        assert not (device.state / "releases" / release.digest).exists()
    assert_invariant(device.state, device.agent, {live.digest})


@pytest.mark.slow
@pytest.mark.parametrize("what", ["zeros", "a manifest without an end", "a file without an end"])
def test_input_without_an_end_is_given_up(serving: Serving, release: Release, what: str) -> None:
    device, live = serving
    begin = {
        "zeros": b"",
        "a manifest without an end": packed(b"", manifest_says=16 << 20),
        "a file without an end": archive_of(release),
    }[what]
    process = subprocess.Popen(
        [sys.executable, "-m", "kedge_agent", "--state", str(device.state), "import", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdin is not None
    assert process.stderr is not None
    sent = 0
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(begin)
        while process.poll() is None and sent < (1 << 30):
            sent += process.stdin.write(bytes(1 << 20))
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    with process.stderr as errors:
        said = errors.read().decode()
    assert process.wait(30) in (3, 6), said
    assert "Traceback" not in said
    assert sent < (64 << 20)
    assert not (device.state / "releases" / release.digest).exists()
    assert_invariant(device.state, device.agent, {live.digest})


@pytest.mark.slow
def test_an_archive_obeys_the_rules_of_a_push(device: Device, live: Release, release: Release, tmp_path: Path) -> None:
    alice, mallory = make_key(tmp_path, "alice"), make_key(tmp_path, "mallory")
    signers = allow(tmp_path / "allowed_signers", [("digits", alice)])
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(signers)})
    for offer in (Offer(), offer_of(release, mallory), offer_of(release, alice, document=live.manifest_bytes)):
        done = imported(device.state, archive_of(release, offer))
        assert done.returncode == 6, done.stderr
        nothing_was_taken(device.state, live)
    done = imported(device.state, archive_of(release, offer_of(release, alice)))
    assert done.returncode == 0, done.stderr
    assert deploy(device, release)["state"] == "done"
    # Below the floor now, however it comes.
    older = obedient_release(tmp_path, version=1, name="digits", gates={"memory": {"peak_bytes": 1 << 40}})
    done = imported(device.state, archive_of(older, offer_of(older, alice)))
    assert done.returncode == 6, done.stderr
    assert_invariant(device.state, device.agent, {release.digest})
