"""Releases: what serves, what a rollback returns to, and whether every byte of them is still there.

Bytes are read and hashed for a fifth of the time that all collectors have: what serves first. What was not read whole
by then is named, and counts as unknown.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from typing import Any

from ...errors import AgentError
from ...formats.digests import sha256
from ...formats.manifest import FileEntry, Manifest
from ...store.layout import Layout
from ...store.models import ModelState, list_models, read_state
from ...store.releases import read_acceptance, read_offer, read_release, release_digests
from ..device import Collected, Device, reason_of

__all__ = ["collect"]

_SHARE = 0.2
_LONGEST_S = 30.0
_CHUNK_BYTES = 1 << 20
_MOST_RELEASES = 200


@dataclass
class _Reading:
    """How much was read and hashed, in which time, and until when that may go on."""

    end: float
    size_bytes: int = 0
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    @property
    def bytes_per_s(self) -> float | None:
        """None: too little was read to tell."""
        return self.size_bytes / self.seconds if self.size_bytes >= _CHUNK_BYTES and self.seconds else None


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    layout = device.layout
    states, problems = _states(layout)
    manifests, bad_manifests = _manifests(layout)
    models: dict[str, list[dict[str, Any]]] = {model: [] for model in states}
    entries: dict[str, dict[str, Any]] = {}
    for digest, manifest in manifests.items():
        model = manifest.model if manifest is not None else _model_of(states, digest)
        if model is None:
            continue
        entry = _described(layout, digest, manifest, _role(states.get(model), digest))
        if manifest is None:
            entry |= {"whole": False, "bad": [{"file": "manifest.json", "why": bad_manifests[digest]}]}
        entries[digest] = entry
        models.setdefault(model, []).append(entry)
    for model, state in states.items():
        for role in ("current", "previous"):
            named = None if state is None else getattr(state, role)
            if named is not None and named not in entries:
                entries[named] = _missing(named, role)
                models[model].append(entries[named])
    reading = _Reading(time.monotonic() + min(device.seconds * _SHARE, _LONGEST_S))
    left_out = _prove(layout, entries, manifests, reading)
    order = {"current": 0, "previous": 1, "other": 2}
    return Collected(
        {
            "models": [
                {
                    "model": model,
                    "state": _state(states.get(model)),
                    "problem": problems.get(model),
                    "releases": sorted(found, key=lambda each: (order[each["role"]], -(each["version"] or 0))),
                }
                for model, found in sorted(models.items())
            ],
            "read_bytes_per_s": reading.bytes_per_s,
            "left_out": left_out,
        }
    )


def _states(layout: Layout) -> tuple[dict[str, ModelState | None], dict[str, str]]:
    states: dict[str, ModelState | None] = {}
    problems = {}
    for model in list_models(layout):
        try:
            states[model] = read_state(layout, model)
        except AgentError as error:
            states[model] = None
            problems[model] = error.message
    return states, problems


def _manifests(layout: Layout) -> tuple[dict[str, Manifest | None], dict[str, str]]:
    found: dict[str, Manifest | None] = {}
    problems = {}
    for digest in release_digests(layout)[:_MOST_RELEASES]:
        try:
            found[digest] = read_release(layout, digest)
        except AgentError as error:
            found[digest] = None
            problems[digest] = error.message
    return found, problems


def _model_of(states: dict[str, ModelState | None], digest: str) -> str | None:
    named = (model for model, state in states.items() if state and digest in (state.current, state.previous))
    return next(named, None)


def _role(state: ModelState | None, digest: str) -> str:
    if state is None:
        return "other"
    return "current" if digest == state.current else "previous" if digest == state.previous else "other"


def _state(state: ModelState | None) -> dict[str, Any] | None:
    return None if state is None else {"current": state.current, "previous": state.previous, "floor": state.floor}


def _described(layout: Layout, digest: str, manifest: Manifest | None, role: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "release": digest,
        "version": None if manifest is None else manifest.version,
        "role": role,
        "whole": None,
        "checked_bytes": 0,
        "bad": [],
        "signed": None,
        "keys": [],
        "device_built": None,
    }
    try:
        acceptance = read_acceptance(layout, digest)
        entry |= {"signed": acceptance.signed, "keys": list(acceptance.keys)}
    except AgentError as error:
        entry["signed_why"] = error.message
    try:
        # What a device completed came with the release that had only the plan of its engine.
        entry["device_built"] = read_offer(layout, digest).base is not None
    except AgentError as error:
        entry["device_built_why"] = error.message
    return entry


def _missing(digest: str, role: str) -> dict[str, Any]:
    bad = [{"file": "manifest.json", "why": "the release is not on this device"}]
    nothing: dict[str, Any] = {"version": None, "checked_bytes": 0, "signed": None, "keys": [], "device_built": None}
    return {"release": digest, "role": role, "whole": False, "bad": bad, **nothing}


def _prove(
    layout: Layout, entries: dict[str, dict[str, Any]], manifests: dict[str, Manifest | None], reading: _Reading
) -> list[str]:
    """Fill in what the bytes tell; digests of those that were not read whole."""
    left_out = []
    # What is wrong with objects that were read whole; None: nothing.
    known: dict[str, str | None] = {}
    for role in ("current", "previous"):
        for digest, entry in entries.items():
            manifest = manifests.get(digest)
            if entry["role"] != role or manifest is None:
                continue
            for each in manifest.files:
                if each.sha256 not in known and not reading.over:
                    with contextlib.suppress(TimeoutError):
                        known[each.sha256] = _proven(layout, digest, each, reading)
                if each.sha256 not in known:
                    continue
                entry["checked_bytes"] += each.size_bytes
                why = known[each.sha256]
                if why is not None:
                    entry["bad"].append({"file": each.name, "why": why})
            whole = all(each.sha256 in known for each in manifest.files)
            entry["whole"] = False if entry["bad"] else True if whole else None
            if not whole:
                left_out.append(digest)
    return left_out


def _proven(layout: Layout, digest: str, entry: FileEntry, reading: _Reading) -> str | None:
    """What is wrong with a file; None: nothing.

    Raises:
        TimeoutError: there was no time to know.
    """
    path = layout.release(digest) / entry.name
    begin = time.monotonic()
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return reason_of(error, entry.name)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            return "it is no file"
        if found.st_size != entry.size_bytes:
            return f"it has {found.st_size} bytes, and the manifest names {entry.size_bytes}"
        hashed, offset = sha256(), 0
        while offset < entry.size_bytes:
            if reading.over:
                raise TimeoutError
            data = os.pread(handle, _CHUNK_BYTES, offset)
            if not data:
                return f"it ends after {offset} bytes"
            hashed.update(data)
            offset += len(data)
            reading.size_bytes += len(data)
    except TimeoutError:
        raise
    except OSError as error:
        return reason_of(error, entry.name)
    finally:
        os.close(handle)
        reading.seconds += time.monotonic() - begin
    return None if hashed.hexdigest() == entry.sha256 else "it has other bytes than the manifest names"
