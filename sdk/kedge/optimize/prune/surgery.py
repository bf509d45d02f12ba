"""Channels of a torch view that must go together, found by torch-pruning, and taken out one group at a time.

Every group is tried first: taking out half of its channels must leave what silencing them (zeros in the weights that
read them) leaves. A group that runs through a Slice, Pad or Reshape whose sizes are fixed, or through a normalisation
or a product over the channels, fails that, and is left alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from ...errors import IncompatibleError, KedgeError, first_line
from ..train.view import TorchView
from .following import Bounded, Budget, Saved

__all__ = ["Channels", "Surgeon"]

_TOLERANCE = 1e-3
_KEPT_BOOKS = ("_ConcatOp", "_SplitOp", "_SliceOp", "_UnbindOp", "_OutputOp", "Parameter")
_CONV = nn.modules.conv._ConvNd  # noqa: SLF001  the base class of convolutions
_INWARD = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
_OUTWARD = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)
_DEPTHWISE = (torch_pruning.prune_depthwise_conv_out_channels,)


@dataclass(frozen=True)
class Channels:
    """Channels that go together. name: node that makes them. count: how many.

    outward, inward: nodes whose output or input channels they are, with the share of those that one channel is.
    scores: importance of each.
    """

    name: str
    count: int
    outward: Mapping[str, float]
    inward: Mapping[str, float]
    scores: tuple[float, ...]


@dataclass
class Surgeon:
    """Finds groups of channels in a view and takes channels out, or puts everything back when that does not work.

    inputs: what to run the view on, by name. left: groups that stay, with the reason.
    """

    view: TorchView
    inputs: Mapping[str, Tensor]
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.view.eval()
        self._shapes = {name: value.shape for name, value in self._run()[0].items()}
        self._trace()

    def groups(self, importance: Any, ignore: set[str]) -> list[Channels]:
        """Groups that can be pruned, in the order of the graph.

        Raises:
            IncompatibleError: torch-pruning cannot follow the model.
        """
        found = []
        for name, group in self._all(ignore):
            reason = self._objection(group) or self._try(name, group)
            channels = None if reason else self._described(name, group, importance)
            if channels is None:
                self._leave(group, reason or "their importance cannot be ranked")
            else:
                found.append(channels)
        return found

    def prune(self, name: str, indices: list[int]) -> str:
        """Take channels out; "" when that went well, else the reason, and everything is as it was."""
        group = self._group(name, indices)
        saved = Saved(group)
        try:
            group.prune(record_history=False)
            outputs, _ = self._run()
            reason = self._wrong_shape(outputs)
        except Exception as error:  # what torch-pruning did may end in any of torch's errors
            reason = f"the model does not run without them: {first_line(error)}"
        if reason:
            saved.restore(self.view)
            self.left[name] = reason
        self._trace_again(group)
        return reason

    def _try(self, name: str, group: Any) -> str:
        """Whether taking out and silencing half of the channels come to the same; "" or the reason why not."""
        count = len(group[0].idxs)
        mixed = torch.randperm(count, generator=torch.Generator().manual_seed(count))
        half = self._group(name, sorted(mixed[: max(count // 2, 1)].tolist()))
        saved = Saved(half)
        passed = _passes(half)
        through = f"they run through {passed} of fixed size" if passed else ""
        try:
            _silence(half)
            expected, inside = self._run()
            saved.restore(self.view)
            half.prune(record_history=False)
            outputs, pruned = self._run()
            reason = self._wrong_shape(outputs)
            if not reason and not (_agree(expected, outputs) and _agree(inside, pruned)):
                reason = through or "the rest of the model depends on how many there are"
        except Exception:  # torch-pruning may have made a model that fails anywhere
            reason = through or "the model does not run without them"
        saved.restore(self.view)
        self._trace_again(half)
        return reason

    def _leave(self, group: Any, reason: str) -> None:
        for item in group:
            if _makes(item):
                self.left[self.view.node_of(item.dep.target.module)] = reason

    def _objection(self, group: Any) -> str:
        for item in group:
            module = item.dep.target.module
            groups = getattr(module, "groups", 1)
            if isinstance(module, _CONV) and groups > 1 and groups != module.out_channels:
                return "a grouped convolution makes or reads them"
            if type(module).__name__ == "_OutputOp":
                return "they are channels of an output"
        return "" if len(group[0].idxs) > 1 else "there is one"

    def _described(self, name: str, group: Any, importance: Any) -> Channels | None:
        outward: dict[str, float] = {}
        inward: dict[str, float] = {}
        count = len(group[0].idxs)
        for item in group:
            module, handler = item.dep.target.module, item.dep.handler
            if _makes(item):
                width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
                outward[self.view.node_of(module)] = len(item.idxs) / count / width
            elif handler in _INWARD:
                width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
                inward[self.view.node_of(module)] = len(item.idxs) / count / width
        scores = importance(group)
        if scores is None or len(scores) != count or not bool(torch.isfinite(scores).all()):
            return None
        return Channels(name, count, outward, inward, tuple(scores.tolist()))

    def _trace_again(self, group: Any) -> None:
        """Trace if torch-pruning keeps books on what the group runs through: they do not survive a restore."""
        if any(type(item.dep.target.module).__name__ in _KEPT_BOOKS for item in group):
            self._trace()

    def _trace(self) -> None:
        """Build torch-pruning's graph."""

        def forward(view: TorchView, inputs: Mapping[str, Tensor]) -> list[Tensor]:
            return [value for value in view(inputs).values() if value.grad_fn is not None]

        try:
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._graph = torch_pruning.DependencyGraph().build_dependency(
                    self.view, example_inputs=dict(self.inputs), forward_fn=forward, verbose=False
                )
            self._budget = Budget(max((max(value.shape, default=1) for value in self.view.parameters()), default=1))
            for node in self._graph.module2node.values():
                node.dependencies = Bounded(node.dependencies, self._budget)
        except KedgeError:
            raise
        except Exception as error:  # torch-pruning raises AttributeError, KeyError and others on what it does not know
            raise IncompatibleError(
                f"torch-pruning cannot follow this model: {first_line(error)}",
                hint="prune blocks or magnitudes instead",
            ) from error

    def _all(self, ignored: set[str]) -> list[tuple[str, Any]]:
        """Every group with all its channels, by the name of its first layer; none with an ignored layer."""
        found, seen = [], set[str]()
        for name in self.view.layer_names:
            module = self.view.layer(name)
            if name in seen or not isinstance(module, (_CONV, nn.Linear)) or module not in self._graph.module2node:
                continue
            try:
                group = self._group(name, list(range(self._graph.get_out_channels(module))))
            except Exception as error:  # torch-pruning raises all sorts, and RunawayError is ours
                self.left[name] = f"torch-pruning cannot follow them ({type(error).__name__})"
                continue
            makers = {self.view.node_of(item.dep.target.module) for item in group if _makes(item)}
            seen |= makers
            if not makers & ignored:
                found.append((name, group))
        return found

    def _group(self, name: str, indices: list[int]) -> Any:
        module = self.view.layer(name)
        self._budget.renew()
        pruner = self._graph.get_pruner_of_module(module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._graph.get_pruning_group(module, pruner.prune_out_channels, indices)

    def _run(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs of the model, and of each layer."""
        inside: dict[str, Tensor] = {}
        with ExitStack() as hooks, torch.no_grad():
            for name in self.view.layer_names:

                def keep(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                    inside[name] = output

                hooks.callback(self.view.layer(name).register_forward_hook(keep).remove)
            outputs = self.view(self.inputs)
        return outputs, inside

    def _wrong_shape(self, outputs: Mapping[str, Tensor]) -> str:
        for name, shape in self._shapes.items():
            if outputs[name].shape != shape:
                return f"they are channels of the output {name}"
        return ""


def _makes(item: Any) -> bool:
    """Whether a step of a group takes output channels from a layer."""
    return item.dep.handler in (*_OUTWARD, *_DEPTHWISE)


def _silence(group: Any) -> None:
    """Zero the weights that read the group's channels, in new parameters: the old ones are kept by `Saved`."""
    for item in group:
        module = item.dep.target.module
        if item.dep.handler in _INWARD:
            weight = module.weight.detach().clone()
            weight[(slice(None), item.idxs) if not getattr(module, "transposed", False) else item.idxs] = 0
            module.weight = nn.Parameter(weight)


def _passes(group: Any) -> str:
    """Which operations of fixed size the channels pass, by name."""
    names = []
    for item in group:
        module = item.dep.target.module
        kind = type(module).__name__.strip("_").removesuffix("Op")
        if kind in ("Slice", "Reshape", "Split", "Expand", "Unbind"):
            names.append(kind)
        elif "ConstantPad" in repr(module):
            names.append("Pad")
    return " and ".join(dict.fromkeys(names))


def _agree(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Whether floating-point tensors of equal shape are equal; those of other shape are the pruned ones themselves."""
    for name, value in expected.items():
        other = found.get(name)
        if other is None or value.shape != other.shape or not value.is_floating_point():
            continue
        if float((value - other).norm()) > _TOLERANCE * float(value.norm()) + 1e-6:
            return False
    return True
