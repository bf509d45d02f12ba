"""`kedge init`: a recipe to begin with, commented, which works once its model and its data are named."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from kedge_agent.formats.tensors import DYNAMIC, TensorSpec

from ..errors import BadInputError
from ..model.onnx_io import ModelSpec, model_spec, read_with_files, require_float
from ..targets import Target, host_target, load_target
from .fitting import takes

__all__ = ["NAME", "write_starter"]

NAME = "kedge.toml"

_TEXT = """\
# A model's whole way. Name the model and the data, then:
#
#     kedge run{recipe}
#
# optimises it, proves what accuracy it kept, makes a release, deploys that behind its gates, and measures it.
# All keys: docs/recipe.md of kedge.

name = {name}
target = {target}{target_note}

[model]
source = {source}{source_note}
{inputs}
[data]                               # .npz (inputs by name, `labels`), a folder of images by class, or module:function
calibration = "train.npz"            # a few hundred inputs like those it will meet; their labels are not read
evaluation = "test.npz"              # labelled, and of none of the other data: before and after are judged on it
# train = "train.npz"                # labelled; for passes that train or search
{preprocess}
[[pass]]                             # as many as wanted, in this order
kind = "quantize"
precision = "int8"                   # or "auto", which mixes precisions within max_drop

# [[pass]]                           # before it, to leave out half of the multiplications and win the accuracy back:
# kind = "prune-structured"
# macs = 0.5
#
# [[pass]]
# kind = "recover"                   # needs train
# epochs = 12
# distil = 0.7

[gate]                               # checked here; where it does not hold, nothing is released
max_drop = 0.01                      # top-1 accuracy that may be lost, as a share: 0.01 is one point

# [gates]                            # checked on the device, before it switches; the live release serves on
# p99_ms = 10                        # 99th percentile of compute
# memory_peak_bytes = 268435456      # of its own, of a process that runs the model
# probation_s = 60                   # how long it is watched after the switch, and taken back if it fails

[run]
to = {to}{to_note}
version = 1                          # of the model; a device takes none below the one it has had
"""

_COLUMN = 37
_PREPROCESS = """
# [preprocess]                       # of 8-bit pictures; arrays of floats are taken as they are
# scale = "1/255"
# mean = {mean}
# std = {std}
# layout = "{layout}"
# mode = "{mode}"
"""


def write_starter(folder: Path, model: Path | None = None, target: str | None = None) -> Path:
    """Write FOLDER/kedge.toml; returns its path.

    Args:
        folder: made where it is not there.
        model: an ONNX file, whose inputs are then written down; None: a placeholder stands in its place.
        target: a profile's name; None: this machine's.

    Raises:
        BadInputError: the file is there already; the model or the target cannot be used.
    """
    path = folder / NAME
    if path.exists():
        raise BadInputError(f"{path} exists", hint="change it, or begin in another folder: kedge init FOLDER")
    here = host_target()
    profile = here if target is None else load_target(target)
    spec = None if model is None else _spec_of(model)
    try:
        content = _text(folder, model, spec, profile, here).encode()
    except UnicodeEncodeError as error:
        named = " or ".join(repr(str(each)) for each in (model, folder) if each is not None)
        raise BadInputError(
            f"{named} is not UTF-8, and cannot stand in a recipe", hint="rename the model or the folder"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError as error:
        raise BadInputError(f"{path} exists", hint="change it, or begin in another folder") from error
    return path


def _spec_of(model: Path) -> ModelSpec:
    spec = model_spec(read_with_files(model)[0])
    require_float(spec, str(model))
    return spec


def _text(folder: Path, model: Path | None, spec: ModelSpec | None, profile: Target, here: Target) -> str:
    source = "model.onnx" if model is None else os.path.relpath(model, folder)
    alike = takes(here, profile)
    to = "local" if alike else "my-device"
    return _TEXT.format(
        recipe="" if folder.resolve() == Path.cwd() else f" {_on_a_line(shlex.quote(str(folder / NAME)))}",
        name=_quoted("".join(each if each.isprintable() else "-" for each in (model or Path("model")).stem)),
        target=_quoted(profile.name),
        target_note=_note(f"target = {_quoted(profile.name)}", "the kind of device: kedge targets list"),
        source=_quoted(source),
        source_note=_note(f"source = {_quoted(source)}", "or program.pt2, or package.module:factory"),
        inputs="" if spec is None else "".join(f"# {_described(each)}\n" for each in spec.inputs),
        preprocess=_PREPROCESS.format(**_picture(spec)) if spec is None or _is_picture(spec) else "",
        to=_quoted(to),
        to_note=_note(
            f"to = {_quoted(to)}",
            "this machine; or a device: kedge device add"
            if alike
            else f"kedge device add my-device USER@HOST --target {profile.name}",
        ),
    )


def _quoted(text: str) -> str:
    """A string of TOML. JSON's are, but for DEL, which TOML takes only escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _on_a_line(text: str) -> str:
    """As it is, or quoted where a comment would not hold it."""
    return text if text.isprintable() else _quoted(text)


def _note(line: str, words: str) -> str:
    return " " * max(_COLUMN - len(line), 2) + f"# {words}"


def _described(spec: TensorSpec) -> str:
    shape = ", ".join("any" if dim == DYNAMIC else str(dim) for dim in spec.shape)
    return f"input {_on_a_line(spec.name)}: {spec.datatype} [{shape}]"


def _is_picture(spec: ModelSpec) -> bool:
    return len(spec.inputs) == 1 and len(spec.inputs[0].shape) == 4 and spec.inputs[0].dtype.kind == "f"


def _picture(spec: ModelSpec | None) -> dict[str, str]:
    """Layout and colours as the shape tells them; mean and deviation of ImageNet for three colours."""
    shape = (DYNAMIC, 3, DYNAMIC, DYNAMIC) if spec is None else spec.inputs[0].shape
    last = shape[1] not in (1, 3) and shape[3] in (1, 3)
    grey = shape[3 if last else 1] == 1
    return {
        "layout": "NHWC" if last else "NCHW",
        "mode": "grayscale" if grey else "RGB",
        "mean": "[0.5]" if grey else "[0.485, 0.456, 0.406]",
        "std": "[0.5]" if grey else "[0.229, 0.224, 0.225]",
    }
