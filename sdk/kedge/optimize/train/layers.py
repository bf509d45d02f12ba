"""Weighted ONNX nodes as torch's own modules, so that what knows torch (optimisers, torch-pruning) knows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .op import Op, integers
from .spatial import same_pads, torch_pads, window

__all__ = ["BATCH_NORMS", "Layer", "Slot", "layer_of"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_CONV: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV_FORM: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
_BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@dataclass(frozen=True)
class Slot:
    """Where a module keeps a constant of the graph: its attribute, the constant's name, transposed or not."""

    attribute: str
    tensor: str
    transposed: bool = False


@dataclass(frozen=True)
class Layer:
    """A module, what it keeps, and how it is run: on its own weight, or on one handed to it (in ONNX's layout)."""

    module: nn.Module
    slots: tuple[Slot, ...]
    before: Callable[[Tensor], Tensor] | None = None
    after: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, hook: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The node's output."""
        given = x
        if self.before is not None:
            x = self.before(x)
        y = self.module(x) if hook is None else self._with_weight(x, hook)
        return y if self.after is None else self.after(given, y)

    def _with_weight(self, x: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
        module: Any = self.module
        if isinstance(module, nn.Linear):
            turned = self.slots[0].transposed
            weight = hook(module.weight.t()).t() if turned else hook(module.weight)
            return F.linear(x, weight, module.bias)
        form = _CONV_FORM.get(type(module))
        if form is None:
            return cast("Tensor", module(x))
        weight = hook(module.weight)
        if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            return form(
                x, weight, module.bias, module.stride, module.padding, module.output_padding, module.groups,
                module.dilation,
            )  # fmt: skip
        return form(x, weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


def layer_of(op: Op, node: onnx.NodeProto, constants: Mapping[str, Tensor], rank: int | None) -> Layer | None:
    """The layer for a node whose weights are constants; None when no module of torch means the same.

    rank: dimensions of the node's first input, where known.
    """
    names = [*node.input, "", "", "", ""]
    if not names[1] or any(name and name not in constants for name in node.input[1:]):
        return None
    if not constants[names[1]].is_floating_point() or names[0] in constants:
        return None
    if op.kind in ("Conv", "ConvTranspose"):
        return _conv(op, names, constants)
    if op.kind == "Gemm":
        return _gemm(op, names, constants)
    if op.kind == "MatMul" and constants[names[1]].dim() == 2:
        weight = constants[names[1]]
        with torch.no_grad():
            module = _hollow(nn.Linear, weight.shape[0], weight.shape[1], bias=False)
            module.weight = nn.Parameter(weight.t().contiguous())
        return Layer(module, (Slot("weight", names[1], transposed=True),))
    if op.kind == "BatchNormalization" and op.outputs == 1:
        return _batch_norm(op, names, constants, rank)
    if op.kind == "LayerNormalization" and op.outputs == 1 and op.get("axis", -1) in (-1, (rank or 0) - 1):
        return _layer_norm(op, names, constants)
    return None


def _hollow(kind: Any, *args: Any, **settings: Any) -> Any:
    """A module without the time its random initial weights would take."""
    return kind(*args, **settings, device="meta")


def _conv(op: Op, names: list[str], constants: Mapping[str, Tensor]) -> Layer | None:
    weight = constants[names[1]]
    rank, groups = weight.dim() - 2, op.get("group", 1)
    if not 1 <= rank <= 3:
        return None
    kernel = list(weight.shape[2:])
    strides, dilations = window(op, kernel)
    slots = [Slot("weight", names[1])]
    if names[2]:
        slots.append(Slot("bias", names[2]))
    settings: dict[str, Any] = {"stride": strides, "dilation": dilations, "groups": groups, "bias": bool(names[2])}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    if op.kind == "ConvTranspose":
        module, after = _conv_transpose(op, weight, settings)
        return _filled(module, slots, constants, None, after)
    padding, before = [0] * rank, None
    fixed = _fixed_pads(op, kernel)
    if fixed is not None and fixed[:rank] == fixed[rank:]:
        padding = fixed[:rank]
    elif fixed is not None:
        amounts = torch_pads(fixed)
        before = lambda x: F.pad(x, amounts)  # noqa: E731
    else:
        before = lambda x: F.pad(x, torch_pads(same_pads(op, x.shape[2:], kernel)))  # noqa: E731
    channels = (weight.shape[1] * groups, weight.shape[0])
    module = _hollow(_CONV[rank - 1], *channels, tuple(kernel), padding=tuple(padding), **settings)
    return _filled(module, slots, constants, before, None)


def _fixed_pads(op: Op, kernel: list[int]) -> list[int] | None:
    """Pads that do not depend on the input's size; None when they do."""
    strides, _ = window(op, kernel)
    if op.get("auto_pad", "NOTSET").startswith("SAME") and any(stride != 1 for stride in strides):
        return None
    return same_pads(op, [2**20] * len(kernel), kernel)


def _conv_transpose(
    op: Op, weight: Tensor, settings: dict[str, Any]
) -> tuple[Any, Callable[[Tensor, Tensor], Tensor] | None]:
    rank = weight.dim() - 2
    extra = tuple(integers(op.get("output_padding"))) or (0,) * rank
    channels = (weight.shape[0], weight.shape[1] * settings["groups"], tuple(weight.shape[2:]))
    pads, mode = integers(op.get("pads")) or [0] * (2 * rank), op.get("auto_pad", "NOTSET")
    shape = integers(op.get("output_shape"))[-rank:]
    if mode in ("NOTSET", "VALID") and not shape and pads[:rank] == pads[rank:]:
        padding = tuple(pads[:rank]) if mode == "NOTSET" else (0,) * rank
        return _hollow(_CONV_TRANSPOSE[rank - 1], *channels, padding=padding, output_padding=extra, **settings), None

    def crop(x: Tensor, y: Tensor) -> Tensor:
        for axis in range(rank):
            if shape or mode.startswith("SAME"):
                wanted = shape[axis] if shape else x.shape[axis + 2] * settings["stride"][axis]
                total = y.shape[axis + 2] - wanted
                begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
            else:
                wanted, begin = y.shape[axis + 2] - pads[axis] - pads[axis + rank], pads[axis]
            y = y.narrow(axis + 2, begin, wanted)
        return y

    return _hollow(_CONV_TRANSPOSE[rank - 1], *channels, output_padding=extra, **settings), crop


def _gemm(op: Op, names: list[str], constants: Mapping[str, Tensor]) -> Layer | None:
    weight = constants[names[1]]
    if op.get("transA", 0) or op.get("alpha", 1.0) != 1.0 or op.get("beta", 1.0) != 1.0 or weight.dim() != 2:
        return None
    turned = not op.get("transB", 0)
    width = weight.shape[1] if turned else weight.shape[0]
    if names[2] and (constants[names[2]].numel() != width or constants[names[2]].shape[-1:] != (width,)):
        return None
    inside = weight.numel() // max(width, 1)
    slots = [Slot("weight", names[1], turned)]
    if names[2]:
        slots.append(Slot("bias", names[2]))
    return _filled(_hollow(nn.Linear, inside, width, bias=bool(names[2])), slots, constants, None, None)


def _batch_norm(op: Op, names: list[str], constants: Mapping[str, Tensor], rank: int | None) -> Layer | None:
    # ONNX: running = running * momentum + batch * (1 - momentum); torch counts the other way round.
    momentum = 1.0 - op.get("momentum", 0.9)
    kind = _BATCH_NORM.get(rank or 4)
    if kind is None:
        return None
    channels = constants[names[1]].shape[0]
    module = kind(channels, eps=op.get("epsilon", 1e-5), momentum=momentum)
    keeps = ("weight", "bias", "running_mean", "running_var")
    slots = [Slot(attribute, name) for attribute, name in zip(keeps, names[1:5], strict=True)]
    return _filled(module, slots, constants, None, None)


def _layer_norm(op: Op, names: list[str], constants: Mapping[str, Tensor]) -> Layer | None:
    if constants[names[1]].dim() != 1:
        return None
    module = _hollow(nn.LayerNorm, constants[names[1]].shape[0], eps=op.get("epsilon", 1e-5), bias=bool(names[2]))
    slots = [Slot("weight", names[1])]
    if names[2]:
        slots.append(Slot("bias", names[2]))
    return _filled(module, slots, constants, None, None)


def _filled(
    module: Any,
    slots: list[Slot],
    constants: Mapping[str, Tensor],
    before: Callable[[Tensor], Tensor] | None,
    after: Callable[[Tensor, Tensor], Tensor] | None,
) -> Layer:
    for slot in slots:
        value = constants[slot.tensor]
        value = value.t().contiguous() if slot.transposed else value.clone()
        if slot.attribute == "bias":
            value = value.reshape(-1)
        if slot.attribute.startswith("running"):
            setattr(module, slot.attribute, value)
        else:
            setattr(module, slot.attribute, nn.Parameter(value))
    return Layer(module, tuple(slots), before, after)
