"""What a run tells of itself, written down whenever a step begins or ends (docs/run-report.md)."""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BadInputError, KedgeError

__all__ = ["STEPS", "Account"]

STEPS = ("optimize", "build", "bench-before", "deploy", "bench")


class Account:
    """The document of a run, and the file that has it.

    Args:
        path: of the file, in a folder that is there before the first step.
        given: what is known of the run before it begins.
    """

    def __init__(self, path: Path, given: dict[str, Any]) -> None:
        self._path = path
        self.document = {
            **given,
            "steps": [{"step": name, "state": "waiting", "why": None, "seconds": None, "files": {}} for name in STEPS],
            "reused_passes": None,
            "events": None,
            "optimize": None,
            "build": None,
            "deploy": None,
            "rollout": None,
            "bench": {"before": None, "now": None},
            "error": None,
        }

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """A step from its beginning to its end, whatever that is; written down at both."""
        step: dict[str, Any] = next(each for each in self.document["steps"] if each["step"] == name)
        begun = time.monotonic()
        try:
            step["state"] = "running"
            self._write()
            yield step
            if step["state"] == "running":
                step["state"] = "done"
            step["seconds"] = time.monotonic() - begun
            self._write()
        except BaseException as error:
            known = _known(error)
            step |= {"state": "interrupted", "seconds": time.monotonic() - begun}
            if known is not None:
                told = {"message": known.message, "hint": known.hint, "exit_code": int(known.exit_code)}
                step |= {"state": "failed", "why": known.message}
                self.document["error"] = told
            with contextlib.suppress(OSError):
                # It may be for want of room, and what came first is to be told.
                self._write()
            if known is None or known is error:
                raise
            raise known from error

    def _write(self) -> None:
        partial = self._path.with_name(f".{self._path.name}.partial")
        partial.write_text(json.dumps(self.document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(self._path)


def _known(error: BaseException) -> KedgeError | None:
    """As the user meets it; None: it is no more than an interrupt, or a defect."""
    if isinstance(error, KedgeError):
        return error
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return BadInputError(
            f"{error.filename or 'writing a file'}: {error.strerror}",
            hint="check that the path exists, is yours, and has room",
        )
    return None
