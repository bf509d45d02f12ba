"""A temporary folder that is gone afterwards, however the work in it ends.

Ctrl-C may come at any moment, also while things are being made or cleaned up. So the first
interrupt is raised only inside the work itself, and it is raised once; before and after, it is
remembered and raised when the cleaning is done.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

__all__ = ["in_workspace"]

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interrupts:
    def __init__(self) -> None:
        self.armed = False
        self.came = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def arm(self) -> None:
        self.armed = True
        if self.came:
            self.armed = False
            raise KeyboardInterrupt


def in_workspace(work: Callable[[Path, ExitStack], T]) -> T:
    """Run `work(folder, stack)`; then close the stack, and remove the folder with all in it.

    Temporary files of every library used meanwhile, and of child processes, are made in the
    folder too. What `work` starts it must put on the stack.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came, at whatever moment; everything is gone by then.
    """
    interrupts = _Interrupts()
    before = {number: signal.signal(number, interrupts.handle) for number in _SIGNALS}
    try:
        return _work(work, interrupts)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if interrupts.came:
            raise KeyboardInterrupt


def _work(work: Callable[[Path, ExitStack], T], interrupts: _Interrupts) -> T:
    folder = Path(tempfile.mkdtemp(prefix="kedge-demo-"))
    saved: tuple[Any, Any] = (tempfile.tempdir, os.environ.get("TMPDIR"))
    stack = ExitStack()
    # Two levels: an interrupt that is raised while the inner one disarms still meets the outer one.
    try:
        try:
            tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
            interrupts.arm()
            return work(folder, stack)
        finally:
            interrupts.armed = False
    finally:
        interrupts.armed = False
        stack.close()
        tempfile.tempdir = saved[0]
        if saved[1] is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = saved[1]
        shutil.rmtree(folder, ignore_errors=True)
