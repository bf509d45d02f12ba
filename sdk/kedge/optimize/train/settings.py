"""What training is told: optimiser, schedule, data, distillation, attacks. Plain values, checked; no torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import BadInputError

__all__ = ["TrainSettings", "learning_rate_at"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": ("adam", "adamw", "sgd"),
    "schedule": ("constant", "cosine", "step", "onecycle"),
    "augment": ("none", "flip-crop"),
    "adversarial": ("none", "fgsm", "pgd"),
    "keep_zeros": ("auto", "yes", "no"),
    "epoch_kept": ("best", "last"),
}


@dataclass(frozen=True)
class TrainSettings:
    """How weights are trained.

    optimizer: "adam" (Kingma and Ba 2015), "adamw" (Loshchilov and Hutter 2019) or "sgd" with momentum, nesterov.
    weight_decay: on weights only, never on biases and normalisations.
    schedule: of the learning rate, see `learning_rate_at`. warmup: share of the steps, 0 to 1.
    augment: "flip-crop" mirrors and shifts images by up to an eighth of their size (He et al. 2016).
    label_smoothing: Szegedy et al. 2016. clip_norm: largest norm of the gradient, 0 for none.
    validation: share of the training data held out to judge epochs. early_stop: epochs without a better
    judgement before training ends, 0 for never. epoch_kept: the weights of the "best" epoch or of the "last".
    distil: weight of the teacher (the model as it was given) in the loss, 0 to 1; temperature: Hinton et al. 2015.
    adversarial: train on attacked inputs, "fgsm" (Goodfellow et al. 2015) or "pgd" (Madry et al. 2018) of
    adversarial_steps; eps: largest change of an input value, in the model's own input units.
    keep_zeros: "auto" keeps the zeros of weights that have at least a quarter of exact zeros.
    freeze_batchnorm: neither statistics nor scales of BatchNormalization change.
    freeze: patterns of node names whose weights stay.
    seed: None takes the run's.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.05
    epochs: int = 3
    batch: int = 128
    augment: str = "none"
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    validation: float = 0.1
    early_stop: int = 0
    epoch_kept: str = "best"
    distil: float = 0.0
    temperature: float = 4.0
    adversarial: str = "none"
    eps: float = 0.03
    adversarial_steps: int = 5
    keep_zeros: str = "auto"
    freeze_batchnorm: bool = False
    freeze: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise BadInputError(f"{name} is {getattr(self, name)!r}", hint=f"give one of {', '.join(choices)}")
        for name, low, high in (
            ("learning_rate", 1e-9, 100.0),
            ("momentum", 0.0, 0.9999),
            ("weight_decay", 0.0, 10.0),
            ("warmup", 0.0, 0.9),
            ("epochs", 1, 10_000),
            ("batch", 1, 65_536),
            ("label_smoothing", 0.0, 0.9),
            ("clip_norm", 0.0, 1e9),
            ("validation", 0.0, 0.9),
            ("early_stop", 0, 10_000),
            ("distil", 0.0, 1.0),
            ("temperature", 0.1, 100.0),
            ("eps", 0.0, 1e6),
            ("adversarial_steps", 1, 1000),
        ):
            value = getattr(self, name)
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise BadInputError(f"{name} is {value!r}, not a {'whole ' if whole else ''}number")
            if not low <= value <= high:
                raise BadInputError(f"{name} is {value}", hint=f"give a number from {low} to {high}")
        if self.early_stop and not self.validation:
            raise BadInputError("early_stop needs held-out data", hint="set validation to a share such as 0.1")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise BadInputError("nesterov needs optimizer sgd with momentum")


def learning_rate_at(settings: TrainSettings, step: int, total: int) -> float:
    """The learning rate of step `step` of `total`, counted from 0.

    A linear warm-up (Goyal et al. 2017), then: constant; cosine to 0 (Loshchilov and Hutter 2017); step, a tenth
    after half and a hundredth after three quarters (He et al. 2016); onecycle, a cosine rise from 1/25 over the
    first 30 % and a cosine fall to 1/10000 of the start (Smith and Topin 2019).
    """
    peak, place = settings.learning_rate, (step + 1) / max(total, 1)
    if settings.schedule == "onecycle":
        low, end, rise = peak / 25, peak / 25 / 1e4, 0.3
        if place <= rise:
            return peak + (low - peak) * (1 + math.cos(math.pi * place / rise)) / 2
        return end + (peak - end) * (1 + math.cos(math.pi * (place - rise) / (1 - rise))) / 2
    if place < settings.warmup:
        return peak * place / settings.warmup
    rest = (step / max(total, 1) - settings.warmup) / (1 - settings.warmup)
    if settings.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * max(rest, 0.0))) / 2
    if settings.schedule == "step":
        return peak * (1.0 if rest < 0.5 else 0.1 if rest < 0.75 else 0.01)
    return peak
