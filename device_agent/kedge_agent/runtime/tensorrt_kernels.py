"""How contexts of an engine are made, and what TensorRT for RTX compiles on the device, kept between starts.

An engine of TensorRT for RTX is finished on the device when it first runs. What that gives is kept in one file for each
engine and passport, in the folder that the runtime may use: with it the next start is warm. TensorRT for RTX checks it
against GPU, driver and its own version before it takes it; one that it does not take is dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine.here import passport_here
from ..errors import AgentError
from ..formats.digests import sha256_hex
from .tensorrt_engine import Engine

__all__ = ["Kernels"]

_LOG = logging.getLogger("kedge.tensorrt")
_MAX_BYTES = 256 << 20
_MAX_FILES = 16
_SUFFIX = ".kernels"


class Kernels:
    """Makes contexts; holds the cache of what was compiled here, where the library has one.

    Args:
        loaded: whose contexts.
        folder: where files may be kept, or None.
        graphs: whether TensorRT for RTX may capture its own.

    Contexts have no memory of their own: it is lent to them by `set_device_memory`. TensorRT for RTX compiles kernels
    for a new shape beside the work (LAZY) and uses general ones until then, and captures its own CUDA graphs, because
    it alone knows when the final kernels are in place.
    """

    def __init__(self, loaded: Engine, folder: Path | None, *, graphs: bool = True) -> None:
        self._loaded = loaded
        self._path = None if folder is None else folder / f"{_passport_key(loaded)}-{loaded.sha256[:16]}{_SUFFIX}"
        self._kept = b""
        self._options: Any = None
        self._serialise: Callable[[], Any] | None = None
        self.state = "none"
        self.said: str | None = None
        self.own_graphs = loaded.library.cross
        trt, engine = loaded.trt, loaded.raw
        if not loaded.library.cross:
            return
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.LAZY
        if graphs:  # layers are told of no run that is a graph
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._options = config
        compiled = config.create_runtime_cache()
        if compiled is None:
            return
        self.state = "cold"
        blob = self._read()
        if blob and compiled.deserialize(blob):
            self.state, self._kept = "warm", blob
            self._touch()
        elif blob:
            self._drop()
        config.set_runtime_cache(compiled)
        self._serialise = compiled.serialize

    def context(self) -> Any:
        """A fresh execution context, which is yet to be lent memory.

        Raises:
            AgentError: TensorRT makes none (kind space: it is memory that it lacks).
        """
        trt, engine = self._loaded.trt, self._loaded.raw
        if self._options is not None:
            made = engine.create_execution_context(self._options)
        else:
            made = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if made is None:
            said = self._loaded.heard.last_error("it did not say why")
            raise AgentError(
                f"{self._loaded.library.title} makes no execution context: {said}",
                kind="space",
                hint="unload another model, or use fewer workers",
            )
        return made

    def keep(self) -> None:
        """Write what has been compiled since it was last written; a failure is logged, and costs the next start."""
        if self._serialise is None or self._path is None:
            return
        made = self._serialise()
        blob = b"" if made is None else bytes(made)
        if not blob or blob == self._kept:
            return
        if len(blob) > _MAX_BYTES:
            self.said = f"{len(blob)} bytes of kernels are too many to keep"
            return
        try:
            _write(self._path, blob)
        except OSError as error:
            self.said = f"kernels could not be kept: {error.strerror}"
            _LOG.warning("%s", self.said)
            return
        self._kept = blob

    def close(self) -> None:
        """Let go of what belongs to the engine."""
        self._options = None
        self._serialise = None

    def facts(self) -> dict[str, Any]:
        """state: none (nothing is compiled here), cold or warm; bytes: of the file; said: what went wrong."""
        return {"state": self.state, "bytes": len(self._kept) or None, "said": self.said}

    def _read(self) -> bytes:
        """What was kept; empty where nothing was, or not as much as could have been written."""
        if self._path is None:
            return b""
        try:
            with self._path.open("rb") as file:
                blob = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            self.said = f"kept kernels could not be read: {error.strerror}"
            return b""
        if len(blob) <= _MAX_BYTES:
            return blob
        self._drop()
        return b""

    def _touch(self) -> None:
        """It is in use: others go before it."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _drop(self) -> None:
        self.said = "kept kernels were of another device or damaged, and dropped"
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _passport_key(loaded: Engine) -> str:
    here = passport_here(loaded.library.name)
    facts = {} if here is None else here.to_json()
    return sha256_hex(json.dumps(facts, sort_keys=True).encode())[:16]


def _write(path: Path, blob: bytes) -> None:
    """Replace a file by one rename. Not made durable: after a power cut a damaged one is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    files = sorted(path.parent.glob(f"*{_SUFFIX}"), key=lambda each: each.stat().st_mtime, reverse=True)
    for old in files[_MAX_FILES:]:
        with contextlib.suppress(OSError):
            old.unlink()
