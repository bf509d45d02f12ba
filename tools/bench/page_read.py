"""The figures that were measured, as they lie under benchmarks/results: full ones and those of the smoke size."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.catalogue import BENCHMARKS, Benchmark

__all__ = ["Documents", "Found", "conditions", "date", "made_by", "read", "tree"]

Documents = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """Of one size.

    documents: by name of the file. outcomes: how the last run of each benchmark ended, by its name. pages: names of
    those that have a page of tables beside their figures.
    """

    documents: Documents
    outcomes: Documents
    pages: frozenset[str] = frozenset()

    def of(self, benchmark: Benchmark) -> Any | None:
        """The first of a benchmark's documents; None where there is none."""
        return next((self.documents[name] for name in benchmark.files if name in self.documents), None)


def read(folder: Path, suffix: str) -> Found:
    """All files of a size; suffix: "" or ".smoke".

    Raises:
        ValueError: one is no JSON.
    """
    names = [name for benchmark in BENCHMARKS for name in benchmark.files]
    # The GPU's with another binding, which its program writes where it is told to.
    names += ["gpu-latency-pycuda", "gpu-overlap-pycuda"]
    documents = {}
    for name in names:
        path = folder / f"{name}{suffix}.json"
        if path.exists():
            documents[name] = json.loads(path.read_text(encoding="utf-8"))
    outcomes: Documents = {}
    with contextlib.suppress(FileNotFoundError):
        outcomes = json.loads((folder / f"runs{suffix}.json").read_text(encoding="utf-8"))["outcomes"]
    return Found(documents, outcomes, frozenset(path.stem for path in folder.glob("*.md")))


def date(document: Documents | None) -> str:
    """The day it was measured, or an empty text."""
    facts = (document or {}).get("conditions", {})
    return str(facts.get("started") or facts.get("at") or "")[:10]


def conditions(document: Documents) -> str:
    """Where it was measured, of what and when, in one sentence; of a document without them, that they are not known.

    A tree that differed from its commit is marked: nobody can measure the same again.
    """
    facts = document.get("conditions")
    if facts is None:
        return "Neither conditions nor the commit were recorded."
    machine = str(facts.get("machine", ""))
    if "cores" in facts:
        machine += f", {facts['cores']} cores"
    parts = [str(facts.get("name") or ""), str(facts.get("processor", "")), machine, date(document)]
    kedge, lacking = str(facts.get("commit") or facts.get("kedge") or ""), tree(document)
    parts.append(" ".join(["kedge", *([kedge] if kedge else []), *([f"(**{lacking}**)"] if lacking else [])]))
    parts.append(f"Python {facts['python']}" if "python" in facts else "")
    parts += [f"onnxruntime {facts['onnxruntime']}"] if "onnxruntime" in facts else []
    parts += [str(facts[name]) for name in ("compiler", "driver", "binding", "runtime") if facts.get(name)]
    parts += _peers(facts)
    load = facts.get("load_average")
    if isinstance(load, Mapping) and load.get("ended"):
        parts.append(f"load average {load['started'][0]:.1f} before, {load['ended'][0]:.1f} after")
    return "; ".join(part for part in parts if part) + "."


def made_by(document: Documents) -> str:
    """The command that made it, where it is not the catalogue's: that of a GPU on which no TensorRT ran; else empty."""
    runtime = str((document.get("conditions") or {}).get("runtime", "stand-in"))
    if not str(document.get("benchmark")).startswith("gpu-") or "stand-in" not in runtime:
        return ""
    return "`python tools/bench/gpu.py --stand-in`, once with each binding of CUDA"


def tree(document: Documents) -> str:
    """What keeps others from measuring the same: that files differed from the commit, or that none was recorded."""
    facts = document.get("conditions") or {}
    kedge = str(facts.get("commit") or facts.get("kedge") or "")
    if "commit" not in kedge:
        return "its commit was not recorded"
    return "files differed from that commit" if kedge.endswith("-dirty") else ""


def _peers(facts: Documents) -> list[str]:
    out = []
    for name, version in (facts.get("peers") or {}).items():
        if isinstance(version, Mapping):
            out.append(f"{name}'s environment: " + ", ".join(f"{key} {value}" for key, value in version.items()))
        elif version:
            out.append(f"{name} {str(version).split(',')[0]}")
    if "modelopt" in facts:
        told = str(facts["modelopt"])
        out.append(told if told.startswith("not measured") else f"ModelOpt {told}")
    return out
