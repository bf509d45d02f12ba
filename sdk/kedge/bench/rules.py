"""What a bench is to measure, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import BadInputError

__all__ = ["LONGEST_S", "MAX_SAMPLES", "BenchRules", "Tick"]

MAX_SAMPLES = 1_000_000
LONGEST_S = 600
"""The agent ends its loop after so long whatever min_runs says; the host waits a little longer."""

_MOST_STEPS = 16

Tick = Callable[[str, float], None]
"""Called with the phase's name and the share of it that is done, from 0 to 1."""


@dataclass(frozen=True)
class BenchRules:
    """trtexec's rules: warm up, then at least so long and at least so many runs.

    batch: samples a request, where the model's first dimension is free.
    rate_per_s: requests of the agent's loop begin at this rate (open loop); None: one when another has ended.
    concurrency: requests at a time in the agent's loop; several: one loop each.
    layers, phases, waterfall: measure these as well. samples: keep every sample.
    """

    warmup_ms: int = 200
    duration_ms: int = 3000
    min_runs: int = 10
    batch: int = 1
    rate_per_s: float | None = None
    concurrency: tuple[int, ...] = (1,)
    layers: bool = False
    phases: bool = False
    waterfall: bool = False
    samples: bool = False

    def __post_init__(self) -> None:
        if not (
            0 <= self.warmup_ms <= LONGEST_S * 1000
            and 0 <= self.duration_ms <= LONGEST_S * 1000
            and 1 <= self.min_runs <= MAX_SAMPLES
            and 1 <= self.batch <= 4096
        ):
            raise BadInputError(
                "bench runs up to 600 s, a million times, in batches up to 4096", hint="kedge bench --help"
            )
        if self.rate_per_s is not None and not 0.001 <= self.rate_per_s <= 1_000_000:
            raise BadInputError(
                f"a rate goes from 0.001 to 1000000 requests/s, it is {self.rate_per_s:g}", hint="kedge bench --help"
            )
        if self.rate_per_s is not None and (self.min_runs - 1) / self.rate_per_s > self.duration_ms / 1e3 + LONGEST_S:
            raise BadInputError(
                f"{self.min_runs} requests at {self.rate_per_s:g} a second take too long", hint="fewer --min-runs"
            )
        steps = self.concurrency
        if not 1 <= len(steps) <= _MOST_STEPS or not all(1 <= step <= 256 for step in steps):
            raise BadInputError(
                f"concurrency is up to {_MOST_STEPS} numbers from 1 to 256", hint="--concurrency 1,2,4,8"
            )
        if self.rate_per_s is not None and len(steps) > 1:
            raise BadInputError(
                "a fixed rate and several concurrencies are two measurements", hint="leave --rate or --concurrency out"
            )
