"""TensorBoard event files of training runs and searches (docs/tensorboard.md).

All lie under one folder, EVENTS/NAME/STEP-KEY, so that TensorBoard shows the runs of every model side by side.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import cache_dir
from .work import Work

__all__ = ["Events", "event_files", "events_folder", "events_of"]


def events_folder() -> Path:
    """What `tensorboard --logdir` takes: the event files of all runs of this user."""
    return cache_dir() / "optimize" / "events"


def events_of(name: str) -> Path:
    """The folder for those of one model, or of another recipe of the same name; it may not be there."""
    return events_folder() / name


def event_files(name: str) -> frozenset[tuple[Path, int]]:
    """Its files and their sizes in bytes: what differs between two moments was written between them."""
    return frozenset((path, path.stat().st_size) for path in events_of(name).rglob("*") if path.is_file())


class Events:
    """Writes figures, step by step; without tensorboardX it leaves a note instead. Close it.

    Args:
        step: what is being done, for people; `key`: tells it from others of the name.
        resumed: it goes on where an earlier run ended; else what that wrote is removed.
    """

    def __init__(self, work: Work, step: str, key: str, notes: list[str], *, resumed: bool) -> None:
        self._writer: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            notes.append("tensorboardX is not installed: no event files were written")
            return
        folder = work.cache / "events" / work.name / f"{step}-{key[:12]}"
        if not resumed:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        # By itself it names a file by the second, and another of the same second takes its place.
        self._writer = SummaryWriter(str(folder), filename_suffix=f".{time.time_ns()}")

    def add(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Figures of one step, an epoch or a trial; those that were not measured are left out."""
        if self._writer is None:
            return
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def try_out(self, step: int, chosen: Mapping[str, float], figures: Mapping[str, float | None]) -> None:
        """What was chosen in one trial beside what came of it, for the page HPARAMS; the figures also as of `add`."""
        self.add(step, figures)
        if self._writer is not None:
            # A name of its own, or TensorBoard shows the scalars of the same name there as well.
            measured = {f"trial/{name}": value for name, value in figures.items() if value is not None}
            self._writer.add_hparams(dict(chosen), measured, name=f"trial-{step:03}", global_step=step)
            self._writer.flush()

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
