"""Engines of releases that serve, or are gone back to: passports and headers, and whether they fit this device."""

from __future__ import annotations

import contextlib
from typing import Any

from ...engine.here import passport_here
from ...errors import AgentError
from ...formats.manifest import Artefact, Manifest
from ...formats.passport import Passport, contradiction, fit
from ...formats.plan_header import PlanHeader, PlanHeaderError, read_header_of
from ...store.layout import Layout
from ...store.models import list_models, read_state
from ...store.releases import read_release
from ..device import Collected, Device, reason_of

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    here: dict[str, Passport | None] = {}
    out = []
    for manifest in _manifests(device.layout):
        for artefact in manifest.artefacts:
            if artefact.passport is None:
                continue
            if artefact.runtime not in here:
                here[artefact.runtime] = passport_here(artefact.runtime, root=device.root)
            out.append(_engine(device.layout, manifest, artefact, artefact.passport, here[artefact.runtime]))
    return Collected({"engines": out})


def _manifests(layout: Layout) -> list[Manifest]:
    found = []
    for model in list_models(layout):
        # What cannot be read, the releases tell.
        with contextlib.suppress(AgentError):
            state = read_state(layout, model)
            for digest in () if state is None else (state.current, state.previous):
                with contextlib.suppress(AgentError):
                    if digest is not None:
                        found.append(read_release(layout, digest))
    return found


def _engine(
    layout: Layout, manifest: Manifest, artefact: Artefact, passport: Passport, here: Passport | None
) -> dict[str, Any]:
    out: dict[str, Any] = {
        "model": manifest.model,
        "release": manifest.digest,
        "artefact": artefact.file,
        "runtime": artefact.runtime,
        "version": passport.runtime_version,
        "passport": passport.to_json(),
        "header": None,
        "fits": None,
        "refusals": [],
        "warnings": [],
    }
    try:
        header = read_header_of(layout.release(manifest.digest) / artefact.file)
        out["header"] = _described(header)
    except PlanHeaderError as error:
        return {**out, "fits": False, "refusals": [str(error)]}
    except OSError as error:
        return {**out, "fits_why": reason_of(error, artefact.file)}
    against = contradiction(header, passport)
    if against is not None:
        return {**out, "fits": False, "refusals": [f"it is {against}"]}
    if here is None:
        return {**out, "fits_why": f"{artefact.runtime} is not installed on this device"}
    found = fit(passport, here)
    return {**out, "fits": found.fits, "refusals": list(found.refusals), "warnings": list(found.warnings)}


def _described(header: PlanHeader) -> dict[str, Any]:
    capabilities = header.compute_capabilities
    return {
        "runtime": header.runtime,
        "version": header.version,
        "size_bytes": header.size_bytes,
        "compute_capabilities": None if capabilities is None else list(capabilities),
    }
