"""Structured pruning by width: channels and hidden units go, with all that makes and reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ...model.samples import Samples
from ..work import Result, Work
from .attention import find_attention
from .changes import sizes
from .counts import count, layer_macs, shapes_at_batch_one
from .outputs import answers, drawn, fixed_batch_of
from .weights import chosen, lift_constants, weight_layers

if TYPE_CHECKING:
    import torch

    from ..train.view import TorchView

__all__ = ["PruneChannels"]

_IMPORTANCES = ("data-free", "l1", "l2", "taylor")
_SCOPES = ("global", "layer")
_DTYPES = {2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}


@dataclass(frozen=True)
class PruneChannels:
    """Take out whole channels of convolutions and hidden units of matrices (Fang et al. 2023, DepGraph).

    macs: share of the multiply-accumulates to get down to. ratio: when above 0, in its place: share of the channels to
    take. importance: "data-free" (α·‖w‖₁/n + (1−α)·‖w‖₂/√n over all layers a channel runs through), "l1", "l2", or
    "taylor" (|w·∂L/∂w|, Molchanov et al. 2019; needs data: labels where there are any, else the model's own choices).
    alpha: the α of "data-free". scope: "global" takes the least important channels of the model, "layer" the same share
    of every layer. round_to: widths are multiples of it; 0 takes the target's granularity. max_ratio: no layer loses
    more than this share. ignore: layers whose channels stay; names or shell patterns.
    samples: how many samples Taylor importance and re-estimated BatchNormalization statistics use.
    """

    kind: ClassVar[str] = "prune-channels"

    macs: float = 0.5
    ratio: float = 0.0
    importance: str = "data-free"
    alpha: float = 0.5
    scope: str = "global"
    round_to: int = 0
    max_ratio: float = 0.75
    ignore: tuple[str, ...] = ()
    samples: int = 256

    def __post_init__(self) -> None:
        for name, value in (("macs", self.macs), ("ratio", self.ratio), ("alpha", self.alpha)):
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise BadInputError(f"{name} {value} is no share", hint="give a number from 0 to 1")
        if not 0 < self.max_ratio < 1 or self.ratio == 1 or (self.macs == 0 and self.ratio == 0):
            raise BadInputError("pruning all channels leaves nothing", hint="give shares above 0 and below 1")
        if self.importance not in _IMPORTANCES:
            raise BadInputError(f"importance {self.importance!r} is not known", hint=", ".join(_IMPORTANCES))
        if self.scope not in _SCOPES:
            raise BadInputError(f"scope {self.scope!r} is not known", hint=" or ".join(_SCOPES))
        if self.round_to < 0 or self.samples < 1:
            raise BadInputError(f"round_to {self.round_to} or samples {self.samples} is out of range")

    def apply(self, graph: Graph, work: Work) -> Result:
        """Prune.

        Raises:
            BadInputError: a layer named is not there, or Taylor importance has no data.
            IncompatibleError: an operator has no torch form, or torch or torch-pruning is not installed.
        """
        try:
            from ..train.view import TorchView
            from .surgery import Surgeon
        except ImportError as error:
            raise IncompatibleError(
                "pruning channels needs torch and torch-pruning", hint="pip install 'kedge[optimize]'"
            ) from error
        ignored = chosen(self.ignore, [layer.name for layer in weight_layers(graph)])
        macs = layer_macs(graph)
        if self.ratio <= 0 and count(graph).macs is None:
            raise BadInputError("the model's MACs are not known, for a dimension is free", hint="give ratio instead")
        view = TorchView(_with_free_reshapes(graph))
        surgeon = Surgeon(view, self._inputs(graph, work))
        pruned = self._prune(surgeon, {name: value or 0 for name, value in macs.items()}, ignored, work)
        if not pruned:
            changed = {**sizes(graph, graph, work), "layers": {}, "left": surgeon.left, "reached": False}
            return Result(
                graph.copy(), changed, ("nothing to prune: no layer's channels can go", *_notes(graph, surgeon.left))
            )
        smaller = self._finished(view, graph, work)
        _check_same(view, smaller, surgeon.inputs, work)
        changed = {**sizes(graph, smaller, work), "layers": pruned, "left": surgeon.left}
        changed["reached"] = self._reached(changed)
        notes = [f"{len(pruned)} groups of channels are narrower", *_notes(graph, surgeon.left)]
        if not changed["reached"]:
            notes.append("the share asked for was not reached: the channels that may go are gone")
        return Result(smaller, changed, tuple(notes))

    def _prune(self, surgeon: Any, macs: dict[str, int], ignored: set[str], work: Work) -> dict[str, dict[str, int]]:
        from .allocate import Allocation, allocate
        from .importance import importance_of

        round_to = self.round_to or int(getattr(work.target, "channel_multiple", 8))
        if self.importance == "taylor":
            self._gradients(surgeon.view, work)
        groups = surgeon.groups(importance_of(self.importance, self.alpha), ignored)
        surgeon.view.zero_grad(set_to_none=True)
        rule = Allocation(self.macs, self.ratio, self.scope, round_to, self.max_ratio)
        taken: dict[str, dict[str, int]] = {}
        plan = allocate(groups, macs, rule)
        for done, (name, indices) in enumerate(plan.items()):
            before = next(group.count for group in groups if group.name == name)
            if not surgeon.prune(name, indices):
                taken[name] = {"before": before, "after": before - len(indices)}
            work.progress("prune channels", (done + 1) / len(plan))
        return taken

    def _gradients(self, view: TorchView, work: Work) -> None:
        import torch

        from .importance import label_loss

        labelled = work.train is not None and work.train.labels is not None
        samples = work.need_train("Taylor importance") if labelled else work.need_calibration("Taylor importance")
        samples = drawn(samples, self.samples, work.seed)
        size = fixed_batch_of(view.to_graph()) or 32
        with torch.enable_grad():
            for index, batch in enumerate(samples.batches(size)):
                labels = (
                    samples.labels[index * size : (index + 1) * size]
                    if labelled and samples.labels is not None
                    else None
                )
                inputs = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in batch.items()}
                label_loss(view(inputs), None if labels is None else torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]

    def _inputs(self, graph: Graph, work: Work) -> dict[str, torch.Tensor]:
        """Two samples where there are any (one if the batch is fixed to one), else noise."""
        import torch

        size = fixed_batch_of(graph) or 2
        samples = work.calibration or work.train
        if samples is not None and samples.count >= size:
            return {
                name: torch.from_numpy(np.ascontiguousarray(value))
                for name, value in next(samples.batches(size)).items()
            }
        shapes, random = shapes_at_batch_one(graph), np.random.default_rng(work.seed)
        made = {}
        for name in graph.input_names:
            if name not in shapes:
                raise BadInputError(f"input {name!r} has a free dimension", hint="give calibration data: --calibration")
            kind = _DTYPES.get(graph.types[name][0])
            noise = random.standard_normal(shapes[name]).astype(np.float32)
            made[name] = torch.from_numpy(noise if kind is None else np.abs(noise).astype(kind))
        return made

    def _finished(self, view: TorchView, graph: Graph, work: Work) -> Graph:
        """The pruned graph, its BatchNormalization statistics estimated anew where there are any and data to do it."""
        if work.calibration is not None and any(node.op_type == "BatchNormalization" for node in graph.nodes):
            from ..train.recover import reestimate_batchnorm

            reestimate_batchnorm(view, drawn(work.calibration, self.samples, work.seed))
            view.eval()
        return view.to_graph()

    def _reached(self, changed: dict[str, Any]) -> bool:
        if self.ratio > 0:
            return True
        macs = changed["macs"]
        return bool(macs["before"] and macs["after"] is not None and macs["after"] <= self.macs * macs["before"] + 0.5)


def _with_free_reshapes(graph: Graph) -> Graph:
    """A copy whose Reshapes mean the same and follow a change of width where they can.

    A target that keeps the last dimension and is known otherwise states it as -1.
    """
    free = graph.copy()
    shapes = shapes_at_batch_one(graph)
    fixed = all(None not in (graph.types[name][1] or (None,)) for name in graph.input_names)
    targets: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in graph.initializers:
            continue
        if (graph.array(node.input[1]) == 0).any():
            continue
        before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
        if fixed and before and after and len(after) > 1 and before[-1] == after[-1] and 0 not in after:
            key = f"{after[:-1]}"
            if key not in targets:
                targets[key] = free.unused_name("free_width")
                free.set_array(targets[key], np.array([*after[:-1], -1], np.int64))
            free.by_name[node.name].input[1] = targets[key]
    free.prune_unused()
    return free


def _check_same(view: TorchView, graph: Graph, inputs: Mapping[str, torch.Tensor], work: Work) -> None:
    """The graph written must answer as the view that was pruned."""
    import torch

    with torch.no_grad():
        expected = view(inputs)
    found = answers(graph, Samples({name: value.numpy() for name, value in inputs.items()}), work.scratch)
    for name, value in expected.items():
        y = value.numpy()
        if y.dtype.kind == "f" and not np.allclose(
            y, found[name], rtol=1e-2, atol=1e-3 * max(float(np.abs(y).max()), 1e-6)
        ):
            raise IncompatibleError(
                f"output {name!r} of the pruned model is not the same in onnxruntime as in torch",
                hint="prune blocks instead, or ignore the layers named in the notes",
            )


def _notes(graph: Graph, left: dict[str, str]) -> list[str]:
    blocks, _ = find_attention(lift_constants(graph))
    heads = [name for block in blocks for name in block.layers if name in left]
    said = (
        [f"projections of attention stay (prune-heads takes their heads, where there are several): {', '.join(heads)}"]
        if heads
        else []
    )
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        if name not in heads:
            by_reason.setdefault(reason, []).append(name)
    return said + [f"channels left, for {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
