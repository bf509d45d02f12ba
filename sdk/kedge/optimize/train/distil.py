"""The teacher: what the model as it was given says about the training data, and the loss that follows it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...errors import IncompatibleError
from ...model.graph import Graph
from ...model.session import ReferenceModel
from .batches import Batches
from .scores import head_of
from .view import TorchView

__all__ = ["Teacher", "distillation_loss"]


class Teacher:
    """The original model's logits: by torch where it has a form for it, else by onnxruntime."""

    def __init__(self, original: Graph) -> None:
        self._head = head_of(original)
        self._view: TorchView | None = None
        self._session: ReferenceModel | None = None
        self.batch: int | None = None
        try:
            view = TorchView(original, also=(self._head.tensor,)).eval().requires_grad_(False)
            self._view = view.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        except IncompatibleError:
            self._session, self.batch = _session(original, self._head.tensor)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [n, classes], no gradient."""
        if self._view is not None:
            with torch.no_grad():
                return self._head.logits(self._view(inputs))
        assert self._session is not None
        count = next(iter(inputs.values())).shape[0]
        step = self.batch or count
        parts = []
        for start in range(0, count, step):
            made = self._session.run({name: value[start : start + step].numpy() for name, value in inputs.items()})
            parts.append(self._head.logits({name: torch.from_numpy(value) for name, value in made.items()}))
        return torch.cat(parts)

    def fill(self, batches: Batches) -> None:
        """Ask once for all samples, and keep the answers beside them."""
        batches.teacher = torch.cat([self(batch.inputs) for batch in batches.epoch()])


def _session(original: Graph, tensor: str) -> tuple[ReferenceModel, int | None]:
    graph = original.copy()
    if tensor not in graph.output_names:
        import onnx

        graph.proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    shape = next((graph.types[name][1] for name in graph.input_names if name in graph.types), None)
    with tempfile.TemporaryDirectory(prefix="kedge-teacher-") as folder:
        path = Path(folder) / "teacher.onnx"
        path.write_bytes(graph.proto.SerializeToString())
        return ReferenceModel(path), shape[0] if shape else None


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over samples (Hinton et al. 2015)."""
    return F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    ) * (temperature * temperature)
