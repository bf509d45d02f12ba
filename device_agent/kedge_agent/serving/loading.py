"""From an accepted release to a model in memory: verified, unpacked, loaded, and run on its golden inputs."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..formats.manifest import PACKED, Artefact, Manifest
from ..formats.tensors import counts_samples
from ..measure.drift import DriftCounter
from ..measure.memory import read_memory
from ..measure.parity import OutputParity, compare_output, require_golden
from ..runtime.base import Shapes
from ..runtime.pool import Marker, ModelPool, Timing
from ..store.files import read_bounded, translate_os_error
from ..store.layout import Layout
from .golden import read_golden
from .infer_request import InferRequest
from .staging import Staged
from .statistics import ModelStatistics

__all__ = ["LiveModel", "check_parity", "load_staged", "loadable", "rehearse"]

_LOG = logging.getLogger("kedge.loading")

_REHEARSAL_S = 300.0


@dataclass(frozen=True)
class LiveModel:
    """A release in memory, serving.

    gate_p99_ms: compute time of its golden inputs, as it was measured before it went live; None: it was not.
    patience_s: after which a run of it is taken to hang.
    requests: what its clients' JSON means, kept because they send the same again and again.
    """

    manifest: Manifest
    artefact: Artefact
    pool: ModelPool
    load: dict[str, Any]
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    drift: DriftCounter | None = None
    gate_p99_ms: float | None = None
    patience_s: float = math.inf
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

    def describe(self) -> dict[str, Any]:
        """For a table of before and after; figures are those that were measured before it went live, None: not."""
        rehearsal = self.load["rehearsal"]
        return {
            "release": self.manifest.digest,
            "version": self.manifest.version,
            "runtime": self.artefact.runtime,
            "precision": self.artefact.precision,
            "size_bytes": self.manifest.total_bytes,
            "p99_ms": self.gate_p99_ms,
            "peak_bytes": None if rehearsal is None else rehearsal["peak_bytes"],
        }

    @cached_property
    def batches(self) -> bool:
        """Whether its tensors have a row for each sample."""
        return counts_samples((*self.artefact.inputs, *self.artefact.outputs))

    @cached_property
    def most_samples(self) -> int | None:
        """Samples that a request may carry; None: any number."""
        return self.pool.rules.most_samples if self.batches else None

    @property
    def hangs(self) -> bool:
        """Whether a request has been computing for longer than one may."""
        return self.pool.stuck_s() > self.patience_s

    def samples(self, shapes: Shapes) -> int:
        """Samples that a request carries, by the input that has most; 1 where the model does not batch."""
        return max((shape[0] for shape in shapes.values() if shape), default=1) if self.batches else 1

    def require_samples(self, shapes: Shapes) -> None:
        """Refuse a request of more samples than this model takes: what it computes in is shared with others.

        Raises:
            AgentError: it has more (bad_input).
        """
        most = self.most_samples
        if most is not None and (samples := self.samples(shapes)) > most:
            raise AgentError(
                f"a request of {samples} samples; {self.manifest.model} takes {most} at a time",
                kind="bad_input",
                hint="send fewer in a request, or give this model a larger max_batch in the agent's settings",
            )


def rehearse(layout: Layout, staged: Staged) -> dict[str, Any] | None:
    """Load a release in a child process, and run its golden inputs there; what that took.

    None: the disk is full, say, and it cannot be tried, which is not the release's fault.

    Raises:
        AgentError: as `measure.apart.try_load`.
    """
    from ..measure.apart import try_load

    golden = read_golden(layout, staged.manifest, staged.manifest.golden.inputs)
    with loadable(layout, staged.manifest, staged.artefact) as path:
        try:
            return asdict(try_load(path, staged.artefact.runtime, staged.options, golden, timeout_s=_REHEARSAL_S))
        except OSError as error:
            _LOG.error("%s is loaded without a trial: %s", staged.manifest.model, error)
            return None


def load_staged(
    layout: Layout,
    staged: Staged,
    trial: dict[str, Any] | None = None,
    marker: Marker | None = None,
    *,
    gate_p99_ms: float | None = None,
) -> LiveModel:
    """Load a release that has been staged.

    Args:
        trial: what it took in a child process before.
        marker: is marked while it is loaded, and then the pool's.

    Raises:
        AgentError: the runtime refuses it (incompatible), or there is not enough memory (space).
    """
    manifest, artefact = staged.manifest, staged.artefact
    with _marked(marker), loadable(layout, manifest, artefact) as path:
        before = read_memory()
        start = time.perf_counter_ns()
        model = staged.runtime.load(path, staged.options)
        took = time.perf_counter_ns() - start
        after = read_memory()
    _LOG.info("loaded %s release %s in %.1f ms", manifest.model, manifest.digest[:12], took / 1e6)
    served = replace(artefact, inputs=model.inputs, outputs=model.outputs)
    return LiveModel(
        manifest=manifest,
        artefact=served,
        pool=ModelPool(model, staged.rules, marker),
        load={"load_ms": took / 1e6, "before": before.to_json(), "after": after.to_json(), "rehearsal": trial},
        drift=DriftCounter(served) if served.calibrated else None,
        gate_p99_ms=gate_p99_ms,
        patience_s=staged.patience_s,
    )


@contextlib.contextmanager
def _marked(marker: Marker | None) -> Iterator[None]:
    if marker is None:
        yield
        return
    seat = marker.enter()
    try:
        yield
    except BaseException:
        marker.leave(seat)
        marker.close()
        raise
    marker.leave(seat)


def check_parity(layout: Layout, candidate: LiveModel) -> dict[str, OutputParity]:
    """Run the golden inputs and compare with the golden outputs; how each output agrees.

    Raises:
        AgentError: the golden tensors do not fit the model (incompatible), or it fails on them.
    """
    manifest = candidate.manifest
    inputs = read_golden(layout, manifest, manifest.golden.inputs)
    expected = read_golden(layout, manifest, manifest.golden.outputs)
    require_golden(inputs, set(expected), candidate.artefact.inputs, candidate.artefact.outputs)
    timing = Timing()
    with candidate.pool.request({name: array.shape for name, array in inputs.items()}, timing) as binding:
        for name, array in inputs.items():
            binding.inputs[name][...] = array
        candidate.pool.run(binding, timing)
        return {name: compare_output(name, binding.outputs[name], expected[name]) for name in expected}


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
