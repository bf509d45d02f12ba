"""Runs the cases of tools/fuzz against an agent, in batches; after each the agent is looked at."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import HypothesisException
from tools.fuzz.case import Case
from tools.fuzz.cases import FAMILIES
from tools.fuzz.device import REGION_PREFIX, Device
from tools.fuzz.exchange import Link, Violation

__all__ = ["BATCH", "Outcome", "fuzz"]

BATCH = 250
_RSS_GROWTH_BYTES = 64 * 1024 * 1024
_PEAK_BYTES = 512 * 1024 * 1024
_SHM = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory is)
_SHOWN_BYTES = 400


@dataclass
class Outcome:
    """What a run found.

    cases: sent in all, hypothesis's repetitions to shrink a finding included. statuses: how often each was answered.
    logged: how often an error was logged, by its line without the time. rss_bytes: after each batch.
    """

    cases: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)
    peak_bytes: int = 0
    threads: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "cases": self.cases,
            "seconds": round(self.seconds, 1),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "logged": dict(self.logged.most_common(50)),
            "findings": self.findings,
            "rss_bytes": {"first": self.rss_bytes[0], "last": self.rss_bytes[-1], "peak": self.peak_bytes},
            "threads": self.threads,
        }


def fuzz(folder: Path, cases: int, first_seed: int = 0, progress: Callable[[int], None] = lambda done: None) -> Outcome:
    """Send so many cases, of all families in turn, to an agent in `folder`; stop at the first finding.

    A batch of a family has a seed of its own, so that a run can be repeated and none remembers all of it.
    """
    # It would make a folder of its own in the working folder.
    set_hypothesis_home_dir(folder / "hypothesis")
    outcome = Outcome()
    begin = time.monotonic()
    with _shared_memory() as shake, Device(folder) as device:
        runner = _Runner(device, outcome, shake)
        threads = device.threads()
        outcome.rss_bytes.append(device.rss_bytes())
        number = 0
        while outcome.cases < cases and not outcome.findings:
            name = list(FAMILIES)[number % len(FAMILIES)]
            try:
                runner.batch(name, min(BATCH, cases - outcome.cases), first_seed + number)
                device.check()
                outcome.threads = device.settled(threads)
            except Violation as error:
                outcome.findings.append(f"{name}, seed {first_seed + number}: after the batch: {error}")
            outcome.rss_bytes.append(device.rss_bytes())
            number += 1
            progress(outcome.cases)
        outcome.peak_bytes = device.peak_bytes()
        outcome.findings += _memory_findings(outcome)
    outcome.seconds = time.monotonic() - begin
    return outcome


class _Runner:
    def __init__(self, device: Device, outcome: Outcome, shake: Callable[[], None]) -> None:
        self._device = device
        self._outcome = outcome
        self._shake = shake
        self._links: dict[str, Link] = {}

    def batch(self, family: str, count: int, number: int) -> None:
        """One family's cases; a violation is shrunk by hypothesis, and becomes a finding."""
        last: list[Case] = []

        @seed(number)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(FAMILIES[family](self._device))
        def cases(case: Case) -> None:
            last[:] = [case]
            self._send(case)

        try:
            cases()
        except (Violation, HypothesisException, OSError) as error:
            shown = "; ".join(f"{len(piece)} bytes {piece[:_SHOWN_BYTES]!r}" for piece in last[0].pieces)
            text = f"{family}, seed {number}: {type(error).__name__}: {error}: to {last[0].door}: {shown}"
            self._outcome.findings.append(text)
        finally:
            for link in self._links.values():
                link.close()

    def _send(self, case: Case) -> None:
        self._outcome.cases += 1
        if not self._outcome.cases % 16:
            self._shake()
        link = self._links.get(case.door)
        # What is to end a connection gets one of its own.
        if link is None or link.closed or case.answers is None:
            if link is not None:
                link.close()
            link = self._links[case.door] = Link(self._device.doors[case.door])
        try:
            answers = link.exchange(case.pieces, case.answers)
        except Violation:
            link.close()
            raise
        failed = 0
        for answer in answers:
            self._outcome.statuses[answer.status] += 1
            failed += answer.status == 500
        if failed:
            causes = self._device.causes()
            self._outcome.logged.update(cause.partition(" ERROR ")[2][:200] for cause in causes)
            if len(causes) < failed:
                raise Violation(f"{failed} answers of 500, and {len(causes)} causes in the log")


@contextlib.contextmanager
def _shared_memory() -> Iterator[Callable[[], None]]:
    """Objects that registrations may name, and a function that makes them longer, shorter, or takes them away."""
    names = [f"{REGION_PREFIX[1:]}{name}" for name in ("a", "b", "fifo", "link")]
    paths = [_SHM / name for name in names]
    for path in paths:
        path.unlink(missing_ok=True)
    os.mkfifo(paths[2])
    paths[3].symlink_to("/etc/passwd")
    sizes = (4096, 0, 8192, 100, None, 1 << 20)
    turn = 0

    def shake() -> None:
        nonlocal turn
        turn += 1
        for offset, path in enumerate(paths[:2]):
            size = sizes[(turn + offset) % len(sizes)]
            if size is None:
                path.unlink(missing_ok=True)
            else:
                with path.open("ab") as file:
                    file.truncate(size)

    shake()
    try:
        yield shake
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


def _memory_findings(outcome: Outcome) -> list[str]:
    findings = []
    quarter = len(outcome.rss_bytes) // 4
    if quarter:
        early = statistics.median(outcome.rss_bytes[quarter : 2 * quarter])
        late = statistics.median(outcome.rss_bytes[-quarter:])
        if late > early + _RSS_GROWTH_BYTES:
            findings.append(f"memory goes on growing: {early / 1e6:.0f} MB early, {late / 1e6:.0f} MB late")
    if outcome.peak_bytes > _PEAK_BYTES:
        findings.append(f"memory peaks at {outcome.peak_bytes / 1e6:.0f} MB")
    return findings
