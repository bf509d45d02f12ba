"""`kedge-agent diagnose`: facts, the flight recorder, logs, or a whole snapshot, as parts on standard output.

It is a process of its own and asks the daemon for nothing that it cannot do without: a device is looked at because
something is wrong with it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import AgentError
from ..formats.parts import Part, write_json_part

__all__ = ["WHATS", "diagnose", "parse_words"]

WHATS = ("facts", "recording", "logs", "snapshot")

_LONGEST_S = 600
_MOST_BACK_S = 400 * 86_400
_MOST_LINES = 100_000
_PATIENCE_S = 30


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise AgentError(f"diagnose: {message}", hint="host and agent may be of different versions")


def parse_words(words: Sequence[str]) -> argparse.Namespace:
    """What is asked for, by the words after `diagnose`.

    Raises:
        AgentError: they ask for nothing that there is (bad_input).
    """
    parser = _Parser(prog="kedge-agent diagnose", add_help=False, allow_abbrev=False)
    parser.add_argument("what", choices=WHATS)
    parser.add_argument("--seconds", type=_whole(1, _LONGEST_S), default=50)
    parser.add_argument("--since", type=_whole(1, _MOST_BACK_S), default=3600)
    parser.add_argument("--lines", type=_whole(1, _MOST_LINES), default=200)
    return parser.parse_args(list(words))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from {least} to {most}")
        return value

    return read


def diagnose(state: Path, asked: argparse.Namespace, sink: BinaryIO) -> None:
    """Write the parts of what is asked for (`formats.parts`), END last; or ERROR, where it failed.

    Args:
        asked: of `parse_words`. seconds: within which it ends. since: how many seconds back. lines: of logs.

    Raises:
        AgentError: as it was told to the host.
    """
    # Where memory runs out, the kernel is to end this process and not the agent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    # A host that takes nothing of what is written, and ends nothing either, keeps no process here.
    if asked.what in ("facts", "snapshot"):
        signal.alarm(asked.seconds + _PATIENCE_S)
    try:
        _write(state, asked, sink)
    except AgentError as error:
        with contextlib.suppress(OSError):
            write_json_part(sink, Part.ERROR, error.to_json())
        raise
    finally:
        signal.alarm(0)


def _write(state: Path, asked: argparse.Namespace, sink: BinaryIO) -> None:
    if asked.what == "facts":
        from .facts import write_facts

        write_facts(state, sink, asked.seconds)
    elif asked.what == "recording":
        from .recording import write_recording

        write_recording(state, sink, asked.since)
    elif asked.what == "logs":
        from .logs import write_logs

        write_logs(state, sink, since_s=asked.since, lines=asked.lines)
    else:
        from .snapshot import write_snapshot

        write_snapshot(state, sink, asked.seconds)
