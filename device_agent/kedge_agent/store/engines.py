"""Engines that this device built, and what its compiler learnt meanwhile: apart from releases, and made again at need.

STATE/engines/<key>/engine          the engine; <key> is its cache key on the host
STATE/engines/<key>/entry.json      onnx_sha256, passport, sha256, size
STATE/engines/<key>/report.json     what its build came to
STATE/engines/.…                    what is being compiled; removed when the agent starts
STATE/engines/timing/<hash>.cache   a timing cache, by passport
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..formats.digests import sha256_hex
from ..formats.frames import hash_file
from ..formats.manifest import is_digest
from ..formats.passport import Passport
from ..wire import WireError, parse_json
from .files import make_directory, translate_os_error
from .layout import Layout

__all__ = [
    "PARTS",
    "StoredEngine",
    "find_engine",
    "forget_timing",
    "keep_engine",
    "keep_timing",
    "read_part",
    "sweep",
    "timing_cache",
    "work_folder",
]

_MAX_ENTRY_BYTES = 1 << 20
PARTS = ("engine", "report.json")
"""What a host may fetch of an engine."""
_MAX_TIMING_BYTES = 1 << 28


@dataclass(frozen=True)
class StoredEngine:
    """An engine in the store. folder: its own. entry: its entry.json."""

    folder: Path
    entry: Mapping[str, Any]


def _folder(layout: Layout, key: str) -> Path:
    if not is_digest(key):
        raise AgentError(f"not an engine's key: {key[:80]!r}", kind="bad_input")
    return layout.root / "engines" / key


def work_folder(layout: Layout) -> Path:
    """Where engines are kept, and compiled.

    Raises:
        AgentError: it cannot be made.
    """
    folder = layout.root / "engines"
    try:
        make_directory(folder)
    except OSError as error:
        raise translate_os_error(error, "making the folder of engines") from error
    return folder


def sweep(layout: Layout) -> None:
    """Remove what an agent that was ended left of its builds."""
    for left in (layout.root / "engines").glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def find_engine(layout: Layout, key: str) -> StoredEngine | None:
    """An engine that is whole; None where there is none, or one with other bytes than were stored, which is removed."""
    folder = _folder(layout, key)
    try:
        if (folder / "entry.json").stat().st_size > _MAX_ENTRY_BYTES:
            raise WireError("the entry is too long")
        entry = parse_json((folder / "entry.json").read_bytes(), floats=True, limit=_MAX_ENTRY_BYTES)
        if hash_file(folder / "engine").sha256 != entry["sha256"]:
            raise WireError("the engine has other bytes than were stored")
    except OSError:
        return None
    except (WireError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return StoredEngine(folder, entry)


def keep_engine(
    layout: Layout, key: str, engine: bytes, entry: Mapping[str, Any], report: Mapping[str, Any]
) -> StoredEngine:
    """Keep an engine and the report of its build under its key; entry gets the sha256 and size.

    Raises:
        AgentError: there is no room, or the disk fails.
    """
    import tempfile

    folder = _folder(layout, key)
    try:
        make_directory(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=".engine-", dir=folder.parent))
        try:
            with (partial / "engine").open("wb") as file:
                file.write(engine)
                file.flush()
                os.fdatasync(file.fileno())
            whole = {**entry, "sha256": sha256_hex(engine), "bytes": len(engine)}
            (partial / "report.json").write_text(json.dumps(dict(report)), encoding="utf-8")
            (partial / "entry.json").write_text(json.dumps(whole), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise translate_os_error(error, "keeping an engine") from error
    return StoredEngine(folder, whole)


def read_part(stored: StoredEngine, part: str, offset: int, length: int) -> bytes:
    """Some bytes of one of PARTS.

    Raises:
        AgentError: the disk fails.
    """
    try:
        with (stored.folder / part).open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise translate_os_error(error, "reading an engine") from error


def timing_cache(layout: Layout, passport: Passport) -> bytes:
    """What builds under this passport measured of kernels; empty where nothing is kept."""
    path = _timing(layout, passport)
    try:
        return path.read_bytes() if path.stat().st_size <= _MAX_TIMING_BYTES else b""
    except OSError:
        return b""


def keep_timing(layout: Layout, passport: Passport, data: bytes) -> None:
    """Keep what a build measured; nothing where it measured nothing. That it cannot be kept is no failure."""
    if not data:
        return
    path = _timing(layout, passport)
    try:
        make_directory(path.parent)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        partial.rename(path)
    except OSError:
        return


def forget_timing(layout: Layout, passport: Passport) -> None:
    """Begin anew with what is measured of kernels under this passport."""
    with contextlib.suppress(OSError):
        _timing(layout, passport).unlink()


def _timing(layout: Layout, passport: Passport) -> Path:
    name = sha256_hex(json.dumps(passport.hard(), sort_keys=True).encode())
    return layout.root / "engines" / "timing" / f"{name}.cache"
