"""From an accepted release to a model in memory: verified, unpacked, loaded, and held against its golden outputs."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..engine.here import passport_here
from ..errors import AgentError
from ..formats.artefact import Serving
from ..formats.manifest import PACKED, Artefact, Manifest
from ..formats.passport import contradiction, fit
from ..formats.plan_header import PlanHeaderError, read_header_of
from ..formats.tensors import DYNAMIC, datatype_of
from ..measure.apart import try_load
from ..measure.drift import DriftCounter
from ..measure.memory import read_memory
from ..measure.parity import compare_output, failures
from ..runtime.base import LoadOptions, Provider, Runtime, Shapes
from ..runtime.pool import ModelPool, PoolRules, Timing
from ..store.files import read_bounded, translate_os_error
from ..store.layout import Layout
from ..store.releases import read_release, verify_release
from .golden import read_golden
from .infer_request import InferRequest
from .statistics import ModelStatistics

__all__ = ["LiveModel", "check_parity", "load_options", "load_release", "loadable"]

_LOG = logging.getLogger("kedge.loading")

_REHEARSAL_S = 300.0


@dataclass(frozen=True)
class LiveModel:
    """A release in memory, serving.

    requests: what its clients' JSON means, kept because they send the same again and again.
    """

    manifest: Manifest
    artefact: Artefact
    pool: ModelPool
    load: dict[str, Any]
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    drift: DriftCounter | None = None
    requests: dict[bytes, InferRequest] = field(default_factory=dict)

    def require_version(self, version: str | None) -> None:
        """Refuse a request for another version; None is any.

        Raises:
            AgentError: it is not the one that is served (not_found).
        """
        if version is not None and version != str(self.manifest.version):
            raise AgentError(
                f"{self.manifest.model} serves version {self.manifest.version}, not {version}",
                kind="not_found",
                hint="leave the version out",
            )

    @cached_property
    def batches(self) -> bool:
        """Whether the first dimension of every tensor is free: it counts samples, in models as people make them."""
        specs = (*self.artefact.inputs, *self.artefact.outputs)
        return all(spec.shape[:1] == (DYNAMIC,) for spec in specs)

    def samples(self, shapes: Shapes) -> int:
        """Samples that a request carries; 1 where the model does not batch."""
        return next(iter(shapes.values()))[0] if self.batches else 1


def load_release(
    layout: Layout,
    runtimes: Mapping[str, Runtime],
    digest: str,
    threads: int,
    rules: PoolRules | None = None,
    *,
    rehearse: bool = False,
) -> LiveModel:
    """Verify a release and load the first artefact that this device has a runtime for.

    Args:
        threads: intra-operator threads where the release does not say.
        rules: how it is served; None: as by default.
        rehearse: load it in a child process first, and run its golden inputs there: native code that crashes on a model
            then takes nothing with it.

    Raises:
        AgentError: kind not_found, integrity, incompatible, or space.
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
    options = load_options(layout, artefact, threads, rules or PoolRules())
    trial = None
    with loadable(layout, manifest, artefact) as path:
        if rehearse:
            golden = read_golden(layout, manifest, manifest.golden.inputs)
            trial = asdict(try_load(path, artefact.runtime, options, golden, timeout_s=_REHEARSAL_S))
        before = read_memory()
        start = time.perf_counter_ns()
        model = runtime.load(path, options)
        took = time.perf_counter_ns() - start
        after = read_memory()
    _LOG.info("loaded %s release %s in %.1f ms", manifest.model, digest[:12], took / 1e6)
    served = replace(artefact, inputs=model.inputs, outputs=model.outputs)
    return LiveModel(
        manifest=manifest,
        artefact=served,
        pool=ModelPool(model, rules),
        load={"load_ms": took / 1e6, "before": before.to_json(), "after": after.to_json(), "rehearsal": trial},
        drift=DriftCounter(served) if served.calibrated else None,
    )


def load_options(layout: Layout, artefact: Artefact, threads: int, rules: PoolRules) -> LoadOptions:
    """How an artefact is loaded here: what the release says of it comes before what the device would do."""
    serving = artefact.serving or Serving()
    return LoadOptions(
        # A release was thought of for some device: more threads than this one's cores get in each other's way.
        threads=min(serving.threads, len(os.sched_getaffinity(0))) if serving.threads else threads,
        workers=rules.workers,
        providers=tuple(Provider(name, dict(options)) for name, options in serving.providers),
        cache=layout.root / "runtime-cache",
    )


def check_parity(layout: Layout, candidate: LiveModel) -> list[dict[str, Any]]:
    """Run the golden inputs and compare with the golden outputs; the figures of each output.

    Raises:
        AgentError: the gate refuses (kind gate), or the golden tensors do not fit the model.
    """
    manifest = candidate.manifest
    inputs = read_golden(layout, manifest, manifest.golden.inputs)
    expected = read_golden(layout, manifest, manifest.golden.outputs)
    specs = {spec.name: spec for spec in candidate.artefact.inputs}
    if set(inputs) != set(specs) or not set(expected) <= {spec.name for spec in candidate.artefact.outputs}:
        raise AgentError("the golden tensors do not name the model's inputs and outputs", kind="incompatible")
    for name, array in inputs.items():
        mismatch = specs[name].mismatch(datatype_of(array.dtype), array.shape)
        if mismatch is not None:
            raise AgentError(f"golden {mismatch}", kind="incompatible", hint="build the release again")
    timing = Timing()
    with candidate.pool.request({name: array.shape for name, array in inputs.items()}, timing) as binding:
        for name, array in inputs.items():
            binding.inputs[name][...] = array
        candidate.pool.run(binding, timing)
        results = {name: compare_output(name, binding.outputs[name], expected[name]) for name in expected}
    broken = failures(manifest.gates.parity, results)
    if broken:
        raise AgentError(
            f"parity gate refused release {manifest.digest[:12]}: {'; '.join(broken)}",
            kind="gate",
            hint="the live release serves on; build for this device's target, or loosen the gate in the build",
        )
    return [result.to_json() for result in results.values()]


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


@contextlib.contextmanager
def loadable(layout: Layout, manifest: Manifest, artefact: Artefact) -> Iterator[Path]:
    """A path from which a runtime can load the artefact while the context is open.

    A packed one is unpacked into anonymous memory. The store then holds nothing that the manifest does
    not name, a full disk keeps no model from loading, and the memory is free again once it is loaded
    (onnxruntime would hold a model given as bytes for as long as it lives).
    """
    stored = layout.release(manifest.digest) / artefact.file
    if artefact.encoding != PACKED:
        yield stored
        return
    handle = os.memfd_create("kedge-model", os.MFD_CLOEXEC)
    try:
        _unpack(stored, manifest.file(artefact.file).size_bytes, handle)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _unpack(stored: Path, size_bytes: int, handle: int) -> None:
    try:
        # A Python may be built without lzma; it serves every release that is not packed.
        from ..formats.packed import PackedError, read_info, unpack_into
    except ImportError as error:
        raise AgentError(
            f"this device's Python cannot unpack a model: {error}",
            kind="incompatible",
            hint="install a Python with lzma on the device, or build the release with --no-pack",
        ) from error
    try:
        need = read_info(stored).original_bytes
        available = read_memory().available_bytes
        if available is not None and need > available:
            raise AgentError(
                f"the model unpacks to {need} bytes, this device has {available} bytes of memory to give",
                kind="space",
                hint="free memory on the device, or build the release with --no-pack",
            )
        with os.fdopen(handle, "wb", closefd=False) as out:
            unpack_into(read_bounded(stored, size_bytes), out.write)
    except PackedError as error:
        raise AgentError(
            f"{stored.name} cannot be unpacked: {error}", kind="integrity", hint="build the release again"
        ) from error
    except OSError as error:
        raise translate_os_error(error, f"unpacking {stored.name}") from error
