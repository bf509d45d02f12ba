"""What every pass is: a frozen set of parameters that turns a graph into a graph and says what it changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..errors import BadInputError, KedgeError
from ..model.graph import Graph
from ..model.samples import Samples
from ..targets import Target

__all__ = ["Helpers", "Latency", "LatencyProbe", "Pass", "Result", "Work", "silent"]


@dataclass(frozen=True)
class Latency:
    """Time of one inference of batch one, in milliseconds. conditions: device, runtime, threads, warm-up, as text."""

    p50_ms: float
    p90_ms: float
    samples: int
    conditions: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "p50_ms": self.p50_ms,
            "p90_ms": self.p90_ms,
            "samples": self.samples,
            "conditions": self.conditions,
        }


class LatencyProbe(Protocol):
    """Something that times models: this host's CPU, or a device. Several are timed interleaved, to share its noise."""

    @property
    def name(self) -> str:
        """Which one: what two of the same name measure may be compared."""
        ...

    def measure(self, models: Mapping[str, Path]) -> dict[str, Latency]:
        """Latency by name."""
        ...


class Helpers(Protocol):
    """Other processes, here or elsewhere, that judge candidates."""

    @property
    def executor(self) -> Executor:
        """Takes functions of modules, and what they need."""
        ...

    def share(self, value: Any) -> Any:
        """What to submit in the place of an argument that many calls take."""
        ...

    def explain(self, error: BaseException) -> KedgeError:
        """What a future that ended without a result means."""
        ...


def silent(step: str, share: float) -> None:
    """Progress for nobody."""


@dataclass(frozen=True)
class Work:
    """What a pass may use. Evaluation data are not here: no pass ever sees them.

    target: decides the quantisation scheme and the runtime.
    original: the graph before any pass: teacher of distillation, reference of error profiles.
    calibration: unlabelled use only. train: labelled, or None when none was given.
    scratch: a folder for intermediate files, kept when the run resumes. cache: kept between runs.
    progress: called with the step's name and the share done, 0 to 1.
    probe: times models, or None where nothing can. rank_by_probe: the user asked for every candidate to be
    measured (--measure-on), not only estimated.
    helpers: judge what candidates lose, in the place of this process; never how fast they are.
    name: of the model, where people look for what a pass left for them.
    """

    target: Target
    original: Graph
    calibration: Samples | None
    train: Samples | None
    scratch: Path
    cache: Path
    seed: int = 0
    progress: Callable[[str, float], None] = silent
    probe: LatencyProbe | None = None
    rank_by_probe: bool = False
    helpers: Helpers | None = None
    name: str = "model"

    def need_calibration(self, purpose: str) -> Samples:
        """The calibration samples.

        Raises:
            BadInputError: none were given.
        """
        if self.calibration is None:
            raise BadInputError(
                f"{purpose} needs calibration data", hint="give a few hundred real inputs: --calibration"
            )
        return self.calibration

    def need_train(self, purpose: str) -> Samples:
        """The labelled training samples.

        Raises:
            BadInputError: none were given, or they have no labels.
        """
        if self.train is None or self.train.labels is None:
            raise BadInputError(f"{purpose} needs labelled training data", hint="give them with --train")
        return self.train


@dataclass(frozen=True)
class Result:
    """What a pass made: the new graph, what it changed in plain JSON, sentences for the user.

    evidence: parts of the report that this pass can fill: "sensitivity", "search", "histograms"
    (docs/optimize-report.md), and "precision": {layer: precision} where the graph itself does not
    tell. simulated: the target's runtime would not compute this graph; there is no artefact of it.
    """

    graph: Graph
    changed: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    simulated: bool = False


class Pass(Protocol):
    """One step of a recipe; implementations are frozen dataclasses whose fields are the recipe's keys."""

    kind: ClassVar[str]

    def apply(self, graph: Graph, work: Work) -> Result:
        """Make a new graph; the one given is not changed."""
        ...
