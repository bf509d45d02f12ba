"""Receive a release over standard input, frame by frame, and accept it when every byte is proven.

A frame is acknowledged only after fdatasync, so an acknowledged frame survives a power cut. What
an interrupted push left behind is hashed again when the push resumes: there is no separate record
of progress that could disagree with the bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import AgentError
from ..formats.digests import sha256_hex
from ..formats.frames import frame_length, hash_file
from ..formats.manifest import MANIFEST_NAME, FileEntry, Manifest, ManifestError, parse_manifest
from ..wire import ENCODING_RAW, FRAME_BYTES, FRAME_HEADER, MESSAGE_HEADER, Message, WireError, read_message
from .files import exclusive_lock, fsync_directory, make_directory, translate_os_error, write_atomic
from .layout import Layout
from .releases import has_release
from .rules import ReleaseRules

__all__ = ["receive"]

# Kept free beside what a release needs: manifests, state files and the log must still fit.
_SPARE_BYTES = 16 * 1024 * 1024

Read = Callable[[int], memoryview]
Send = Callable[[Message, bytes], None]


def receive(layout: Layout, source: BinaryIO, sink: BinaryIO, rules: ReleaseRules = ReleaseRules()) -> str:  # noqa: B008
    """Run the agent's half of a push; returns the digest of what was accepted.

    Args:
        rules: what the device's owner decided about releases.

    Raises:
        AgentError: the push failed; it has also been reported to the host as an ERROR message.
    """

    def send(kind: Message, payload: bytes) -> None:
        sink.write(MESSAGE_HEADER.pack(kind, len(payload)) + payload)
        sink.flush()

    try:
        try:
            return _receive(layout, source, send)
        except (WireError, ManifestError) as error:
            raise AgentError(f"push refused: {error}", kind="bad_input", hint="build the release again") from error
        except EOFError:
            raise AgentError("the host went away during the push", kind="bad_input", hint="run it again") from None
        except OSError as error:
            raise translate_os_error(error, "receiving the release") from error
    except AgentError as error:
        with contextlib.suppress(OSError):
            send(Message.ERROR, json.dumps(error.to_json()).encode())
        raise


def _receive(layout: Layout, source: BinaryIO, send: Send) -> str:
    read = _exact_reader(source)
    kind, payload = read_message(read)
    if kind is not Message.MANIFEST:
        raise WireError(f"expected MANIFEST, got {kind.name}")
    manifest_bytes = bytes(payload)
    manifest = parse_manifest(manifest_bytes)
    staging = layout.staging(manifest.digest)
    make_directory(staging)
    # The lock goes with the staging folder. Whoever locks the removed file finds the accepted release,
    # because it looks only once it holds the lock.
    busy = f"release {manifest.digest[:12]} is being pushed by somebody else"
    with exclusive_lock(staging / ".lock", busy):
        if _is_accepted(layout, manifest):
            send(Message.WANT, json.dumps({"files": [], "bytes": 0}).encode())
            _expect_commit(read)
        else:
            _fill(layout, manifest, read, send)
            _accept(layout, manifest, manifest_bytes)
        shutil.rmtree(staging, ignore_errors=True)
        send(Message.DONE, json.dumps({"release": manifest.digest}).encode())
    return manifest.digest


def _exact_reader(source: BinaryIO) -> Read:
    buffer = bytearray(FRAME_BYTES + FRAME_HEADER.size)
    view = memoryview(buffer)

    def read(size: int) -> memoryview:
        # Only a manifest may outgrow a frame; frames, the bulk, reuse one buffer.
        out = view[:size] if size <= len(buffer) else memoryview(bytearray(size))
        filled = 0
        while filled < size:
            got = source.readinto(out[filled:])  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            filled += got
        return out

    return read


def _expect_commit(read: Read) -> None:
    kind, _ = read_message(read)
    if kind is not Message.COMMIT:
        raise WireError(f"expected COMMIT, got {kind.name}")


def _fill(layout: Layout, manifest: Manifest, read: Read, send: Send) -> None:
    staging = layout.staging(manifest.digest)
    wanted: dict[tuple[int, int], str] = {}
    for index, entry in enumerate(manifest.files):
        if _is_intact(layout.object(entry.sha256), entry):
            # Another release brought it meanwhile; what an interrupted push left of it is in the way.
            (staging / entry.sha256).unlink(missing_ok=True)
            continue
        have = _verified_frames(staging / entry.sha256, entry)
        wanted |= {(index, i): sha for i, sha in enumerate(entry.frames) if i not in have}
    need = sum(frame_length(manifest.files[file].size_bytes, frame) for file, frame in wanted)
    _require_space(staging, need - _reserved(staging, manifest, wanted))
    by_file: dict[int, list[int]] = {}
    for file, frame in wanted:
        by_file.setdefault(file, []).append(frame)
    want = {"files": [{"file": file, "frames": frames} for file, frames in by_file.items()], "bytes": need}
    send(Message.WANT, json.dumps(want).encode())

    with contextlib.ExitStack() as stack:
        handles = {
            file: stack.enter_context(_staged(staging / manifest.files[file].sha256, manifest.files[file]))
            for file in by_file
        }
        # A frame that is acknowledged must be found again by its file's name.
        fsync_directory(staging)
        while True:
            kind, payload = read_message(read)
            if kind is Message.COMMIT:
                break
            if kind is not Message.FRAME or len(payload) < FRAME_HEADER.size:
                raise WireError(f"expected FRAME or COMMIT, got {kind.name} of {len(payload)} bytes")
            file, frame, encoding = FRAME_HEADER.unpack_from(payload)
            sha = wanted.get((file, frame))
            data = payload[FRAME_HEADER.size :]
            if sha is None or encoding != ENCODING_RAW:
                raise WireError(f"frame {frame} of file {file} (encoding {encoding}) was not asked for")
            if sha256_hex(data) != sha:
                raise AgentError(
                    f"frame {frame} of {manifest.files[file].name} arrived with other bytes than the manifest names",
                    kind="integrity",
                    hint="check the release on the host: kedge release verify",
                )
            _write_frame(handles[file], frame, data)
            del wanted[file, frame]
            send(Message.ACK, FRAME_HEADER.pack(file, frame, encoding))
    if wanted:
        raise WireError(f"the push ended with {len(wanted)} frames missing")


def _write_frame(handle: int, frame: int, data: memoryview) -> None:
    offset = frame * FRAME_BYTES
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
    os.fdatasync(handle)


@contextlib.contextmanager
def _staged(path: Path, entry: FileEntry) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Reserve the blocks now: a full disk is then found before the first byte travels.
        os.posix_fallocate(handle, 0, entry.size_bytes)
        os.ftruncate(handle, entry.size_bytes)
        yield handle
    finally:
        os.close(handle)


def _verified_frames(path: Path, entry: FileEntry) -> set[int]:
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return set()
    found = hash_file(path).frames
    return {i for i, sha in enumerate(found) if sha == entry.frames[i]}


def _is_accepted(layout: Layout, manifest: Manifest) -> bool:
    release = layout.release(manifest.digest)
    return has_release(layout, manifest.digest) and all(
        _is_intact(release / entry.name, entry) for entry in manifest.files
    )


def _is_intact(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size_bytes and hash_file(path).sha256 == entry.sha256


def _reserved(staging: Path, manifest: Manifest, wanted: dict[tuple[int, int], str]) -> int:
    """Bytes that an earlier, interrupted push has reserved already for the frames still wanted."""
    reserved = 0
    for index, entry in enumerate(manifest.files):
        missing = sum(frame_length(entry.size_bytes, frame) for file, frame in wanted if file == index)
        path = staging / entry.sha256
        if missing and path.is_file():
            allocated = min(path.stat().st_blocks * 512, entry.size_bytes)
            reserved += max(0, allocated - (entry.size_bytes - missing))
    return reserved


def _require_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > 0 and free < need + _SPARE_BYTES:
        raise AgentError(
            f"the release needs {need} bytes and {_SPARE_BYTES} to spare; {folder} has {free} free",
            kind="space",
            hint="free disk space on the device, or put the agent's state folder on a larger disk",
        )


def _accept(layout: Layout, manifest: Manifest, manifest_bytes: bytes) -> None:
    staging = layout.staging(manifest.digest)
    for entry in manifest.files:
        _store_object(layout, staging / entry.sha256, entry)
    release = layout.release(manifest.digest)
    make_directory(release.parent)
    partial = release.with_name(f".{manifest.digest}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for entry in manifest.files:
        os.link(layout.object(entry.sha256), partial / entry.name)
    write_atomic(partial / MANIFEST_NAME, manifest_bytes, mode=0o444)
    damaged = release.with_name(f".{manifest.digest}.damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    if release.exists():
        os.rename(release, damaged)
    os.rename(partial, release)
    fsync_directory(release.parent)
    shutil.rmtree(damaged, ignore_errors=True)


def _store_object(layout: Layout, staged: Path, entry: FileEntry) -> None:
    final = layout.object(entry.sha256)
    if not staged.exists() and entry.size_bytes == 0:
        staged.touch()
    if staged.exists():
        if hash_file(staged).sha256 != entry.sha256:
            raise AgentError(
                f"the frames of {entry.name} do not add up to its sha256",
                kind="integrity",
                hint="build the release again",
            )
        make_directory(final.parent)
        staged.chmod(0o444)
        staged.replace(final)
        fsync_directory(final.parent)
