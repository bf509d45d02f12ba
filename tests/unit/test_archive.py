"""`.kedge` archives: written and read by the host, taken by the store of a device; and what hostile ones meet."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.errors import BadInputError, IntegrityError
from kedge.release.archives import export_release, import_release, opened
from kedge.release.bundle import ATTESTATION, BASE, DOWNGRADE, Release, open_release, write_release, write_side
from kedge_agent.errors import AgentError
from kedge_agent.formats.archive import ArchiveError, ArchiveReader, distinct_files, write_archive
from kedge_agent.formats.manifest import MANIFEST_NAME, parse_manifest
from kedge_agent.formats.offer import AGENT, Offer, Signed, offer_bytes
from kedge_agent.store.import_archive import import_archive
from kedge_agent.store.layout import Layout
from kedge_agent.store.releases import read_release, verify_release
from kedge_agent.store.rules import OFF, ReleaseRules
from kedge_agent.wire import FRAME_BYTES

UNSIGNED = ReleaseRules(signatures=OFF)
_HEAD = struct.Struct(">8sIII32s")


def body(version: int = 1) -> dict[str, object]:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [4]}
    return {
        "kedge": 1,
        "model": "net",
        "version": version,
        "target": "host",
        "platform": {"os": "linux", "arch": "x86_64"},
        "artefacts": [
            {
                "runtime": "onnxruntime",
                "file": "model.onnx",
                "precision": "fp32",
                "inputs": [tensor],
                "outputs": [tensor],
            }
        ],
        "golden": {
            "inputs": [{**tensor, "file": "golden-in-0.bin"}],
            "outputs": [{**tensor, "file": "golden-out-0.bin"}],
        },
        "gates": {"parity": {"cosine_min": "0.9", "relative_error_max": "0.1"}},
        "provenance": {},
    }


def released(folder: Path, model: bytes = b"not really a model" * 999, version: int = 1) -> Release:
    """A release whose golden input and output are the same bytes."""
    sources: dict[str, Path | bytes] = {"model.onnx": model, "golden-in-0.bin": b"1234", "golden-out-0.bin": b"1234"}
    return write_release(folder, sources, body(version))


def archived(release: Release, offer: Offer | None = None) -> bytes:
    out = io.BytesIO()
    write_archive(out, offer or release.offer(), release.manifest_bytes, lambda entry: release.folder / entry.name)
    return out.getvalue()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return released(tmp_path / "net.release")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


def stored(layout: Layout) -> set[str]:
    """Everything in the store that somebody could take for accepted."""
    found = {path.name for path in (layout.root / "releases").glob("*")}
    return found | {path.name for path in (layout.root / "objects").rglob("*") if path.is_file()}


def test_a_release_survives_the_way_through_an_archive(release: Release, tmp_path: Path) -> None:
    write_side(release.folder, MANIFEST_NAME, Signed(b"", b"signature of the manifest"))
    for name in (BASE, ATTESTATION, DOWNGRADE):
        write_side(release.folder, name, Signed(f'"{name}"'.encode(), f"signature of {name}".encode()))
    size = export_release(release, tmp_path / "net.kedge")
    assert (tmp_path / "net.kedge").stat().st_size == size
    again = import_release(tmp_path / "net.kedge", tmp_path / "again.release")
    again.verify()
    assert again.digest == release.digest
    assert again.offer() == release.offer()
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == {
        path.name: path.read_bytes() for path in release.folder.iterdir()
    }


def test_what_two_files_have_in_common_is_in_the_archive_once(release: Release) -> None:
    assert [entry.name for entry in distinct_files(release.manifest)] == ["model.onnx", "golden-in-0.bin"]
    assert archived(release).count(b"1234") == 1


def test_a_command_takes_an_archive_for_a_release_and_leaves_nothing(release: Release, tmp_path: Path) -> None:
    export_release(release, tmp_path / "net.kedge")
    with opened(tmp_path / "net.kedge") as found:
        assert found.digest == release.digest
        folder = found.folder
        found.verify()
    assert not folder.exists()
    with opened(release.folder) as found:
        assert found.folder == release.folder


def test_a_release_that_changed_is_not_exported(release: Release, tmp_path: Path) -> None:
    (release.folder / "model.onnx").write_bytes(b"another model!!!!!" * 999)
    with pytest.raises(IntegrityError, match="other bytes"):
        export_release(release, tmp_path / "net.kedge")
    assert not list(tmp_path.glob("*.kedge*"))
    assert not list(tmp_path.glob(".*"))


def test_unpacking_replaces_nothing(release: Release, tmp_path: Path) -> None:
    export_release(release, tmp_path / "net.kedge")
    with pytest.raises(BadInputError, match="exists"):
        import_release(tmp_path / "net.kedge", release.folder)
    with pytest.raises(BadInputError, match="No such file"):
        import_release(tmp_path / "none.kedge", tmp_path / "x")


def test_a_device_takes_an_archive_and_takes_it_again(release: Release, layout: Layout) -> None:
    data = archived(release)
    for _ in range(2):
        assert import_archive(layout, io.BytesIO(data), UNSIGNED) == release.digest
        verify_release(layout, read_release(layout, release.digest))
    assert not list(layout.incoming.glob("*"))


def test_a_device_reads_an_archive_from_a_pipe(release: Release, layout: Layout) -> None:
    data = archived(release)
    source, sink = os.pipe()

    def feed() -> None:
        with os.fdopen(sink, "wb", buffering=0) as out:
            for start in range(0, len(data), 1000):
                out.write(data[start : start + 1000])

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(source, "rb") as pipe:
        assert import_archive(layout, pipe, UNSIGNED) == release.digest
    thread.join()


def test_files_of_several_frames_arrive_whole(tmp_path: Path, layout: Layout) -> None:
    release = released(tmp_path / "large.release", os.urandom(FRAME_BYTES + 12345))
    import_archive(layout, io.BytesIO(archived(release)), UNSIGNED)
    verify_release(layout, read_release(layout, release.digest))


@pytest.mark.parametrize("missing", [1, 4, 5, 1000, 17000])
def test_an_archive_that_ends_too_early_is_refused_and_nothing_is_accepted(
    release: Release, layout: Layout, missing: int
) -> None:
    with pytest.raises(AgentError, match=r"too early|ends within") as caught:
        import_archive(layout, io.BytesIO(archived(release)[:-missing]), UNSIGNED)
    assert caught.value.kind == "integrity"
    assert not stored(layout)


def test_the_first_byte_too_many_is_refused_and_nothing_is_accepted(
    release: Release, layout: Layout, tmp_path: Path
) -> None:
    data = archived(release) + b"\0"
    with pytest.raises(AgentError, match="follows the end"):
        import_archive(layout, io.BytesIO(data), UNSIGNED)
    assert not stored(layout)
    (tmp_path / "long.kedge").write_bytes(data)
    with pytest.raises(IntegrityError, match="follows the end"):
        import_release(tmp_path / "long.kedge", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_endless_archive_is_read_no_further_than_its_end(release: Release, layout: Layout) -> None:
    data = archived(release)

    class Endless(io.RawIOBase):
        at = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            part = data[self.at : self.at + len(buffer)] or bytes(len(buffer))
            buffer[: len(part)] = part
            self.at += len(part)
            return len(part)

    source = Endless()
    with pytest.raises(AgentError, match="follows the end"):
        import_archive(layout, io.BufferedReader(source), UNSIGNED)
    assert source.at <= len(data) + 2 * io.DEFAULT_BUFFER_SIZE


def _header(data: bytes, magic: bytes = b"KEDGEREL", version: int = 1, offer: int = 0, manifest: int = 0) -> bytes:
    _, _, own_offer, own_manifest, digest = _HEAD.unpack(data[:52])
    return _HEAD.pack(magic, version, offer or own_offer, manifest or own_manifest, digest) + data[52:]


def _with_offer(data: bytes, more: dict[str, object]) -> bytes:
    magic, version, length, manifest, digest = _HEAD.unpack(data[:52])
    offer = json.dumps(json.loads(data[52 : 52 + length]) | more).encode()
    return _HEAD.pack(magic, version, len(offer), manifest, digest) + offer + data[52 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "ends within its header"),
        (lambda data: _header(data, magic=b"KEDGEREX"), "no archive"),
        (lambda data: _header(data, version=2), "version 2"),
        (lambda data: _header(data, offer=1 << 31), "too long"),
        (lambda data: _header(data, manifest=1 << 31), "too long"),
        (lambda data: _header(data, manifest=1 << 23), "ends within its manifest"),
        (lambda data: data.replace(b'"kind": "release"', b'"kind": "another"'), "offer.kind"),
        (lambda data: data.replace(b'"kedge": 1', b'"kedge": 7'), "manifest is not the one that its header names"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "manifest is not the one that its header names"),
        (lambda data: _with_offer(data, {"base": {"document": "\ud800", "signatures": ""}}), "document is no text"),
    ],
)
def test_a_head_that_is_none_is_refused(
    release: Release, layout: Layout, change: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(AgentError, match=message):
        import_archive(layout, io.BytesIO(change(archived(release))), UNSIGNED)
    assert not stored(layout)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", ".hidden", "A", "manifest.json", "a\\u0000b"])
def test_no_name_of_an_archive_leads_out_of_its_folder(release: Release, tmp_path: Path, name: str) -> None:
    manifest = release.manifest_bytes.replace(b"golden-in-0.bin", name.encode())
    offer = offer_bytes(Offer())
    digest = hashlib.sha256(manifest).digest()
    head = _HEAD.pack(b"KEDGEREL", 1, len(offer), len(manifest), digest) + offer + manifest
    (tmp_path / "evil.kedge").write_bytes(head + (release.folder / "model.onnx").read_bytes() + b"1234")
    with pytest.raises(IntegrityError):
        import_release(tmp_path / "evil.kedge", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.kedge", "net.release"]


def test_an_archive_of_an_agent_is_no_release(release: Release) -> None:
    data = archived(release, replace(release.offer(), kind=AGENT))
    with pytest.raises(ArchiveError, match="agent"):
        ArchiveReader(io.BytesIO(data))


def test_a_release_that_is_refused_is_refused_before_a_byte_is_stored(
    release: Release, layout: Layout, tmp_path: Path
) -> None:
    (tmp_path / "signers").write_text("")
    rules = ReleaseRules(allowed_signers=tmp_path / "signers")
    with pytest.raises(AgentError, match="no signature"):
        import_archive(layout, io.BytesIO(archived(release)), rules)
    assert not stored(layout)
    assert not (layout.root / "locks").exists(), "nobody is kept waiting for it either"
    assert not list(layout.incoming.glob("*/*"))


def test_a_disk_without_room_is_found_before_the_files_are_read(
    release: Release, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedge_agent.store.space.free_bytes", lambda layout: 0)
    data = archived(release)
    source = io.BytesIO(data)
    with pytest.raises(AgentError) as caught:
        import_archive(layout, source, UNSIGNED)
    assert caught.value.kind == "space"
    assert source.tell() == len(data) - sum(entry.size_bytes for entry in distinct_files(release.manifest))
    assert not stored(layout)


def test_what_an_import_that_was_cut_left_is_no_hindrance(release: Release, layout: Layout) -> None:
    data = archived(release)
    with pytest.raises(AgentError):
        import_archive(layout, io.BytesIO(data[:-4]), UNSIGNED)
    assert import_archive(layout, io.BytesIO(data), UNSIGNED) == release.digest


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_is_accepted_and_none_is_more_than_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    release = released(folder / "net.release", b"model" * 50)
    whole = archived(release)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "noise"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    hurt = bytearray(whole)
    if kind == "flip":
        hurt[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del hurt[at:]
    elif kind == "insert":
        hurt[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    elif kind == "drop":
        del hurt[at : at + data.draw(st.integers(1, 40))]
    else:
        hurt = bytearray(data.draw(st.binary(max_size=200)))
    layout = Layout(folder / "state")
    refusal = _refusal(layout, bytes(hurt))
    if refusal is not None:
        assert refusal.kind in ("integrity", "bad_input")
        assert not list((layout.root / "releases").glob("*"))
        return
    # What was hurt is the offer, which an unsigned device does not ask, or the manifest's meaningless white space.
    (accepted,) = (layout.root / "releases").iterdir()
    verify_release(layout, read_release(layout, accepted.name))


def _refusal(layout: Layout, archive: bytes) -> AgentError | None:
    try:
        import_archive(layout, io.BytesIO(archive), UNSIGNED)
    except AgentError as error:
        return error
    return None


def test_a_folder_is_written_anew_over_its_statements_but_not_over_strangers(tmp_path: Path) -> None:
    release = released(tmp_path / "net.release")
    write_side(release.folder, MANIFEST_NAME, Signed(b"", b"signature"))
    release.verify()
    newer = released(tmp_path / "net.release", version=2)
    assert not newer.signatures
    (newer.folder / "notes.txt").write_text("mine")
    with pytest.raises(IntegrityError, match=r"notes\.txt"):
        newer.verify()
    with pytest.raises(BadInputError):
        released(tmp_path / "net.release", version=3)
    assert json.loads(open_release(newer.folder).manifest_bytes)["version"] == 2
    assert parse_manifest(newer.manifest_bytes).version == 2
