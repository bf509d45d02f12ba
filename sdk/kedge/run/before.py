"""The measurement of what a release replaced: once it is replaced, nothing can measure that again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..bench.run import SCHEMA

__all__ = ["Before"]

_MAX_BYTES = 16 << 20


class Before:
    """`bench-before.json` in the folder of a run: the report, and the digest of the release that came after it.

    Args:
        device, model: of which the report must be.
    """

    def __init__(self, folder: Path, device: str, model: str) -> None:
        self.path = folder / "bench-before.json"
        self._of = {"schema": SCHEMA, "device": device, "model": model}

    def write(self, release: str, report: dict[str, Any]) -> None:
        """Keep a report until another release is measured against what serves.

        Raises:
            OSError: it cannot be written.
        """
        self.path.write_text(json.dumps({"replaced_by": release, "bench": report}, allow_nan=False), encoding="utf-8")

    def read(self, release: str) -> dict[str, Any] | None:
        """What a release replaced, as it was measured then; None: nothing is known of that."""
        try:
            with self.path.open("rb") as file:
                body = json.loads(file.read(_MAX_BYTES))
            report: dict[str, Any] = body["bench"]
            same = body["replaced_by"] == release and all(report[key] == value for key, value in self._of.items())
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # Nothing is lost with a damaged one but a comparison.
            return None
        return report if same else None
