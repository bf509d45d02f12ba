"""Whether the result keeps the accuracy that a recipe's `[gate]` asks for: each condition with its figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import BadInputError
from ..model.graph import Graph
from ..model.samples import Samples
from .evaluate import Accuracy
from .proof.compare import Comparison, Paired
from .proof.limits import MetricLimits, class_number
from .proof.metrics import scores_of
from .proof.per_class import ClassPairs
from .proof.runner import run_all
from .recipe import Recipe
from .stages import Stage

__all__ = ["Figures", "class_names", "judge", "require_judgeable", "require_scores"]

# 19 of 20 alike is a drop of 0.05, though 1 - 0.95 is a little more in binary.
_ROUNDING = 1e-9
_NO_DATA = "there are no evaluation data"
_NOT_LABELLED = "there are no labelled evaluation data"
_NO_SCORES = "no output of the model is scores of classes"


@dataclass(frozen=True)
class Figures:
    """What is held against the gate, of both models on the evaluation data.

    comparison: None without such data. classes: by the name that the gate has; empty without labels and scores.
    calibration_before, calibration_after: expected calibration errors; None where not measured.
    metrics: before and after, of the user's metrics that the gate limits, by the name that it has; empty without data.
    """

    comparison: Comparison | None
    classes: Mapping[str, ClassPairs]
    calibration_before: float | None
    calibration_after: float | None
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Check:
    """One condition of the gate, as docs/optimize-report.md states it.

    given: the same figure of the model as given. least: whether the limit is the least value; else it is the largest.
    size: of the numbers that the value was computed from, whose last digits do not decide.
    """

    figure: str
    limit: float
    value: float | None
    of_class: str | None = None
    metric: str | None = None
    least: bool = False
    size: float = 1.0
    given: float | None = None
    interval_95: tuple[float, float] | None = None
    correct: int | None = None
    count: int | None = None
    only_before: int | None = None
    only_after: int | None = None
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether it holds; what was not measured does not."""
        return self.value is not None and self._keeps(self.value)

    @property
    def failed_before(self) -> bool:
        """Whether the model as it was given misses the limit itself."""
        return self.given is not None and not self._keeps(self.given)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        body = asdict(self)
        del body["size"]
        return {
            "figure": body.pop("figure"),
            "class": body.pop("of_class"),
            "metric": body.pop("metric"),
            "bound": "min" if body.pop("least") else "max",
            "passed": self.passed,
            **body,
            "interval_95": None if self.interval_95 is None else list(self.interval_95),
        }

    def _keeps(self, value: float) -> bool:
        rounding = _ROUNDING * self.size
        return value >= self.limit - rounding if self.least else value <= self.limit + rounding


def class_names(recipe: Recipe, evaluation: Samples) -> tuple[str, ...]:
    """Names of the labels: those that the data bring, or the recipe's.

    Raises:
        BadInputError: both name them, and differently.
    """
    said, brought = recipe.data.classes, evaluation.classes
    if said and brought and said != brought:
        raise BadInputError(
            f"data.classes is {', '.join(said[:8])}; {evaluation.name} has {', '.join(brought[:8])}",
            hint="leave data.classes out: the data name their classes",
        )
    return said or brought


def require_judgeable(recipe: Recipe, evaluation: Samples | None, classes: int | None) -> None:
    """Refuse a gate on classes that the evaluation data cannot judge, before anything is done to the model.

    Args:
        classes: how many the model has, None: not known.

    Raises:
        BadInputError: no data; no labels; a class that is not known, or of which there are no samples, or no others.
    """
    if evaluation is not None:
        names = class_names(recipe, evaluation)
    elif recipe.metric_limits:
        raise BadInputError(
            f"the gate limits metrics, and {_NO_DATA}", hint="give some: evaluation in [data], or --evaluate"
        )
    if not recipe.class_limits and recipe.max_calibration_error is None:
        return
    if evaluation is None or evaluation.labels is None:
        what = "classes" if recipe.class_limits else "the calibration error"
        raise BadInputError(
            f"the gate limits {what}, and {_NOT_LABELLED}", hint="give some: evaluation in [data], or --evaluate"
        )
    for name, limits in recipe.class_limits.items():
        own = evaluation.labels == class_number(name, names, classes)
        for figure, some, whose in (("sensitivity", own, "of it"), ("specificity", ~own, "of any other class")):
            if any(figure in limit for limit in limits.stated) and not some.any():
                raise BadInputError(
                    f"the {figure} of the class {name!r} cannot be judged: "
                    f"{evaluation.name} has no sample {whose} among {evaluation.count}",
                    hint=f"add samples {whose} to the evaluation data, or take the limit out of the gate",
                )


def require_scores(recipe: Recipe, model: Graph, evaluation: Samples | None) -> None:
    """Refuse a gate on right and wrong answers of a model that gives none, before anything is done to it.

    Raises:
        BadInputError: no output is scores of classes; the data do not run.
    """
    asked = recipe.max_drop is not None or recipe.max_calibration_error is not None or recipe.class_limits
    if not asked or evaluation is None or scores_of(run_all(model, evaluation.first(1))) is not None:
        return
    what = "max_drop looks" if recipe.max_drop is not None else "the gate looks"
    raise BadInputError(
        f"{what} at which answers are right, and {_NO_SCORES}",
        hint="gate a metric of yours: list it in [data] metrics of a recipe, and limit it in [gate.metrics.NAME]",
    )


def judge(recipe: Recipe, figures: Figures, blamed: list[str], stages: Sequence[Stage]) -> dict[str, Any] | None:
    """The report's `gate`; None where the recipe has none.

    Args:
        blamed: the layers that add the most error, worst first.
    """
    checks = list(_checks(recipe, figures))
    if not checks:
        return None
    failed = [check for check in checks if not check.passed]
    return {
        "max_drop": recipe.max_drop,
        "passed": not failed,
        "checks": [check.to_json() for check in checks],
        "blame": blamed if failed and figures.comparison is not None else [],
        "next": _next(failed, stages, blamed, figures.comparison is not None) if failed else "",
    }


def _checks(recipe: Recipe, figures: Figures) -> Iterator[_Check]:
    if recipe.max_drop is not None:
        yield _drop(recipe.max_drop, figures.comparison)
    if recipe.max_calibration_error is not None:
        value = figures.calibration_after
        yield _Check(
            "calibration_error",
            recipe.max_calibration_error,
            value,
            given=figures.calibration_before,
            reason="" if value is not None else "no scores, or scores that are not finite",
        )
    for name, limits in recipe.class_limits.items():
        found = figures.classes.get(name)
        for key, limit in limits.stated.items():
            figure = key.removeprefix("min_").removeprefix("max_")
            paired = None if found is None else getattr(found, figure.removesuffix("_drop"))
            yield _of_class(figure, name, limit, paired)
    for name, bounds in recipe.metric_limits.items():
        yield from _of_metric(name, bounds, figures.metrics.get(name))


def _of_metric(name: str, limits: MetricLimits, found: tuple[float, float] | None) -> Iterator[_Check]:
    for key, limit in limits.stated.items():
        figure, least = key.replace("max_", "metric_") if "_" in key else "metric", key == "min"
        if found is None:
            yield _Check(figure, limit, None, metric=name, least=least, reason=_NO_DATA)
            continue
        before, after = found
        size = max(abs(before), abs(after))
        if figure == "metric":
            yield _Check(figure, limit, after, metric=name, least=least, size=size, given=before)
        else:
            change = before - after if figure == "metric_drop" else after - before
            yield _Check(figure, limit, change, metric=name, size=size)


def _drop(limit: float, comparison: Comparison | None) -> _Check:
    if comparison is None:
        return _Check("drop", limit, None, reason=_NOT_LABELLED)
    if comparison.paired is not None:
        return _lost("drop", None, limit, comparison.paired)
    # Without labels, what can be gated is how often the result still says what the model said.
    alike = comparison.agreement
    if alike is None:
        return _Check("disagreement", limit, None, reason=_NO_SCORES)
    return _Check(
        "disagreement", limit, 1 - alike.share, correct=alike.correct, count=alike.count, interval_95=_other(alike)
    )


def _other(alike: Accuracy) -> tuple[float, float]:
    low, high = alike.interval
    return 1 - high, 1 - low


def _of_class(figure: str, name: str, limit: float, paired: Paired | None) -> _Check:
    if paired is None:
        return _Check(figure, limit, None, name, least=not figure.endswith("_drop"), reason=_NO_SCORES)
    if figure.endswith("_drop"):
        return _lost(figure, name, limit, paired)
    after = paired.after
    return _Check(
        figure,
        limit,
        after.share,
        name,
        least=True,
        given=paired.before.share,
        interval_95=after.interval,
        correct=after.correct,
        count=after.count,
        only_before=paired.only_before,
        only_after=paired.only_after,
    )


def _lost(figure: str, name: str | None, limit: float, paired: Paired) -> _Check:
    return _Check(
        figure,
        limit,
        paired.drop,
        name,
        interval_95=paired.drop_interval,
        count=paired.count,
        only_before=paired.only_before,
        only_after=paired.only_after,
    )


def _next(failed: Sequence[_Check], stages: Sequence[Stage], blamed: list[str], compared: bool) -> str:
    if not compared:
        return "give labelled evaluation data: --evaluate"
    before = next((check for check in failed if check.failed_before), None)
    if before is not None:
        what, how = _beforehand(before)
        return f"the model as given misses {what} itself, with {before.given:.4g}: {how}"
    usual = _change(stages, blamed)
    lost = next((check for check in failed if check.of_class is not None), None)
    if lost is None or not any(stage.record["kind"] in ("quantize", "qat") for stage in stages):
        return usual
    return f"calibrate with samples of {lost.of_class!r} among the rest, as there are in use; else {usual}"


def _beforehand(check: _Check) -> tuple[str, str]:
    """What the model as given misses, and what helps."""
    if check.metric is not None:
        return check.metric, "train it further, or ask for less"
    if check.of_class is not None:
        return f"the {check.figure} of {check.of_class!r}", "train it on more samples of the class, or ask for less"
    return "the calibration error", "scale its scores by a temperature before it is exported (Guo et al. 2017)"


def _change(stages: Sequence[Stage], blamed: list[str]) -> str:
    kinds = [stage.record["kind"] for stage in stages]
    quantize = [stage.record for stage in stages if stage.record["kind"] == "quantize"]
    if any(kind.startswith("prune") or kind == "cluster" for kind in kinds) and "recover" not in kinds:
        return "add a recover pass after pruning: --recover with --train"
    if quantize and quantize[-1]["parameters"]["precision"] in ("int8", "w4a8"):
        parameters = quantize[-1]["parameters"]
        if parameters["precision"] == "w4a8" and parameters["rounding"] == "nearest":
            return "round adaptively (--rounding adaround), or mix precisions (--quantize auto)"
        if not parameters["keep"] and blamed:
            return f"mix precisions (--quantize auto), or keep the worst layer in FP32 (--keep '{blamed[0]}')"
        return "mix precisions (--quantize auto), or train with quantisation in the loop (a qat pass)"
    if quantize and blamed:
        return f"keep the worst layer in FP32: --keep {blamed[0]!r}, or quantise to more bits"
    if "recover" in kinds:
        return "prune less, or recover for more epochs"
    return "allow a larger --max-drop, or ask for less"
