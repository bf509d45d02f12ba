"""What tests have child processes do, and which processes name a folder."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def told(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a child sees of itself."""
    adjusted = int(Path("/proc/self/oom_score_adj").read_text())
    return {"request": request, "oom_score_adj": adjusted, "nice": os.nice(0)}


def forever(folder: Path, request: dict[str, Any]) -> None:
    """Outlast any test."""
    (folder / "begun").touch()
    time.sleep(600)


def noisy(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Print what looks like an answer."""
    sys.stdout.write(json.dumps({"fine": False}) + "\n")
    return {"fine": True}


def processes_under(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    out = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            out.append(line)
    return out
