"""What the flight recorder is told of the models, and what `/metrics` tells of the flight recorder."""

from __future__ import annotations

import os

from .. import __version__
from ..formats.recording import ModelRecord, Start
from ..measure.recorder.places import recorder_folder
from ..measure.recorder.recorder import Recorder
from ..measure.sensors.sampler import Sampler
from ..store.layout import Layout
from .http import Handler, Request, Response
from .loading import LiveModel
from .metrics import render_recorder
from .repository import Repository
from .statistics import Taken

__all__ = ["Models", "recorder_of", "with_recorder"]


class Models:
    """What each model did since it was last asked; of releases that were replaced meanwhile, what was left.

    For one thread.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._known: list[LiveModel] = []

    def take(self) -> list[dict[str, ModelRecord]]:
        """Each release that was replaced by itself; then the live ones, by name."""
        live = self._repository.live()
        # By what they are, and not by what is in them.
        serving = {id(each) for each in live}
        replaced = [each for each in self._known if id(each) not in serving]
        left = [(each, each.statistics.take()) for each in replaced]
        self._known = live + [each for each, taken in left if taken or each.pool.inside]
        return [
            *({each.manifest.model: _record(each, taken)} for each, taken in left if taken),
            {each.manifest.model: _record(each, each.statistics.take()) for each in live},
        ]


def recorder_of(layout: Layout, repository: Repository, limit_bytes: int, how: str) -> Recorder:
    """The recorder of what `repository` serves; `how` this daemon began: see `formats.record.Start`."""
    began = Start(__version__, os.getpid(), how)
    return Recorder(recorder_folder(layout.root), Models(repository).take, Sampler, limit_bytes, began)


def with_recorder(recorder: Recorder, others: Handler) -> Handler:
    """A handler that adds the recorder's metrics to those of `others`."""

    def handle(request: Request) -> Response:
        response = others(request)
        if request.path == "/metrics" and response.status == 200:
            response.buffers = [*response.buffers, render_recorder(recorder).encode()]
        return response

    return handle


def _record(live: LiveModel, taken: Taken) -> ModelRecord:
    return ModelRecord(
        live.manifest.digest,
        live.manifest.version,
        taken.total,
        taken.compute,
        taken.failures,
        live.pool.waiting,
    )
