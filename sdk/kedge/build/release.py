"""`kedge build`: plan, record golden outputs, write the release."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import PACKED, SCHEMA, is_model_name
from kedge_agent.formats.tensors import datatype_of

from .. import __version__
from ..errors import BadInputError, IncompatibleError
from ..model.onnx_io import read_model
from ..model.session import ReferenceModel
from ..release.bundle import Release, write_release
from ..targets import Target
from .golden import made_up_inputs, select_samples
from .plan import Plan, plan

__all__ = ["BuildOptions", "Built", "build_release", "model_name_for"]


@dataclass(frozen=True)
class BuildOptions:
    """What the user may say about a release.

    name: the model's name on the device. version: its integer version.
    cosine_min, relative_error_max: limits of the parity gate, as decimal strings.
    accuracy: measured figures to record, as decimal strings by name.
    pack: True packs the model where that makes it smaller, False never does, None where it is worthwhile.
    """

    name: str
    version: int = 1
    cosine_min: str = "0.999"
    relative_error_max: str = "0.02"
    accuracy: Mapping[str, str] | None = None
    pack: bool | None = None


@dataclass(frozen=True)
class Built:
    """A release, and how it came about.

    golden_made_up: no real inputs were given. model_bytes: size of the model file as it is loaded.
    """

    release: Release
    plan: Plan
    golden_made_up: bool
    model_bytes: int


def model_name_for(path: Path) -> str:
    """A model name from a file name: lower case, digits, `-` and `_`."""
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:64]
    return name or "model"


def build_release(
    model: Path,
    target: Target,
    out: Path,
    options: BuildOptions,
    golden: Mapping[str, NDArray[Any]] | None = None,
) -> Built:
    """Build a release of an ONNX model for a target.

    Args:
        golden: recorded inputs by name (all samples at hand; the first few are taken), or None
            to make some up.

    Raises:
        BadInputError: the model, the name or the inputs cannot be used.
        IncompatibleError: the target has no runtime for the model.
    """
    if not is_model_name(options.name):
        raise BadInputError(
            f"{options.name!r} cannot name a model", hint="lower-case letters, digits, - and _; at most 64 characters"
        )
    spec = read_model(model)
    choice = plan(spec, target)
    inputs = made_up_inputs(spec) if golden is None else select_samples(golden, spec)
    reference = ReferenceModel(model)
    outputs = reference.run(inputs)
    source = hash_file(model)
    sources, encoding = _model_file(model, options.pack)
    body: dict[str, Any] = {
        "kedge": SCHEMA,
        "model": options.name,
        "version": options.version,
        "target": target.name,
        "platform": {"os": target.os, "arch": target.arch},
        "artefacts": [
            {
                "runtime": choice.runtime,
                "file": next(iter(sources)),
                "precision": choice.precision,
                "inputs": [tensor.to_json() for tensor in spec.inputs],
                "outputs": [tensor.to_json() for tensor in spec.outputs],
                **encoding,
            }
        ],
        "golden": {
            "inputs": _record(inputs, "golden-in", sources),
            "outputs": _record(outputs, "golden-out", sources),
        },
        "gates": {
            "parity": {"cosine_min": options.cosine_min, "relative_error_max": options.relative_error_max},
        },
        "provenance": {
            "source_sha256": source.sha256,
            "kedge": __version__,
            "git_commit": _git_commit(model.parent),
            "libraries": {"onnxruntime": reference.runtime_version, "numpy": np.__version__},
            "opset": spec.opset,
            "ir_version": spec.ir_version,
            "golden_inputs": "made up" if golden is None else "given",
            "accuracy": dict(options.accuracy or {}),
            **spec.notes,
        },
    }
    return Built(write_release(out, sources, body), choice, golden is None, source.size_bytes)


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
        sources[file] = np.ascontiguousarray(array).tobytes()
        entries.append({"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape), "file": file})
    return entries


def _git_commit(folder: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
