"""`kedge-agent diagnose logs`: the agent's log, newest lines last, with nothing in it that steers a terminal."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from ..formats.parts import Part, write_json_part, write_part
from ..store.files import translate_os_error
from .agent_log import read_entries

__all__ = ["write_logs"]


def write_logs(state: Path, sink: BinaryIO, *, since_s: int, lines: int) -> None:
    """Write the last lines as DATA, UTF-8, each with a newline, and END: {lines, left_out}.

    An entry begins with its time in UTC, its level and the logger's name: `2026-11-26T05:06:57.123Z ERROR kedge.http`.
    Lines that do not begin so belong to the one before (a traceback).

    Args:
        since_s: how many seconds back, by the device's clock. lines: how many at the most.

    Raises:
        AgentError: the log cannot be read.
    """
    try:
        entries = read_entries(state)
    except OSError as error:
        raise translate_os_error(error, "reading the agent's log") from error
    from_s = time.time() - since_s
    found = [line for entry in entries if (entry.at_s or 0) >= from_s for line in entry.shown]
    kept = deque(found, maxlen=lines)
    write_part(sink, Part.DATA, "".join(f"{line}\n" for line in kept).encode())
    write_json_part(sink, Part.END, {"lines": len(kept), "left_out": len(found) - len(kept)})
