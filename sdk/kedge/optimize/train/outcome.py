"""Where training stands, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..evaluate import Accuracy

__all__ = ["Standing", "Trained"]


@dataclass
class Standing:
    """What a checkpoint holds beside weights: epochs done, and of each its mean loss, seconds and judgement.

    scores: right answers on held-out data, the start's first. kept: the epoch whose weights are kept, 0 the start.
    """

    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    kept: int = 0
    stopped: bool = False

    def judge(self, score: int, patience: int) -> None:
        """Take an epoch's score; stop where none was better for `patience` epochs (0: never)."""
        if score > max(self.scores):
            self.kept = self.epoch
        self.scores.append(score)
        since_best = self.epoch - self.scores.index(max(self.scores))
        self.stopped = 0 < patience <= since_best


@dataclass(frozen=True)
class Trained:
    """What training did.

    masked: weights held at zero. judged_by: "labels", "teacher" (agreement with it) or "nothing". before, kept: on
    held-out training data, the start's and those of the epoch whose weights were kept (0 is the start).
    """

    epochs: int
    parameters: int
    masked: int
    losses: tuple[float, ...]
    judged_by: str
    before: Accuracy | None
    kept: Accuracy | None
    kept_epoch: int
    seconds_per_epoch: float
    resumed_after_epoch: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "epochs": self.epochs,
            "parameters_trained": self.parameters,
            "zeros_kept": self.masked,
            "loss_first": self.losses[0],
            "loss_last": self.losses[-1],
            "validation": {
                "judged_by": self.judged_by,
                "before": None if self.before is None else self.before.to_json(),
                "best": None if self.kept is None else self.kept.to_json(),
            },
            "kept_epoch": self.kept_epoch,
            "seconds_per_epoch": self.seconds_per_epoch,
            "resumed_after_epoch": self.resumed_after_epoch,
        }
