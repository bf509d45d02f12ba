"""One device in a rollout: where it stands, and how it came there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ExitCode
from .answers import DEPLOY, FAILURES
from .plan import Planned

__all__ = ["DeviceState"]


@dataclass
class DeviceState:
    """What the events say of a device.

    round: the wave in which it was last reached; 0: in none. queued, flying: the kind of task that it waits for, or
    that a worker has. release: that it said it serves. engine_key: of the engine that it asked for. look: what it said
    when it was looked at after the last pause of its wave. judged: what it had said when its wave was judged last.
    gate_p99_ms: of its gate, on golden inputs, before it switched; p99_ms: what is shown. left: it was updated, and
    then not found to serve the release. skipped: its failure no longer counts. first_s: when it was first tasked with a
    deploy that it has not said to have come to nothing: a worker tells the end of what the device began since then,
    though nobody listened. given: a worker was to give it the release, and nothing says that it does not serve it.
    said_updated: it said that it does.
    """

    planned: Planned
    state: str = "waiting"
    round: int = 0
    queued: str | None = None
    flying: str | None = None
    step: str | None = None
    reason: str | None = None
    hint: str | None = None
    exit_code: int | None = None
    attempts: int = 0
    begun_s: float | None = None
    first_s: float | None = None
    given: bool = False
    said_updated: bool = False
    ended_s: float | None = None
    seconds: float | None = None
    steps: dict[str, float] = field(default_factory=dict)
    push_s: float | None = None
    wire_bytes: int | None = None
    p99_ms: float | None = None
    gate_p99_ms: float | None = None
    previous: str | None = None
    release: str | None = None
    engine_key: str | None = None
    engine_from: str | None = None
    worker: str | None = None
    look: dict[str, Any] | None = None
    judged: dict[str, Any] | None = None
    left: bool = False
    skipped: bool = False

    @property
    def serves_release(self) -> bool:
        """It said that it serves the release, and nothing to the contrary since."""
        return self.state in ("updated", "current")

    @property
    def fails(self) -> bool:
        """It counts against --max-failures."""
        return self.state in FAILURES and not self.skipped

    def hear(self, answer: Mapping[str, Any]) -> None:
        """Keep the figures of an answer."""
        self.flying = self.step = None
        self.worker = answer["worker"]
        self.seconds = (self.seconds or 0.0) + answer["seconds"]
        for name, seconds in answer["steps"].items():
            self.steps[name] = self.steps.get(name, 0.0) + seconds
        told = answer["deployed"]
        if told is not None:
            self.push_s, self.wire_bytes, self.p99_ms = told["push_s"], told["wire_bytes"], told["p99_ms"]
            self.gate_p99_ms = told["p99_ms"]
            self.previous, self.release = told["previous"], told["release"]

    def judge(self, answer: Mapping[str, Any]) -> str:
        """The state that an answer to a deploy leads to."""
        state = str(answer["state"])
        if state == "current":
            # Whoever was to give it the release did so, and nobody was told.
            return "updated" if self.given else "current"
        if state in ("refused", "needs_engine") or (state == "failed" and not self.given and answer["worker"]):
            self.forget()
        else:
            self.given = True
        self.said_updated = self.said_updated or state == "updated"
        return state

    def see(self, answer: Mapping[str, Any], releases: Collection[str]) -> dict[str, Any] | None:
        """What a look at it comes to: its end; None: it serves the release still, and its figures are kept.

        Args:
            releases: that it may serve.
        """
        look = answer["look"]
        if answer["state"] != "looked":
            self.left = True
            reason = f"it was updated; when it was looked at again: {answer['reason'] or answer['state']}"
            return {**answer, "reason": reason}
        if look["release"] is not None and look["release"] in (*releases, self.release):
            self.look = look
            self.p99_ms = self.p99_ms if look["p99_ms"] is None else look["p99_ms"]
            return None
        self.left = True
        now = "nothing" if look["release"] is None else f"release {look['release'][:12]}"
        return {
            "state": "reverted",
            "reason": f"it was updated, and when it was looked at again it served {now}",
            "hint": f"kedge history --on {self.planned.name}",
            "exit_code": int(ExitCode.GATE),
        }

    def go_back(self) -> None:
        """A worker takes it back: it is in another state now, and why it had failed is still to be seen."""
        if self.state in FAILURES:
            self.reason = f"it was {self.state}: {self.reason}"
        elif self.state == "rollback_failed":
            self.reason = None
        self.state = "rolling_back"

    def lose(self) -> None:
        """Whoever had its task is gone, and told no end of it."""
        self.given = self.given or self.flying == DEPLOY
        self.flying = self.step = None

    def forget(self) -> None:
        """It does not serve what this rollout gave it."""
        self.first_s = self.gate_p99_ms = self.judged = None
        self.given = self.said_updated = False

    def end(self, state: str, at_s: float, said: Mapping[str, Any]) -> None:
        """It has come to an end, for now."""
        self.state, self.ended_s = state, at_s
        self.reason, self.hint, self.exit_code = said["reason"], said["hint"], said["exit_code"]
        if state in ("reverted", "rolled_back"):
            self.forget()

    def renew(self) -> None:
        """It is to be tried again."""
        self.state, self.queued = "waiting", None
        self.reason = self.hint = self.exit_code = self.ended_s = self.seconds = self.look = self.engine_key = None
        self.steps = {}
        self.left = self.skipped = False

    def to_json(self) -> dict[str, Any]:
        """Its row of the document (docs/rollout-report.md)."""
        return {
            "device": self.planned.name,
            "target": self.planned.target,
            "wave": self.planned.wave,
            "state": self.state,
            "step": self.step,
            "reason": self.reason,
            "hint": self.hint,
            "exit_code": self.exit_code,
            "attempts": self.attempts,
            "begun_s": self.begun_s,
            "ended_s": self.ended_s,
            "seconds": self.seconds,
            "steps": dict(self.steps),
            "push_s": self.push_s,
            "wire_bytes": self.wire_bytes,
            "p99_ms": self.p99_ms,
            "previous": self.previous,
            "engine_from": self.engine_from,
            "worker": self.worker,
        }
