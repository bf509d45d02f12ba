"""Engines built on this device: one at a time, in a child process, within the memory there is.

A build outlives the connection that asked for it: it is a job, whose events the host reads as they come, and whoever
asks for the same engine again joins it. The child is given a low priority and is the first to go when memory runs out,
for the models that are served matter more; and it ends with the agent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine.here import built_passport, gpu_here, passport_here
from ..engine.ladder import Attempt, climb
from ..engine.library import RUNTIMES
from ..engine.order import Order, engine_key, parse_order
from ..engine.report import CompileReport, EngineError
from ..errors import AgentError
from ..formats.manifest import Artefact
from ..measure.memory import read_memory
from ..store.engines import (
    StoredEngine,
    find_engine,
    forget_timing,
    keep_engine,
    keep_timing,
    sweep,
    timing_cache,
    work_folder,
)
from ..store.layout import Layout
from ..store.releases import read_release, verify_release
from .job import Job

__all__ = ["Builds"]

_LOG = logging.getLogger("kedge.building")

_TIMEOUT_S = 4 * 3600.0
_NICE = 10
_ENDED_JOBS = 16
_CLOSE_S = 5.0
_GPU_SHARE = 0.9


class Builds:
    """The builds of this device."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        sweep(layout)

    def start(self, digest: str, capabilities: tuple[str, ...], workspace_bytes: int | None) -> dict[str, Any]:
        """Build the engine of a release's artefact that has yet to be compiled, unless it was, or is being built.

        Args:
            capabilities: to compile for, where the compiler serves GPUs that are not here; empty: as the order says.

        Raises:
            AgentError: not_found, integrity: the release. incompatible: nothing to build, no compiler, or no GPU.
                busy: another engine is being built, or this one is being ended.
        """
        manifest = read_release(self._layout, digest)
        verify_release(self._layout, manifest)
        artefact = _buildable(manifest.artefacts)
        order = _order(artefact, capabilities, workspace_bytes)
        library = RUNTIMES[order.runtime]
        passport = passport_here(order.runtime, order.compute_capabilities if library.cross else None)
        if passport is None:
            raise AgentError(f"{library.title} is not installed on this device", kind="incompatible", hint=library.hint)
        if not passport.compute_capabilities:
            raise AgentError(
                f"{library.title} builds for the GPU it runs on, and none answers here",
                kind="incompatible",
                hint="see on the device: nvidia-smi, or on a Jetson: dmesg",
            )
        onnx = manifest.file(artefact.file).sha256
        key = engine_key(onnx, order, passport)
        stored = find_engine(self._layout, key)
        with self._lock:
            job = self._jobs.get(key)
            if job is not None and job.cancelled and job.state == "running":
                raise AgentError("this build is being ended", kind="busy", hint="ask again in a moment")
            if job is None or job.state in ("failed", "cancelled") or (job.state == "built" and stored is None):
                if stored is None and any(other.state == "running" for other in self._jobs.values()):
                    raise AgentError("another engine is being built", kind="busy", hint="wait until it is done")
                job = Job(key, passport, stored)
                if stored is None:
                    model = self._layout.release(digest) / artefact.file
                    job.thread = threading.Thread(target=self._run, args=(job, model, order, onnx), daemon=True)
                    job.thread.start()
                self._remember(job)
        return {"job": key, "state": job.state, "passport": passport.to_json()}

    def watch(self, key: str, after: int, wait_s: float) -> dict[str, Any]:
        """What happened after the event number `after`; waits up to `wait_s` seconds for something to happen.

        Raises:
            AgentError: there is no such job (not_found); what the build failed of.
        """
        job = self._jobs.get(key)
        if job is None:
            stored = find_engine(self._layout, key)
            if stored is None:
                raise AgentError("no such build", kind="not_found", hint="the agent was started anew: ask for it again")
            return {"state": "built", "events": [], "next": after, "result": dict(stored.entry)}
        return job.watch(after, wait_s)

    def cancel(self, key: str) -> dict[str, Any]:
        """End a build; what it has done is lost.

        Raises:
            AgentError: there is no such job (not_found).
        """
        job = self._jobs.get(key)
        if job is None:
            raise AgentError("no such build", kind="not_found", hint="it has ended long ago, or never began")
        job.stop()
        return {"job": key, "state": job.state}

    def engine(self, key: str, *, verified: bool) -> StoredEngine:
        """An engine that was built here. verified: its bytes are hashed first.

        Raises:
            AgentError: there is none (not_found).
        """
        job = self._jobs.get(key)
        stored = job.stored if job is not None else None
        if stored is None or verified:
            stored = find_engine(self._layout, key)
        if stored is None:
            raise AgentError("no such engine", kind="not_found", hint="build it: kedge build --on DEVICE")
        return stored

    def close(self) -> None:
        """End what is being built, and see it off."""
        for job in list(self._jobs.values()):
            job.stop()
            if job.thread is not None:
                job.thread.join(_CLOSE_S)

    def _remember(self, job: Job) -> None:
        """Keep what runs, and the last of what ended: whoever still reads of it gets to its end."""
        self._jobs.pop(job.key, None)
        self._jobs[job.key] = job
        ended = [key for key, each in self._jobs.items() if each.state != "running"]
        for key in ended[:-_ENDED_JOBS]:
            del self._jobs[key]

    def _run(self, job: Job, model: Path, order: Order, onnx_sha256: str) -> None:
        attempts: list[Attempt] = []

        def attempted(attempt: Attempt) -> None:
            attempts.append(attempt)
            job.tell({"event": "attempt", **attempt.to_json()})

        try:
            report, _ = climb(order, self._builder(job, model), lambda: _available(order), attempted)
            keep_timing(self._layout, job.passport, report.timing_cache)
            body = report.to_json() | {"attempts": [each.to_json() for each in attempts]}
            passport = built_passport(report.engine, job.passport)
            entry = {"passport": passport.to_json(), "onnx_sha256": onnx_sha256}
            job.stored = keep_engine(self._layout, job.key, report.engine, entry, body)
            _LOG.info("built engine %s in %.1f s", job.key[:12], report.seconds)
            job.end("built")
        except EngineError as error:
            _LOG.warning("engine %s was not built: %s", job.key[:12], error)
            job.fail(AgentError(error.message, kind=error.fault, hint=error.advice()), cancelled=job.cancelled)
        except AgentError as error:
            job.fail(error)
        except Exception as error:  # whoever watches must hear of it
            _LOG.exception("engine %s", job.key[:12])
            job.fail(AgentError(f"{type(error).__name__}: {error}", kind="internal", hint="see the agent's log"))

    def _builder(self, job: Job, model: Path) -> Callable[[Order], CompileReport]:
        from ..engine.apart import Limits, compile_apart

        def progress(phase: str, step: int, steps: int) -> bool:
            if phase.startswith("log: "):
                job.tell({"event": "log", "line": phase[5:]})
            else:
                job.tell({"event": "progress", "phase": phase, "step": step, "steps": steps})
            return not job.cancelled

        def compiled(order: Order, known: bytes) -> CompileReport:
            with contextlib.ExitStack() as stack:

                def started(pid: int) -> None:
                    stack.enter_context(job.watching(pid))
                    if job.cancelled:
                        job.stop()

                limits = Limits(_TIMEOUT_S, nice=_NICE, started=started, folder=work_folder(self._layout))
                try:
                    return compile_apart(model, order, progress=progress, timing_cache=known, limits=limits)
                except EngineError as error:
                    if job.cancelled:
                        raise EngineError("the build was cancelled", kind="cancelled") from error
                    raise

        def build(order: Order) -> CompileReport:
            if job.cancelled:
                raise EngineError("the build was cancelled", kind="cancelled")
            known = timing_cache(self._layout, job.passport)
            try:
                return compiled(order, known)
            except EngineError as error:
                if error.kind != "crashed" or not known:
                    raise
            # What an earlier build measured may be what it crashes of.
            forget_timing(self._layout, job.passport)
            return compiled(order, b"")

        return build


def _available(order: Order) -> int | None:
    """Bytes that a build may take: of the system; of the GPU itself, where it has its own and kernels are tried."""
    gpu = gpu_here()
    if gpu is not None and not gpu.integrated and gpu.memory_bytes and not RUNTIMES[order.runtime].cross:
        return int(gpu.memory_bytes * _GPU_SHARE)
    return read_memory().available_bytes


def _buildable(artefacts: tuple[Artefact, ...]) -> Artefact:
    for artefact in artefacts:
        if artefact.build is not None:
            return artefact
    raise AgentError("the release has nothing to compile", kind="incompatible", hint="it is ready to be deployed")


def _order(artefact: Artefact, capabilities: tuple[str, ...], workspace_bytes: int | None) -> Order:
    body = dict(artefact.build or {})
    if capabilities:
        body["compute_capabilities"] = list(capabilities)
    if workspace_bytes is not None:
        body["workspace_bytes"] = workspace_bytes
    try:
        order = parse_order(body)
    except EngineError as error:
        raise AgentError(error.message, hint=error.hint) from error
    if order.runtime not in RUNTIMES or order.runtime != artefact.runtime:
        raise AgentError(f"nothing is compiled for {order.runtime[:40]!r}", kind="incompatible")
    return order
