"""What every benchmark states beside its figures, and how it says that it cannot measure here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "SHARED", "commit", "conditions", "not_measured", "now", "processor"]

ROOT = Path(__file__).resolve().parents[2]
#: Real models and data: beside the checkout, or in the folder that KEDGE_SHARED names.
SHARED = Path(os.environ.get("KEDGE_SHARED", ROOT.parent / "shared"))
_MISSING = 7


def not_measured(reason: str) -> int:
    """Say why on standard error; the exit status that says so too."""
    print(f"not measured: {reason}", file=sys.stderr)
    return _MISSING


def now() -> str:
    """In UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def commit() -> str:
    """What was measured: version and commit, with "-dirty" where files differ from it, other than figures."""
    named = _git("describe", "--always", "--abbrev=12") or "unknown"
    differs = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks")
    return f"{metadata.version('kedge')}, commit {named}{'-dirty' if differs else ''}"


def _git(*words: str) -> str:
    said = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return said.stdout.strip()


def conditions(started: tuple[float, float, float]) -> dict[str, Any]:
    """Where and what was measured; started: the load average before."""
    return {
        "kedge": metadata.version("kedge"),
        "commit": commit(),
        "at": now(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "python": platform.python_version(),
        "load_average": {"started": started, "ended": os.getloadavg()},
    }


def processor() -> str:
    """Its name."""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
