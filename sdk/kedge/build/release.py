"""`kedge build`: plan, compile, record golden outputs, write the release."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.artefact import Serving
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import PACKED, SCHEMA, is_model_name
from kedge_agent.formats.strings import encode_strings
from kedge_agent.formats.tensors import BYTES, DYNAMIC, datatype_of

from .. import __version__
from ..errors import BadInputError, IncompatibleError
from ..model.calibrated import stated_inputs
from ..model.footprint import activation_bytes, weight_bytes
from ..model.graph import Graph
from ..model.onnx_io import ModelSpec, read_model
from ..model.session import ReferenceModel
from ..release.bundle import Release, write_release
from ..targets import Target
from .cache import CachedEngine, EngineCache
from .engines import build_engine, host_builders, order_of
from .gates import GateOptions, gates_of
from .golden import made_up_inputs, select_samples
from .memory import estimate
from .plan import Plan, plan, require_room
from .preflight.tables import refused_everywhere
from .serving import serving_for
from .shapes import Profiles, shape_profiles

__all__ = ["BuildOptions", "Built", "build_release", "engine_artefact", "model_name_for", "plan_model"]


@dataclass(frozen=True)
class BuildOptions:
    """What the user may say about a release.

    name: the model's name on the device. version: its integer version.
    gates: conditions that the device checks; where they say nothing, those that the model notes.
    accuracy: measured figures to record, as decimal strings by name; None: those that the model notes.
    pack: True packs the model where that makes it smaller, False never does, None where it is worthwhile; engines and
        what a device is to compile are never packed.
    runtime, compute_capabilities: see `plan`. shapes: profiles of inputs whose shape is not fixed.
    require_engine: refuse where the engine can only be built on a device.
    sparse_weights: use 2:4 sparse kernels where the weights are. workspace_bytes: of an engine's scratch memory; None:
        the library's default on a host, what fits on a device. on_device: leave the compilation to a device.
    serving: what onnxruntime is asked for on the device; None: what the target's profile says.
    """

    name: str
    version: int = 1
    gates: GateOptions = field(default_factory=GateOptions)
    accuracy: Mapping[str, str] | None = None
    pack: bool | None = None
    runtime: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    shapes: Profiles = field(default_factory=dict)
    require_engine: bool = False
    sparse_weights: bool = False
    workspace_bytes: int | None = None
    on_device: bool = False
    serving: Serving | None = None


@dataclass(frozen=True)
class Built:
    """A release, and how it came about.

    golden_made_up: no real inputs were given. model_bytes: size of the model file as it was given.
    engine: what the release holds of one; None: none. compiled: it was built now, and not taken from the cache.
    """

    release: Release
    plan: Plan
    golden_made_up: bool
    model_bytes: int
    engine: CachedEngine | None = None
    compiled: bool = False


def model_name_for(path: Path) -> str:
    """A model name from a file name: lower case, digits, `-` and `_`."""
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:64]
    return name or "model"


def plan_model(model: Path, target: Target, options: BuildOptions) -> tuple[ModelSpec, Plan]:
    """What `build_release` would do, without doing it.

    Raises:
        BadInputError: the model or the shapes cannot be used.
        IncompatibleError: the target has no runtime for the model.
        NoSpaceError: it cannot fit.
    """
    spec = read_model(model)
    own = () if target.compute_capability is None else (target.compute_capability,)
    choice = plan(
        spec,
        target,
        host=host_builders((*own, *options.compute_capabilities)) if own else None,
        runtime=options.runtime,
        compute_capabilities=options.compute_capabilities,
        on_device=options.on_device,
    )
    profiles = shape_profiles(spec, options.shapes) if choice.runtime != "onnxruntime" else {}
    graph = Graph.read(model)
    activations: dict[str, int | None] = {}
    inferred: list[tuple[dict[str, tuple[int, ...]], int | None]] = []
    for index, name in enumerate(("least", "usual", "greatest")):
        shapes = _shapes_at(spec, profiles, index)
        if shapes is not None:
            # Mostly the three are the same, and inference copies the model.
            if not inferred or inferred[-1][0] != shapes:
                inferred.append((shapes, activation_bytes(graph, shapes)))
            activations[name] = inferred[-1][1]
    if choice.runtime == "tensorrt":
        refused = refused_everywhere(graph, spec, target)
        if refused is not None:
            raise IncompatibleError(
                f"{target.name} will not run {model.name}: {refused.op} {refused.node}: {refused.message}",
                hint=f"kedge preflight lists all of it; {refused.suggestion}".rstrip("; "),
            )
    choice = replace(choice, profiles=profiles, memory=estimate(weight_bytes(graph), activations, target))
    require_room(choice, target)
    return spec, choice


def build_release(
    model: Path,
    target: Target,
    out: Path,
    options: BuildOptions,
    golden: Mapping[str, NDArray[Any]] | None = None,
    *,
    reference: Path | None = None,
    cache: EngineCache | None = None,
    progress: Callable[[str, float], None] = lambda step, share: None,
) -> Built:
    """Build a release of an ONNX model for a target.

    Args:
        golden: recorded inputs by name (all samples at hand; the first few are taken), or None to make some up.
        reference: the model whose outputs are golden, where this host's onnxruntime cannot run the one that is
            released; None: that one.
        cache: of engines; None: the user's.
        progress: told of each step's name and the share of it that is done.

    Raises:
        BadInputError: the model, the name or the inputs cannot be used.
        IncompatibleError: the target has no runtime for the model, or its compiler refuses it.
        NoSpaceError: it cannot fit.
    """
    if not is_model_name(options.name):
        raise BadInputError(
            f"{options.name!r} cannot name a model", hint="lower-case letters, digits, - and _; at most 64 characters"
        )
    spec, choice = plan_model(model, target, options)
    if options.require_engine and choice.where == "device":
        raise IncompatibleError(
            f"no engine for {target.name} can be built here: {choice.reason}",
            hint="leave --require-engine out, or build it on a device: --on DEVICE",
        )
    serving = serving_for(choice.runtime, target, options.serving)
    recorded = _at_usual_shapes(spec, choice.profiles)
    inputs = made_up_inputs(recorded) if golden is None else select_samples(golden, recorded)
    progress("recording golden outputs", 0.0)
    runner, outputs = _golden_outputs(model, reference, inputs, choice)
    source = hash_file(model)
    artefact, sources, engine, compiled = _artefact(model, source.sha256, spec, choice, options, cache, progress)
    body: dict[str, Any] = {
        "kedge": SCHEMA,
        "model": options.name,
        "version": options.version,
        "target": target.name,
        "platform": {"os": target.os, "arch": target.arch},
        "artefacts": [artefact if serving is None else {**artefact, "serving": serving.to_json()}],
        "golden": {
            "inputs": _record(inputs, "golden-in", sources),
            "outputs": _record(outputs, "golden-out", sources),
        },
        "gates": gates_of(spec.notes, options.gates).to_manifest(),
        "provenance": {
            "source_sha256": source.sha256,
            "kedge": __version__,
            "git_commit": _git_commit(model.parent),
            "libraries": {"onnxruntime": runner.runtime_version, "numpy": np.__version__},
            "opset": spec.opset,
            "ir_version": spec.ir_version,
            "golden_inputs": "made up" if golden is None else "given",
            "accuracy": {},
            # The ranges are the artefact's and the gates the manifest's, which is what the device reads.
            **{key: note for key, note in spec.notes.items() if key not in ("calibrated", "gates")},
            **({} if options.accuracy is None else {"accuracy": dict(options.accuracy)}),
        },
    }
    if reference is not None:
        body["provenance"]["reference_sha256"] = hash_file(reference).sha256
    return Built(
        write_release(out, sources, body), choice, golden is None, source.size_bytes, engine=engine, compiled=compiled
    )


def engine_artefact(planned: Mapping[str, Any], engine: CachedEngine) -> dict[str, Any]:
    """A manifest's artefact of an engine, in the place of one that had yet to be compiled."""
    kept = {key: value for key, value in planned.items() if key not in ("build", "file", "passport", "encoding")}
    return {**kept, "file": "model.engine", "passport": engine.passport.to_json()}


def _artefact(
    model: Path,
    sha256: str,
    spec: ModelSpec,
    choice: Plan,
    options: BuildOptions,
    cache: EngineCache | None,
    progress: Callable[[str, float], None],
) -> tuple[dict[str, Any], dict[str, Path | bytes], CachedEngine | None, bool]:
    """The artefact of a plan as the manifest states it, its file, and the engine if it is one."""
    artefact: dict[str, Any] = {
        "runtime": choice.runtime,
        "precision": choice.precision,
        "inputs": stated_inputs(model, spec),
        "outputs": [tensor.to_json() for tensor in spec.outputs],
    }
    if choice.where == "nowhere":
        sources, encoding = _model_file(model, options.pack)
        return {**artefact, "file": next(iter(sources)), **encoding}, sources, None, False
    order = order_of(choice, sparse_weights=options.sparse_weights, workspace_bytes=options.workspace_bytes)
    artefact |= {"file": "model.onnx", "build": order.to_json()}
    if choice.where == "device":
        return artefact, {"model.onnx": model}, None, False
    engine, compiled = build_engine(model.read_bytes(), sha256, order, cache=cache or EngineCache(), progress=progress)
    return engine_artefact(artefact, engine), {"model.engine": engine.path}, engine, compiled


def _golden_outputs(
    model: Path, reference: Path | None, inputs: Mapping[str, NDArray[Any]], choice: Plan
) -> tuple[ReferenceModel, dict[str, NDArray[Any]]]:
    """Outputs of the model as the target's runtime computes it: Q/DQ pairs as written, where that is not this one."""
    try:
        runner = ReferenceModel(reference or model, optimise=choice.runtime == "onnxruntime")
        return runner, runner.run(inputs)
    except BadInputError as error:
        if reference is not None:
            raise
        raise IncompatibleError(
            f"this host's onnxruntime cannot run {model.name} to record golden outputs: {error.message}",
            hint="give the FP32 model it was made from: --reference MODEL",
        ) from error


def _at_usual_shapes(spec: ModelSpec, profiles: Profiles) -> ModelSpec:
    """The model with the inputs that an engine was tuned for: golden ones must lie within its profile."""
    inputs = [replace(each, shape=profiles[each.name][1]) if each.name in profiles else each for each in spec.inputs]
    return replace(spec, inputs=tuple(inputs))


def _shapes_at(spec: ModelSpec, profiles: Profiles, index: int) -> dict[str, tuple[int, ...]] | None:
    """Shapes of all inputs at one shape profile; without profiles a free batch counts as 1."""
    out = {}
    for each in spec.inputs:
        if each.name in profiles:
            out[each.name] = profiles[each.name][index]
        elif all(dim != DYNAMIC for dim in each.shape[1:]):
            out[each.name] = tuple(1 if dim == DYNAMIC else dim for dim in each.shape)
        else:
            return None
    return out


def _model_file(model: Path, wanted: bool | None) -> tuple[dict[str, Path | bytes], dict[str, str]]:
    """The model as the release holds it, by its name there, and what its artefact says of the encoding."""
    if wanted is not False:
        # Here, because a Python without lzma builds all but packed releases.
        try:
            from ..release.packing import pack_model
        except ImportError as error:
            if wanted is None:
                return {"model.onnx": model}, {}
            raise IncompatibleError(
                f"this Python cannot pack a model: {error}", hint="use a Python with lzma, or --no-pack"
            ) from error
        packed = pack_model(model, only_if_worthwhile=wanted is None)
        if packed is not None:
            return {"model.onnx.kpk": packed}, {"encoding": PACKED}
    return {"model.onnx": model}, {}


def _record(tensors: Mapping[str, NDArray[Any]], prefix: str, sources: dict[str, Path | bytes]) -> list[dict[str, Any]]:
    entries = []
    for index, (name, array) in enumerate(tensors.items()):
        file = f"{prefix}-{index}.bin"
        datatype = datatype_of(array.dtype)
        sources[file] = encode_strings(array) if datatype == BYTES else np.ascontiguousarray(array).tobytes()
        entries.append({"name": name, "datatype": datatype, "shape": list(array.shape), "file": file})
    return entries


def _git_commit(folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
