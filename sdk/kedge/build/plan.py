"""Which runtime a target gets for a model, and why. A pure function: no device, no files."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import IncompatibleError
from ..model.onnx_io import ModelSpec
from ..targets import Target

__all__ = ["Plan", "plan"]

_BUILDABLE = ("onnxruntime",)


@dataclass(frozen=True)
class Plan:
    """The choice, and the sentence that explains it."""

    runtime: str
    precision: str
    reason: str


def plan(model: ModelSpec, target: Target) -> Plan:
    """Choose the runtime of a model on a target.

    Raises:
        IncompatibleError: the target has no runtime or precision for this model.
    """
    if model.precision not in target.precisions:
        raise IncompatibleError(
            f"the model is {model.precision}, {target.name} runs {', '.join(target.precisions)}",
            hint="choose another target, or export the model in one of these precisions",
        )
    for runtime in target.runtimes:
        if runtime in _BUILDABLE:
            reason = f"{target.name} runs {runtime}, which takes the optimised ONNX as it is: nothing is compiled"
            return Plan(runtime, model.precision, reason)
    raise IncompatibleError(
        f"{target.name} runs {', '.join(target.runtimes)}, for which this version builds nothing",
        hint="see: kedge targets list",
    )
