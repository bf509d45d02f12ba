"""Drive a rollout: hand out what may begin, write down what is answered, and stop where it must.

One thread coordinates. Whatever it decides follows from the ledger alone, so that whoever drives it next goes on where
this one ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any

from ...errors import BadInputError, ExitCode, IncompatibleError, IntegrityError, KedgeError, UnreachableError
from ..executor import defect, open_executor
from .answers import made_answer, read_answer
from .decide import due, next_task, pause_left_s
from .flights import Flight, Flights, Threads
from .ledger import Ledger, Pen
from .machine import Rollout
from .plan import Plan
from .reading import UnreadableError
from .tasks import task_for

__all__ = ["Complete", "Explain", "Hear", "Work", "drive", "resume"]

Work = Callable[[Mapping[str, Any]], Any]
"""A task becomes its answer (`fleet.task.run_task`); what it returns is checked."""

Hear = Callable[[Rollout, Mapping[str, Any]], None]
"""Told of each event after it counts, on the driver's thread."""

Explain = Callable[[BaseException], KedgeError]
"""What a future means that ended without an answer (`fleet.executor.Workers.explain`)."""

Complete = Callable[[Plan, Mapping[str, Any], Path], Mapping[str, Any]]
"""Plan, the answer "built", path of the key → an engine for all of its passport (`fleet.engines.complete_for`)."""

_GRACE_S = 30.0
_LOOKS_UP_S = 1.0


def _as_many_as_wanted() -> int | None:
    return None


def _deaf(rollout: Rollout, event: Mapping[str, Any]) -> None:
    """Nobody listens."""


def drive(
    ledger: Ledger,
    executor: Executor,
    *,
    work: Work | None = None,
    hear: Hear = _deaf,
    explain: Explain = defect,
    threads: Threads = _as_many_as_wanted,
    complete: Complete | None = None,
    grace_s: float = _GRACE_S,
) -> Rollout:
    """Drive a new rollout to its end; one that has begun is resumed.

    Args:
        work: what is submitted; None: `fleet.task.run_task`.
        threads: how many tasks the executor runs at a time, asked anew as it goes on: no more are handed out.
        complete: None: `fleet.engines.complete_for`.
        grace_s: how long after its deadline a worker may still answer; and how long there may be no worker at all.

    Returns:
        The rollout as it ended; where `ended` is None, workers were lost: `interrupted` says why, with an exit code.

    Raises:
        BusyError: somebody drives it already.
        BadInputError: the ledger's disk takes no more.
        IntegrityError, IncompatibleError: the ledger cannot be read.
        KeyboardInterrupt: what runs is left to the devices; it can be resumed.
    """
    with ledger.driving() as pen:
        begun = pen.rollout.begun_s is not None
        event = {"event": "resumed", "skip_failed": False} if begun else {"event": "begun"}
        return _Driver(ledger, pen, executor, work, hear, explain, threads, complete, grace_s).run(event)


def resume(
    ledger: Ledger,
    executor: Executor,
    *,
    skip_failed: bool = False,
    work: Work | None = None,
    hear: Hear = _deaf,
    explain: Explain = defect,
    threads: Threads = _as_many_as_wanted,
    complete: Complete | None = None,
    grace_s: float = _GRACE_S,
) -> Rollout:
    """Go on with a rollout: after its driver died, after a halt, or, where devices failed, after its end.

    One that was asked to end is only ended. One of which nothing remains to be done is returned as it is.

    Args:
        skip_failed: leave devices that failed as they are, and count them no longer; else they are tried again, first.

    Returns, raises:
        As `drive`; BadInputError also: it was aborted, and has ended.
    """
    with ledger.driving() as pen:
        rollout = pen.rollout
        if rollout.ended == "aborted":
            ledger.forget_abort()
            raise BadInputError(
                f"rollout {ledger.id} was aborted",
                hint="begin another: what serves the release is left as it is",
            )
        if rollout.ended == "done" and (skip_failed or not rollout.failed):
            ledger.forget_abort()
            return rollout
        event = {"event": "resumed", "skip_failed": skip_failed}
        return _Driver(ledger, pen, executor, work, hear, explain, threads, complete, grace_s).run(event)


class _Driver:
    """Drives one rollout once."""

    def __init__(
        self,
        ledger: Ledger,
        pen: Pen,
        executor: Executor,
        work: Work | None,
        hear: Hear,
        explain: Explain,
        threads: Threads,
        complete: Complete | None,
        grace_s: float,
    ) -> None:
        self._ledger = ledger
        self._pen = pen
        self._rollout = pen.rollout
        self._executor = executor
        self._work = work or _run_task()
        self._hear = hear
        self._explain = explain
        self._complete = complete or _complete_for
        self._grace_s = grace_s
        self._flights = Flights(self._rollout, threads, self._rollout.plan.options.deadline_s + grace_s)
        self._completing: dict[Future[Any], tuple[str, str]] = {}
        self._lost: KedgeError | None = None
        self._pause: tuple[float, float] | None = None
        # Never done: to be waited for where nothing is in flight.
        self._nothing: Future[Any] = Future()

    def run(self, first: Mapping[str, Any]) -> Rollout:
        try:
            # An end that was asked for while nobody drove comes first: what is to be ended is not tried again.
            self._look_up()
            self._write(first)
            # Vouching for an engine is this host's own work, also where the tasks are done elsewhere.
            with open_executor(None, 1) as host:
                # Who asks for an end while this one comes to its own sees the lock held, and counts on being heard.
                while not self._over() or (self._look_up() and not self._over()):
                    self._flights.look()
                    self._begin_tasks()
                    self._complete_engines(host.executor)
                    self._wait()
                    self._give_up_late()
                    self._look_up()
            self._look_up()
        except KeyboardInterrupt:
            self._interrupt("it was interrupted; what runs, the devices end by themselves", ExitCode.INTERRUPTED)
            raise
        self._pen.sync()
        return self._rollout

    def _over(self) -> bool:
        """Write down all that is due; whether nothing more is to be done here."""
        while (event := due(self._rollout, time.time(), self._paused_s())) is not None:
            self._write(event)
        if self._rollout.ended is None and self._lost is not None and not self._flights:
            self._interrupt(self._lost.message, self._lost.exit_code, self._lost.hint)
            return True
        return self._rollout.ended is not None

    def _begin_tasks(self) -> None:
        if self._flights.deserted_s > self._grace_s:
            self._desert()
        begun: list[tuple[str, str]] = []
        while self._lost is None and self._flights.has_room(len(begun)) and (found := next_task(self._rollout)):
            device, kind = found
            self._write({"event": "task", "device": device, "kind": kind})
            begun.append(found)
        # Where the power fails once a device has its task, neither that nor what it follows from may be forgotten.
        self._pen.sync()
        for place, (device, kind) in enumerate(begun):
            try:
                future = self._executor.submit(self._work, task_for(self._rollout, device, kind))
            except Exception as error:  # a pool that broke, or was shut down, says so in its own way
                for lost, _ in begun[place:]:
                    self._lose(lost, error)
                return
            self._flights.add(future, device, kind)

    def _desert(self) -> None:
        """There are no workers any more: nothing is known of what they had, and no device is to blame."""
        self._lost = self._lost or UnreachableError(
            f"there has been no worker for {self._grace_s:g} s",
            hint=f"start some, then: kedge rollout resume {self._ledger.id}",
        )
        for future, flight in self._flights.landed(list(self._flights)):
            future.cancel()
            self._write({"event": "lost", "device": flight.device, "reason": self._lost.message})

    def _wait(self) -> None:
        left = [_LOOKS_UP_S, *self._flights.left_s()]
        pause_s = pause_left_s(self._rollout, time.time(), self._paused_s())
        if pause_s is not None:
            left.append(pause_s)
        futures = [self._nothing, *self._flights, *self._completing]
        done = wait(futures, max(min(left), 0.0), return_when=FIRST_COMPLETED).done
        for future, flight in self._flights.landed(done):
            self._land(future, flight)
        for future in [each for each in self._completing if each in done]:
            device, key = self._completing.pop(future)
            self._completed(future, device, key)

    def _land(self, future: Future[Any], flight: Flight) -> None:
        try:
            told = future.result()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the work never raises for what a device does
            self._lose(flight.device, error)
            return
        try:
            answer = read_answer(told, flight.device, flight.kind)
            key = self._rollout.device(flight.device).engine_key
            if answer["state"] == "built" and answer["engine"]["key"] != key:
                raise UnreadableError("it built another engine than it was asked for")
            if answer["state"] == "needs_engine" and self._rollout.plan.options.attest is None:
                raise UnreadableError("it asks for an engine that nobody could vouch for")
        except (UnreadableError, RecursionError) as error:
            reason = f"its worker answered what makes no sense: {error}"
            hint = "workers must run the same kedge as the host that drives them"
            answer = made_answer(flight.device, flight.kind, "failed", reason, hint, ExitCode.INCOMPATIBLE)
        self._write({"event": "answer", "answer": answer})

    def _give_up_late(self) -> None:
        self._flights.look()
        for future, flight in self._flights.overdue():
            future.cancel()
            reason = f"its worker has not answered within {self._rollout.plan.options.deadline_s:g} s"
            hint = f"the device may have gone on: kedge status --on {flight.device}"
            if self._flights.queued and not flight.begun:
                reason = "no worker has told that it began with it"
                hint = "see whether the workers are busy with something else; then resume the rollout"
            answer = made_answer(flight.device, flight.kind, "late", reason, hint, ExitCode.OUTCOME_UNKNOWN)
            self._write({"event": "answer", "answer": answer})

    def _lose(self, device: str, error: BaseException) -> None:
        """A worker is gone: nothing more begins here, and its device is as it was."""
        found = self._explain(error)
        self._lost = self._lost or found
        self._write({"event": "lost", "device": device, "reason": found.message})

    def _complete_engines(self, host: Executor) -> None:
        if self._rollout.stopped or self._lost is not None:
            return
        under_way = {key for _, key in self._completing.values()}
        for key, answer in self._rollout.builds.built.items():
            if key not in under_way:
                attest = Path(self._rollout.plan.options.attest or "")
                future = host.submit(self._complete, self._rollout.plan, answer, attest)
                self._completing[future] = (answer["device"], key)

    def _completed(self, future: Future[Any], device: str, key: str) -> None:
        try:
            self._write({"event": "engine", "device": device, "engine": dict(future.result())})
        except (IntegrityError, IncompatibleError, UnreadableError) as error:
            said = {"reason": str(error), "hint": getattr(error, "hint", ""), "exit_code": int(ExitCode.INTEGRITY)}
            self._write({"event": "engine_refused", "device": device, "key": key, **said})
        except KedgeError as error:
            # It is this host that cannot: no other device would fare better.
            self._lost = self._lost or error
        except Exception as error:
            self._lost = self._lost or defect(error)

    def _look_up(self) -> bool:
        """Whether somebody asks for an end, or for more of one than before."""
        rollback = self._ledger.asked_abort()
        if rollback is None:
            return False
        aborted = self._rollout.aborted
        hears = self._rollout.ended in (None, "halted") and (aborted is None or (rollback and not aborted))
        if hears:
            self._write({"event": "abort", "rollback": rollback})
            self._pen.sync()
        self._ledger.forget_abort()
        return hears

    def _interrupt(self, reason: str, code: ExitCode, hint: str = "") -> None:
        for future in self._flights:
            future.cancel()
        event = {"event": "interrupted", "reason": reason, "exit_code": int(code)}
        if self._rollout.ended is None:
            # Where the disk is full as well, the ledger says all that matters already.
            with contextlib.suppress(BadInputError):
                self._write({**event, "hint": hint or f"kedge rollout resume {self._ledger.id}"})
                self._pen.sync()

    def _paused_s(self) -> float:
        """How long this driver has seen the pause of the wave last."""
        wave = self._rollout.this_wave if self._rollout.wave else None
        if wave is None or wave.watched_s is None:
            self._pause = None
            return 0.0
        if self._pause is None or self._pause[0] != wave.watched_s:
            self._pause = (wave.watched_s, time.monotonic())
        return time.monotonic() - self._pause[1]

    def _write(self, event: Mapping[str, Any]) -> None:
        written = self._pen.write(event)
        self._hear(self._rollout, written)


def _run_task() -> Work:
    from ..task import run_task

    return run_task


def _complete_for(plan: Plan, answer: Mapping[str, Any], key: Path) -> Mapping[str, Any]:
    # Most rollouts need no engine, and none of what this imports.
    from ..engines import complete_for

    return complete_for(plan, answer, key)
