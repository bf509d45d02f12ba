"""Quantisation-aware training: the loop of recovery, run through fake quantisation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...errors import BadInputError
from ...model.graph import Graph, made_of
from ..quantize.affine import QuantParams
from ..work import Work
from .fake_quant import FakeQuant
from .loop import train
from .outcome import Trained
from .plan import WEIGHTED
from .scores import head_of
from .settings import TrainSettings
from .view import TorchView

__all__ = ["Quantised", "train_quantised"]


@dataclass(frozen=True)
class Quantised:
    """The graph with trained float weights, and the grids of activations (by tensor) and weights (by node)."""

    graph: Graph
    activations: Mapping[str, QuantParams]
    weights: Mapping[str, QuantParams]
    trained: Trained


def train_quantised(
    graph: Graph,
    activations: Mapping[str, QuantParams],
    weights: Mapping[str, QuantParams],
    work: Work,
    settings: TrainSettings,
    *,
    learn_scales: bool = True,
    step: str = "qat",
) -> Quantised:
    """Train a float graph as it will run quantised, from the grids that calibration found.

    Integers and zero points stay; scales are trained with learn_scales (Esser et al. 2020). Fold
    BatchNormalization first: a quantised layer has none.

    Args:
        activations: grids by tensor name, per tensor.
        weights: grids by node name, per channel of ONNX's layout or per tensor.

    Raises:
        BadInputError: a grid names no tensor or no weighted node of the graph; as `loop.train`.
        IncompatibleError: an operator has no torch form.
    """
    _check(graph, activations, weights)
    head = head_of(graph)
    view = TorchView(graph, also=(head.tensor,))
    fake = FakeQuant(activations, weights, learn=learn_scales)
    fake.install(view)
    key = hashlib.sha256(f"{graph.digest}{_key(activations)}{_key(weights)}{learn_scales}".encode()).hexdigest()
    done = train(view, head, settings, work, step=step, key=key, extra=fake)
    return Quantised(view.to_graph(), fake.activation_params(), fake.weight_params(), done)


def _check(graph: Graph, activations: Mapping[str, QuantParams], weights: Mapping[str, QuantParams]) -> None:
    for name in activations:
        if name not in graph.producer and name not in graph.input_names:
            raise BadInputError(f"there is no tensor {name!r} to quantise")
    for name in weights:
        if name not in graph.by_name or graph.by_name[name].op_type not in WEIGHTED:
            raise BadInputError(f"there is no weighted node {name!r} to quantise")


def _key(grids: Mapping[str, QuantParams]) -> str:
    arrays = {}
    for name, params in grids.items():
        for field, value in dataclasses.asdict(params).items():
            arrays[f"{name}/{field}"] = np.asarray(-1 if value is None else value)
    return made_of(arrays)
