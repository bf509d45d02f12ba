"""Every runtime by the name that artefacts give it; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from ..engine.library import RUNTIMES as _COMPILERS
from ..engine.library import library_of
from ..engine.report import EngineError
from ..errors import AgentError
from .base import Runtime

__all__ = ["RUNTIMES", "import_library", "runtime_named"]

RUNTIMES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "onnxruntime": ("onnxruntime", "OnnxRuntime", ()),
    "tensorrt": ("tensorrt", "TensorRTRuntime", ("tensorrt",)),
    "tensorrt-rtx": ("tensorrt", "TensorRTRuntime", ("tensorrt-rtx",)),
}
"""Name to module, class and its arguments."""


def runtime_named(name: str) -> Runtime:
    """The runtime of this name, whether or not its library is installed.

    Raises:
        AgentError: there is none of this name (kind incompatible).
    """
    if name not in RUNTIMES:
        raise AgentError(
            f"there is no runtime named {name[:80]!r}", kind="incompatible", hint=f"there are: {', '.join(RUNTIMES)}"
        )
    module, kind, arguments = RUNTIMES[name]
    return cast("Runtime", getattr(importlib.import_module(f"{__package__}.{module}"), kind)(*arguments))


def import_library(name: str) -> None:
    """Import what is behind a runtime, so that its first load does not have to.

    Raises:
        AgentError: it is not installed, or does not load (kind incompatible).
    """
    try:
        if name in _COMPILERS:
            library_of(name).load()
        else:
            importlib.import_module(name)
    except (EngineError, ImportError) as error:
        raise AgentError(
            f"{name} cannot be imported: {error}",
            kind="incompatible",
            hint="provision the device again: kedge device provision",
        ) from error
