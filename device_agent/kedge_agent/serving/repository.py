"""The models being served: activation behind the parity gate, the switch, rollback, start-up."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import AgentError
from ..runtime.base import Binding, Runtime, Shapes
from ..runtime.pool import PoolRetiredError, PoolRules, Timing
from ..store.files import translate_os_error
from ..store.layout import Layout
from ..store.models import ModelState, interrupted_load, list_models, loading, read_state, write_state
from ..store.releases import read_release
from .loading import LiveModel, check_parity, load_release

__all__ = ["Repository"]

_LOG = logging.getLogger("kedge.repository")

_START_WAIT_S = 300.0


class Repository:
    """Every model of this device by name.

    Args:
        layout: the store.
        runtimes: what this device can run, by name.
        threads: intra-operator threads of each model whose release does not say.
        rules_of: how a model is served, by its name; may be replaced, and counts from the next load on.
        rehearse: load what is to go live in a child process first (`loading.load_release`).
    """

    def __init__(
        self,
        layout: Layout,
        runtimes: Mapping[str, Runtime],
        threads: int,
        rules_of: Callable[[str], PoolRules] = lambda model: PoolRules(),
        *,
        rehearse: bool = False,
    ) -> None:
        self._layout = layout
        self._runtimes = runtimes
        self.threads = threads
        self.rules_of = rules_of
        self._rehearse = rehearse
        self._live: dict[str, LiveModel] = {}
        self._problems: dict[str, AgentError] = {}
        self._unloaded: set[str] = set()
        self._switch = threading.Lock()
        self.ready = threading.Event()

    def start(self) -> None:
        """Load what each model last served; when that fails, what it served before.

        Never raises: a model that cannot be served is reported by `status`, the others serve on.
        """
        try:
            for model in list_models(self._layout):
                try:
                    self._start_model(model)
                except Exception as error:  # one bad model must not take the API down
                    _LOG.exception("model %s cannot be served", model)
                    self._problems[model] = (
                        error if isinstance(error, AgentError) else AgentError(str(error), kind="internal")
                    )
        finally:
            self.ready.set()

    def _start_model(self, model: str) -> None:
        state = read_state(self._layout, model)
        if state is None:
            return
        # Loading it may have been what ended the agent: then it is tried where it can do no harm.
        rehearse = self._rehearse and interrupted_load(self._layout, model)
        with loading(self._layout, model):
            try:
                self._live[model] = self._load(state.current, model, rehearse=rehearse)
            except Exception as error:  # whatever keeps the current one from being served, the previous one may be
                if state.previous is None:
                    raise
                _LOG.error("model %s: %s; falling back to %s", model, error, state.previous[:12])
                self._live[model] = self._load(state.previous, model, rehearse=rehearse)
                kind = error.kind if isinstance(error, AgentError) else "internal"
                self._problems[model] = AgentError(f"{error}; serving the previous release instead", kind=kind)

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
            if not self.ready.is_set():
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
        """For how many seconds the request that computes longest has done so; 0 when none computes."""
        return max((live.pool.stuck_s() for live in self.live()), default=0.0)

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

    def activate(self, digest: str) -> dict[str, Any]:
        """Verify, load and gate a release, then switch its model to it.

        The live release serves on until the switch, and after any failure before it.

        Raises:
            AgentError: kind not_found, integrity, incompatible, gate, or busy.
        """
        with self._exclusive():
            manifest = read_release(self._layout, digest)
            state = _state_or_none(self._layout, manifest.model)
            candidate = self._load(digest, manifest.model, rehearse=self._rehearse)
            try:
                parity = check_parity(self._layout, candidate)
                if state is None or state.current != digest:
                    self._write(manifest.model, ModelState(digest, self._way_back(manifest.model, state, digest)))
            except BaseException:
                candidate.pool.retire()
                raise
            self._swap(manifest.model, candidate)
            return self._report(manifest.model, candidate, parity)

    def rollback(self, model: str) -> dict[str, Any]:
        """Switch a model back to the release it served before.

        Raises:
            AgentError: there is nothing to go back to (not_found), or it is damaged (integrity).
        """
        with self._exclusive():
            state = read_state(self._layout, model)
            if state is None:
                raise AgentError(f"no model named {model!r} here", kind="not_found", hint="see: kedge status")
            if state.previous is None:
                raise AgentError(
                    f"{model} has served one release only; there is nothing to roll back to",
                    kind="not_found",
                    hint="deploy another release first",
                )
            candidate = self._load(state.previous, model)
            try:
                self._write(model, ModelState(state.previous, state.current))
            except BaseException:
                candidate.pool.retire()
                raise
            self._swap(model, candidate)
            return self._report(model, candidate, None)

    def load(self, model: str) -> LiveModel:
        """Serve the accepted release of a model that has been unloaded; one that serves already goes on.

        Raises:
            AgentError: no release of it was accepted (not_found), or it cannot be loaded.
        """
        with self._exclusive():
            state = read_state(self._layout, model)
            if state is None:
                raise AgentError(f"no model named {model!r} here", kind="not_found", hint="see: kedge status")
            live = self._live.get(model)
            if live is None or live.manifest.digest != state.current:
                live = self._load(state.current, model)
                self._swap(model, live)
            return live

    def unload(self, model: str) -> None:
        """Serve a model no more, until it is loaded or activated, or the agent starts anew; the store is left as it is.

        One that has been unloaded already stays so: whoever lost the first answer may ask again.

        Raises:
            AgentError: it is not served (not_found, or what keeps it from being served).
        """
        with self._exclusive():
            if model in self._unloaded:
                return
            live = self.get(model)
            self._unloaded.add(model)
            self._problems.pop(model, None)
            del self._live[model]
            live.pool.retire()

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

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        # What is being loaded at start-up must not overwrite what is activated meanwhile.
        if not self.ready.wait(_START_WAIT_S):
            raise AgentError("models are still being loaded", kind="busy", hint="try again in a minute")
        if not self._switch.acquire(blocking=False):
            raise AgentError(
                "another activation or rollback is under way",
                kind="busy",
                hint="wait for it to finish, then run the command again",
            )
        try:
            yield
        finally:
            self._switch.release()

    def _load(self, digest: str, model: str, *, rehearse: bool = False) -> LiveModel:
        return load_release(self._layout, self._runtimes, digest, self.threads, self.rules_of(model), rehearse=rehearse)

    def _way_back(self, model: str, state: ModelState | None, digest: str) -> str | None:
        # What serves is known to work; what the state names may have been found damaged.
        live = self._live.get(model)
        serving = live.manifest.digest if live is not None else state.current if state is not None else None
        return serving if serving != digest else None

    def _write(self, model: str, state: ModelState) -> None:
        try:
            write_state(self._layout, model, state)
        except OSError as error:
            raise translate_os_error(error, f"switching {model}") from error

    def _swap(self, model: str, candidate: LiveModel) -> None:
        old = self._live.get(model)
        self._live[model] = candidate
        self._problems.pop(model, None)
        self._unloaded.discard(model)
        if old is not None:
            old.pool.retire()

    def _report(self, model: str, live: LiveModel, parity: list[dict[str, Any]] | None) -> dict[str, Any]:
        state = read_state(self._layout, model)
        return {
            "model": model,
            "release": live.manifest.digest,
            "version": live.manifest.version,
            "previous": state.previous if state is not None else None,
            "parity": parity,
            "load": live.load,
        }


def _state_or_none(layout: Layout, model: str) -> ModelState | None:
    """The recorded state; a damaged one counts as none, because a new release replaces it."""
    try:
        return read_state(layout, model)
    except AgentError:
        _LOG.exception("state of %s is damaged; a new release replaces it", model)
        return None
