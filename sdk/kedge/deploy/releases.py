"""Releases to a device and back, with nothing activated."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kedge_agent.formats.archive import distinct_files
from kedge_agent.formats.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ManifestError,
    is_digest,
    parse_manifest,
)
from kedge_agent.formats.offer import parse_offer
from kedge_agent.wire import FRAME_BYTES, MAX_JSON_BYTES, MAX_MANIFEST_BYTES

from ..errors import BadInputError, IntegrityError
from ..release.bundle import Release, open_release, write_offer
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from ..transport.upload import UploadResult, upload
from .vouching import require_vouched

__all__ = ["pull_release", "push_release", "read_accepted", "read_floor"]

Progress = Callable[[int, int], None]

_CONNECT_S = 30.0


def push_release(transport: Transport, release: Release, progress: Progress = lambda done, total: None) -> UploadResult:
    """Have a device accept a release. What serves there serves on.

    Raises:
        IntegrityError: the release is damaged, or has an engine of another device that nobody vouches for.
        KedgeError: the device refuses it, or cannot be reached.
    """
    release.verify()
    require_vouched(transport, release)
    channel, protocol = transport.open_receive(Deadline.after(_CONNECT_S, f"reaching {transport.name}"))
    return upload(
        channel,
        transport.name,
        release.manifest_bytes,
        release.files(),
        progress,
        offer=release.offer(),
        protocol=protocol,
        open_more=transport.open_receive,
    )


def pull_release(
    transport: Transport, which: str, folder: Path, progress: Progress = lambda done, total: None
) -> Release:
    """A release that a device has, as a folder with its signatures; the folder is there whole, or not at all.

    Every byte is held against the manifest. Whose manifest it is, its signatures tell, and the digest where one was
    given.

    Args:
        which: a digest, or the name of a model, whose live release is meant.
        folder: must not exist.

    Raises:
        BadInputError: the device has no such release; the folder exists.
        IntegrityError: what arrives is not what the manifest names.
        KedgeError: the device cannot be reached.
    """
    if folder.exists():
        raise BadInputError(f"{folder} exists", hint="give another path with -o")
    client = AgentClient(transport)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        digest = which if is_digest(which) else _live(client, transport.name, which)
        manifest, data = _manifest(client, transport.name, digest)
        _pull_files(client, transport.name, manifest, partial, progress)
        (partial / MANIFEST_NAME).write_bytes(data)
        offer = client.get_bytes(f"/kedge/v1/releases/{digest}/offer", limit_bytes=MAX_JSON_BYTES)
        write_offer(partial, parse_offer(offer))
        partial.chmod(0o755)
        open_release(partial)
        partial.rename(folder)
    except ManifestError as error:
        raise IntegrityError(f"{transport.name}: {error}", hint="try again") from error
    except OSError as error:
        raise BadInputError(
            f"{folder} cannot be written: {error.strerror}", hint="give another path with -o"
        ) from error
    finally:
        client.close()
        shutil.rmtree(partial, ignore_errors=True)
    return open_release(folder)


def read_accepted(transport: Transport, digest: str) -> Mapping[str, Any]:
    """What a device found about a release when it accepted it: `signed`, `keys`, and more (docs/store.md).

    Raises:
        KedgeError: it has no such release, or cannot be reached.
    """
    client = AgentClient(transport)
    try:
        found = client.get(f"/kedge/v1/releases/{digest}", expect=("accepted",))["accepted"]
    finally:
        client.close()
    return found if isinstance(found, dict) else {}


def read_floor(transport: Transport, model: str) -> tuple[int, int]:
    """The floor of a model's versions on a device, and the serial of the last downgrade it took; 0 where there is none.

    Raises:
        KedgeError: the device cannot be reached.
    """
    client = AgentClient(transport)
    try:
        row = _row(client, model)
    finally:
        client.close()
    floor, serial = (row.get(key) for key in ("version_floor", "downgrade_serial"))
    return floor if isinstance(floor, int) else 0, serial if isinstance(serial, int) else 0


def _row(client: AgentClient, model: str) -> Mapping[str, Any]:
    rows = client.get("/kedge/v1/status", expect=("models",))["models"]
    rows = rows if isinstance(rows, list) else []
    return next((row for row in rows if isinstance(row, dict) and row.get("model") == model), {})


def _live(client: AgentClient, device: str, model: str) -> str:
    row = _row(client, model)
    digest = row.get("release") or row.get("current")
    if digest is not None and is_digest(str(digest)):
        return str(digest)
    raise BadInputError(
        f"{device} serves no model {model[:80]}", hint=f"what it serves: kedge status --on {device}; or give a digest"
    )


def _manifest(client: AgentClient, device: str, digest: str) -> tuple[Manifest, bytes]:
    data = bytes(client.get_bytes(f"/kedge/v1/releases/{digest}/manifest", limit_bytes=MAX_MANIFEST_BYTES))
    manifest = parse_manifest(data)
    if manifest.digest != digest:
        raise IntegrityError(f"{device} sent the manifest of another release than {digest[:12]}", hint="try again")
    return manifest, data


def _pull_files(client: AgentClient, device: str, manifest: Manifest, folder: Path, progress: Progress) -> None:
    files = distinct_files(manifest)
    done, total = 0, sum(entry.size_bytes for entry in files)
    for entry in files:
        # A name of the manifest is a plain one: the parser takes no other.
        path = folder / entry.name
        with path.open("xb") as out:
            whole = hashlib.sha256()
            left = entry.size_bytes
            while left:
                part = _part(client, device, manifest, entry, entry.size_bytes - left)[:left]
                out.write(part)
                whole.update(part)
                left -= len(part)
                done += len(part)
                progress(done, total)
        if whole.hexdigest() != entry.sha256:
            raise IntegrityError(
                f"{device}: {entry.name} has other bytes than the manifest names", hint="deploy it again"
            )
        for same in manifest.files:
            if same.sha256 == entry.sha256 and same.name != entry.name:
                shutil.copyfile(path, folder / same.name)


def _part(client: AgentClient, device: str, manifest: Manifest, entry: FileEntry, offset: int) -> memoryview:
    path = f"/kedge/v1/releases/{manifest.digest}/objects/{entry.sha256}?offset={offset}"
    part = client.get_bytes(path, limit_bytes=FRAME_BYTES)
    if not part:
        raise IntegrityError(
            f"{device}: {entry.name} ends after {offset} of {entry.size_bytes} bytes", hint="try again"
        )
    return part
