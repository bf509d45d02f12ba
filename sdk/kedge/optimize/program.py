"""Open a `torch.export` program (.pt2).

A program is code: torch evaluates the symbolic sizes written in it. What can be told apart is refused:
pickled objects and native code, which no plain export holds.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInputError, KedgeError, first_line
from .export import quiet_torch

if TYPE_CHECKING:
    import torch

__all__ = ["load_program"]

_MAX_UNPACKED_BYTES = 1 << 32
_MAX_JSON_BYTES = 1 << 28
# Where these operators have their flag of training mode among the positional arguments.
_TRAINING_ARGUMENT = {"aten.batch_norm.default": 5, "aten.dropout.default": 2, "aten.feature_dropout.default": 2}


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a program that torch.export.save wrote.

    Raises:
        BadInputError: it cannot be read, holds pickled objects or native code, or was exported in training mode.
    """
    import torch

    try:
        _require_plain(path, torch)
        with quiet_torch():
            program = torch.export.load(path)
    except KedgeError:
        raise
    except Exception as error:  # torch raises many unrelated classes
        raise BadInputError(
            f"{path} is not a torch.export program: {first_line(error)}",
            hint=f"write it with torch.export.save, by a torch no newer than {torch.__version__}",
        ) from error
    for node in program.graph.nodes:
        position = _TRAINING_ARGUMENT.get(str(node.target))
        if position is not None and len(node.args) > position and node.args[position] is True:
            raise BadInputError(f"{path} was exported in training mode", hint="call eval() before torch.export.export")
    return program


def _require_plain(path: Path, torch: Any) -> None:
    refused = BadInputError(
        f"{path} holds pickled objects or native code, which are not opened",
        hint="save the program with torch.export.save, its weights plain tensors",
    )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _MAX_UNPACKED_BYTES:
            raise BadInputError(f"{path} unpacks to more than {_MAX_UNPACKED_BYTES} bytes", hint="too large for ONNX")
        if not any("/models/" in entry.filename and entry.filename.endswith(".json") for entry in entries):
            raise BadInputError(
                f"{path} is not a torch.export program", hint="write it with torch.export.save of torch 2.8 or newer"
            )
        for entry in entries:
            if "/aotinductor/" in entry.filename or entry.filename.endswith(".so"):
                raise refused
            if entry.filename.endswith("_config.json"):
                if entry.file_size > _MAX_JSON_BYTES or _has_pickles(json.loads(archive.read(entry))):
                    raise refused
            elif entry.filename.endswith(".pt"):
                try:
                    torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
                except Exception as error:  # torch.load raises many unrelated classes
                    raise refused from error


def _has_pickles(config: Any) -> bool:
    payloads = config.get("config", {}).values()
    return any(
        entry.get("use_pickle") or not str(entry.get("path_name")).startswith(("weight_", "tensor_"))
        for entry in payloads
    )
