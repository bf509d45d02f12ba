"""What training minimises on a batch, and how it judges: labels, the teacher, attacked and augmented inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ...errors import BadInputError, KedgeError
from ...model.samples import Samples
from .batches import Batch, Batches, flip_crop
from .distil import Teacher, distillation_loss
from .gradient import attacked
from .layers import BATCH_NORMS
from .scores import Head
from .settings import TrainSettings
from .view import TorchView

__all__ = ["Objective"]


class Objective:
    """The loss of a view on data.

    samples: what the data came from, for messages.

    Raises:
        BadInputError: labels do not fit the model, or the graph insists on a batch.
    """

    def __init__(
        self,
        view: TorchView,
        head: Head,
        settings: TrainSettings,
        data: Batches,
        teacher: Teacher | None,
        samples: Samples,
    ) -> None:
        self.view, self._head, self._settings, self._teacher = view, head, settings, teacher
        self.bounds = {
            name: (float(value.min()), float(value.max()))
            for name, value in data.inputs.items()
            if value.is_floating_point()
        }
        first = {name: value[:1] for name, value in data.inputs.items()}
        self.one_by_one = self._insists_on_one(first)
        self._check_labels(first, samples)

    def train_mode(self) -> None:
        """Batch statistics where BatchNormalization is not frozen."""
        self.view.train()
        if self._settings.freeze_batchnorm:
            for module in self.view.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()

    def logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits [n, classes] of the view."""
        return self._head.logits(self.view(inputs))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """(1 − distil) · cross-entropy + distil · distillation, the mean over samples."""
        weight = self._settings.distil
        loss = logits.new_zeros(())
        if weight < 1 and batch.labels is not None:
            hard = F.cross_entropy(logits, batch.labels, label_smoothing=self._settings.label_smoothing)
            loss = loss + (1 - weight) * hard
        if weight > 0 and batch.teacher is not None:
            loss = loss + weight * distillation_loss(logits, batch.teacher, self._settings.temperature)
        return loss

    def parts(self, batch: Batch) -> list[Batch]:
        """The batch in the pieces that the graph runs at once."""
        size = 1 if self.one_by_one else batch.count
        return [batch.part(start, size) for start in range(0, batch.count, size)]

    def prepared(self, batch: Batch, random: torch.Generator) -> Batch:
        """A batch augmented, answered by the teacher, attacked: as it will be trained on."""
        settings = self._settings
        if settings.augment == "flip-crop":
            batch = dataclasses.replace(batch, inputs=flip_crop(batch.inputs, random))
        if self._teacher is not None and batch.teacher is None:
            batch = dataclasses.replace(batch, teacher=self._teacher(batch.inputs))
        if settings.adversarial == "none" or settings.eps == 0:
            return batch
        # In eval mode: the statistics BatchNormalization learns are not those of half-made attacks.
        self.view.eval()
        moved = [self._attacked(part, random) for part in self.parts(batch)]
        self.train_mode()
        return dataclasses.replace(batch, inputs={name: torch.cat([part[name] for part in moved]) for name in moved[0]})

    def _attacked(self, batch: Batch, random: torch.Generator) -> dict[str, Tensor]:
        fgsm = self._settings.adversarial == "fgsm"
        return attacked(
            batch.inputs,
            lambda inputs: self.loss(self.logits(inputs), batch),
            self.bounds,
            eps=self._settings.eps,
            steps=1 if fgsm else self._settings.adversarial_steps,
            random=None if fgsm else random,
        )

    @torch.no_grad()
    def right(self, data: Batches) -> int:
        """How many samples are answered as the labels say, or the teacher where there are none."""
        self.view.eval()
        right = 0
        for batch in data.epoch():
            for part in self.parts(batch):
                if part.labels is not None:
                    wanted = part.labels
                elif part.teacher is not None:
                    wanted = part.teacher.argmax(1)
                else:
                    continue
                right += int((self.logits(part.inputs).argmax(1) == wanted).sum())
        return right

    @torch.no_grad()
    def _insists_on_one(self, first: Mapping[str, Tensor]) -> bool:
        fixed = self.view.batch
        if fixed is None:
            return False
        self.view.eval()
        try:
            if (
                self.logits({name: torch.cat([value] * (2 * fixed)) for name, value in first.items()}).shape[0]
                == 2 * fixed
            ):
                return False
        except KedgeError:
            pass
        if fixed > 1:
            raise BadInputError(f"the graph only runs batches of {fixed}", hint="export it with a free batch dimension")
        return True

    @torch.no_grad()
    def _check_labels(self, first: Mapping[str, Tensor], samples: Samples) -> None:
        self.view.eval()
        classes = self.logits(first).shape[1]
        if samples.labels is not None and (samples.labels.min() < 0 or samples.labels.max() >= classes):
            raise BadInputError(
                f"labels of {samples.name} go from {samples.labels.min()} to {samples.labels.max()}, "
                f"the model has {classes} classes",
                hint="check the labels",
            )
