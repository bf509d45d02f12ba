"""The models being served: what a start loads, what each request gets, load and unload. `deploys` changes releases."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ..errors import AgentError
from ..runtime.base import Binding, Runtime, Shapes
from ..runtime.pool import PoolRetiredError, PoolRules, Timing
from ..store.crashes import Marks
from ..store.layout import Layout
from ..store.models import list_models, read_state
from .loading import LiveModel, load_staged, rehearse
from .loads import Loads
from .staging import Staged, stage_release
from .starting import load_last_served

__all__ = ["Repository"]

_LOG = logging.getLogger("kedge.repository")

_START_WAIT_S = 300.0
_LOOK_S = 0.5
_PATIENCE_S = 5.0
_DRAIN_S = 60.0


class Repository:
    """Every model of this device by name.

    Args:
        layout: the store.
        runtimes: what this device can run, by name.
        threads: intra-operator threads of each model whose release does not say.
        rules_of: how a model is served, by its name; may be replaced, and counts from the next load on.
        rehearse: what is to go live is tried in a child process first.
        marks: what tells the next start which model this one was running; None: nothing does.

    deploys_ended: how many ended how, since this agent began.
    safe_mode: why no model is to be loaded at the start; None: they are, or one has been since.
    """

    def __init__(
        self,
        layout: Layout,
        runtimes: Mapping[str, Runtime],
        threads: int,
        rules_of: Callable[[str], PoolRules] = lambda model: PoolRules(),
        *,
        rehearse: bool = False,
        marks: Marks | None = None,
    ) -> None:
        self._layout = layout
        self._runtimes = runtimes
        self.threads = threads
        self.rules_of = rules_of
        self.rehearses = rehearse
        self._marks = marks
        self._live: dict[str, LiveModel] = {}
        self._problems: dict[str, AgentError] = {}
        self._unloaded: set[str] = set()
        self._guard = threading.Lock()
        self._changing: dict[str, threading.Lock] = {}
        self._loads = Loads()
        self._starting: set[str] = set()
        self._again: Callable[[], None] = self.start
        self.safe_mode: str | None = None
        self.deploys_ended: dict[str, int] = {}
        self.ready = threading.Event()

    def start(
        self,
        held: Mapping[str, AgentError] | None = None,
        suspects: Collection[tuple[str, str]] = (),
        started: Callable[[str], None] = lambda model: None,
    ) -> None:
        """Load what each model last served; when that fails, what it served before. In safe mode, once it is left.

        Never raises: a model that cannot be served is reported by `status`, the others serve on. One whose load
        should have ended goes on being loaded when the next ones are, and when this returns.

        Args:
            held: models that are not to be loaded, and why.
            suspects: models and releases that may have ended the agent: they are tried in a child process first.
            started: told of each model when it has been loaded, or cannot be.
        """
        self._again = lambda: self.start(held, suspects, started)
        try:
            models = list_models(self._layout)
            self._starting.update(models)
            for model in models:
                thread = threading.Thread(target=self._start, args=(model, held or {}, suspects, started), daemon=True)
                thread.start()
                thread.join(_LOOK_S)
                while thread.is_alive() and all(late != model for late, _ in self._loads.late()):
                    thread.join(_LOOK_S)
                if thread.is_alive():
                    _LOG.error("model %s takes too long to load; the next ones do not wait for it", model)
        finally:
            self.ready.set()

    def _start(
        self,
        model: str,
        held: Mapping[str, AgentError],
        suspects: Collection[tuple[str, str]],
        started: Callable[[str], None],
    ) -> None:
        try:
            with self._lock_of(model):
                if model in self._live or model in self._unloaded:
                    return
                self._problems.pop(model, None)
                if self.safe_mode is not None:
                    raise AgentError(self.safe_mode, kind="busy", hint="load it, or deploy a release of it")
                if model in held:
                    raise held[model]
                state = read_state(self._layout, model)
                if state is not None:
                    self._live[model], problem = load_last_served(self.bring, model, state, suspects)
                    if problem is not None:
                        self._problems[model] = problem
        except Exception as error:  # one bad model must not take the API down
            _LOG.exception("model %s cannot be served", model)
            self._problems[model] = error if isinstance(error, AgentError) else AgentError(str(error), kind="internal")
        finally:
            self._starting.discard(model)
            if self.safe_mode is None:
                started(model)

    def get(self, model: str) -> LiveModel:
        """The live model of this name.

        Raises:
            AgentError: there is none (kind not_found), or it cannot be served (busy, integrity).
        """
        live = self._live.get(model)
        if live is None:
            problem = self._problems.get(model)
            if problem is not None:
                raise AgentError(f"{model} cannot be served: {problem}", kind=problem.kind, hint="deploy it again")
            if not self.ready.is_set() or model in self._starting:
                raise AgentError(f"{model} is still being loaded", kind="busy", hint="try again in a moment")
            if model in self._unloaded:
                raise AgentError(
                    f"{model} has been unloaded",
                    kind="not_found",
                    hint=f"load it: POST /v2/repository/models/{model}/load",
                )
            raise AgentError(f"no model named {model!r} here", kind="not_found", hint="see: kedge status --on DEVICE")
        return live

    def live(self) -> list[LiveModel]:
        """What serves now, by name."""
        return [live for _, live in sorted(self._live.items())]

    def stuck_s(self) -> float:
        """For how long a request has been computing, or a load goes on after it should have ended; 0: none does."""
        return max((*(live.pool.stuck_s() for live in self.live()), *self._loads.late().values()), default=0.0)

    def hung(self) -> set[tuple[str, str]]:
        """Models and releases of which a load or a request takes longer than one may (`Staged.patience_s`)."""
        runs = {(each.manifest.model, each.manifest.digest) for each in self.live() if each.hangs}
        return runs | set(self._loads.late())

    def borrow(
        self, checked: LiveModel, shapes: Shapes, timing: Timing, stack: contextlib.ExitStack
    ) -> tuple[LiveModel, Binding]:
        """A bound slot of the live model, given back when `stack` closes.

        A request that meets the switch between two releases is served by the new one, if that has the same tensors.

        Args:
            checked: the model that `shapes` were held against.

        Raises:
            AgentError: as `get` and `ModelPool.request`; or the new release has other tensors (busy).
        """
        model, tensors = checked.manifest.model, (checked.artefact.inputs, checked.artefact.outputs)
        while True:
            live = self.get(model)
            if live is not checked and (live.artefact.inputs, live.artefact.outputs) != tensors:
                raise AgentError(f"{model} was replaced by a release with other tensors", kind="busy", hint="try again")
            try:
                return live, live.pool.borrow(shapes, timing, stack)
            except PoolRetiredError:
                if self._live.get(model) is live:
                    raise

    def load(self, model: str) -> LiveModel:
        """Serve the accepted release of a model that has been unloaded; one that serves already goes on.

        Raises:
            AgentError: no release of it was accepted (not_found), or it cannot be loaded.
        """
        with self.changing(model):
            state = read_state(self._layout, model)
            if state is None:
                raise AgentError(
                    f"no model named {model!r} here", kind="not_found", hint="see: kedge status --on DEVICE"
                )
            live = self._live.get(model)
            if live is None or live.manifest.digest != state.current:
                live = self.bring(model, state.current)
                self.swap(live)
            return live

    def unload(self, model: str) -> None:
        """Serve a model no more, until it is loaded or activated, or the agent starts anew; the store is left as it is.

        One that has been unloaded already stays so: whoever lost the first answer may ask again.

        Raises:
            AgentError: it is not served (not_found, or what keeps it from being served).
        """
        with self.changing(model):
            if model in self._unloaded:
                return
            live = self.get(model)
            self._unloaded.add(model)
            self._problems.pop(model, None)
            del self._live[model]
            live.pool.retire()

    @contextlib.contextmanager
    def changing(self, model: str, *, wait: bool = False) -> Iterator[None]:
        """Nobody else changes what this model serves, while the context is open.

        Raises:
            AgentError: somebody else does, for longer than some seconds (busy; not where `wait` says to wait for
                them), or models are still being loaded (busy).
        """
        # What is being loaded at start-up must not overwrite what is activated meanwhile.
        if not self.ready.wait(_START_WAIT_S):
            raise AgentError("models are still being loaded", kind="busy", hint="try again in a minute")
        lock = self._lock_of(model)
        # How a deploy ended is recorded in moments; a deploy itself may take minutes.
        if not lock.acquire(timeout=-1 if wait else _PATIENCE_S):
            doing = "load" if model in self._starting else "activation or rollback"
            raise AgentError(
                f"another {doing} of {model} is under way",
                kind="busy",
                hint="wait for it to finish, then run the command again",
            )
        try:
            yield
        finally:
            lock.release()

    def _lock_of(self, model: str) -> threading.Lock:
        with self._guard:
            return self._changing.setdefault(model, threading.Lock())

    def stage(self, model: str, digest: str) -> Staged:
        """A release, verified, and how it would be served now. Raises as `stage_release`."""
        return stage_release(self._layout, self._runtimes, digest, self.threads, self.rules_of(model))

    def bring(self, model: str, digest: str, *, suspected: bool = False) -> LiveModel:
        """Load a release, verified, beside what serves. suspected: it is tried in a child process first.

        Raises:
            AgentError: as `stage_release`, `rehearse` and `load_staged`.
        """
        staged = self.stage(model, digest)
        return self.bring_staged(staged, rehearse(self._layout, staged) if suspected and self.rehearses else None)

    def bring_staged(
        self, staged: Staged, trial: dict[str, Any] | None = None, gate_p99_ms: float | None = None
    ) -> LiveModel:
        """As `bring`, of a release that has been staged. Raises as `load_staged`."""
        manifest = staged.manifest
        marker = None if self._marks is None else self._marks.marker(manifest.model, manifest.digest)
        with self._loads.going(staged):
            return load_staged(self._layout, staged, trial, marker, gate_p99_ms=gate_p99_ms)

    def swap(self, candidate: LiveModel) -> None:
        """Let a model that has been loaded serve; requests inside the one before end there."""
        model = candidate.manifest.model
        old = self._live.get(model)
        self._live[model] = candidate
        self._problems.pop(model, None)
        self._unloaded.discard(model)
        if self.safe_mode is not None:
            # Somebody has taken matters in hand.
            self.safe_mode = None
            threading.Thread(target=self._again, daemon=True).start()
        if old is not None:
            old.pool.retire()

    def take_out(self, model: str, error: AgentError) -> None:
        """Serve a model no more, and wait until its memory is free; whoever asks for it meanwhile is told `error`."""
        live = self._live.get(model)
        self._problems[model] = error
        if live is not None:
            del self._live[model]
            live.pool.retire()
            if not live.pool.wait_closed(_DRAIN_S):
                _LOG.error("%s: requests are inside after %g s", model, _DRAIN_S)

    def serving(self, model: str) -> LiveModel | None:
        """What serves under this name now; None: nothing does."""
        return self._live.get(model)

    def blame(self, model: str, error: AgentError) -> None:
        """What `status` is to say of a model that serves on."""
        self._problems[model] = error

    def status(self) -> list[dict[str, Any]]:
        """One row a model: what it serves, what it would roll back to, and what is wrong."""
        rows = []
        for model in list_models(self._layout):
            known = self._problems.get(model)
            problem = known.message if known is not None else None
            try:
                state = read_state(self._layout, model)
            except AgentError as error:
                state, problem = None, problem or str(error)
            live = self._live.get(model)
            if state is None and live is None and problem is None:
                continue
            rows.append(
                {
                    "model": model,
                    "state": self._state(model, live, problem),
                    "release": live.manifest.digest if live is not None else None,
                    "version": live.manifest.version if live is not None else None,
                    "runtime": live.artefact.runtime if live is not None else None,
                    "precision": live.artefact.precision if live is not None else None,
                    "current": state.current if state is not None else None,
                    "previous": state.previous if state is not None else None,
                    "problem": problem,
                }
            )
        return rows

    def _state(self, model: str, live: LiveModel | None, problem: str | None) -> str:
        if live is not None:
            return "serving"
        return "failed" if problem else "unloaded" if model in self._unloaded else "loading"

    def close(self) -> None:
        """Retire every model."""
        for live in self.live():
            live.pool.retire()
