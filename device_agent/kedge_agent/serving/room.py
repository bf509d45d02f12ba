"""Memory for a release that is about to serve: beside the live one, or in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ..errors import AgentError
from ..measure.memory import read_memory
from .loading import LiveModel
from .repository import Repository

__all__ = ["Job", "Room", "Unwatched"]

_LOG = logging.getLogger("kedge.room")

T = TypeVar("T")


class Job(Protocol):
    """Who is told of a deploy's progress."""

    def enter(self, step: str) -> None:
        """A step begins: stage, gate, switch, probation or done."""
        ...

    def tell(self, event: dict[str, Any]) -> None:
        """Something happened."""
        ...


class Unwatched:
    """A job that nobody follows."""

    def enter(self, step: str) -> None:
        """See `Job`."""

    def tell(self, event: dict[str, Any]) -> None:
        """See `Job`."""


class Room:
    """Memory for a release beside the live one, or in its place, where there is not enough for both.

    When its context ends with an error, the live one serves again.
    """

    def __init__(self, repository: Repository, model: str, job: Job) -> None:
        self._repository = repository
        self._model = model
        self._job = job
        self._drained: str | None = None

    def __enter__(self) -> Room:  # noqa: PYI034  (typing.Self came with Python 3.11)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or self._drained is None:
            return
        release, self._drained = self._drained, None
        try:
            self._repository.swap(self._repository.bring(self._model, release))
        except Exception as lost:
            _LOG.exception("%s release %s", self._model, release[:12])
            said = AgentError(
                f"release {release[:12]} served until now, and cannot be loaded again: {lost}", kind="space"
            )
            self._repository.blame(self._model, said)
            return
        self._job.tell({"event": "restored", "release": release})

    def make(self, why: str) -> bool:
        """Take the live model out, for the candidate needs its memory; False: that would not help."""
        live = self._repository.serving(self._model)
        if live is None or self._drained is not None or not _worth_it(live):
            return False
        self._drained = live.manifest.digest
        _LOG.warning("%s is not served for a moment: %s", self._model, why)
        self._job.tell({"event": "drained", "release": self._drained, "reason": why})
        busy = AgentError(f"{self._model} is being replaced", kind="busy", hint="try again in a moment")
        self._repository.take_out(self._model, busy)
        return True

    def tried(self, attempt: Callable[[], T]) -> T:
        """What an attempt gives; it is made again in the place of the live model where memory ran out beside it."""
        try:
            return attempt()
        except AgentError as error:
            if error.kind != "space" or not self.make(error.message):
                raise
        return attempt()


def _worth_it(live: LiveModel) -> bool:
    """Whether what the live model takes is a part of the memory that counts: else nobody is to go without it."""
    available = read_memory().available_bytes
    if available is None:
        return True
    before, after = live.load["before"]["rss_bytes"], live.load["after"]["rss_bytes"]
    grown = 0 if before is None or after is None else after - before
    takes = max(grown, live.manifest.file(live.artefact.file).size_bytes)
    return bool(takes >= available // 10)
