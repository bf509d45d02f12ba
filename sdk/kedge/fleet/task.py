"""One device's part of a rollout: a task, plain JSON that names all it needs, becomes an answer, plain JSON again.

It runs in a thread of the host, or in a worker near the device that knows neither inventory nor ledger.

A task: `rollout`, `device`, `kind` (deploy, build, look, rollback), `address` (`fleet.way`), `target`, `model`,
`release` ({"digest", "source"}), `engines` (completed releases so far: {"key", "passport", "release"}), `build_own`
(the device compiles for itself, for nobody vouches for engines), `deadline_s` (from the start of the task on),
`limit_bytes_per_s`, `downgrade` (null, or {"document", "signatures"}, as an offer has it), `first_s`: when the device
was first tasked with what it is tasked with now, in seconds since 1970. Of a deploy that the device began since then,
the end is told, though nobody listened; one that was answered and is to be tried anew has a `first_s` of its own. Of a
rollback: since when the rollout may have begun what serves, and null where the device said that it did.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kedge_agent.formats.offer import Signed

from ..deploy.engines import engine_on_device, needs_engine, prepared, wanted_engine
from ..deploy.history import read_history
from ..deploy.patience import hang_up
from ..deploy.pending import allowing_for_clocks, has_begun
from ..deploy.push import DEVICE_STEPS, deploy
from ..deploy.rollback import rollback
from ..errors import (
    AgentMissingError,
    BadInputError,
    BusyError,
    InternalError,
    KedgeError,
    OutcomeUnknownError,
    UnreachableError,
    first_line,
)
from ..release.bundle import Release
from ..release.remote import fetched
from ..targets import Target, host_target, load_target
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from .ends import NOTHING, ended, late
from .engines import built_engine, choose_engine
from .served import look_at, serves, serves_at_last, what_serves
from .way import Opener, local_way, open_way

__all__ = ["run_task"]

Step = Callable[[str], None]
T = TypeVar("T")

_ANSWER_S = 20.0
# A device takes a minute to notice that a host which pushed to it has died.
_BUSY_S = 75.0
_BUSY_PAUSE_S = 2.0
# These may come of the deadline itself: what waits is ended by it.
_CUT_SHORT = (UnreachableError, OutcomeUnknownError, AgentMissingError, BusyError, InternalError)

_verified: dict[str, tuple[Any, ...]] = {}
_verifying = threading.Lock()


def _silent(step: str) -> None:
    """Steps for nobody."""


def run_task(task: Mapping[str, Any], *, opener: Opener = open_way, step: Step = _silent) -> dict[str, Any]:
    """Do what a task says, by its deadline.

    Args:
        opener: opens the way to the device.
        step: told of each step as it begins.

    Returns:
        The answer: `device`, `kind`, `state`, `reason`, `hint`, `exit_code`, `seconds`, `steps` (seconds by name),
        `cpu_s` (of this thread; what the transport's own threads take is not in it), `worker`, `deployed`, `engine`,
        `look`. Whatever the device does is a state of it; a defect here is `failed`, with exit code 1.
    """
    begun, cpu = time.monotonic(), time.thread_time()
    work = _Work(task, opener, step)
    answer = work.run()
    return {
        "device": task["device"],
        "kind": task["kind"],
        **answer,
        "seconds": time.monotonic() - begun,
        "steps": work.ended_steps(),
        "cpu_s": time.thread_time() - cpu,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }


class _Work:
    """One task under way."""

    def __init__(self, task: Mapping[str, Any], opener: Opener, step: Step) -> None:
        self._task = task
        self._opener = opener
        self._told = step
        self._device = str(task["device"])
        self._digest = str(task["release"]["digest"])
        self._deadline = Deadline.after(float(task["deadline_s"]), self._device)
        first_s = self._task["first_s"]
        self._since_s = None if first_s is None else allowing_for_clocks(float(first_s), time.time())
        self._steps: dict[str, float] = {}
        self._step = ""
        self._since = time.monotonic()

    def run(self) -> dict[str, Any]:
        kinds = {"deploy": self._deploy, "build": self._build, "look": self._look, "rollback": self._rollback}
        try:
            self._enter("connect")
            return {**NOTHING, **kinds[self._task["kind"]]()}
        except KedgeError as error:
            if self._deadline.has_passed and isinstance(error, _CUT_SHORT):
                return self._late(error)
            return ended(self._task["kind"], error)
        except Exception as error:  # whatever it is, the rollout goes on without this device
            if self._deadline.has_passed:
                # What was under way when the transport was closed may fail in any way.
                return self._late(InternalError(first_line(error)))
            told = f"{self._device}: {type(error).__name__}: {first_line(error)}"
            hint = "this is a defect of kedge: report it, with this line"
            return ended(self._task["kind"], InternalError(told, hint=hint))

    def _late(self, error: KedgeError) -> dict[str, Any]:
        goes_on = self._step in DEVICE_STEPS or isinstance(error, OutcomeUnknownError)
        return late(self._task["kind"], self._device, self._step, self._task["deadline_s"], goes_on=goes_on)

    def ended_steps(self) -> dict[str, float]:
        """Seconds by step."""
        self._enter("")
        return self._steps

    def _enter(self, step: str) -> None:
        now = time.monotonic()
        if self._step:
            self._steps[self._step] = self._steps.get(self._step, 0.0) + now - self._since
        self._step, self._since = step, now
        if step:
            self._told(step)

    @contextmanager
    def _open(self) -> Iterator[tuple[Transport, AgentClient]]:
        """The way to the device; at the deadline it is closed, whoever waits on it."""
        with self._opener(self._device, self._task["address"]) as transport:
            left_s = max(self._deadline.at - time.monotonic(), 0.0)
            alarm = threading.Timer(left_s, hang_up, [transport])
            alarm.daemon = True
            alarm.start()
            client = AgentClient(transport, _ANSWER_S, self._deadline)
            try:
                yield transport, client
            finally:
                alarm.cancel()
                client.close()

    def _deploy(self) -> dict[str, Any]:
        with self._open() as (transport, client):
            live = what_serves(client, self._device, self._task["model"])
            is_there = serves(client, live.release, self._digest, self._completed())
            if is_there and not live.on_probation and not self._began_it(transport, str(live.release)):
                return {"state": "current"}
            given = self._fetched(self._task["release"])
            if needs_engine(given) is None:
                return self._deployed(transport, client, given)
            self._enter("engine")
            target = self._target()
            if not self._task["build_own"]:
                want = wanted_engine(transport, client, target, given)
                chosen = choose_engine(want, self._task["engines"])
                if chosen is None:
                    told = {"key": want.key, "passport": want.passport.to_json()}
                    return {"state": "needs_engine", "engine": told}
                return self._deployed(transport, client, self._fetched(chosen))
            with tempfile.TemporaryDirectory(prefix="kedge-task-") as folder:
                own = self._patiently(
                    lambda: prepared(
                        transport,
                        target,
                        given,
                        Path(folder) / "release",
                        lambda step, share: None,
                        downgrade=self._downgrade(),
                        limit_bytes_per_s=self._task["limit_bytes_per_s"],
                        alone=True,
                        deadline=self._deadline,
                    )
                )
                return self._deployed(transport, client, own)

    def _deployed(self, transport: Transport, client: AgentClient, release: Release) -> dict[str, Any]:
        _verify_once(release)
        done = self._patiently(
            lambda: deploy(
                transport,
                release,
                state=self._enter,
                downgrade=self._downgrade(),
                limit_bytes_per_s=self._task["limit_bytes_per_s"],
                since_s=self._since_s,
                verified=True,
                deadline=self._deadline,
                client=client,
            )
        )
        return {"state": "updated", "deployed": done.to_json()}

    def _build(self) -> dict[str, Any]:
        with self._open() as (transport, client):
            given = self._fetched(self._task["release"])
            _verify_once(given)
            self._enter("engine")
            target = self._target()
            want = wanted_engine(transport, client, target, given)
            engine, _ = self._patiently(
                lambda: engine_on_device(
                    transport,
                    target,
                    given,
                    lambda step, share: None,
                    downgrade=self._downgrade(),
                    limit_bytes_per_s=self._task["limit_bytes_per_s"],
                    alone=True,
                    deadline=self._deadline,
                )
            )
            self._enter("send back")
            return {"state": "built", "engine": built_engine(want, engine, given, self._task["release"]["source"])}

    def _look(self) -> dict[str, Any]:
        with self._open() as (_, client):
            return {
                "state": "looked",
                "look": look_at(client, self._device, self._task["model"], self._digest, self._completed()),
            }

    def _rollback(self) -> dict[str, Any]:
        with self._open() as (transport, client):
            ours = {self._digest, *self._completed()}
            live = serves_at_last(client, self._device, self._task["model"], ours, self._deadline)
            if not serves(client, live, self._digest, self._completed()):
                return {"state": "rolled_back", "reason": "it did not serve the release any more: nothing was done"}
            if not self._began_it(transport, str(live)):
                return {"state": "rolled_back", "reason": "it served it before this rollout: nothing was done"}
            self._enter("rollback")
            try:
                rollback(transport, self._task["model"], self._deadline)
            except BadInputError as error:
                # It has nothing to go back to.
                hint = f"kedge deploy RELEASE --to {self._device}, with one that it is to serve instead"
                raise BadInputError(error.message, hint=hint) from error
            except OutcomeUnknownError:
                # What it did, its status tells.
                hang_up(transport)
                client.close()
                now = what_serves(client, self._device, self._task["model"]).release
                if now is None or serves(client, now, self._digest, self._completed()):
                    raise
            return {"state": "rolled_back"}

    def _began_it(self, transport: Transport, live: str) -> bool:
        """Whether what serves was deployed by this rollout, though whoever listened may have died."""
        if self._since_s is None:
            return True
        left_s = min(_ANSWER_S, self._deadline.remaining())
        entries = read_history(transport, self._task["model"], timeout_s=left_s)
        return has_begun([each for each in entries if each["release"] == live], self._since_s)

    def _fetched(self, source: Mapping[str, str]) -> Release:
        self._enter("fetch")
        return fetched(source, deadline=self._deadline)

    def _completed(self) -> set[str]:
        return {str(each["release"]["digest"]) for each in self._task["engines"]}

    def _target(self) -> Target:
        return host_target() if self._task["address"] == local_way() else load_target(self._task["target"])

    def _downgrade(self) -> Signed | None:
        told = self._task["downgrade"]
        return None if told is None else Signed(told["document"].encode(), told["signatures"].encode())

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do it as soon as the device is not at something else."""
        end = min(time.monotonic() + _BUSY_S, self._deadline.at - _BUSY_PAUSE_S)
        while True:
            try:
                return act()
            except BusyError:
                if time.monotonic() >= end:
                    raise
                time.sleep(_BUSY_PAUSE_S)


def _verify_once(release: Release) -> None:
    """Hash a release's files, unless this process has, and they are as they were: a thousand devices may get it.

    Raises:
        IntegrityError: as `Release.verify`.
    """
    # Who asks while another one hashes waits, and need not.
    with _verifying:
        stats = [(path, path.stat()) for _, path in release.files()]
        now = tuple((str(path), found.st_ino, found.st_size, found.st_mtime_ns) for path, found in stats)
        if _verified.get(release.digest) != now:
            release.verify()
            _verified[release.digest] = now
