"""What a rollout is asked for: its waves, its limits, and what ends it."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from ...errors import BadInputError
from .reading import Fields, UnreadableError

__all__ = ["MAX_WAVES", "Options", "parse_canary"]

MAX_WAVES = 64
_MAX_TERM = 20
_DAY_S = 86400.0
_TERM = re.compile(r"(?P<number>\d{1,9}(?:\.\d{1,6})?)(?P<share>%?)")


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    canary: cumulative counts and shares, a wave each, as ("1", "5%", "100%"). pause_s: from the end of a wave's deploys
    to its gates. max_failures: one more halts the rollout. deadline_s: of each task. concurrency: tasks in flight at
    once. max_error_rate: of a wave's requests, between 0 and 1; max_p99_drift: how much a wave's p99 may be above the
    one before, 0.2 for a fifth; None: no such gate. on_halt: "rollback" takes the wave that halted back.
    limit_bytes_per_s: of each push. attest: path of the key that vouches for engines; None: each device compiles its
    own. cluster: address of the scheduler whose workers do it; None: threads of this process.

    Raises:
        BadInputError: a value cannot be used.
    """

    canary: tuple[str, ...] = ("100%",)
    pause_s: float = 0.0
    max_failures: int = 0
    deadline_s: float = 900.0
    concurrency: int = 16
    max_error_rate: float | None = None
    max_p99_drift: float | None = None
    on_halt: str = "stop"
    limit_bytes_per_s: int | None = None
    attest: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        rate, drift, push = self.max_error_rate, self.max_p99_drift, self.limit_bytes_per_s
        terms = self.canary
        for good, what in (
            (1 <= len(terms) <= MAX_WAVES, f"{len(terms)} waves: 1 to {MAX_WAVES}"),
            (all(len(term) <= _MAX_TERM for term in terms), f"a wave of more than {_MAX_TERM} characters"),
            (0 <= self.pause_s <= 30 * _DAY_S, f"a pause of {self.pause_s:g} s: 0 s to 30 days"),
            (self.max_failures >= 0, f"{self.max_failures} failures: 0 or more"),
            (1 <= self.deadline_s <= _DAY_S, f"a deadline of {self.deadline_s:g} s: 1 s to a day"),
            (1 <= self.concurrency <= 10_000, f"{self.concurrency} devices at once: 1 to 10,000"),
            (rate is None or 0 <= rate <= 1, f"an error rate of {rate}: 0 to 1"),
            (drift is None or 0 <= drift <= 1000, f"a drift of {drift}: 0 or more, 0.2 for a fifth"),
            (self.on_halt in ("stop", "rollback"), f"{self.on_halt!r} on a halt: stop or rollback"),
            (push is None or push >= 1, f"a push of {push} bytes a second: 1 or more"),
        ):
            if not good:
                raise BadInputError(f"cannot roll out with {what}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**dataclasses.asdict(self), "canary": list(self.canary)}

    @classmethod
    def from_json(cls, document: Any) -> Options:
        """As `to_json` writes it.

        Raises:
            UnreadableError: it is none.
        """
        told = Fields(document, "options")
        try:
            return cls(
                canary=tuple(_term(term) for term in told.items("canary", MAX_WAVES)),
                pause_s=told.number("pause_s"),
                max_failures=told.count("max_failures"),
                deadline_s=told.number("deadline_s"),
                concurrency=told.count("concurrency"),
                max_error_rate=told.maybe("max_error_rate", told.number),
                max_p99_drift=told.maybe("max_p99_drift", told.number),
                on_halt=told.exact("on_halt"),
                limit_bytes_per_s=told.maybe("limit_bytes_per_s", told.count),
                attest=told.maybe("attest", told.exact),
                cluster=told.maybe("cluster", told.exact),
            )
        except BadInputError as error:
            raise UnreadableError(error.message) from error


def parse_canary(text: str, devices: int) -> tuple[int, ...]:
    """How many devices have been reached at the end of each wave: `1,5%,25%,100%` of 16 is (1, 4, 16).

    Counts and shares are cumulative, and shares round up. What comes to the same count is one wave.

    Raises:
        BadInputError: it is not of that form, falls, or does not end with all devices.
    """
    counts: list[int] = []
    for term in text.split(","):
        match = _TERM.fullmatch(term.strip())
        if match is None or (not match["share"] and "." in match["number"]):
            raise BadInputError(
                f"no wave: {term!r}", hint="counts and shares, each above the one before: 1,5%,25%,100%"
            )
        value = float(match["number"])
        # In hundredths of a millionth: a share of a count must not round up for the error of a float.
        count = math.ceil(round(value * devices * 1e6) / 1e8) if match["share"] else int(value)
        if count < 1 or (match["share"] and value > 100):
            raise BadInputError(f"no wave: {term!r}", hint="at least one device, at most 100%")
        count = min(count, devices)
        if counts and count < counts[-1]:
            raise BadInputError(
                f"the waves {text} fall: {term.strip()} of {devices} devices is {count}, after {counts[-1]}",
                hint="each names how many devices have been reached by its end: 1,5%,25%,100%",
            )
        if not counts or count > counts[-1]:
            counts.append(count)
    if counts[-1] != devices:
        raise BadInputError(f"the waves {text} end before all {devices} devices", hint=f"end with 100%: {text},100%")
    if len(counts) > MAX_WAVES:
        raise BadInputError(f"{len(counts)} waves: at most {MAX_WAVES}")
    return tuple(counts)


def _term(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TERM:
        raise UnreadableError("a wave that is none")
    return value
