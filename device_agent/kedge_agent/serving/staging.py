"""An accepted release before it is loaded: every byte as its manifest says, and fit for this device."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass

from ..engine.here import passport_here
from ..errors import AgentError
from ..formats.artefact import Serving
from ..formats.manifest import Artefact, Manifest
from ..formats.passport import contradiction, fit
from ..formats.plan_header import PlanHeaderError, read_header_of
from ..runtime.base import LoadOptions, Provider, Runtime
from ..runtime.pool import PoolRules
from ..store.files import translate_os_error
from ..store.layout import Layout
from ..store.releases import read_release, verify_release

__all__ = ["Staged", "load_options", "stage_release"]

_LOG = logging.getLogger("kedge.staging")

_CPU_S = 60.0
_CPU_BYTES_PER_S = 4e6
_GPU_S = 300.0


@dataclass(frozen=True)
class Staged:
    """A release whose every byte is as its manifest says, and how it would be loaded here."""

    manifest: Manifest
    artefact: Artefact
    runtime: Runtime
    options: LoadOptions
    rules: PoolRules

    @property
    def on_cpu(self) -> bool:
        """Whether nothing but the CPU computes it."""
        return self.artefact.runtime == "onnxruntime" and not self.options.providers

    @property
    def patience_s(self) -> float:
        """After so many seconds a load, a run, or all of its gates is taken to hang; a GPU has compilers."""
        if not self.on_cpu:
            return _GPU_S
        return _CPU_S + self.manifest.file(self.artefact.file).size_bytes / _CPU_BYTES_PER_S


def stage_release(
    layout: Layout, runtimes: Mapping[str, Runtime], digest: str, threads: int, rules: PoolRules | None = None
) -> Staged:
    """Verify a release and choose the first artefact that this device has a runtime for.

    Args:
        threads: intra-operator threads where the release does not say.
        rules: how it is served; None: as by default.

    Raises:
        AgentError: kind not_found, integrity, or incompatible.
    """
    manifest = read_release(layout, digest)
    here = (platform.system().lower(), platform.machine())
    if (manifest.platform_os, manifest.platform_arch) != here:
        raise AgentError(
            f"the release is for {manifest.platform_os}/{manifest.platform_arch}, this device is {'/'.join(here)}",
            kind="incompatible",
            hint="build it for this device's target: kedge build --target …",
        )
    verify_release(layout, manifest)
    artefact, runtime = _choose(layout, manifest, runtimes)
    rules = rules or PoolRules()
    return Staged(manifest, artefact, runtime, load_options(layout, artefact, threads, rules), rules)


def load_options(layout: Layout, artefact: Artefact, threads: int, rules: PoolRules) -> LoadOptions:
    """How an artefact is loaded here: what the release says of it comes before what the device would do."""
    serving = artefact.serving or Serving()
    return LoadOptions(
        # A release was thought of for some device: more threads than this one's cores get in each other's way.
        threads=min(serving.threads, len(os.sched_getaffinity(0))) if serving.threads else threads,
        workers=rules.workers,
        providers=tuple(Provider(name, dict(options)) for name, options in serving.providers),
        cache=layout.root / "runtime-cache",
        most_samples=rules.most_samples,
    )


def _choose(layout: Layout, manifest: Manifest, runtimes: Mapping[str, Runtime]) -> tuple[Artefact, Runtime]:
    refused: AgentError | None = None
    for artefact in manifest.artefacts:
        try:
            _check_engine(layout, manifest, artefact)
        except AgentError as error:
            refused = refused or error
            continue
        runtime = runtimes.get(artefact.runtime)
        if runtime is not None and runtime.version() is not None:
            return artefact, runtime
    if refused is not None:
        raise refused
    wanted = ", ".join(artefact.runtime for artefact in manifest.artefacts)
    here = ", ".join(name for name, runtime in runtimes.items() if runtime.version()) or "none"
    raise AgentError(
        f"the release needs a runtime among: {wanted}; this device has: {here}",
        kind="incompatible",
        hint="build the release for this device's target, or provision the device again",
    )


def _check_engine(layout: Layout, manifest: Manifest, artefact: Artefact) -> None:
    """Hold an engine's header and passport against each other and against this device, before anything loads it.

    Raises:
        AgentError: it is no engine, or not the one its passport is of (integrity); it does not run here, or there is
            none yet (incompatible).
    """
    if artefact.build is not None:
        raise AgentError(
            f"the release has a build plan for {artefact.runtime}, and no engine yet",
            kind="incompatible",
            hint="deploy it from the host, which has this device build it: kedge deploy RELEASE --to DEVICE",
        )
    if artefact.passport is None:
        return
    path = layout.release(manifest.digest) / artefact.file
    try:
        header = read_header_of(path)
    except PlanHeaderError as error:
        raise AgentError(f"{artefact.file}: {error}", kind="integrity", hint="build the release again") from error
    except OSError as error:
        raise translate_os_error(error, f"reading {artefact.file}") from error
    passport = artefact.passport
    against = contradiction(header, passport)
    if against is not None:
        raise AgentError(f"{artefact.file} is {against}", kind="integrity", hint="build the release again")
    here = passport_here(artefact.runtime)
    if here is None:
        return  # no such runtime: said by whoever looks for one
    found = fit(passport, here)
    if not found.fits:
        raise AgentError(
            "; ".join(found.refusals),
            kind="incompatible",
            hint=f"rebuild with: kedge build … --target {manifest.target}",
        )
    for warning in found.warnings:
        _LOG.warning("%s: %s", manifest.model, warning)
