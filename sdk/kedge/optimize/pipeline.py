"""The whole of `kedge optimize`: read, run the passes, prove on data no pass saw, and report."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..config import cache_dir
from ..model.calibrated import observed_ranges
from ..model.data import load_samples
from ..model.notes import write_notes
from ..model.onnx_io import ModelSpec, require_float
from ..model.samples import Samples
from ..targets import Target, load_target
from .gate import require_judgeable, require_scores
from .latency import HostProbe
from .proof.guard import refuse_overlap
from .proof.metrics import UserMetric, user_metric
from .prove import Evaluated, Proof, evaluate, prove
from .recipe import Recipe
from .source import Source, load_source
from .stages import Stage, run_passes, samples_digest
from .work import Helpers, LatencyProbe, Pass, Work

__all__ = ["Optimised", "optimise"]

Progress = Callable[[str, float], None]

_LIBRARIES = ("onnx", "onnxruntime", "numpy", "torch", "onnxslim", "optuna", "torch-pruning")


@dataclass(frozen=True)
class Optimised:
    """The model that was made, its report (docs/optimize-report.md), and whether the gate holds (None: no gate).

    model: the file that was written. samples: those that it was judged on, else those that it was calibrated on, as it
    takes them; None: there were none. reused: how many passes were taken from an earlier run.
    """

    model: Path
    document: dict[str, Any]
    passed: bool | None
    samples: Samples | None = None
    reused: int = 0


@dataclass(frozen=True)
class _Loaded:
    source: Source
    target: Target
    calibration: Samples | None
    train: Samples | None
    evaluation: Samples | None
    metrics: tuple[UserMetric, ...]


def optimise(
    recipe: Recipe,
    out: Path,
    progress: Progress,
    probe: LatencyProbe | None = None,
    helpers: Helpers | None = None,
    require: Callable[[ModelSpec], None] = lambda spec: None,
) -> Optimised:
    """Optimise a model as a recipe says.

    Args:
        out: the ONNX file to write. It is written also when the gate refuses it, so that it can be looked at.
        progress: told of each step's name and the share of it that is done.
        probe: measures candidates on a device; None: passes that measure do it on this host, where they can.
        helpers: judge candidates of searches; None: this process does.
        require: raises where the model, as it was read, is not to be optimised.

    Raises:
        KedgeError: what cannot be read, or what a pass refuses.
    """
    folder = cache_dir() / "optimize"
    scratch = folder / "work"
    scratch.mkdir(parents=True, exist_ok=True)
    # What is exported on the way is read at once; other runs of kedge export theirs at the same time.
    with tempfile.TemporaryDirectory(prefix="export-", dir=scratch) as exported:
        loaded = _load(recipe, Path(exported), progress, require)
    work = Work(
        target=loaded.target,
        original=loaded.source.graph,
        calibration=loaded.calibration,
        train=loaded.train,
        scratch=scratch,
        cache=folder,
        seed=recipe.seed,
        progress=progress,
        probe=probe or _host_probe(loaded),
        rank_by_probe=probe is not None,
        helpers=helpers,
        name=recipe.name or _name(recipe.source),
    )

    def started(index: int, step: Pass) -> None:
        progress(f"{step.kind} ({index + 1} of {len(recipe.passes)})", 0.0)

    stages = run_passes(loaded.source.graph, recipe.passes, work, started, reuse=probe is None)
    out.parent.mkdir(parents=True, exist_ok=True)
    final = stages[-1].graph if stages else loaded.source.graph
    final = final.copy()
    evaluated = evaluate(recipe, loaded.source, final, work, loaded.evaluation, loaded.metrics)
    write_notes(final.proto, _notes(recipe, loaded, stages, evaluated))
    final.write(out)
    proof = prove(recipe, loaded.source, final, stages, work, loaded.evaluation, evaluated, out)
    document = _document(recipe, loaded, stages, proof)
    return Optimised(
        out,
        document,
        None if proof.gate is None else bool(proof.gate["passed"]),
        loaded.evaluation or loaded.calibration,
        sum(stage.reused for stage in stages),
    )


def _notes(recipe: Recipe, loaded: _Loaded, stages: list[Stage], evaluated: Evaluated) -> dict[str, Any]:
    """What goes with the file: where it comes from, how inputs are prepared, their range, accuracy, gates."""
    origin: dict[str, Any] = {
        "source_sha256": loaded.source.sha256,
        "kedge": __version__,
        "libraries": _libraries(),
        "passes": [{"kind": stage.record["kind"], "parameters": stage.record["parameters"]} for stage in stages],
    }
    if recipe.sha256 is not None:
        origin["recipe_sha256"] = recipe.sha256
    notes: dict[str, Any] = {"optimize": origin}
    if loaded.evaluation is not None:
        notes["accuracy"] = evaluated.to_note(loaded.evaluation)
    if recipe.preprocess is not None:
        notes["preprocess"] = recipe.preprocess.to_manifest()
    if loaded.calibration is not None:
        notes["calibrated"] = observed_ranges(loaded.calibration)
    elif "calibrated" in loaded.source.spec.notes:
        notes["calibrated"] = loaded.source.spec.notes["calibrated"]
    if recipe.gates is not None:
        notes["gates"] = recipe.gates.to_note()
    elif "gates" in loaded.source.spec.notes:
        notes["gates"] = loaded.source.spec.notes["gates"]
    return notes


def _host_probe(loaded: _Loaded) -> LatencyProbe | None:
    """This host stands in for the device where that runs the very runtime that this host has."""
    if loaded.calibration is None or loaded.target.runtimes[0] != "onnxruntime":
        return None
    return HostProbe(loaded.calibration)


def _load(recipe: Recipe, scratch: Path, progress: Progress, require: Callable[[ModelSpec], None]) -> _Loaded:
    progress("reading the model", 0.0)
    target = load_target(recipe.target)
    source = load_source(recipe.source, scratch, base=recipe.base, input_shape=recipe.input_shape)
    require_float(source.spec, recipe.source)
    require(source.spec)
    # A name that is written wrongly shows now, and not after all passes.
    metrics = tuple(user_metric(reference, recipe.base) for reference in recipe.data.metrics)
    data = recipe.data
    classes = _classes(source)

    def load(reference: str, role: str, limit: int) -> Samples | None:
        if not reference:
            return None
        progress(f"reading {role} data", 0.0)
        return load_samples(
            reference,
            source.spec,
            recipe.preprocess,
            role=role,
            base=recipe.base,
            limit=limit or None,
            output_classes=classes,
        )

    train = load(data.train, "training", data.train_samples)
    calibration = load(data.calibration, "calibration", data.calibration_samples)
    if calibration is None and train is not None:
        calibration = train.first(data.calibration_samples or train.count)
    evaluation = load(data.evaluation, "evaluation", data.evaluation_samples)
    require_judgeable(recipe, evaluation, classes)
    if evaluation is not None:
        refuse_overlap(evaluation, calibration=calibration, train=train)
    require_scores(recipe, source.graph, evaluation)
    return _Loaded(source, target, calibration, train, evaluation, metrics)


def _classes(source: Source) -> int | None:
    """How many classes the scores have, where the model says so: its only [n, classes] output."""
    wide = [spec.shape[1] for spec in source.spec.outputs if len(spec.shape) == 2 and spec.datatype.startswith("FP")]
    return wide[0] if len(wide) == 1 and wide[0] > 1 else None


def _document(recipe: Recipe, loaded: _Loaded, stages: list[Stage], proof: Proof) -> dict[str, Any]:
    evidence: dict[str, Any] = {}
    for stage in stages:
        evidence |= {key: value for key, value in stage.evidence.items() if key != "precision"}
    return {
        "kedge": __version__,
        "model": {"source": recipe.source, "sha256": loaded.source.sha256, "name": recipe.name or _name(recipe.source)},
        "target": loaded.target.name,
        "runtime": loaded.target.runtimes[0],
        "seed": recipe.seed,
        "host": {"cpu": _cpu(), "cores": _cores(), "libraries": _libraries()},
        "passes": [stage.record for stage in stages],
        "data": {
            "calibration": _described(loaded.calibration),
            "train": _described(loaded.train),
            "evaluation": _described(loaded.evaluation),
        },
        "before": proof.before,
        "after": proof.after,
        "comparison": proof.comparison,
        "layers": proof.layers,
        "sensitivity": evidence.get("sensitivity"),
        "search": evidence.get("search"),
        "histograms": evidence.get("histograms", []),
        "robustness": proof.robustness,
        "gate": proof.gate,
    }


def _described(samples: Samples | None) -> dict[str, Any] | None:
    if samples is None:
        return None
    return {"name": samples.name, "count": samples.count, "sha256": samples_digest(samples)}


def _name(source: str) -> str:
    return source.rsplit(":", 1)[-1] if ":" in source else Path(source).stem


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine() or "unknown"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
