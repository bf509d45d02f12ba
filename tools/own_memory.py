"""What the page cache does to the resident set of a trial, and what is left without it: the figures of docs/deploys.md.

    python tools/own_memory.py model.onnx

onnxruntime's library is dropped from the page cache. Then it comes back as a process touches it, or is read from the
first byte to the last. In each state a model is tried in a child process, as before it is loaded on a device. Linux
drops no page that a process has mapped, so stop what else uses the same installation.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from kedge.build.golden import made_up_inputs
from kedge.model.onnx_io import read_model
from kedge_agent.measure.apart import Trial, try_load
from kedge_agent.measure.memory import forget_pages
from kedge_agent.runtime.base import LoadOptions

_STATES = ("touched", "read whole")
_TIMEOUT_S = 300


def main() -> None:
    """Print a row a trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--turns", type=int, default=2, help="how often each state is made")
    given = parser.parse_args()
    print(f"Linux {platform.release()}; MB of a child process, at its peak")
    os.sync()  # what was just installed is not dropped before it is written
    for _ in range(given.turns):
        for state in _STATES:
            for library in _libraries():
                forget_pages(library)
                if state == "read whole":
                    library.read_bytes()
            _trial(given.model)  # touches what it needs
            tried = _trial(given.model)
            if tried.peak_rss_bytes is None or tried.peak_bytes is None:
                raise SystemExit("own_memory: error: this kernel does not tell\n  hint: it needs /proc/self/smaps")
            print(f"{state:<12} resident {tried.peak_rss_bytes / 1e6:6.1f}   own {tried.peak_bytes / 1e6:6.1f}")


def _trial(path: Path) -> Trial:
    return try_load(path, "onnxruntime", LoadOptions(), made_up_inputs(read_model(path)), timeout_s=_TIMEOUT_S)


def _libraries() -> Iterator[Path]:
    # By its place only: what this process imports it maps, and the kernel would not let go of it.
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("own_memory: error: onnxruntime is not installed\n  hint: pip install -e '.[agent]'")
    return Path(spec.origin).parent.rglob("*.so*")


if __name__ == "__main__":
    main()
