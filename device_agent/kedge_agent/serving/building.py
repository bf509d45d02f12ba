"""Engines built on this device: one at a time, in a child process, within the memory there is.

A build outlives the connection that asked for it: it is a job, whose events the host reads as they come, and whoever
asks for the same engine again joins it. The child is given a low priority and is the first to go when memory runs out,
for the models that are served matter more.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from ..engine.apart import Limits, compile_apart
from ..engine.here import built_passport, passport_here
from ..engine.ladder import Attempt, climb
from ..engine.library import RUNTIMES
from ..engine.order import Order, engine_key, parse_order
from ..engine.report import CompileReport, EngineError
from ..errors import AgentError
from ..formats.manifest import Artefact
from ..formats.passport import Passport
from ..measure.memory import read_memory
from ..store.engines import StoredEngine, find_engine, keep_engine, keep_timing, timing_cache
from ..store.files import read_bounded
from ..store.layout import Layout
from ..store.releases import read_release, verify_release

__all__ = ["Builds"]

_LOG = logging.getLogger("kedge.building")

_TIMEOUT_S = 4 * 3600.0
_NICE = 10
_MAX_EVENTS = 5000
_MAX_EVENTS_AT_ONCE = 500
_KINDS = {
    "missing": "incompatible",
    "bad_input": "bad_input",
    "refused": "incompatible",
    "killed": "space",
    "memory": "space",
    "timeout": "busy",
}


@dataclass
class _Job:
    """One build. events: what happened, in order; those before `dropped` were forgotten."""

    key: str
    passport: Passport
    state: str = "running"
    events: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0
    error: AgentError | None = None
    stored: StoredEngine | None = None
    cancelled: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def tell(self, event: dict[str, Any]) -> None:
        with self.changed:
            self.events.append(event)
            if len(self.events) > _MAX_EVENTS:
                gone = len(self.events) - _MAX_EVENTS
                del self.events[:gone]
                self.dropped += gone
            self.changed.notify_all()

    def end(self, state: str) -> None:
        with self.changed:
            self.state = state
            self.changed.notify_all()


class Builds:
    """The builds of this device."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()

    def start(self, digest: str, capabilities: tuple[str, ...], workspace_bytes: int | None) -> dict[str, Any]:
        """Build the engine of a release's artefact that has yet to be compiled, unless it was, or is being built.

        Args:
            capabilities: to compile for, where the compiler serves GPUs that are not here; empty: as the order says.

        Raises:
            AgentError: not_found, integrity: the release. incompatible: nothing to build, or no compiler. busy:
                another engine is being built.
        """
        manifest = read_release(self._layout, digest)
        verify_release(self._layout, manifest)
        artefact = _buildable(manifest.artefacts)
        order = _order(artefact, capabilities, workspace_bytes)
        library = RUNTIMES[order.runtime]
        passport = passport_here(order.runtime, order.compute_capabilities if library.cross else None)
        if passport is None:
            raise AgentError(f"{library.title} is not installed on this device", kind="incompatible", hint=library.hint)
        onnx = manifest.file(artefact.file)
        key = engine_key(onnx.sha256, order, passport)
        with self._lock:
            job = self._jobs.get(key)
            if job is None or job.state in ("failed", "cancelled"):
                stored = find_engine(self._layout, key)
                if stored is None and any(other.state == "running" for other in self._jobs.values()):
                    raise AgentError("another engine is being built", kind="busy", hint="wait until it is done")
                job = _Job(key, passport)
                self._jobs = {name: each for name, each in self._jobs.items() if each.state == "running"} | {key: job}
                if stored is not None:
                    job.stored = stored
                    job.end("built")
                else:
                    model = read_bounded(self._layout.release(digest) / artefact.file, onnx.size_bytes)
                    threading.Thread(target=self._run, args=(job, model, order, onnx.sha256), daemon=True).start()
        return {"job": key, "state": job.state, "passport": passport.to_json()}

    def watch(self, key: str, after: int, wait_s: float) -> dict[str, Any]:
        """What happened after the event number `after`; waits up to `wait_s` seconds for something to happen.

        Raises:
            AgentError: there is no such job (not_found); what the build failed of.
        """
        job = self._job(key)
        end = time.monotonic() + wait_s
        with job.changed:
            while job.dropped + len(job.events) <= after and job.state == "running":
                left = end - time.monotonic()
                if left <= 0:
                    break
                job.changed.wait(left)
            first = max(after, job.dropped)
            events = job.events[first - job.dropped :][:_MAX_EVENTS_AT_ONCE]
            following = first + len(events)
            done = job.state != "running" and following == job.dropped + len(job.events)
        if done and job.error is not None:
            raise job.error
        result = dict(job.stored.entry) if done and job.stored is not None else None
        return {"state": job.state if done else "running", "events": events, "next": following, "result": result}

    def cancel(self, key: str) -> dict[str, Any]:
        """End a build; what it has done is lost.

        Raises:
            AgentError: there is no such job (not_found).
        """
        job = self._job(key)
        job.cancelled = True
        return {"job": key, "state": job.state}

    def engine(self, key: str) -> StoredEngine:
        """An engine that was built here.

        Raises:
            AgentError: there is none (not_found).
        """
        job = self._jobs.get(key)
        stored = job.stored if job is not None and job.stored is not None else find_engine(self._layout, key)
        if stored is None:
            raise AgentError("no such engine", kind="not_found", hint="build it: kedge build --on DEVICE")
        return stored

    def close(self) -> None:
        """End what is being built."""
        for job in self._jobs.values():
            job.cancelled = True

    def _job(self, key: str) -> _Job:
        job = self._jobs.get(key)
        if job is None:
            raise AgentError("no such build", kind="not_found", hint="the agent was started anew: ask for it again")
        return job

    def _run(self, job: _Job, model: bytes, order: Order, onnx_sha256: str) -> None:
        attempts: list[Attempt] = []

        def progress(phase: str, step: int, steps: int) -> bool:
            if phase.startswith("log: "):
                job.tell({"event": "log", "line": phase[5:]})
            else:
                job.tell({"event": "progress", "phase": phase, "step": step, "steps": steps})
            return not job.cancelled

        def attempted(attempt: Attempt) -> None:
            attempts.append(attempt)
            job.tell({"event": "attempt", **attempt.to_json()})

        def build(step: Order) -> CompileReport:
            if job.cancelled:
                raise EngineError("the compilation was cancelled", kind="cancelled")
            limits = Limits(timeout_s=_TIMEOUT_S, nice=_NICE)
            known = timing_cache(self._layout, job.passport)
            return compile_apart(model, step, progress=progress, timing_cache=known, limits=limits)

        try:
            report, _ = climb(order, build, lambda: read_memory().available_bytes, attempted)
            keep_timing(self._layout, job.passport, report.timing_cache)
            body = report.to_json() | {"attempts": [each.to_json() for each in attempts]}
            entry = {
                "passport": built_passport(report.engine, job.passport).to_json(),
                "onnx_sha256": onnx_sha256,
                "report": body,
            }
            job.stored = keep_engine(self._layout, job.key, report.engine, entry)
            _LOG.info("built engine %s in %.1f s", job.key[:12], report.seconds)
            job.end("built")
        except EngineError as error:
            _LOG.warning("engine %s was not built: %s", job.key[:12], error)
            lines = " | ".join(line for line in error.log if not line.startswith("INFO"))[-500:]
            hint = error.hint or lines
            job.error = AgentError(error.message, kind=_KINDS.get(error.kind, "internal"), hint=hint)
            if error.kind == "cancelled":
                job.error = AgentError("the build was cancelled", kind="busy", hint="ask for it again")
            job.end("cancelled" if error.kind == "cancelled" else "failed")
        except AgentError as error:
            job.error = error
            job.end("failed")
        except Exception as error:  # whoever watches must hear of it
            _LOG.exception("engine %s", job.key[:12])
            job.error = AgentError(f"{type(error).__name__}: {error}", kind="internal")
            job.end("failed")


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
        library = RUNTIMES.get(order.runtime)
    except EngineError as error:
        raise AgentError(error.message, hint=error.hint) from error
    if library is None or order.runtime != artefact.runtime:
        raise AgentError(f"nothing is compiled for {order.runtime[:40]!r}", kind="incompatible")
    return order
