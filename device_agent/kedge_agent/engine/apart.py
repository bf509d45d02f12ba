"""Compile, or parse, in a child process, so that a compiler that crashes, hangs or fills memory takes nothing with it.

Request and answer are a folder of plain files: `model.onnx`, `request.json`, then `engine` and `answer.json`. Progress
comes as lines of JSON through a pipe of its own, because TensorRT writes to standard output as it likes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .compile import compile_onnx, inspect
from .library import library_of
from .order import Order, parse_order
from .parse import parse_onnx
from .report import CompileReport, EngineError, EngineTensor, NetworkLayer, ParseReport, ParserFinding, Progress

__all__ = ["Limits", "compile_apart", "parse_apart"]

_MAX_ANSWER_BYTES = 64 << 20
_MAX_LINE_BYTES = 4096
_MAX_PRINTED_BYTES = 1 << 16
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "NvMapMemAlloc", "out of memory")
_PR_SET_PDEATHSIG = 1

# The child sees the packages that this process sees, in whatever way it came to see them.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kedge_agent.engine.apart import _child; _child(sys.argv[2], int(sys.argv[3]))"
)


@dataclass(frozen=True)
class Limits:
    """Of the child. address_space_bytes: RLIMIT_AS, None: none. nice: its priority, 0 to 19 the lowest.

    started: told the child's process id, for whoever wants to end it. folder: where its files go; None: the system's
    own for temporary ones.
    """

    timeout_s: float = 600.0
    address_space_bytes: int | None = None
    nice: int = 0
    started: Callable[[int], None] | None = None
    folder: Path | None = None


def compile_apart(
    model: bytes | Path,
    order: Order,
    *,
    progress: Progress | None = None,
    timing_cache: bytes = b"",
    limits: Limits | None = None,
) -> CompileReport:
    """Compile as `compile.compile_onnx` does, in a child process, and look into the engine where a GPU is.

    Args:
        model: an ONNX file's bytes, or the file, which is then never held in this process.

    Raises:
        EngineError: as there; besides, the compiler crashed, was killed, ran out of memory or of time.
    """
    request = {"task": "compile", "order": order.to_json()}
    title = library_of(order.runtime).title
    given = limits or Limits()
    with _own_folder(given) as folder:
        (folder / "timing.cache").write_bytes(timing_cache)
        body = _asked(folder, model, request, progress, given, title)
        layers = folder / "layers.json"
        return CompileReport(
            engine=(folder / "engine").read_bytes(),
            seconds=body["seconds"],
            runtime=body["runtime"],
            runtime_version=body["runtime_version"],
            compute_capabilities=tuple(body["compute_capabilities"]),
            network=_layers(body["network"]),
            inputs=_tensors(body["inputs"]),
            outputs=_tensors(body["outputs"]),
            log=tuple(body["log"]),
            peak_rss_bytes=body["peak_rss_bytes"],
            engine_layers=layers.read_text(encoding="utf-8") if layers.is_file() else "",
            timing_cache=(folder / "timing.made").read_bytes(),
        )


def parse_apart(model: bytes, runtime: str = "tensorrt-rtx", *, limits: Limits | None = None) -> ParseReport:
    """Parse as `parse.parse_onnx` does, in a child process.

    Raises:
        EngineError: as there; besides, the parser crashed, was killed, or ran out of memory or time.
    """
    given = limits or Limits()
    with _own_folder(given) as folder:
        request = {"task": "parse", "runtime": runtime}
        body = _asked(folder, model, request, None, given, library_of(runtime).title)
        return ParseReport(
            parser=body["parser"],
            findings=tuple(ParserFinding(**finding) for finding in body["findings"]),
            layers=_layers(body["layers"]),
            inputs=_tensors(body["inputs"]),
            outputs=_tensors(body["outputs"]),
            log=tuple(body["log"]),
        )


@contextlib.contextmanager
def _own_folder(limits: Limits) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".kedge-engine-", dir=limits.folder) as name:
        yield Path(name)


def _asked(
    folder: Path, model: bytes | Path, request: dict[str, Any], progress: Progress | None, limits: Limits, title: str
) -> dict[str, Any]:
    """The child's answer, or the error that it is."""
    if isinstance(model, Path):
        shutil.copyfile(model, folder / "model.onnx")
    else:
        (folder / "model.onnx").write_bytes(model)
    request |= {"address_space_bytes": limits.address_space_bytes, "nice": limits.nice}
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    ended = _run(folder, progress, limits)
    if ended.cancelled:
        raise EngineError("the compilation was cancelled", kind="cancelled")
    if ended.late:
        raise EngineError(f"{title} was not done after {limits.timeout_s:g} s", kind="timeout", log=ended.printed)
    file = folder / "answer.json"
    # An answer is there whole or not at all; a child that falls while it looks into its engine has built it.
    if not file.is_file() or file.stat().st_size > _MAX_ANSWER_BYTES:
        raise _fallen(title, ended)
    body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "error" in body:
        findings = tuple(ParserFinding(**finding) for finding in body["findings"])
        raise EngineError(
            body["error"], kind=body["kind"], hint=body["hint"], findings=findings, log=tuple(body["log"])
        )
    return body


@dataclass(frozen=True)
class _Ended:
    """How the child ended. code: as of `Popen.wait`. printed: the last of what it printed."""

    cancelled: bool
    late: bool
    code: int
    printed: tuple[str, ...]


def _fallen(title: str, ended: _Ended) -> EngineError:
    said = " | ".join(ended.printed)[-300:]
    if ended.code == -signal.SIGKILL:
        return EngineError(
            f"{title} was killed while it compiled the model, as the kernel does when memory runs out",
            kind="killed",
            hint="free memory on the machine, or allow the build less",
            log=ended.printed,
        )
    if any(sign in line for line in ended.printed for sign in _OUT_OF_MEMORY):
        return EngineError(
            f"{title} ran out of memory while it compiled the model", kind="memory", hint=said, log=ended.printed
        )
    return EngineError(
        f"{title} crashed while it compiled the model",
        kind="crashed",
        hint=f"look for what it does not expect, such as scales that are no constants; it said: {said}",
        log=ended.printed,
    )


def _run(folder: Path, progress: Progress | None, limits: Limits) -> _Ended:
    read_end, write_end = os.pipe()
    path = json.dumps([entry for entry in (str(Path(__file__).parents[2]), *sys.path) if entry])
    arguments = [sys.executable, "-I", "-c", _CHILD, path, str(folder), str(write_end)]
    late = threading.Event()
    with (folder / "printed").open("w+b") as printed, open(read_end, "rb") as lines:
        try:
            child = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, pass_fds=(write_end,)
            )
        finally:
            os.close(write_end)

        def too_late() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(limits.timeout_s, too_late)
        timer.start()
        try:
            if limits.started is not None:
                limits.started(child.pid)
            # Ends when the child has closed its end of the pipe, by its own exit or because it was killed.
            cancelled = _relay(lines, progress)
            if cancelled:
                child.kill()
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            timer.cancel()
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - _MAX_PRINTED_BYTES))
        said = printed.read().decode("utf-8", "replace").splitlines()[-20:]
    if code != 0:
        said.append(f"the compiler's process ended with {code}")
    return _Ended(cancelled, late.is_set() and code != 0, code, tuple(said))


def _relay(lines: BinaryIO, progress: Progress | None) -> bool:
    """Pass the child's progress on until it ends; True when the caller has had enough."""
    while line := lines.readline(_MAX_LINE_BYTES):
        if progress is None:
            continue
        try:
            phase, step, steps = json.loads(line)
        except ValueError:
            continue
        if not progress(str(phase), int(step), int(steps)):
            return True
    return False


def _layers(entries: list[dict[str, Any]]) -> tuple[NetworkLayer, ...]:
    return tuple(NetworkLayer(entry["name"], entry["kind"], _tensors(entry["outputs"])) for entry in entries)


def _tensors(entries: list[dict[str, Any]]) -> tuple[EngineTensor, ...]:
    return tuple(EngineTensor(entry["name"], entry["datatype"], tuple(entry["shape"])) for entry in entries)


def _child(folder_name: str, pipe: int) -> None:
    """What the child runs. Its progress goes out always: when nobody reads any more, writing ends the compilation."""
    folder = Path(folder_name)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    os.nice(request["nice"])
    with contextlib.suppress(OSError):
        # When memory runs out, the kernel is to end this process and not the one that serves.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(OSError, AttributeError):
        # Whoever asked is gone: nobody would take the engine.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if request["address_space_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (request["address_space_bytes"],) * 2)

    def tell(phase: str, step: int, steps: int) -> bool:
        os.write(pipe, json.dumps([phase[:1000], step, steps]).encode()[: _MAX_LINE_BYTES - 1] + b"\n")
        return True

    answer: dict[str, Any]
    built: tuple[bytes, str] | None = None
    try:
        model = (folder / "model.onnx").read_bytes()
        if request["task"] == "parse":
            answer = asdict(parse_onnx(model, request["runtime"]))
        else:
            order = parse_order(request["order"])
            report = compile_onnx(model, order, progress=tell, timing_cache=(folder / "timing.cache").read_bytes())
            (folder / "engine").write_bytes(report.engine)
            (folder / "timing.made").write_bytes(report.timing_cache)
            answer, built = report.to_json(), (report.engine, report.runtime)
    except EngineError as error:
        findings = [asdict(finding) for finding in error.findings]
        answer = {"error": error.message, "kind": error.kind, "hint": error.hint, "findings": findings}
        answer["log"] = error.log
    (folder / "answer.partial").write_text(json.dumps(answer), encoding="utf-8")
    (folder / "answer.partial").rename(folder / "answer.json")
    if built is not None and (layers := inspect(*built)):
        (folder / "layers.partial").write_text(layers, encoding="utf-8")
        (folder / "layers.partial").rename(folder / "layers.json")
