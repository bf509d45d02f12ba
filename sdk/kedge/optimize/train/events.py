"""TensorBoard event files of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Events"]


class Events:
    """Writes figures by epoch into a folder; without tensorboardX it leaves a note instead. Close it."""

    def __init__(self, folder: Path, notes: list[str]) -> None:
        self._writer: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            notes.append("tensorboardX is not installed: no event files were written")
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder))

    def add(self, epoch: int, figures: Mapping[str, float | None]) -> None:
        """Figures of one epoch; those that were not measured are left out."""
        if self._writer is None:
            return
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file; again is harmless."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
