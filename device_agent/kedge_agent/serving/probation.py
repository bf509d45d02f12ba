"""What a release must keep to after the switch: few failures, and the latency that it promised.

Time is the monotonic clock's alone: a device's wall clock may jump.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..formats.gates import LatencyGate, ProbationRules
from ..formats.latency import LEAST_REQUESTS
from ..formats.manifest import Manifest
from .gating import Tell
from .loading import LiveModel
from .statistics import ModelStatistics

__all__ = ["SUPERSEDED", "Findings", "Watch", "failing", "hanging", "probation_rules", "slow"]

SUPERSEDED = "superseded"
"""What ends a probation where another release takes the place of the one that is on it."""

_LEAST_FAILURES = 3
# The 99th percentile of a hundred is the largest: one hiccup is no reason to go back, unless it stays.
_SLOW_S = 2.0
_STEP_S = 0.1
_MOST_EVENTS = 200


@dataclass(frozen=True)
class Findings:
    """Of a release since the switch. errors: requests that failed in the runtime. p99_ms: None: too few requests."""

    requests: int
    errors: int
    p99_ms: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def probation_rules(stated: ProbationRules | None, device_s: int) -> ProbationRules:
    """What the release states, else what the device's settings say."""
    return stated or ProbationRules(device_s)


def failing(found: Findings, rules: ProbationRules) -> str | None:
    """That too many requests fail in the runtime, in one line; None: they do not."""
    if found.errors >= _LEAST_FAILURES and found.errors > rules.error_share_max * found.requests:
        return (
            f"{found.errors} of {found.requests} requests failed in the runtime, "
            f"more than {rules.error_share_max * 100:g} %"
        )
    return None


def slow(found: Findings, limits: LatencyGate | None, before_p99_ms: float | None) -> str | None:
    """That requests take longer than the release promises, in one line; None: they do not, or there are too few.

    Args:
        before_p99_ms: of the release before it, on what clients sent then; None: unknown.
    """
    if limits is None or found.p99_ms is None:
        return None
    if limits.p99_ms is not None and found.p99_ms > limits.p99_ms:
        return f"p99 of what clients sent is {found.p99_ms:.3f} ms, above {limits.p99_ms:g} ms"
    if limits.p99_ratio_max is not None and before_p99_ms and found.p99_ms > limits.p99_ratio_max * before_p99_ms:
        return (
            f"p99 of what clients sent is {found.p99_ms:.3f} ms, {found.p99_ms / before_p99_ms:.2f} times that of the "
            f"release before, above {limits.p99_ratio_max:g} times"
        )
    return None


def hanging(stuck_s: float, patience_s: float) -> str | None:
    """That a request takes longer than one may (`Staged.patience_s`), in one line; None: none does."""
    return None if stuck_s <= patience_s else f"a request has been computing for {stuck_s:.0f} s"


class Watch:
    """A release on probation. Its time stands still while it does not serve: unloaded, or loaded anew.

    Args:
        serving: what serves the model at the moment; None: nothing does.
        before_p99_ms: see `slow`.

    broken: what was not kept to, once that shows. cut_by: who ended it; afterwards nothing shows any more.
    """

    def __init__(
        self,
        manifest: Manifest,
        serving: Callable[[], LiveModel | None],
        rules: ProbationRules,
        before_p99_ms: float | None,
    ) -> None:
        self.manifest = manifest
        self._serving = serving
        self._rules = rules
        self._before_p99_ms = before_p99_ms
        self._seen: list[ModelStatistics] = []
        self._elapsed_s = 0.0
        self._guard = threading.Lock()
        self._cut = threading.Event()
        self.broken: str | None = None
        self.cut_by: str | None = None

    def findings(self) -> Findings:
        """What was found until now, each time that the release was loaded; its latency of the last time."""
        outcomes = [each.outcomes() for each in self._seen]
        failed = sum(failed for _, failed in outcomes)
        p99_ms = self._seen[-1].recent_p99_ms(LEAST_REQUESTS) if self._seen else None
        return Findings(sum(answered for answered, _ in outcomes) + failed, failed, p99_ms)

    def to_json(self) -> dict[str, Any]:
        """As `status` tells it."""
        return {"elapsed_s": self._elapsed_s, "seconds": self._rules.seconds}

    def cut(self, why: str) -> None:
        """End it: somebody has decided otherwise."""
        with self._guard:
            self.cut_by = self.cut_by or why
        self._cut.set()

    def run(self, tell: Tell) -> str | None:
        """Watch until the time is over; what was not kept to, as soon as it shows, or None. It may have been cut."""
        told_s = slow_since_s = 0.0
        limits = self.manifest.gates.latency
        last_s = time.monotonic()
        while self.cut_by is None:
            now_s, wait_s = time.monotonic(), _STEP_S
            if (live := self._served()) is not None:
                self._elapsed_s += now_s - last_s
                found, stuck_s = self.findings(), live.pool.stuck_s()
                left_s = self._rules.seconds - self._elapsed_s
                # A run that began in time is waited for: it may be one that hangs.
                over = left_s <= 0 and (self._rules.seconds == 0 or stuck_s <= -left_s)
                broken = failing(found, self._rules) or hanging(stuck_s, live.patience_s)
                if (too_slow := slow(found, limits, self._before_p99_ms)) is None:
                    slow_since_s = self._elapsed_s
                elif over or self._elapsed_s - slow_since_s >= _SLOW_S:
                    broken = broken or too_slow
                if broken is not None or over or self._elapsed_s >= told_s:
                    tell({"event": "probation", **self.to_json(), **found.to_json()})
                    told_s = self._elapsed_s + max(1.0, self._rules.seconds / _MOST_EVENTS)
                if broken is not None or over:
                    return self._settled(broken)
                wait_s = min(_STEP_S, left_s) if left_s > 0 else _STEP_S
            last_s = now_s
            self._cut.wait(wait_s)
        return None

    def _served(self) -> LiveModel | None:
        live = self._serving()
        if live is None or live.manifest.digest != self.manifest.digest:
            return None
        if live.statistics not in self._seen:
            self._seen.append(live.statistics)
        return live

    def _settled(self, broken: str | None) -> str | None:
        with self._guard:
            if self.cut_by is None:
                self.broken = broken
            return self.broken
