"""Routes of the control door that measure: benchmark, layers, load phases, levels, memory, sensors, recorded inputs."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from ..errors import AgentError
from ..formats.oip import HEADER_LENGTH, encode_request
from ..measure.benchmark import run_benchmark
from ..measure.layers import layer_rows
from ..measure.ledger import ledger_rows
from ..measure.memory import read_memory
from ..measure.schedule import BenchmarkRules
from ..measure.watch import read_conditions
from ..store.layout import Layout
from .golden import golden_batch
from .http import Request, Response, Route, json_response, route
from .levels import time_levels
from .loading import LiveModel, loadable
from .oip_routes import MODEL_NAME
from .repository import Repository
from .shared_memory import Regions
from .staging import load_options

__all__ = ["measure_routes"]

_MODEL = rf"/kedge/v1/models/{MODEL_NAME}"
_APART_S = 600.0
_T = TypeVar("_T")
_MOST_RUNS = 10_000


def measure_routes(repository: Repository, regions: Regions, layout: Layout, root: Path = Path("/")) -> list[Route]:
    """Routes on the models of `repository`; `root`: where this device's sensors are found."""
    apart = threading.Lock()
    # Raw samples of the last benchmark that was asked for them, until they are fetched: by model.
    kept: dict[str, bytes] = {}

    def conditions(_: Request) -> Response:
        return json_response(read_conditions(root).to_json())

    def requested(entry: LiveModel, batch: int) -> tuple[dict[str, NDArray[Any]], int]:
        """Golden inputs, as many as a client may send in one request."""
        inputs, batch = golden_batch(layout, entry.manifest, entry.artefact.inputs, batch)
        entry.require_samples({name: array.shape for name, array in inputs.items()})
        return inputs, batch

    def benchmark(request: Request, model: str) -> Response:
        given = _options(request, ints=("batch", "warmup_ms", "duration_ms", "min_runs", "concurrency"), rate=True)
        samples = given.pop("samples", False)
        entry = repository.get(model)
        inputs, batch = requested(entry, given.pop("batch", 1))
        with _alone(apart):
            measured = run_benchmark(entry.pool, inputs, BenchmarkRules(**given), root)
        answer = {"release": entry.manifest.digest, "batch": batch, **measured.report, "samples": None}
        if samples:
            columns, data = measured.samples.to_bytes()
            kept.clear()
            kept[model] = data
            answer["samples"] = {"columns": columns, "count": len(measured.samples)}
        return json_response(answer)

    def raw_samples(_: Request, model: str) -> Response:
        data = kept.pop(model, None)
        if data is None:
            raise AgentError(f"no samples of {model} are kept", kind="not_found", hint="run the benchmark with samples")
        return Response(200, [data], content_type="application/octet-stream")

    def apart_from_serving(request: Request, model: str, measure: Callable[..., _T]) -> tuple[dict[str, Any], int, _T]:
        """What `measure` finds of the model's file in a child process; which release that was, and of how many runs."""
        given = _options(request, ints=("batch", "runs"))
        entry, runs = repository.get(model), _runs(given)
        inputs, batch = golden_batch(layout, entry.manifest, entry.artefact.inputs, given.get("batch", 1))
        options = load_options(layout, entry.artefact, repository.threads, repository.rules_of(model))
        with _alone(apart), loadable(layout, entry.manifest, entry.artefact) as path:
            found = measure(path, entry.artefact.runtime, options, inputs, runs=runs, timeout_s=_APART_S)
        return {"release": entry.manifest.digest, "batch": batch}, runs, found

    def layers(request: Request, model: str) -> Response:
        from ..measure.apart import profile_layers

        of, runs, found = apart_from_serving(request, model, profile_layers)
        return json_response({**of, "count": runs, "layers": layer_rows(found)})

    def phases(request: Request, model: str) -> Response:
        from ..measure.apart import measure_phases

        of, _, found = apart_from_serving(request, model, measure_phases)
        return json_response({**of, **found})

    def levels(request: Request, model: str) -> Response:
        given = _options(request, ints=("batch", "runs", "warmup"))
        entry, runs = repository.get(model), _runs(given)
        warmup = given.get("warmup", 0)
        if not 0 <= warmup <= _MOST_RUNS:
            raise AgentError(f"warmup is {warmup}; it goes from 0 to {_MOST_RUNS}")
        inputs, batch = requested(entry, given.get("batch", 1))
        with _alone(apart):
            times = time_levels(repository, regions, layout, entry, inputs, runs, warmup)
        return json_response({"release": entry.manifest.digest, "batch": batch, "levels_ms": times})

    def memory(_: Request, model: str) -> Response:
        entry, now = repository.get(model), read_memory()
        return json_response(
            {
                "release": entry.manifest.digest,
                "model_bytes": entry.manifest.file(entry.artefact.file).size_bytes,
                "load": entry.load,
                "now": now.to_json(),
                "ledger": ledger_rows(entry.pool.model.ledger(), entry.load, now),
                "chosen": entry.pool.model.facts(),
            }
        )

    def golden(request: Request, model: str) -> Response:
        match = re.fullmatch(r"(?:batch=(\d{1,6}))?", request.query)
        if match is None:
            raise AgentError(f"unknown query: {request.query[:80]!r}")
        entry = repository.get(model)
        inputs, _ = golden_batch(layout, entry.manifest, entry.artefact.inputs, int(match[1] or 1))
        header, buffers = encode_request(inputs)
        return Response(200, [header, *buffers], [(HEADER_LENGTH, str(len(header)))], "application/octet-stream")

    return [
        route("GET", r"/kedge/v1/conditions", conditions),
        route("POST", rf"{_MODEL}/benchmark", benchmark),
        route("GET", rf"{_MODEL}/benchmark/samples", raw_samples),
        route("POST", rf"{_MODEL}/layers", layers),
        route("POST", rf"{_MODEL}/phases", phases),
        route("POST", rf"{_MODEL}/levels", levels),
        route("GET", rf"{_MODEL}/memory", memory),
        route("GET", rf"{_MODEL}/golden", golden),
    ]


@contextlib.contextmanager
def _alone(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(blocking=False):
        raise AgentError("another measurement is under way", kind="busy", hint="wait for it to end")
    try:
        yield
    finally:
        lock.release()


def _options(request: Request, *, ints: tuple[str, ...], rate: bool = False) -> dict[str, Any]:
    body: Any = request.read_json() or {}
    allowed = dict.fromkeys(ints, (int,)) | ({"rate_per_s": (int, float), "samples": (bool,)} if rate else {})
    if not isinstance(body, dict) or not body.keys() <= allowed.keys():
        raise AgentError(f"options are among {', '.join(sorted(allowed))}")
    for name, value in body.items():
        if type(value) not in allowed[name]:
            raise AgentError(
                f"option {name} is {str(value)[:80]!r}; it is {' or '.join(t.__name__ for t in allowed[name])}"
            )
    return body


def _runs(given: dict[str, Any]) -> int:
    runs = given.get("runs", 100)
    if not 1 <= runs <= _MOST_RUNS:
        raise AgentError(f"runs are {runs}; they go from 1 to {_MOST_RUNS}")
    return int(runs)
