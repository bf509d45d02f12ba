"""An agent for a device, as it is pushed: its wheels, and the manifest that names their every byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kedge_agent.formats.bundle import BUNDLE_SCHEMA, bundle_bytes, parse_bundle
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import FileEntry

from .wheelhouse import DevicePython, Wheel

__all__ = ["Bundle", "make_bundle"]


@dataclass(frozen=True)
class Bundle:
    """The manifest's very bytes, its sha256, and the wheels in its order, each with its path on this machine."""

    manifest: bytes
    digest: str
    version: str
    files: tuple[tuple[FileEntry, Path], ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all wheels."""
        return sum(entry.size_bytes for entry, _ in self.files)


def make_bundle(wheels: Sequence[Wheel], device: DevicePython) -> Bundle:
    """The bundle of these wheels; the same wheels for the same kind of device make the same one."""
    ordered = sorted(wheels, key=lambda wheel: wheel.name)
    hashes = [hash_file(wheel.path) for wheel in ordered]
    version = next(wheel.name.split("-")[1] for wheel in ordered if wheel.name.startswith("kedge_agent-"))
    manifest = bundle_bytes(
        {
            "kedge_agent": BUNDLE_SCHEMA,
            "version": version,
            "python": f"{device.python[0]}.{device.python[1]}",
            "arch": device.machine,
            "files": [
                {"name": wheel.name, "bytes": found.size_bytes, "sha256": found.sha256, "frames": list(found.frames)}
                for wheel, found in zip(ordered, hashes, strict=True)
            ],
        }
    )
    parsed = parse_bundle(manifest)
    paths = [wheel.path for wheel in ordered]
    return Bundle(manifest, parsed.digest, parsed.version, tuple(zip(parsed.files, paths, strict=True)))
