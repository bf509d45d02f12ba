"""Holds the TensorRT adapter against NVIDIA's own Python bindings, version by version, and writes the table of it.

    python -m tools.conformance.check [--cache FOLDER] [--python PYTHON]... [--out docs/tensorrt-api.md]

One line on standard error for each thing the adapter uses that a version it serves lacks, and exit status 1. This is
about the surface alone: names, and how calls are written. What they do takes TensorRT and a GPU to see.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .bindings import VERSIONS, Bindings, UnavailableError, rtx_bindings, tensorrt_bindings
from .compare import faults
from .guards import RUNTIMES, runtime_of
from .surface import RESULTS, read_folder
from .uses import MODULE, Surface, Use

__all__ = ["ADAPTER", "TABLE", "all_bindings", "table"]

ROOT = Path(__file__).resolve().parents[2]
_AGENT = ROOT / "device_agent" / "kedge_agent"
ADAPTER = (_AGENT / "engine", *sorted((_AGENT / "runtime").glob("tensorrt*.py")))
TABLE = ROOT / "docs" / "tensorrt-api.md"

_HEAD = """# TensorRT's Python API, as the adapter uses it

This proves the surface only: that the names are there, that what is assigned can be assigned, and, where the bindings'
docstrings show parameters, that calls are written as they are taken. It proves nothing of what they do. NVIDIA's own
bindings of each version are loaded over an empty library, in which nothing can be built or run; those of TensorRT for
RTX over its real libraries. JetPack 6.1–6.2 carries TensorRT 10.3, 7.0 and 7.1 carry 10.13.3, 7.2 carries 10.16.2 (of
10.16, PyPI has the bindings of 10.16.1 alone); from 7.2.2 on, JetPack can take 11.4.

`python -m tools.conformance.check` writes this file from the sources of `kedge_agent.engine` (parse, compile) and of
`kedge_agent.runtime.tensorrt*` (load, run); a test holds it against them. `trt` is the module itself. Needed: "always";
or for one runtime; or only where something is there, which the adapter asks before.
"""


def all_bindings(cache: Path, pythons: Sequence[str] = ()) -> list[Bindings]:
    """The bindings of all versions, TensorRT for RTX last; `pythons`: other interpreters, for what lacks a wheel.

    Raises:
        UnavailableError: this machine cannot get or load them.
    """
    return [*(tensorrt_bindings(version, cache, pythons) for version in VERSIONS), rtx_bindings()]


def table(surface: Surface, versions: Sequence[Bindings]) -> str:
    """The document."""
    titles = [bindings.title for bindings in versions]
    lines = [_HEAD, f"| used | {' | '.join(titles)} | needed |", f"|---|{'---|' * len(titles)}---|"]
    by_path: dict[str, list[Use]] = {}
    for use in surface.uses:
        by_path.setdefault(use.path, []).append(use)
    for path in sorted(by_path, key=lambda path: (not path.startswith(f"{MODULE}."), path)):
        cells = ["there" if bindings.has(path) else "absent" for bindings in versions]
        lines.append(f"| `{path}` | {' | '.join(cells)} | {_needed(by_path[path])} |")
    return "\n".join(lines) + "\n"


def _needed(uses: Sequence[Use]) -> str:
    ways = {_condition(use) for use in uses}
    return "always" if "always" in ways else "; ".join(sorted(ways))


def _condition(use: Use) -> str:
    runtimes = {runtime for need in use.needs if (runtime := runtime_of(need)) is not None}
    others = sorted(need for need in use.needs if runtime_of(need) is None)
    parts = [f"{runtime} alone" for runtime in sorted(runtimes & set(RUNTIMES))]
    parts += ["where it is" if need == use.path else f"where `{need}` is" for need in others]
    return ", ".join(parts) or "always"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, write the table, say what is wrong."""
    parser = argparse.ArgumentParser(description="Check the TensorRT adapter against NVIDIA's bindings.")
    parser.add_argument("--cache", type=Path, help="folder to keep the bindings in; default: a temporary one")
    parser.add_argument(
        "--python", action="append", default=[], help="another interpreter, for versions without a wheel"
    )
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args(arguments)
    surface = read_folder(*ADAPTER)
    try:
        with tempfile.TemporaryDirectory() as folder:
            versions = all_bindings(given.cache or Path(folder), given.python)
    except UnavailableError as error:
        print(f"not checked: {error}", file=sys.stderr)
        return 2
    given.out.write_text(table(surface, versions), encoding="utf-8")
    found = faults(surface, versions, RESULTS)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
