"""`kedge-agent diagnose recording`: the recorder's files that reach back so far, without the daemon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from ..formats.parts import Part, write_json_part, write_part
from ..formats.recording import read_ends
from ..measure.recorder.places import SECONDS
from ..measure.recorder.reading import resolution_of, segments_back
from ..store.files import translate_os_error

__all__ = ["write_recording"]


def write_recording(state: Path, sink: BinaryIO, since_s: int) -> None:
    """Write DATA parts, files of the recording one after another, and END:
    {encoding: "raw", resolution_s, from_s, to_s, at_s: now}. Times are of the wall clock, None: no record.

    The frames in them are compressed already (`formats.recording_frames`). They may begin earlier than was asked for.

    Raises:
        AgentError: the recording cannot be read.
    """
    ring = resolution_of(since_s)
    from_s = to_s = None
    try:
        for data in segments_back(state, since_s, ring):
            ends = read_ends(data)
            if ends is not None:
                from_s = ends[0].at_s if from_s is None else from_s
                to_s = ends[1].at_s
            write_part(sink, Part.DATA, data)
    except OSError as error:
        raise translate_os_error(error, "reading the recording") from error
    end = {"encoding": "raw", "resolution_s": 1 if ring == SECONDS else 60, "from_s": from_s, "to_s": to_s}
    write_json_part(sink, Part.END, {**end, "at_s": time.time()})
