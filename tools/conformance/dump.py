"""Writes what a Python module of TensorRT's holds, as JSON. Runs in a process of its own, on any Python from 3.10 on.

python dump.py MODULE OUT.json [FOLDER with the module]
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_SIGNATURE = re.compile(r"^(?:\d+\. )?\w*(\(.*\) -> .+)$")
_QUALIFIED = re.compile(r"\btensorrt\w*\.(?:tensorrt\w*\.)?|\bnvinfer1::(?:v_\d+_\d+::)?|\bnvonnxparser::")
_KEPT = {"__init__", "__getitem__", "__len__", "__version__"}


def member_of(thing: Any) -> dict[str, Any]:
    """One attribute; signatures: one for each overload that its docstring shows."""
    shown = thing.fget if isinstance(thing, property) else thing
    lines = (getattr(shown, "__doc__", None) or "").splitlines()
    found = [_QUALIFIED.sub("", match[1]) for match in map(_SIGNATURE.match, lines) if match]
    writable = isinstance(thing, property) and thing.fset is not None
    return {"signatures": [] if isinstance(thing, type) else found, "writable": writable}


def members_of(holder: Any, name: str, classes: dict[str, Any]) -> None:
    """All attributes of a module or class, and of the classes within."""
    if name in classes:
        return
    names = [each for each in dir(holder) if each in _KEPT or not each.startswith("_")]
    things = {each: getattr(holder, each) for each in names}
    things = {each: thing for each, thing in things.items() if not isinstance(thing, ModuleType)}
    classes[name] = {each: member_of(thing) for each, thing in things.items()}
    for each, thing in things.items():
        if isinstance(thing, type):
            members_of(thing, each if name == "trt" else f"{name}.{each}", classes)


def main(module: str, out: str, folder: str | None = None) -> None:
    """Import the module and write what it holds."""
    if folder is not None:
        sys.path.insert(0, folder)
    holder = importlib.import_module(module)
    classes: dict[str, Any] = {}
    members_of(holder, "trt", classes)
    Path(out).write_text(json.dumps({"version": holder.__version__, "classes": classes}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
