"""Win back accuracy that pruning, clustering or quantising has cost: fine-tuning, distillation, attacked inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import BadInputError, IncompatibleError
from ...model.graph import Graph
from ...model.samples import Samples
from ..work import Result, Work
from .settings import TrainSettings

if TYPE_CHECKING:
    from .view import TorchView

__all__ = ["Recover", "reestimate_batchnorm"]


@dataclass(frozen=True)
class Recover(TrainSettings):
    """Train the weights on `work.train`, with what `TrainSettings` says.

    With distil = 1 the teacher's answers take the place of labels, and calibration data serve where there are
    no training data. A run that was cut off goes on from the last whole epoch in `work.scratch`.
    """

    kind: ClassVar[str] = "recover"

    def apply(self, graph: Graph, work: Work) -> Result:
        """The graph with trained weights.

        Raises:
            BadInputError: no data to train on, labels that do not fit, or training diverges.
            IncompatibleError: torch is not installed, or has no form of an operator.
        """
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise IncompatibleError("torch is needed to train", hint="pip install 'kedge[optimize]'") from error
        from .loop import train
        from .scores import head_of
        from .view import TorchView

        head = head_of(graph)
        view = TorchView(graph, also=(head.tensor,))
        done = train(view, head, self, work, step=self.kind, key=graph.digest)
        return Result(view.to_graph(), done.to_json(), done.notes)


def reestimate_batchnorm(view: TorchView, samples: Samples, batch: int = 128) -> int:
    """Set each BatchNormalization's statistics to their mean over batches of samples; the number of its layers.

    A cumulative average, as precise BN in Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm": what pruning
    has shifted is measured anew, without labels or gradients.

    Raises:
        BadInputError: too few samples for a variance.
    """
    import numpy as np
    import torch

    from .layers import BATCH_NORMS

    norms = [m for m in view.modules() if isinstance(m, BATCH_NORMS)]
    if not norms:
        return 0
    if samples.count < 2:
        raise BadInputError("BatchNormalization needs two samples or more", hint="give a few hundred")
    was_training, momenta = view.training, [norm.momentum for norm in norms]
    view.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for inputs in samples.batches(batch):
            if next(iter(inputs.values())).shape[0] > 1:
                view({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in inputs.items()})
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    view.train(was_training)
    return len(norms)
