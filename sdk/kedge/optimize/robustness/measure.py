"""Accuracy on damaged and hostile inputs, of a model before and after: the report's `robustness`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInputError
from ...model.graph import Graph
from ...model.samples import Samples
from ...model.session import ReferenceModel
from ..evaluate import Accuracy
from ..proof.metrics import predictions, scores_of
from ..proof.runner import run_all, session_of
from ..work import silent
from .attack import Gradient, bounds_of, fgsm, pgd
from .corrupt import KINDS, PixelSpace, check_strength, corrupt, noise_relative, severities

__all__ = ["ATTACKS", "check_strengths", "robustness"]

ATTACKS: Mapping[str, tuple[float, ...]] = {"fgsm": (1, 2, 4, 8), "pgd": (1, 2, 4)}
"""Attacks and their usual strengths ε, in pixel levels of 255."""

_ATTACK_UNIT = "ε in pixel levels of 255"
_PGD_STEPS = 10
_RELATIVE = (0.1, 0.2, 0.4)
_RELATIVE_UNIT = "σ, share of the inputs' own σ"
_SEVERITIES = (1, 3, 5)
# Inputs that are this far from any pixel, in levels, were not made by the stated preprocessing.
_OFF_PIXEL = 1.0
_CHUNK = 64


def check_strengths(strengths: Mapping[str, Sequence[float]]) -> None:
    """Refuse strengths that make no sense, before anything is computed.

    Raises:
        BadInputError: a kind is unknown, or a strength out of its range.
    """
    for kind, values in strengths.items():
        for value in values:
            if kind in ATTACKS:
                if not 0 <= value <= 255:
                    raise BadInputError(f"{kind} of strength {value:g} ({_ATTACK_UNIT})", hint="from 0 to 255")
            else:
                check_strength(kind, value)


def robustness(
    before: Graph,
    after: Graph | None,
    samples: Samples,
    pixel_space: PixelSpace | None = None,
    strengths: Mapping[str, Sequence[float]] | None = None,
    *,
    attack_limit: int = 500,
    limit: int = 1000,
    seed: int = 0,
    gradient: Gradient | None = None,
    faithful: bool = False,
    progress: Callable[[str, float], None] = silent,
) -> dict[str, Any]:
    """Top-1 accuracy at each kind and strength of damage; both models see the same inputs.

    Both attacks follow the gradient of `before`: against a quantised `after` they are transfer attacks,
    for rounding has no useful gradient. What cannot be measured is left out, and the reason is given.

    Args:
        pixel_space: the way to pixels; None for inputs that are no pictures, of which noise alone is measured.
        strengths: by kind (KINDS and ATTACKS); None: severities 1, 3 and 5 and the usual ε. Kinds that
            are not named are not measured.
        limit, attack_limit: how many samples, drawn at random by the seed.
        gradient: of the loss of `before` (`attack.view_gradient`); None: no attacks.
        faithful: compute the Q/DQ pairs of `after` as written (see `runner.session_of`).

    Returns:
        The report's `robustness`: {"conditions", "points"}, and "clean", the accuracy on the same samples
        undamaged, and "not_measured", [{"kind", "reason"}].

    Raises:
        BadInputError: strengths make no sense, or a model does not run on the samples.
    """
    check_strengths(strengths or {})
    if samples.labels is None:
        return _nothing("the samples have no labels")
    used = _drawn(samples, limit, seed)
    models = _Models(session_of(before), None if after is None else session_of(after, faithful=faithful))
    clean = models.accuracy(used)
    if clean is None:
        return _nothing("no output of the model is scores of classes")
    work = _Inputs(used, pixel_space, strengths, gradient, min(attack_limit, used.count), seed)
    planned = work.plan()
    points = []
    for index, (kind, strength) in enumerate(planned):
        found = models.accuracy(work.damage(kind, strength)) or {}
        points.append({"kind": kind, "strength": strength, "unit": work.unit(kind), **found})
        progress("robustness", (index + 1) / len(planned))
    return {
        "conditions": work.conditions({kind for kind, _ in planned}, after is not None, faithful),
        "points": points,
        "clean": clean,
        "not_measured": [{"kind": kind, "reason": reason} for kind, reason in work.missing.items()],
    }


@dataclass(frozen=True)
class _Models:
    before: ReferenceModel
    after: ReferenceModel | None

    def accuracy(self, samples: Samples) -> dict[str, Any] | None:
        """ACCURACY before and after; None when there are no scores."""
        found = _top1(self.before, samples)
        if found is None:
            return None
        second = None if self.after is None else _top1(self.after, samples)
        return {"before": found.to_json(), "after": None if second is None else second.to_json()}


def _top1(model: ReferenceModel, samples: Samples) -> Accuracy | None:
    scores = scores_of(run_all(model, samples))
    if scores is None:
        return None
    return Accuracy(int(np.count_nonzero(predictions(scores) == samples.labels)), samples.count)


@dataclass
class _Inputs:
    """The samples, and how to damage them."""

    samples: Samples
    space: PixelSpace | None
    strengths: Mapping[str, Sequence[float]] | None
    gradient: Gradient | None
    attacked: int
    seed: int
    missing: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = next(iter(self.samples.inputs))
        self.pixels: NDArray[np.uint8] | None = None
        self.no_pixels = self._read_pixels()

    def _read_pixels(self) -> str:
        """Sets `pixels`, or says why there are none."""
        if self.space is None:
            return "the inputs are no pictures whose preprocessing is known"
        if len(self.samples.inputs) != 1:
            return f"the model has {len(self.samples.inputs)} inputs"
        x = self.samples.inputs[self.name]
        if x.ndim != 4:
            return f"inputs of shape {list(x.shape[1:])} are no pictures"
        off = _OFF_PIXEL * float(bounds_of(self.space, x).level.max())
        parts = []
        for start in range(0, x.shape[0], _CHUNK):
            part = x[start : start + _CHUNK]
            parts.append(self.space.to_pixels(part))
            if float(np.abs(self.space.from_pixels(parts[-1]) - part).max()) > off:
                return "the inputs are no pixels under the stated preprocessing"
        self.pixels = np.concatenate(parts)
        return ""

    def plan(self) -> list[tuple[str, float]]:
        """Kinds and strengths to measure; what cannot be goes to `missing`."""
        return [(kind, value) for kind, values in self._wanted() for value in values if self._possible(kind)]

    def _wanted(self) -> Iterator[tuple[str, Sequence[float]]]:
        if self.strengths is not None:
            yield from self.strengths.items()
            return
        if self.pixels is None:
            yield "noise", _RELATIVE
            yield from ((kind, (0.0,)) for kind in (*list(KINDS)[1:], *ATTACKS))
            return
        for kind, values in severities(max(self.pixels.shape[1:3])).items():
            yield kind, [values[severity - 1] for severity in _SEVERITIES]
        yield from ATTACKS.items()

    def _possible(self, kind: str) -> bool:
        reason = self._reason(kind)
        if reason:
            self.missing.setdefault(kind, reason)
        return not reason

    def _reason(self, kind: str) -> str:
        if kind == "noise" and self.pixels is None:
            floating = all(np.issubdtype(value.dtype, np.floating) for value in self.samples.inputs.values())
            return "" if floating else "noise on integer inputs has no meaning"
        if self.pixels is None:
            return self.no_pixels
        if kind in ATTACKS:
            if self.gradient is None:
                return "no gradient of the model was given"
            if not np.issubdtype(self.samples.inputs[self.name].dtype, np.floating):
                return "the inputs are integers"
        if kind == "jpeg" and self.pixels.shape[3] not in (1, 3):
            return f"JPEG does not know pictures of {self.pixels.shape[3]} channels"
        return ""

    def unit(self, kind: str) -> str:
        if kind in ATTACKS:
            return _ATTACK_UNIT
        return _RELATIVE_UNIT if self.pixels is None else KINDS[kind]

    def damage(self, kind: str, strength: float) -> Samples:
        """The samples, damaged; of attacks the first few. The same for the same seed, kind and strength."""
        rng = np.random.default_rng([self.seed, [*KINDS, *ATTACKS].index(kind)])
        if self.pixels is None or self.space is None:
            return self._with({name: noise_relative(x, strength, rng) for name, x in self.samples.inputs.items()})
        if kind in KINDS:
            return self._with({self.name: self.space.from_pixels(corrupt(self.pixels, kind, strength, rng))})
        few = self.samples.first(self.attacked)
        x, labels = few.inputs[self.name], few.labels
        assert labels is not None
        assert self.gradient is not None
        bounds = bounds_of(self.space, x)
        if kind == "fgsm":
            moved = fgsm(x, labels, self.gradient, strength, bounds)
        else:
            moved = pgd(x, labels, self.gradient, strength, bounds, steps=_PGD_STEPS, seed=self.seed)
        return Samples({self.name: moved.astype(x.dtype)}, labels, few.name, few.classes)

    def _with(self, inputs: dict[str, NDArray[Any]]) -> Samples:
        same = {name: value.astype(self.samples.inputs[name].dtype) for name, value in inputs.items()}
        return Samples(same, self.samples.labels, self.samples.name, self.samples.classes)

    def conditions(self, measured: set[str], compared: bool, faithful: bool) -> str:
        """What the figures hold for, as sentences."""
        said = [f"{self.samples.count} samples of {self.samples.name} drawn with seed {self.seed}, onnxruntime's CPU."]
        if self.pixels is not None and measured & set(KINDS):
            said.append("Corruptions of 8-bit pixels after Hendrycks and Dietterich 2019.")
        if measured & set(ATTACKS):
            said.append(
                f"Attacks on {self.attacked} of them, L∞ around the inputs, clipped to valid pixels but not rounded; "
                f"PGD of {_PGD_STEPS} steps of 2.5·ε/{_PGD_STEPS} from a random start."
            )
            if compared:
                said.append("The gradient is that of the model before: a transfer attack on the model after.")
        if faithful:
            said.append("Q/DQ pairs of the model after are computed as written, which simulates its own runtime.")
        said.extend(f"Not measured: {kind} ({reason})." for kind, reason in self.missing.items())
        return " ".join(said)


def _drawn(samples: Samples, limit: int, seed: int) -> Samples:
    # Data of a folder by class are sorted by class: their front is no sample of them.
    return samples.take(np.random.default_rng(seed).permutation(samples.count)[:limit])


def _nothing(reason: str) -> dict[str, Any]:
    return {
        "conditions": f"Not measured: {reason}.",
        "points": [],
        "clean": None,
        "not_measured": [{"kind": kind, "reason": reason} for kind in (*KINDS, *ATTACKS)],
    }
