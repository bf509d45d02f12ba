"""NVIDIA's compilers as Python modules: which are installed, their logger, what they say.

`tensorrt` is TensorRT proper (JetPack's package, or a host's), `tensorrt-rtx` TensorRT for RTX. Both are imported here
and nowhere else, and only when something is compiled: the import loads half a gigabyte.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from .report import EngineError

__all__ = ["RUNTIMES", "Heard", "Library", "capture", "library_of", "line_of"]

# What came first tells the beginning, what came last why it ended; what lies between may be thousands of tactics.
_FIRST_LINES, _LAST_LINES = 500, 1500
_MAX_LINE_CHARACTERS = 1000
_ASK_S = 120.0
_VERSION = re.compile(r"\d{1,4}(\.\d{1,5}){2,3}")

# A machine without a driver gets this beside every error; it explains none of them.
_NOISE = ("CUDA driver version is insufficient", "no CUDA-capable device", "The logger passed into")


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's compilers.

    name: the runtime's, as manifests have it. title: for people. module: what is imported. distributions: what may
    have brought it. cross: compiles for GPUs that are not here.
    """

    name: str
    title: str
    module: str
    distributions: tuple[str, ...]
    hint: str
    cross: bool

    def version(self) -> str | None:
        """Version of what is installed, without loading it in this process; None when it is missing."""
        # Not at the top: it brings the parsers of e-mail and of archives along, 2 MB.
        from importlib import metadata

        for name in self.distributions:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return _asked_version(self.module)

    def load(self) -> Any:
        """The module.

        Raises:
            EngineError: it is not installed, or does not load (kind missing).
        """
        return _module(self)


def _asked_version(module: str) -> str | None:
    """Version of a module that no distribution tells of, asked of a process of its own: an import stays for good."""
    if importlib.util.find_spec(module) is None:
        return None
    program = f"import {module}; print({module}.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ASK_S,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = done.stdout.strip().splitlines()
    return said[-1] if done.returncode == 0 and said and _VERSION.fullmatch(said[-1]) else None


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
        ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
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
_first: list[str] = []
_last: deque[str] = deque(maxlen=_LAST_LINES)
_listener: list[Callable[[str], None]] = []


class Heard:
    """What a compiler has said so far, as "ERROR: …", in order; bounded. logger: to give it."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it, news included."""
        return (*_first, *_last)

    @property
    def complaints(self) -> tuple[str, ...]:
        """Warnings and errors alone."""
        return tuple(line for line in self.lines if not line.startswith("INFO"))

    def last_error(self, otherwise: str) -> str:
        """What it said last that is an error."""
        errors = [line.partition(": ")[2] for line in self.lines if line.startswith(("ERROR", "INTERNAL"))]
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
        _first.clear()
        _last.clear()
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
            (_first if len(_first) < _FIRST_LINES else _last).append(line)
            for tell in _listener:
                # Native code called this: nothing may pass through it. Whoever has had enough says so at the next step.
                with contextlib.suppress(BaseException):
                    tell(line)

    return Logger()


def line_of(text: str) -> str:
    """Text of a library as one line, without what every machine without a driver hears."""
    lines = [line for line in text.strip().splitlines() if not any(noise in line for noise in _NOISE)]
    return " ".join(lines)[:_MAX_LINE_CHARACTERS]
