"""The proof: before and after on data that no pass saw, where the error arose, and whether the gate holds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import KedgeError
from ..model.graph import Graph
from ..model.preprocess import Preprocess
from ..model.samples import Samples
from .gate import Figures, class_names, judge
from .latency import HostProbe
from .proof.calibration import CalibrationError, calibration_error, probabilities
from .proof.compare import Comparison, compare
from .proof.layers import blame, profile
from .proof.limits import class_number, metric_reference
from .proof.metrics import UserMetric, measure, predictions, scores_of
from .proof.per_class import ClassPairs, class_pairs
from .proof.runner import run_all
from .prune.counts import count
from .quantize.simulate import simulation
from .recipe import Recipe
from .source import Source
from .stages import Stage, samples_digest
from .work import Latency, Work

__all__ = ["Evaluated", "Proof", "evaluate", "prove"]

_BLAMED = 5


@dataclass(frozen=True)
class Proof:
    """Parts of the report, as docs/optimize-report.md states them."""

    before: dict[str, Any]
    after: dict[str, Any]
    comparison: dict[str, Any] | None
    layers: list[dict[str, Any]]
    robustness: dict[str, Any] | None
    gate: dict[str, Any] | None


@dataclass(frozen=True)
class Evaluated:
    """Both models on the evaluation data: METRICS of the report and how they compare, None without such data.

    runnable: what stands in for the artefact here, where this host would not compute it alike; else the artefact.
    simulated: the target's runtime is not this host's. classes: those that the gate limits, by its names.
    """

    runnable: Graph
    simulated: bool
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    comparison: Comparison | None = None
    classes: Mapping[str, ClassPairs] = field(default_factory=dict)

    def to_note(self, samples: Samples) -> dict[str, Any]:
        """The accuracy that goes with the file: top-1, F1 and the user's figures, and on what."""
        return {
            "samples": samples.count,
            "data_sha256": samples_digest(samples),
            "simulated": self.simulated,
            "before": _figures(self.before),
            "after": _figures(self.after),
        }


def _figures(metrics: dict[str, Any] | None) -> dict[str, float]:
    if metrics is None:
        return {}
    shares = {name: metrics[name]["share"] for name in ("top1", "top5") if metrics[name] is not None}
    f1 = {} if metrics["f1_macro"] is None else {"f1_macro": metrics["f1_macro"]}
    error = metrics["calibration_error"]
    calibration = {} if error is None else {"calibration_error": error["error"]}
    return {**shares, **f1, **calibration, **metrics["user"]}


def evaluate(
    recipe: Recipe,
    source: Source,
    final: Graph,
    work: Work,
    evaluation: Samples | None,
    user: tuple[UserMetric, ...] = (),
) -> Evaluated:
    """Run the model as it was given, and the one that was made, on data that no pass saw.

    Args:
        user: what `recipe.data.metrics` names.

    Raises:
        BadInputError: a metric of the user's fails, or the data do not run.
    """
    faithful = work.target.runtimes[0] != "onnxruntime"
    runnable = (simulation(final) or final) if faithful else final
    if evaluation is None:
        return Evaluated(runnable, faithful)
    names = class_names(recipe, evaluation)
    before = run_all(source.graph, evaluation, progress=work.progress, step="evaluating the model as given")
    after = run_all(runnable, evaluation, faithful=faithful, progress=work.progress, step="evaluating the result")
    comparison = compare(before, after, evaluation.labels)
    scores, labels = scores_of(before), evaluation.labels
    # What the model as given answers says what its scores are: quantised, probabilities are no longer quite some.
    softmax = scores is not None and not probabilities(scores)
    return Evaluated(
        runnable,
        faithful,
        before=_metrics(before, evaluation, names, user, softmax=softmax),
        after=_metrics(after, evaluation, names, user, softmax=softmax),
        comparison=comparison,
        classes=_classes(recipe, scores, scores_of(after), labels, names),
    )


def _metrics(
    outputs: Mapping[str, NDArray[Any]],
    samples: Samples,
    names: tuple[str, ...],
    user: tuple[UserMetric, ...],
    *,
    softmax: bool,
) -> dict[str, Any]:
    scores = scores_of(outputs)
    error: CalibrationError | None = None
    if scores is not None and samples.labels is not None:
        error = calibration_error(scores, samples.labels, softmax=softmax)
    return {
        **measure(outputs, samples.labels, names, user).to_json(),
        "calibration_error": None if error is None else error.to_json(),
    }


def _classes(
    recipe: Recipe,
    before: NDArray[Any] | None,
    after: NDArray[Any] | None,
    labels: NDArray[Any] | None,
    names: tuple[str, ...],
) -> dict[str, ClassPairs]:
    if before is None or after is None or labels is None:
        return {}
    first, second = predictions(before), predictions(after)
    numbers = {name: class_number(name, names, before.shape[1]) for name in recipe.class_limits}
    return {name: class_pairs(first, second, labels, number) for name, number in numbers.items()}


def prove(
    recipe: Recipe,
    source: Source,
    final: Graph,
    stages: list[Stage],
    work: Work,
    evaluation: Samples | None,
    evaluated: Evaluated,
    out: Path,
) -> Proof:
    """Compare the model as it was given with the one that was made.

    Args:
        evaluated: what `evaluate` found on the same data. out: the file of the model that was made.

    Raises:
        BadInputError: the data do not run.
    """
    faithful = work.target.runtimes[0] != "onnxruntime"
    runnable, comparison = evaluated.runnable, evaluated.comparison
    latency = _latency(source, out, work, evaluation)
    layers = _layers(source.graph, runnable, stages, work, evaluation)
    sides = {}
    for name, graph, metrics in (("before", source.graph, evaluated.before), ("after", final, evaluated.after)):
        counts = count(graph)
        timed = latency.get(name)
        sides[name] = {
            "bytes": len(graph.proto.SerializeToString()),
            "parameters": counts.parameters,
            "macs": counts.macs,
            "metrics": metrics,
            "latency": None if timed is None else timed.to_json(),
        }
    return Proof(
        before=sides["before"],
        after=sides["after"],
        comparison=None if comparison is None else comparison.to_json(),
        layers=[row.to_json() for row in layers],
        robustness=_robustness(recipe, source, runnable, work, evaluation, faithful=faithful),
        gate=judge(recipe, _held(recipe, evaluated), blame(layers, _BLAMED), stages),
    )


def _held(recipe: Recipe, evaluated: Evaluated) -> Figures:
    before, after = evaluated.before, evaluated.after
    if before is None or after is None:
        return Figures(evaluated.comparison, evaluated.classes, None, None)
    errors = [side["calibration_error"] for side in (before, after)]
    given, made = (None if error is None else error["error"] for error in errors)
    references = {name: metric_reference(name, recipe.data.metrics) for name in recipe.metric_limits}
    metrics = {name: (before["user"][each], after["user"][each]) for name, each in references.items()}
    return Figures(evaluated.comparison, evaluated.classes, given, made, metrics)


def _latency(source: Source, out: Path, work: Work, evaluation: Samples | None) -> dict[str, Latency]:
    """On this host, where the target runs the very runtime that this host has; else not measured."""
    samples = evaluation or work.calibration
    if samples is None or work.target.runtimes[0] != "onnxruntime":
        return {}
    work.progress("measuring latency", 0.0)
    # A folder of its own: other runs of kedge measure theirs at the same time.
    with tempfile.TemporaryDirectory(prefix="kedge-optimize-") as folder:
        original = Path(folder) / "original.onnx"
        source.graph.write(original)
        return HostProbe(samples).measure({"before": original, "after": out})


def _layers(original: Graph, final: Graph, stages: list[Stage], work: Work, evaluation: Samples | None) -> list[Any]:
    samples = work.calibration or evaluation
    if samples is None:
        return []
    precision: dict[str, str] = {}
    for stage in stages:
        precision |= stage.evidence.get("precision", {})
    try:
        return profile(original, final, samples, precision=precision, progress=work.progress)
    except KedgeError:
        # A picture of where the error arose is no reason to lose the result: some graphs cannot be looked into.
        return []


def _robustness(
    recipe: Recipe, source: Source, final: Graph, work: Work, evaluation: Samples | None, *, faithful: bool
) -> dict[str, Any] | None:
    wanted = recipe.robustness
    if evaluation is None or not (wanted.samples or wanted.attacked):
        return None
    from .robustness.attack import view_gradient
    from .robustness.measure import robustness

    return robustness(
        source.graph,
        final,
        evaluation,
        pixels_of(recipe.preprocess),
        attack_limit=wanted.attacked,
        limit=max(wanted.samples, wanted.attacked),
        seed=recipe.seed,
        gradient=view_gradient(source.graph) if wanted.attacked else None,
        faithful=faithful,
        progress=work.progress,
    )


def pixels_of(preprocess: Preprocess | None) -> Any:
    """The way back to pixels, where the preprocessing is stated; None where it is not."""
    from .robustness.corrupt import AffinePixels

    if preprocess is None:
        return None
    return AffinePixels(preprocess.scale, preprocess.mean, preprocess.std, preprocess.layout, preprocess.mode)
