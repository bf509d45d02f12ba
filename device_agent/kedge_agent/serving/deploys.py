"""Deploys on this device: jobs that go on when the host is gone, the watch over what they switched to, the way back."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import AgentError
from ..failpoints import reached
from ..formats.manifest import Manifest
from ..store.crashes import Marks
from ..store.journal import FINAL_STEPS, Entry, Journal
from ..store.layout import Layout
from ..store.locks import deploying
from ..store.releases import read_acceptance, read_release
from ..store.rules import ReleaseRules
from ..store.signatures import describe, require_standing
from .activation import activate
from .deploy_job import DONE, REFUSED, REVERTED, DeployJob, told_by_journal
from .housekeeping import tidy_later
from .job import RUNNING
from .outcome import commit, revert, roll_back
from .probation import SUPERSEDED, Watch, probation_rules
from .replay import recover, replay, settle_crashes
from .repository import Repository
from .reverting import take_back, taken_back
from .site import Site, fault_of, known_state, state_of
from .stability import Stability

__all__ = ["Deploys"]

_LOG = logging.getLogger("kedge.deploys")

_ENDED_JOBS = 16
_MOST_ANONYMOUS = 5
_STOPPING, _ROLLED_BACK = "stopping", "rolled-back"


class Deploys:
    """What changes which release is live.

    Args:
        rules: what the device's settings say of releases, asked anew each time.
        marks: what the last agent left, and this one marks; None: crashes are not told from one another.
    """

    def __init__(
        self,
        layout: Layout,
        repository: Repository,
        journal: Journal,
        rules: Callable[[], ReleaseRules],
        marks: Marks | None = None,
    ) -> None:
        self.journal = journal
        self._site = Site(layout, repository, journal, rules)
        self._marks = marks
        self._guard = threading.Lock()
        self._starting = threading.Lock()
        self._staging = threading.Lock()
        self._jobs: dict[str, DeployJob] = {}
        self._watches: dict[str, Watch] = {}
        self._stability: Stability | None = None

    def begin(self) -> None:
        """Settle what the last agent left unfinished, load what each model serves, and watch on where it was watched.

        Never raises: the API is to be alive, whatever became of the models.
        """
        repository, marks = self._site.repository, self._marks
        held: dict[str, AgentError] = {}
        watched: dict[str, str] = {}
        problems: dict[str, str] = {}
        try:
            problems = recover(self._site)
            watched = replay(self._site, marks)
            if marks is not None:
                held, gone_back = settle_crashes(self._site, marks)
                problems |= gone_back
                if marks.anonymous >= _MOST_ANONYMOUS:
                    repository.safe_mode = f"safe mode: the agent crashed {marks.anonymous} times in a row"
        except Exception:
            _LOG.exception("what the last agent left could not be settled")

        def started(model: str) -> None:
            try:
                if model in problems and repository.serving(model) is not None:
                    repository.blame(model, AgentError(problems.pop(model), kind="integrity"))
                if model in watched:
                    self._watch_on(model, watched.pop(model))
            except Exception:
                _LOG.exception("what the last agent left of %s", model)

        if marks is not None:
            self._stability = Stability(marks, repository)
        repository.start(held, frozenset() if marks is None else marks.suspects, started)
        tidy_later(self._site)

    def start(self, digest: str) -> dict[str, Any]:
        """Deploy an accepted release, unless that is being done already.

        Raises:
            AgentError: it is not here (not_found), damaged (integrity), or another deploy is under way (busy).
        """
        job = self._start(digest, join=True)
        return {"release": digest, "model": job.model, "state": job.state}

    def watch(self, digest: str, after: int, wait_s: float) -> dict[str, Any]:
        """What happened in a deploy after the event number `after`; waits up to `wait_s` seconds for more to happen.

        Raises:
            AgentError: this release was never deployed here (not_found), or it is on probation, and the device in safe
                mode (gate).
        """
        job, safe_mode = self._jobs.get(digest), self._site.repository.safe_mode
        if job is not None:
            return job.to_json(after, wait_s)
        told = told_by_journal(self._site, digest, after)
        if told["state"] == RUNNING and safe_mode is not None:
            raise AgentError(
                f"release {digest[:12]} is on probation, which does not go on in {safe_mode}",
                kind="gate",
                hint=f"load {told['model']}, or deploy another release of it",
            )
        return told

    def activate(self, digest: str) -> dict[str, Any]:
        """As `start`, until the switch has happened; the watch over it goes on.

        Raises:
            AgentError: it was refused, and what served before serves on.
        """
        return self._start(digest, join=False).until_switched()

    def _start(self, digest: str, *, join: bool) -> DeployJob:
        # Two who ask at once are to find one deploy.
        with self._starting, contextlib.ExitStack() as stack:
            known = self._jobs.get(digest)
            if join and known is not None and known.state == RUNNING:
                return known
            manifest = read_release(self._site.layout, digest)
            stack.enter_context(_held(self._staging))
            stack.enter_context(self._site.repository.changing(manifest.model))
            stack.enter_context(deploying(self._site.layout, manifest.model))
            job = DeployJob(manifest)
            self._remember(job)
            locks = stack.pop_all()
        threading.Thread(target=self._run, args=(job, manifest, locks), daemon=True).start()
        return job

    def _remember(self, job: DeployJob) -> None:
        with self._guard:
            self._jobs.pop(job.digest, None)
            self._jobs[job.digest] = job
            ended = [digest for digest, each in self._jobs.items() if each.state != RUNNING]
            for digest in ended[:-_ENDED_JOBS]:
                del self._jobs[digest]

    def _run(self, job: DeployJob, manifest: Manifest, locks: contextlib.ExitStack) -> None:
        try:
            with locks:
                done = activate(self._site, manifest, job, self._watches.get(manifest.model))
                if self._marks is not None:
                    self._marks.forget(manifest.model)
                watch = self._watching(job, manifest, done.before_traffic_p99_ms)
        except Exception as error:  # whoever watches must hear of it
            self._end(job, REFUSED, fault_of(error, f"deploying {job.model}"))
            return
        # Whoever is answered may ask for the next deploy at once: the locks are free by then.
        job.switched(done)
        self._watch_over(job, watch)

    def _watching(self, job: DeployJob, manifest: Manifest, before_p99_ms: float | None) -> Watch:
        rules = probation_rules(manifest.gates.probation, self._site.rules().probation_s)
        watch = Watch(manifest, lambda: self._site.repository.serving(job.model), rules, before_p99_ms)
        with self._guard:
            self._watches[job.model] = watch
        return watch

    def _watch_over(self, job: DeployJob, watch: Watch) -> None:
        """Until the release is committed or taken back. On the way out of the agent nothing is decided."""
        try:
            job.enter("probation")
            with contextlib.suppress(OSError):
                reached("deploy.probation")
            watch.run(job.tell)
            if watch.cut_by == _STOPPING:
                return
            with self._site.repository.changing(job.model, wait=True):
                job.watched(watch.findings(), **watch.to_json(), cut_by=watch.cut_by)
                self._decide(job, watch)
                # Before anybody else changes the model: it is over.
                self._forget(watch)
        except Exception as error:
            _LOG.exception("the watch over %s", job.model)
            self._end(job, REFUSED, fault_of(error, f"watching {job.model}"))
        finally:
            self._forget(watch)

    def _forget(self, watch: Watch) -> None:
        with self._guard:
            if self._watches.get(watch.manifest.model) is watch:
                del self._watches[watch.manifest.model]

    def _decide(self, job: DeployJob, watch: Watch) -> None:
        broken = watch.broken
        if watch.cut_by == _ROLLED_BACK:
            hint = "see: kedge status --on DEVICE"
            self._end(job, REVERTED, AgentError("it was rolled back by a user", kind="gate", hint=hint))
        elif watch.cut_by is not None and broken is None:
            self._end(job, DONE)
        elif watch.cut_by == SUPERSEDED:
            said = f"{taken_back(job.digest, str(broken))}; another has taken its place"
            self._end(job, REVERTED, AgentError(said, kind="gate", hint="see: kedge history --on DEVICE"))
        elif broken is None:
            problem = commit(self._site, watch.manifest)
            if problem is not None:
                self._site.repository.blame(
                    job.model, AgentError(f"release {job.digest[:12]} serves, and that is not recorded: {problem}")
                )
            self._end(job, DONE)
            tidy_later(self._site)
        else:
            error = revert(self._site, watch.manifest, broken, watch.findings(), job)
            serving, state = self._site.repository.serving(job.model), known_state(self._site, job.model)
            now = serving.manifest.digest if serving is not None else state.current if state is not None else job.digest
            self._end(job, REFUSED if now == job.digest else REVERTED, error)

    def _watch_on(self, model: str, digest: str) -> None:
        """Watch a release anew that was on probation when the last agent ended."""
        live, state = self._site.repository.serving(model), state_of(self._site.layout, model)
        if state is None or state.current != digest or self._site.repository.safe_mode is not None:
            return
        if live is None or live.manifest.digest != digest:
            row = next((row for row in self._site.repository.status() if row["model"] == model), {})
            reason = str(row.get("problem") or "it could not be loaded at the start")
            take_back(self._site, model, digest, reason)
            return
        job = DeployJob(live.manifest)
        job.resumed(live, state.previous)
        self._remember(job)
        switching = (each for each in reversed(self.journal.history(model)) if each.step == "switching")
        before = next((each.body.get("before_p99_ms") for each in switching if each.release == digest), None)
        watch = self._watching(job, live.manifest, before if isinstance(before, (int, float)) else None)
        threading.Thread(target=self._watch_over, args=(job, watch), daemon=True).start()

    def _end(self, job: DeployJob, state: str, error: AgentError | None = None) -> None:
        with self._guard:
            ended = self._site.repository.deploys_ended
            ended[state] = ended.get(state, 0) + 1
        job.finish(state, error)

    def rollback(self, model: str) -> dict[str, Any]:
        """Switch a model back to the release it served before; a probation ends with it.

        Raises:
            AgentError: there is nothing to go back to (not_found), or it is damaged (integrity).
        """
        with self._site.repository.changing(model):
            live, state = roll_back(self._site, model)
            watch = self._watches.get(model)
            if watch is not None:
                watch.cut(_ROLLED_BACK)
            return {
                "model": model,
                "release": live.manifest.digest,
                "version": live.manifest.version,
                "previous": state.previous,
                "parity": None,
                "load": live.load,
            }

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Nobody deploys while the context is open, whatever model.

        Raises:
            AgentError: somebody does (busy).
        """
        with _held(self._staging):
            yield

    def status(self) -> list[dict[str, Any]]:
        """The rows of `Repository.status`, and what is known of each model's deploys."""
        last = {entry.model: entry for entry in self.journal.history() if entry.step in FINAL_STEPS}
        return [row | self._known_of(row, last.get(row["model"])) for row in self._site.repository.status()]

    def _known_of(self, row: dict[str, Any], last: Entry | None) -> dict[str, Any]:
        model = row["model"]
        state, watch = state_of(self._site.layout, model), self._watches.get(model)
        signed = None
        if row["release"] is not None:
            with contextlib.suppress(AgentError):
                signed = read_acceptance(self._site.layout, row["release"]).signed
        outcome = None
        if last is not None:
            outcome = {"step": last.step, "release": last.release, "reason": last.body.get("reason"), "at_s": last.at_s}
        return {
            "version_floor": None if state is None else state.floor,
            "downgrade_serial": None if state is None else state.downgrade,
            "signed": signed,
            "probation": None if watch is None else watch.to_json(),
            "last": outcome,
        }

    def permit(self, digest: str) -> None:
        """Refuse a release that is not signed as it has to be now: not to be deployed, and not to be compiled.

        Raises:
            AgentError: it is not on this device (not_found), or as `require_standing`.
        """
        layout = self._site.layout
        manifest = read_release(layout, digest)
        require_standing(layout, self._site.rules(), manifest, read_acceptance(layout, digest), None)

    def signatures(self) -> dict[str, Any]:
        """What this device asks for of releases, and whether it can verify it."""
        return describe(self._site.rules())

    def close(self) -> None:
        """Leave what is on probation to the next agent, and tell it that this one ends in order."""
        if self._stability is not None:
            self._stability.close()
        for watch in list(self._watches.values()):
            watch.cut(_STOPPING)
        self._site.closed.set()
        if self._marks is not None:
            self._marks.close(self._site.repository.hung())


@contextlib.contextmanager
def _held(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(blocking=False):
        raise AgentError(
            "another activation is under way", kind="busy", hint="wait for it to finish, then run the command again"
        )
    try:
        yield
    finally:
        lock.release()
