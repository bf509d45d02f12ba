"""NVIDIA's compilers as Python modules: which are installed, their logger, what they say.

`tensorrt` is TensorRT proper (JetPack's package, or a host's), `tensorrt-rtx` TensorRT for RTX. Both are imported here
and nowhere else, and only when something is compiled: the import loads half a gigabyte.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from .report import EngineError

__all__ = ["RUNTIMES", "Heard", "Library", "capture", "library_of", "line_of"]

_MAX_LOG_LINES = 2000
_MAX_LINE_CHARACTERS = 1000

# A machine without a driver gets this beside every error; it explains none of them.
_NOISE = ("CUDA driver version is insufficient", "no CUDA-capable device", "The logger passed into")


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's compilers.

    name: the runtime's, as manifests have it. title: for people. module: what is imported. distributions: what may
    have brought it; JetPack's comes from apt and has none. cross: compiles for GPUs that are not here.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    hint: str
    cross: bool

    def version(self) -> str | None:
        """Version of what is installed, without loading it where a distribution tells; None when it is missing."""
        for name in self.distributions:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        if importlib.util.find_spec(self.module) is None:
            return None
        try:
            return _whole_version(str(self.load().__version__))
        except EngineError:
            return None

    def load(self) -> Any:
        """The module.

        Raises:
            EngineError: it is not installed, or does not load (kind missing).
        """
        return _module(self)


def _whole_version(named: str) -> str:
    """JetPack's package names three parts; the library that it has loaded knows the fourth, which engines carry."""
    parts = named.split(".")
    if len(parts) != 3:
        return named
    try:
        build = int(ctypes.CDLL(f"libnvinfer.so.{parts[0]}").getInferLibBuildVersion())
    except (OSError, AttributeError):
        return named
    return f"{named}.{build}"


RUNTIMES: dict[str, Library] = {
    "tensorrt-rtx": Library(
        "tensorrt-rtx",
        "TensorRT for RTX",
        "tensorrt_rtx_bindings",
        ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
        "pip install 'kedge[tensorrt]'",
        cross=True,
    ),
    "tensorrt": Library(
        "tensorrt",
        "TensorRT",
        "tensorrt",
        ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
        "on a Jetson: apt install python3-libnvinfer; elsewhere NVIDIA's installation guide",
        cross=False,
    ),
}


def library_of(runtime: str) -> Library:
    """The compiler of a runtime.

    Raises:
        EngineError: nothing is compiled for a runtime of this name (kind bad_input).
    """
    if runtime not in RUNTIMES:
        raise EngineError(f"nothing is compiled for {runtime[:40]!r}", kind="bad_input", hint=", ".join(RUNTIMES))
    return RUNTIMES[runtime]


@cache
def _module(library: Library) -> Any:
    try:
        return importlib.import_module(library.module)
    except Exception as error:  # besides ImportError: OSError of a library that does not load
        raise EngineError(
            f"{library.title} cannot be imported: {line_of(str(error) or type(error).__name__)}",
            kind="missing",
            hint=library.hint,
        ) from error


_one_at_a_time = threading.Lock()
_lines: list[str] = []
_listener: list[Callable[[str], None]] = []


class Heard:
    """What a compiler has said so far, as "ERROR: …", in order; bounded. logger: to give it."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it, news included."""
        return tuple(_lines)

    @property
    def complaints(self) -> tuple[str, ...]:
        """Warnings and errors alone."""
        return tuple(line for line in _lines if not line.startswith("INFO"))

    def last_error(self, otherwise: str) -> str:
        """What it said last that is an error."""
        errors = [line.partition(": ")[2] for line in _lines if line.startswith(("ERROR", "INTERNAL"))]
        return errors[-1] if errors else otherwise


@contextmanager
def capture(library: Library, tell: Callable[[str], None] | None = None) -> Iterator[Heard]:
    """Hear what a compiler says while the context is open; one compilation at a time.

    TensorRT keeps the first logger of a process for good: so there is one a library.

    Args:
        tell: called with each line as it comes.

    Raises:
        EngineError: the library is missing.
    """
    logger = _logger(library)
    with _one_at_a_time:
        _lines.clear()
        _listener[:] = [] if tell is None else [tell]
        try:
            yield Heard(logger)
        finally:
            _listener.clear()


@cache
def _logger(library: Library) -> Any:
    trt = library.load()

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.VERBOSE or any(noise in message for noise in _NOISE):
                return
            line = f"{severity.name}: {line_of(message)}"
            if len(_lines) < _MAX_LOG_LINES:
                _lines.append(line)
            for tell in _listener:
                tell(line)

    return Logger()


def line_of(text: str) -> str:
    """Text of a library as one line, without what every machine without a driver hears."""
    lines = [line for line in text.strip().splitlines() if not any(noise in line for noise in _NOISE)]
    return " ".join(lines)[:_MAX_LINE_CHARACTERS]
