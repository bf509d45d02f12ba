"""Processes that drive a rollout to devices which are files, until they are killed: `python -m … ROLLOUT FOLDER`.

A line on standard input has one forked, and its process id is written; the next line has it waited for, and how it
ended is written. FOLDER/updated/NAME is there once a device is updated, and is made once; FOLDER/log tells who was at
work when.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedge.fleet.executor import open_executor
from kedge.fleet.rollout.drive import drive
from kedge.fleet.rollout.ledger import find
from tests.support.driven import answer


class Devices:
    """Each takes some milliseconds, and may be killed in any of them."""

    def __init__(self, folder: Path) -> None:
        self._updated = folder / "updated"
        self._log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, task: Mapping[str, Any]) -> Any:
        name, kind = task["device"], task["kind"]
        self._tell("begin", name, kind)
        try:
            if kind != "deploy":
                return answer(task)
            if (self._updated / name).exists():
                # It began since it was first asked: its end is told.
                return answer(task)
            for _ in range(4):
                time.sleep(0.003)
            os.close(os.open(self._updated / name, os.O_CREAT | os.O_EXCL))
            return answer(task)
        finally:
            self._tell("end", name, kind)

    def _tell(self, what: str, name: str, kind: str) -> None:
        os.write(self._log, f"{os.getpid()} {what} {name} {kind}\n".encode())


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def main() -> None:
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            with open_executor(None, 4) as workers:
                drive(find(sys.argv[1]), workers.executor, work=Devices(Path(sys.argv[2])))
            os._exit(0)
        _say(str(child))
        # Until then its process id is no other's.
        sys.stdin.readline()
        _say(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


if __name__ == "__main__":
    main()
