"""Run passes one after the other; what one has finished is kept, so that an interrupted run goes on there."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import KedgeError
from ..model.graph import Graph, made_of
from ..model.onnx_io import read_model
from ..model.samples import Samples
from .code import code_digest
from .passes import parameters_of
from .work import Pass, Work

__all__ = ["Stage", "run_passes", "samples_digest"]

_RECORD_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One pass that was run: the report's entry, and the graph it made. reused: taken from an earlier run."""

    graph: Graph
    record: dict[str, Any]
    evidence: dict[str, Any]
    simulated: bool
    reused: bool


def run_passes(
    graph: Graph, passes: Sequence[Pass], work: Work, started: Callable[[int, Pass], None], *, reuse: bool = True
) -> list[Stage]:
    """Apply passes in order.

    Args:
        reuse: take what an earlier run has finished with the same model, data and parameters. Not where
            a device was asked: what it measured held for that moment.
        started: told of each pass as it begins.

    Raises:
        KedgeError: what a pass refuses.
    """
    stages: list[Stage] = []
    # All that a pass's result depends on; each stage's key holds the key of the one before.
    key = hashlib.sha256(
        "|".join(
            (
                __version__,
                code_digest(),
                graph.digest,
                work.original.digest,
                json.dumps(work.target.to_json(), sort_keys=True),
                samples_digest(work.calibration) or "",
                samples_digest(work.train) or "",
                str(work.seed),
            )
        ).encode()
    ).hexdigest()
    for index, step in enumerate(passes):
        started(index, step)
        described = json.dumps([step.kind, parameters_of(step)], sort_keys=True)
        key = hashlib.sha256(f"{key}|{described}".encode()).hexdigest()
        folder = work.cache / "stages"
        stage = _load(folder, key) if reuse else None
        if stage is None:
            stage = _apply(step, graph, replace(work, scratch=_made(work.scratch / key[:16])))
            if reuse:
                _store(folder, key, stage)
        stages.append(stage)
        graph = stage.graph
    return stages


def samples_digest(samples: Samples | None) -> str | None:
    """sha256 of inputs and labels."""
    if samples is None:
        return None
    labels = {} if samples.labels is None else {"labels/": samples.labels}
    return made_of({**samples.inputs, **labels})


def _apply(step: Pass, graph: Graph, work: Work) -> Stage:
    begin = time.monotonic()
    result = step.apply(graph, work)
    record = {
        "kind": step.kind,
        "parameters": parameters_of(step),
        "seconds": round(time.monotonic() - begin, 3),
        "changed": dict(result.changed),
        "notes": list(result.notes),
    }
    return Stage(result.graph, record, dict(result.evidence), result.simulated, reused=False)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _store(folder: Path, key: str, stage: Stage) -> None:
    _made(folder)
    body = {
        "version": _RECORD_VERSION,
        "record": stage.record,
        "evidence": stage.evidence,
        "simulated": stage.simulated,
        "graph": stage.graph.digest,
    }
    model, record = folder / f"{key}.onnx", folder / f"{key}.json"
    for path, data in ((model, stage.graph.proto.SerializeToString()), (record, json.dumps(body).encode())):
        # Two runs may write the same stage: each under its own name, then one of them stands.
        unfinished = path.with_suffix(f"{path.suffix}.{os.getpid()}")
        unfinished.write_bytes(data)
        unfinished.replace(path)


def _load(folder: Path, key: str) -> Stage | None:
    model, record = folder / f"{key}.onnx", folder / f"{key}.json"
    try:
        body = json.loads(record.read_bytes())
        read_model(model)
        graph = Graph.read(model)
    except (OSError, ValueError, KedgeError):
        return None
    if body.get("version") != _RECORD_VERSION or body.get("graph") != graph.digest:
        return None
    return Stage(graph, body["record"], body["evidence"], body["simulated"], reused=True)
