"""An agent beside the one that runs: it proves that it could serve, and on a word takes over. `handover` is the other
side.

Until then it changes nothing in the state folder. Where the other one ends by itself, this one does not wait for the
word; where it was told to stop, it has ended this one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import AgentError
from .failpoints import reached
from .handover_link import Link
from .runtime.base import Runtime
from .runtime.pool import PoolRules
from .serving.loading import rehearse
from .serving.repository import Repository
from .serving.site import state_of
from .serving.staging import stage_release
from .store.layout import Layout
from .store.slots import (
    COMMITTED,
    Outcome,
    Trial,
    begin_trial,
    clean_slots,
    commit_trial,
    end_trial,
    own_slot,
    read_trial,
    settle,
    slot_named,
)
from .watchdog import ask_health

__all__ = ["Standby"]

_LOG = logging.getLogger("kedge.upgrade")

_TALK_S = 30.0
_ASK_S = 10.0


class Standby:
    """This process, before it is the agent.

    Args:
        handle: of the socket to the agent that runs.
    """

    def __init__(self, handle: int, layout: Layout) -> None:
        os.set_inheritable(handle, False)
        self._link = Link(socket.socket(fileno=handle))
        self._layout = layout
        self._trial: Trial | None = None
        self._expected: Mapping[str, str] = {}
        self._old: object = None
        self._version = ""
        self._closed_at: float | None = None
        self._doors_ms: float | None = None

    def rehearse(self, runtimes: Mapping[str, Runtime], threads: int, rules_of: Callable[[str], PoolRules]) -> None:
        """Load each release that is being served in a child process, one at a time; then say that all is well.

        Raises:
            AgentError: one cannot be loaded (it is told to the other agent too), or the other agent has gone.
        """
        said = self._hear(_TALK_S)
        models = said.get("models")
        self._expected = dict(models) if isinstance(models, dict) else {}
        self._old, self._version = said.get("pid"), str(said.get("version"))
        for model, digest in self._expected.items():
            tried: str | None = digest
            try:
                rehearse(self._layout, stage_release(self._layout, runtimes, digest, threads, rules_of(model)))
            except AgentError as error:
                if error.kind != "space":
                    self._link.tell(error=f"{model}: {error}")
                    raise
                # Beside the agent that serves it, it does not fit; in its place it may.
                _LOG.warning("%s cannot be tried now: %s", model, error)
                tried = None
            self._link.tell(progress=model, tried=tried)
        reached("upgrade.standby")
        self._link.tell(ready=True)

    def wait(self) -> None:
        """Return when it is this agent's turn: the other one says so, or has ended by itself."""
        said = self._link.hear(None)
        if said is not None:
            # It has marked the upgrade, and answers the requests inside.
            said = self._link.hear(None)
        models, closed_at = (said or {}).get("models"), (said or {}).get("closed_at")
        if isinstance(models, dict):
            self._expected = dict(models)
        self._closed_at = closed_at if isinstance(closed_at, float) else None

    def take(self, last: int | None) -> None:
        """With the state folder's lock in hand, see that it is still this agent's turn.

        Args:
            last: the process that held the lock before.

        Raises:
            AgentError: another agent ran meanwhile, and the upgrade is over (busy).
        """
        own, former = own_slot(self._layout), slot_named(self._layout, "current")
        if last != self._old or own is None or former is None:
            raise AgentError("the upgrade is over: another agent has run meanwhile", kind="busy")
        self._trial = read_trial(self._layout)
        if self._trial is None:
            # The other one ended before it came to that.
            self._trial = Trial(own, former, self._version)
            begin_trial(self._layout, self._trial)
        reached("upgrade.taken")

    def opened(self) -> None:
        """The doors are open."""
        self._doors_ms = self._since()

    def prove(self, repository: Repository, door: Path) -> None:
        """With every model loaded, see that all is served that was, and make this agent the one that is started.

        Returns once the other agent has gone, and this one is the only one.

        Raises:
            AgentError: something is not served, and the other agent is not there to serve again.
            OSError: as the file system says, and the same.
        """
        try:
            self._check(repository, door)
            reached("upgrade.healthy")
            self._commit()
        except Exception as error:
            self._link.tell(failed=str(error))
            # It ends this process, and serves again. Where it is gone, nobody does.
            with contextlib.suppress(TimeoutError):
                self._link.hear(_TALK_S)
            settle(self._layout, str(error))
            raise
        self._link.tell(committed=True)
        with contextlib.suppress(TimeoutError):
            self._link.hear(_TALK_S)
        self._link.close()
        threading.Thread(target=self._clean, daemon=True).start()

    def _check(self, repository: Repository, door: Path) -> None:
        problem = ask_health(door, _ASK_S)
        if problem is not None:
            raise AgentError(problem, kind="internal")
        for model, digest in self._expected.items():
            serving = repository.get(model).manifest.digest
            state = state_of(self._layout, model)
            # An agent that ended by itself could not tell what was deployed, or taken back, since it said what serves.
            if serving != digest and (state is None or serving != state.current):
                raise AgentError(f"{model} serves {serving[:12]}, not {digest[:12]}", kind="internal")

    def _commit(self) -> None:
        trial = self._trial
        assert trial is not None
        commit_trial(self._layout, trial)
        reached("upgrade.committed")
        outcome = Outcome(
            trial.bundle,
            trial.former,
            trial.version,
            COMMITTED,
            doors_ms=self._doors_ms,
            models_ms=self._since(),
        )
        try:
            end_trial(self._layout, outcome)
        except OSError as error:
            _LOG.error("the upgrade stands, and cannot be written down: %s", error)

    def _clean(self) -> None:
        # Whoever else changes agents now cleans up after themselves.
        with contextlib.suppress(AgentError, OSError):
            clean_slots(self._layout)

    def _since(self) -> float | None:
        return None if self._closed_at is None else (time.monotonic() - self._closed_at) * 1000

    def _hear(self, timeout_s: float | None) -> Mapping[str, object]:
        try:
            said = self._link.hear(timeout_s)
        except TimeoutError:
            said = None
        if said is None:
            raise AgentError("the agent that runs has gone, or says nothing", kind="no_agent")
        return said
