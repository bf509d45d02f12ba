"""A wall clock that a test sets for the agent, and moves while it runs; monotonic clocks go on as they are."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

from tests.support.environment import lacks

_SOURCE = Path(__file__).with_name("wall_clock.c")

YEAR_S = 31_557_600


class WallClock:
    """The clock of the processes that are started with `environment`, and of all that they start.

    Args:
        folder: where its library and its file lie.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            lacks("clock", "no C compiler on this machine (Debian: gcc)")
        folder.mkdir(parents=True, exist_ok=True)
        library = folder / "wall_clock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True)
        self._file = folder / "offset"
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "KEDGE_TEST_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """Be so many seconds ahead of this machine's clock; behind it where negative."""
        # In place: the processes have mapped it.
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", seconds))

    def set(self, seconds_since_1970: int) -> None:
        """Say this time now."""
        self.move(seconds_since_1970 - int(time.time()))
