"""The agent that runs has another one take its place, and takes it back where that one does not serve.

The new agent is started beside this one, has a child process load each model that is served, and says so. Then the
upgrade is marked on disk; this agent answers the requests inside, closes its doors, lets go of the models and of the
state folder's lock, and tells the new one to take over. It waits until that one has proven itself, and ends; or it
starts anew, by running itself again in the same process. docs/adr/0011 has the reasons; `standby` is the other side.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import __version__
from .errors import AgentError
from .failpoints import reached
from .formats.manifest import Manifest
from .handover_link import Link
from .process import feeding, how_it_ended, serve_command
from .store.files import write_atomic
from .store.layout import Layout
from .store.locks import deploying
from .store.models import list_models
from .store.rules import ReleaseRules
from .store.slots import (
    FALLEN_BACK,
    REFUSED,
    Outcome,
    Trial,
    begin_trial,
    changing_agents,
    end_trial,
    has_slot,
    own_slot,
    read_outcome,
    read_trial,
    slot,
    slot_named,
)
from .systemd import Notifier
from .wire import PROTOCOLS_SPOKEN

__all__ = ["Upgrades"]

_LOG = logging.getLogger("kedge.upgrade")

# Loading one model is the longest that a standby is silent for.
_SILENCE_S = 300.0
_TAKEOVER_S = 30.0
_SLOWER = 3
# Of a release that was not loaded beside this agent: read, hashed, unpacked and loaded, from a slow card.
_SLOWEST_BYTES_PER_S = 5_000_000
_STOPPED = "the agent was stopped meanwhile"
_LOCK_S = 5.0


@dataclass
class _Upgrade:
    """One that is under way. step: "standby", "rehearse", "drain" or "takeover".

    alone: held to the end: nobody else changes agents. quiet: held until the new agent takes over: nobody deploys.
    tried: releases that the new agent has loaded beside this one.
    """

    trial: Trial
    alone: contextlib.ExitStack
    quiet: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    step: str = "standby"
    child: subprocess.Popen[bytes] | None = None
    link: Link | None = None
    began: float = 0.0
    prepared_s: float = 0.0
    tried: set[str] = field(default_factory=set)


class Upgrades:
    """What the control door asks of this agent about itself.

    Args:
        options: of `serve`, for whoever takes over.
        live: the releases that serve now.
        still: holds off deploys, of whatever model, while it is open; busy where there is one.
        leave: have the main thread stop serving, and then call `hand_over`.
        rules: what the device's settings say of who may sign, asked anew each time.
        installed: False where this process is not to be replaced: it ends with its parent.

    leaving: another agent is to take over. closed_at: when the doors were closed for it, of `time.monotonic`.
    """

    def __init__(
        self,
        layout: Layout,
        options: Sequence[str],
        live: Callable[[], Sequence[Manifest]],
        still: Callable[[], contextlib.AbstractContextManager[None]],
        leave: Callable[[], None],
        rules: Callable[[], ReleaseRules],
        *,
        installed: bool,
    ) -> None:
        self._layout = layout
        self._options = options
        self._live = live
        self._still = still
        self._leave = leave
        self._rules = rules
        self._own = own_slot(layout) if installed else None
        self._guard = threading.Lock()
        self._now: _Upgrade | None = None
        self._stopped = False
        self.leaving = False
        self.closed_at = 0.0

    def to_json(self) -> dict[str, Any]:
        """What this agent is, what is under way, and how the last time ended."""
        now, last = self._now, read_outcome(self._layout)
        under_way = None if now is None else {"bundle": now.trial.bundle, "step": now.step}
        if under_way is None and (trial := read_trial(self._layout)) is not None:
            # This agent is the one that takes over.
            under_way = {"bundle": trial.bundle, "step": "takeover"}
        return {
            "version": __version__,
            "protocols": list(PROTOCOLS_SPOKEN),
            "bundle": self._own,
            "previous": slot_named(self._layout, "previous"),
            "pid": os.getpid(),
            "python": platform.python_version(),
            "arch": platform.machine(),
            "glibc": platform.libc_ver()[1],
            "upgrade": under_way,
            "last": None if last is None else asdict(last),
        }

    def start(self, bundle: str) -> dict[str, Any]:
        """Have the agent of a bundle take this one's place; returns at once.

        Raises:
            AgentError: it is not here (not_found), or not signed as the device asks now (integrity), this agent does
                not run from a bundle (incompatible), or another upgrade is under way (busy).
        """
        with self._guard:
            if self._own is None:
                raise AgentError(
                    "this agent was not installed by kedge, and cannot replace itself",
                    kind="incompatible",
                    hint="upgrade it in the way it was installed, or once: kedge device provision DEVICE",
                )
            if bundle == self._own:
                return {"bundle": bundle, "state": "current"}
            if self._now is None:
                self._begin(bundle, self._own)
            elif self._now.trial.bundle != bundle:
                raise AgentError("another upgrade is under way", kind="busy", hint="wait for it to finish")
        return {"bundle": bundle, "state": "running"}

    def _begin(self, bundle: str, own: str) -> None:
        if not has_slot(self._layout, bundle):
            raise AgentError(
                f"agent {bundle[:12]} is not on this device",
                kind="not_found",
                hint="push it: kedge device upgrade DEVICE",
            )
        # Who signs, and with what program that is judged, an agent need not know that stays as it is.
        from .store.agents import judge_slot

        judge_slot(self._layout, self._rules(), bundle)
        alone = contextlib.ExitStack()
        alone.enter_context(changing_agents(self._layout, wait_s=_LOCK_S))
        self._now = _Upgrade(Trial(bundle, own, __version__), alone)
        threading.Thread(target=self._prepare, args=(self._now,), name="upgrade", daemon=True).start()

    def _prepare(self, upgrade: _Upgrade) -> None:
        _LOG.info("agent %s is started beside this one", upgrade.trial.bundle[:12])
        try:
            self._rehearse(upgrade)
            # From here on nobody begins to change what a model serves. The first deploy of one has no folder yet.
            upgrade.quiet.enter_context(self._still())
            for model in list_models(self._layout):
                upgrade.quiet.enter_context(deploying(self._layout, model))
            with self._guard:
                self._require_wanted()
                begin_trial(self._layout, upgrade.trial)
                reached("upgrade.marked")
                self.leaving = True
        except Exception as error:  # whatever it is, this agent serves on
            reason = _STOPPED if self._stopped else str(error)
            _LOG.error("the upgrade is off: %s", reason)
            self._end(upgrade, REFUSED, reason)
            with self._guard:
                upgrade.quiet.close()
                upgrade.alone.close()
                self._now = None
            return
        assert upgrade.link is not None
        upgrade.link.tell(marked=True)
        upgrade.step = "drain"
        self._leave()

    def _require_wanted(self) -> None:
        if self._stopped:
            raise AgentError(_STOPPED, kind="busy")

    def _rehearse(self, upgrade: _Upgrade) -> None:
        upgrade.began = time.monotonic()
        ours, theirs = socket.socketpair()
        upgrade.link = Link(ours)
        environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
        options = ["--standby", str(theirs.fileno()), *self._options]
        # Said before there is anybody to hear it: from its first moment on, the new agent knows all that it must.
        upgrade.link.tell(models=_named(self._live()), pid=os.getpid(), version=__version__)
        with theirs, self._guard:
            self._require_wanted()
            upgrade.child = subprocess.Popen(
                serve_command(self._layout.root, slot(self._layout, upgrade.trial.bundle), options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
                cwd="/",
            )
        upgrade.step = "rehearse"
        while True:
            try:
                said = upgrade.link.hear(_SILENCE_S)
            except TimeoutError:
                raise AgentError(f"the new agent said nothing for {_SILENCE_S:g} s", kind="internal") from None
            if said is None:
                raise AgentError(f"the new agent {how_it_ended(upgrade.child)}", kind="internal")
            if "error" in said:
                raise AgentError(f"the new agent would not serve: {said['error']}", kind="internal")
            if isinstance(said.get("tried"), str):
                upgrade.tried.add(said["tried"])
            if "ready" in said:
                break
        upgrade.prepared_s = time.monotonic() - upgrade.began

    def hand_over(self, notifier: Notifier, signals: int) -> bool:
        """With doors, models and lock given up, have the new agent take over, and see it serve.

        Args:
            signals: a file descriptor of signals' numbers: one that ends this agent ends the upgrade.

        Returns:
            Whether this agent is done: the new one serves, or somebody wants none. False: it must serve again.
        """
        upgrade = self._now
        assert upgrade is not None
        assert upgrade.link is not None
        assert upgrade.child is not None
        upgrade.step = "takeover"
        upgrade.quiet.close()
        reached("upgrade.released")
        # What serves may have changed since the rehearsal began, until the doors were closed.
        live = self._live()
        limit_s = _TAKEOVER_S + _SLOWER * upgrade.prepared_s + _load_s(live, upgrade.tried)
        marks = _read(self._layout.root / "running")
        upgrade.link.tell(go=True, models=_named(live), closed_at=self.closed_at)
        with feeding(notifier, limit_s):
            reason = self._await(upgrade, signals, limit_s)
        if reason is None:
            _LOG.info("agent %s serves; this one ends", upgrade.trial.bundle[:12])
            notifier.main_process(upgrade.child.pid)
            return True
        # Of what it had said it would do, it may have done the most important thing: `current` tells.
        stopped = reason == ""
        upgrade.child.kill()
        upgrade.child.wait()
        if slot_named(self._layout, "current") != upgrade.trial.bundle:
            # That it crashed is to be blamed on no model.
            with contextlib.suppress(OSError):
                write_atomic(self._layout.root / "running", marks, mode=0o600)
            self._end(upgrade, FALLEN_BACK, reason or _STOPPED)
        _LOG.error("this agent serves again: %s", reason or "it was stopped")
        return stopped

    def stop(self) -> None:
        """Somebody stops this agent, and wants no other: none takes over, not even one that was about to."""
        with self._guard:
            self._stopped = True
            upgrade, leaving, self.leaving = self._now, self.leaving, False
            if upgrade is not None and upgrade.child is not None:
                upgrade.child.kill()
        if leaving and upgrade is not None:
            self._end(upgrade, REFUSED, _STOPPED)

    def _await(self, upgrade: _Upgrade, signals: int, limit_s: float) -> str | None:
        """None: it serves. Empty: somebody wants this agent to stop. Else why it does not serve."""
        assert upgrade.link is not None
        assert upgrade.child is not None
        end = time.monotonic() + limit_s
        while True:
            try:
                said = upgrade.link.hear(max(0.0, end - time.monotonic()), signals)
            except TimeoutError:
                return f"the new agent did not serve within {limit_s:.0f} s"
            except InterruptedError:
                if os.read(signals, 1)[0] == signal.SIGHUP:
                    continue
                return ""
            if said is None:
                how = how_it_ended(upgrade.child)
                # It ends so when it is told to, and then nobody is to serve.
                return "" if upgrade.child.returncode == 0 else f"the new agent {how}"
            if "committed" in said:
                return None
            if "failed" in said:
                return f"the new agent could not serve: {said['failed']}"

    def _end(self, upgrade: _Upgrade, state: str, reason: str) -> None:
        if upgrade.child is not None:
            upgrade.child.kill()
            upgrade.child.wait()
        if upgrade.link is not None:
            upgrade.link.close()
        trial = upgrade.trial
        # Where it cannot be written down, the next start finds the mark and writes less.
        with contextlib.suppress(OSError):
            end_trial(self._layout, Outcome(trial.bundle, trial.former, trial.version, state, reason))


def _named(live: Sequence[Manifest]) -> dict[str, str]:
    return {manifest.model: manifest.digest for manifest in live}


def _load_s(live: Sequence[Manifest], tried: Collection[str]) -> float:
    """How long loading what was not tried may take, in seconds."""
    untried = [manifest for manifest in live if manifest.digest not in tried]
    return sum(entry.size_bytes for manifest in untried for entry in manifest.files) / _SLOWEST_BYTES_PER_S


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
