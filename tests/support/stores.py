"""Stores filled without a push, and disks that are full."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kedge.release.bundle import Release
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import Manifest, parse_manifest
from kedge_agent.formats.offer import Offer
from kedge_agent.store.accept import accept
from kedge_agent.store.layout import Layout
from kedge_agent.store.signers import Verdict

from .environment import lacks

UNSIGNED = Verdict(signed=False)


@dataclass(frozen=True)
class Parts:
    """A release as bytes: its manifest, and its files by name."""

    data: bytes
    files: dict[str, Path]

    @property
    def manifest(self) -> Manifest:
        return parse_manifest(self.data)

    @property
    def digest(self) -> str:
        return self.manifest.digest


def parts_of(
    release: Release,
    folder: Path,
    *,
    model: str | None = None,
    version: int | None = None,
    weights: bytes | None = None,
) -> Parts:
    """A release, of another model or version where one is named, and with a file `weights.bin` where its bytes are."""
    body = json.loads(release.manifest_bytes)
    body["model"] = model or body["model"]
    body["version"] = version or body["version"]
    files = {entry.name: path for entry, path in release.files()}
    if weights is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"weights-{hash(weights)}.bin"
        path.write_bytes(weights)
        found = hash_file(path)
        files["weights.bin"] = path
        body["files"].append(
            {
                "name": "weights.bin",
                "bytes": found.size_bytes,
                "sha256": found.sha256,
                "frames": list(found.frames),
            }
        )
    return Parts(json.dumps(body).encode(), files)


def stage(layout: Layout, parts: Parts) -> Path:
    """The folder of a push whose frames have all arrived; what the store has is not among them."""
    staging = layout.staging(parts.digest)
    staging.mkdir(parents=True, exist_ok=True)
    for entry in parts.manifest.files:
        if not layout.object(entry.sha256).exists():
            shutil.copyfile(parts.files[entry.name], staging / entry.sha256)
    return staging


def put(layout: Layout, parts: Parts, offer: Offer | None = None, verdict: Verdict = UNSIGNED) -> str:
    """Have a store accept a release; its digest."""
    accept(layout, parts.manifest, parts.data, offer or Offer(), verdict, stage(layout, parts))
    return parts.digest


@contextlib.contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of this size; skips where none can be mounted."""
    if os.geteuid() != 0:
        lacks("mount", "mounting a small file system needs root")
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        lacks("mount", f"no small file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room that a disk has left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while True:
            handle.write(bytes(4096))
    return filler
