"""One deploy as its host sees it: the steps, what happened in them, and how it ended."""

from __future__ import annotations

import threading
from typing import Any

from ..errors import AgentError
from ..formats.manifest import Manifest
from ..store.journal import FINAL_STEPS
from .activation import Activated
from .job import RUNNING, Progress
from .loading import LiveModel
from .probation import Findings
from .reverting import taken_back
from .site import Site

__all__ = ["DONE", "REFUSED", "REVERTED", "DeployJob", "told_by_journal"]

DONE = "done"
REVERTED = "reverted"
REFUSED = "refused"

_STATES = {"committed": DONE, "reverted": REVERTED, "rolled-back": REVERTED, "refused": REFUSED}


class DeployJob(Progress):
    """A deploy of one release. It ends as DONE, REVERTED (to the release before) or REFUSED (nothing has changed)."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.digest = manifest.digest
        self.model = manifest.model
        self.version = manifest.version
        self.step = ""
        self.result: dict[str, Any] | None = None
        self.error: AgentError | None = None
        self._answered = threading.Event()
        self.enter("stage")

    def enter(self, step: str) -> None:
        """A step begins."""
        self.step = step
        self.tell({"event": "step", "step": step})

    def switched(self, done: Activated) -> None:
        """The release serves."""
        self.result = {
            **_report(self, done.live, done.previous),
            "parity": done.parity,
            "gates": list(done.gates),
            "probation": None,
            "before": done.before,
            "after": done.live.describe(),
        }
        self._answered.set()

    def resumed(self, live: LiveModel, previous: str | None) -> None:
        """The release serves, and an agent before this one had switched to it: what its gates found went with that."""
        self.result = {
            **_report(self, live, previous),
            "parity": None,
            "gates": [],
            "probation": None,
            "before": None,
            "after": live.describe(),
        }
        self._answered.set()

    def watched(self, found: Findings, **more: Any) -> None:
        """What the watch after the switch has found."""
        if self.result is not None:
            self.result["probation"] = {**found.to_json(), **more}

    def finish(self, state: str, error: AgentError | None = None) -> None:
        """It ended."""
        self.error = error
        if state == DONE:
            self.enter("done")
        self.end(state)
        self._answered.set()

    def until_switched(self) -> dict[str, Any]:
        """Wait until the release serves; what the old route answers.

        Raises:
            AgentError: it was refused.
        """
        self._answered.wait()
        if self.result is None:
            raise self.error or AgentError(f"the deploy of {self.model} ended", kind="internal")
        return {key: self.result[key] for key in ("model", "release", "version", "previous", "parity", "load")}

    def to_json(self, after: int, wait_s: float) -> dict[str, Any]:
        """What happened after the event number `after`, for the host."""
        events, following, ended = self.events(after, wait_s)
        error = self.error.to_json() if ended and self.error is not None else None
        return {
            "release": self.digest,
            "model": self.model,
            "state": self.state if ended else RUNNING,
            "step": self.step,
            "events": events,
            "next": following,
            "result": self.result if ended else None,
            "error": error,
        }


def told_by_journal(site: Site, digest: str, after: int) -> dict[str, Any]:
    """What came of a deploy that an agent before this one did; of one long ago, that the release is live.

    Raises:
        AgentError: nothing is known of it (not_found).
    """
    found = [entry for entry in site.journal.history() if entry.release == digest]
    if not found:
        live = (row["model"] for row in site.repository.status() if row["current"] == digest)
        if (model := next(live, None)) is not None:
            return _told(digest, model, DONE, after, None)
        raise AgentError(
            f"no deploy of release {digest[:12]} is known here",
            kind="not_found",
            hint="deploy it: kedge deploy RELEASE --to DEVICE",
        )
    last = found[-1]
    state = _STATES[last.step] if last.step in FINAL_STEPS else RUNNING
    reason = last.body.get("reason")
    error = None
    if state in (REVERTED, REFUSED):
        kind = str(last.body.get("kind", "gate"))
        said = str(reason or last.step)
        if state == REVERTED:
            said = taken_back(digest, said)
        error = {"error": said, "hint": "see: kedge history --on DEVICE", "kind": kind}
    return _told(digest, last.model, state, after, error)


def _told(digest: str, model: str, state: str, after: int, error: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "release": digest,
        "model": model,
        "state": state,
        "step": "done" if state == DONE else "probation" if state == REVERTED else "stage",
        "events": [],
        "next": after,
        "result": None,
        "error": error,
    }


def _report(job: DeployJob, live: LiveModel, previous: str | None) -> dict[str, Any]:
    return {
        "model": job.model,
        "release": job.digest,
        "version": job.version,
        "previous": previous,
        "load": live.load,
    }
