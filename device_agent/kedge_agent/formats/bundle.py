"""An agent as it is pushed to a device: the wheels that make it up, and the manifest that names their every byte.

The sha256 of the manifest's bytes names the bundle, and the folder it is unpacked into.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..wire import MAX_JSON_BYTES, WireError, parse_json
from .digests import sha256_hex
from .manifest import FileEntry, read_file
from .reader import ManifestError, Reader

__all__ = ["BUNDLE_SCHEMA", "MAX_WHEELS", "AgentBundle", "bundle_bytes", "parse_bundle"]

BUNDLE_SCHEMA = 1
MAX_WHEELS = 64

_MAX_WHEEL_BYTES = 1 << 31
_WHEEL = re.compile(r"[A-Za-z0-9_.+!-]{1,200}\.whl")
_VERSION = re.compile(r"[A-Za-z0-9_.+!-]{1,64}")
_PYTHON = re.compile(r"3\.\d{1,3}")
_MACHINE = re.compile(r"[a-z0-9_]{1,32}")
_AGENT_WHEEL = "kedge_agent-"


@dataclass(frozen=True)
class AgentBundle:
    """A parsed manifest. digest: the bundle's name. python: as 3.11. arch: as `uname -m` has it. files: wheels."""

    digest: str
    version: str
    python: str
    arch: str
    files: tuple[FileEntry, ...]


def parse_bundle(data: bytes | bytearray | memoryview) -> AgentBundle:
    """Parse and check a bundle's manifest.

    Raises:
        ManifestError: it is none.
    """
    try:
        body = parse_json(data, limit=MAX_JSON_BYTES)
    except WireError as error:
        raise ManifestError(str(error)) from error
    root = Reader(body, "bundle")
    schema = root.integer("kedge_agent", 0, 1 << 31)
    if schema != BUNDLE_SCHEMA:
        raise ManifestError(f"the bundle's schema is {schema}, this version reads {BUNDLE_SCHEMA}")
    bundle = AgentBundle(
        digest=sha256_hex(data),
        version=root.text("version", _VERSION.fullmatch),
        python=root.text("python", _PYTHON.fullmatch),
        arch=root.text("arch", _MACHINE.fullmatch),
        files=tuple(
            read_file(item, _WHEEL, 1, _MAX_WHEEL_BYTES) for item in root.objects("files", MAX_WHEELS, least=1)
        ),
    )
    root.done()
    names = [entry.name for entry in bundle.files]
    if len(set(names)) != len(names) or sum(name.startswith(_AGENT_WHEEL) for name in names) != 1:
        raise ManifestError("bundle.files names a wheel twice, or not the agent's own")
    return bundle


def bundle_bytes(body: Mapping[str, Any]) -> bytes:
    """Serialise a bundle's manifest, deterministically, and prove that it parses.

    Raises:
        ManifestError: the body is not a valid one.
    """
    data = json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"
    parse_bundle(data)
    return data
