"""The one training loop: recovery, distillation, adversarial and quantisation-aware training all run it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor, nn

from ...errors import BadInputError
from ...model.graph import made_of
from ...model.samples import Samples
from ..evaluate import Accuracy
from ..events import Events
from ..work import Work
from .batches import Batch, Batches, generator, split
from .checkpoint import load_checkpoint, save_checkpoint
from .distil import Teacher
from .objective import Objective
from .outcome import Standing, Trained
from .parameters import Masks, freeze, make_optimizer
from .scores import Head
from .settings import TrainSettings, learning_rate_at
from .view import TorchView

__all__ = ["train"]

_State = dict[str, dict[str, Tensor]]


def train(
    view: TorchView,
    head: Head,
    settings: TrainSettings,
    work: Work,
    *,
    step: str,
    key: str,
    extra: nn.Module | None = None,
) -> Trained:
    """Train a view in place; a run that was cut off goes on from its last whole epoch, to the same result.

    step: the name for progress and files. key: what decides the result beside settings and data, the graph
    before all. extra: more parameters to train, of fake quantisation.

    Raises:
        BadInputError: there are no data to train on, labels do not fit, or training diverges.
    """
    return _Run(view, head, settings, work, step, key, nn.Module() if extra is None else extra).run()


class _Run:
    def __init__(
        self, view: TorchView, head: Head, settings: TrainSettings, work: Work, step: str, key: str, extra: nn.Module
    ) -> None:
        # torch's CPU convolutions train about a fifth faster in this layout (ResNet-20 and -56, one thread).
        self.view = view.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings, self.work, self.step, self.extra = settings, work, step, extra
        self.seed = work.seed if settings.seed is None else settings.seed
        self.notes: list[str] = []
        samples = _samples(settings, work, step)
        kept, held = split(samples, settings.validation, self.seed)
        self.data = Batches(kept, settings.batch)
        self.held = None if held is None else Batches(held, max(settings.batch, 256))
        teacher = Teacher(work.original) if settings.distil > 0 else None
        self.objective = Objective(view, head, settings, self.data, teacher, samples)
        if self.objective.one_by_one:
            self.notes.append("the graph only runs one sample at a time: training is slow")
        if teacher is not None and settings.augment == "none":
            teacher.fill(self.data)
        if teacher is not None and self.held is not None and self.held.labels is None:
            teacher.fill(self.held)
        freeze(view, settings)
        self.masks = Masks(view, settings.keep_zeros)
        self.optimizer = make_optimizer(view, extra, settings)
        self.key = _key(key, settings, self.seed, samples, work)
        self.path = work.scratch / f"{step}-{self.key[:16]}.pt"

    def run(self) -> Trained:
        at, best = self._restored() or (Standing(), self._state())
        resumed = at.epoch
        if self.held is not None and not at.scores:
            at.scores.append(self.objective.right(self.held))
        with closing(Events(self.work, self.step, self.key, self.notes, resumed=resumed > 0)) as events:
            while at.epoch < self.settings.epochs and not at.stopped:
                started = time.monotonic()
                loss, accuracy = self._epoch(at.epoch)
                at.epoch += 1
                at.losses.append(loss)
                figures = {"loss/train": loss, "accuracy/train": accuracy, "accuracy/validation": None}
                if self.held is not None:
                    at.judge(self.objective.right(self.held), self.settings.early_stop)
                    figures["accuracy/validation"] = at.scores[-1] / self.held.count
                if self.held is None or self.settings.epoch_kept == "last":
                    at.kept = at.epoch
                if at.kept == at.epoch:
                    best = self._state()
                at.seconds.append(time.monotonic() - started)
                events.add(at.epoch, {**figures, "learning_rate": self.optimizer.param_groups[0]["lr"]})
                self._save(at, best)
        self.work.progress(self.step, 1.0)
        self._load(best)
        self.view.eval()
        return self._report(at, resumed)

    def _epoch(self, epoch: int) -> tuple[float, float | None]:
        """One epoch: the mean loss, and the accuracy while training where there are labels."""
        self.objective.train_mode()
        random = generator(self.seed, 2, epoch)
        order = torch.randperm(self.data.count, generator=random)
        steps, total, right, seen = len(self.data), 0.0, 0, 0
        for index, batch in enumerate(self.data.epoch(order)):
            done = epoch * steps + index
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(self.settings, done, self.settings.epochs * steps)
            loss, correct = self._step(self.objective.prepared(batch, random))
            if not math.isfinite(loss):
                raise BadInputError(
                    f"training diverged in epoch {epoch + 1}: the loss is {loss}",
                    hint=f"lower learning_rate (it is {self.settings.learning_rate}) or set clip_norm to 1.0",
                )
            total, right, seen = total + loss * batch.count, right + correct, seen + batch.count
            self.work.progress(self.step, (done + 1) / (self.settings.epochs * steps))
        return total / seen, right / seen if self.data.labels is not None else None

    def _step(self, batch: Batch) -> tuple[float, int]:
        """One step of the optimiser: the mean loss, and how many answers were right."""
        self.optimizer.zero_grad(set_to_none=True)
        total, right = 0.0, 0
        for part in self.objective.parts(batch):
            logits = self.objective.logits(part.inputs)
            loss = self.objective.loss(logits, part) * (part.count / batch.count)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            if part.labels is not None:
                right += int((logits.detach().argmax(1) == part.labels).sum())
        self.masks.clear_gradients()
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_([*self.view.parameters(), *self.extra.parameters()], self.settings.clip_norm)
        self.optimizer.step()
        self.masks.apply()
        return total, right

    def _state(self) -> _State:
        held = {"model": self.view.state_dict(), "extra": self.extra.state_dict()}
        return {part: {name: value.clone() for name, value in state.items()} for part, state in held.items()}

    def _load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.view.load_state_dict(dict(state["model"]))
        self.extra.load_state_dict(dict(state["extra"]))

    def _save(self, at: Standing, best: _State) -> None:
        # What is drawn at random depends on the seed and the epoch alone, so there is no state of it to keep.
        now = best if at.kept == at.epoch else self._state()
        state = {"at": dataclasses.asdict(at), "now": now, "best": best, "optimizer": self.optimizer.state_dict()}
        save_checkpoint(self.path, self.key, state)

    def _restored(self) -> tuple[Standing, _State] | None:
        """Where the checkpoint stands, None where there is none that fits."""
        saved = load_checkpoint(self.path, self.key)
        if saved is None:
            return None
        start = self._state()
        try:
            at = Standing(**saved["at"])
            self._load(saved["best"])
            self._load(saved["now"])
            self.optimizer.load_state_dict(saved["optimizer"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
            self._load(start)
            self.optimizer = make_optimizer(self.view, self.extra, self.settings)
            return None
        return at, saved["best"]

    def _report(self, at: Standing, resumed: int) -> Trained:
        judged = "nothing" if self.held is None else "labels" if self.held.labels is not None else "teacher"
        scores = [Accuracy(score, self.held.count) for score in at.scores] if self.held is not None else []
        if at.kept == 0:
            self.notes.append("no epoch was better than the start on held-out training data: the weights are unchanged")
        if at.stopped:
            self.notes.append(f"stopped after epoch {at.epoch}: {self.settings.early_stop} were no better")
        return Trained(
            epochs=at.epoch,
            parameters=sum(p.numel() for p in [*self.view.parameters(), *self.extra.parameters()] if p.requires_grad),
            masked=self.masks.count,
            losses=tuple(at.losses),
            judged_by=judged,
            before=scores[0] if scores else None,
            kept=scores[at.kept] if scores else None,
            kept_epoch=at.kept,
            seconds_per_epoch=sum(at.seconds) / len(at.seconds),
            resumed_after_epoch=resumed,
            notes=tuple(self.notes),
        )


def _samples(settings: TrainSettings, work: Work, step: str) -> Samples:
    if settings.distil < 1:
        return work.need_train(step)
    return work.train if work.train is not None else work.need_calibration(f"{step} by distillation")


def _key(key: str, settings: TrainSettings, seed: int, samples: Samples, work: Work) -> str:
    parts = [
        key,
        json.dumps(dataclasses.asdict(settings), sort_keys=True),
        str(seed),
        made_of(samples.inputs),
        "" if samples.labels is None else made_of({"labels": samples.labels}),
        work.original.digest if settings.distil else "",
        torch.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
