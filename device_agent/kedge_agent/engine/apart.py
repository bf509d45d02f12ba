"""Compile, or parse, in a child process, so that a compiler that crashes, hangs or fills memory takes nothing with it.

Beside request and answer (`child`), the folder holds `model.onnx`, then `engine`. Progress comes as lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .. import child
from .compile import compile_onnx, inspect
from .library import library_of
from .order import Order, parse_order
from .parse import parse_onnx
from .report import CompileReport, EngineError, EngineTensor, NetworkLayer, ParseReport, ParserFinding, Progress

__all__ = ["Limits", "compile_apart", "parse_apart"]

_MAX_LINE_BYTES = 4096
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "NvMapMemAlloc", "out of memory")


@dataclass(frozen=True)
class Limits(child.Limits):
    """Of the child. folder: where its files go; None: the system's own for temporary ones."""

    timeout_s: float = 600.0
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
    ended = child.run_child(f"{__name__}:task", folder, request, limits, relay=lambda lines: _relay(lines, progress))
    if ended.cancelled:
        raise EngineError("the compilation was cancelled", kind="cancelled")
    if ended.late:
        raise EngineError(f"{title} was not done after {limits.timeout_s:g} s", kind="timeout", log=ended.printed)
    # A child that falls while it looks into its engine has built it, and has answered.
    if ended.answer is None:
        raise _fallen(title, ended)
    body: dict[str, Any] = ended.answer
    if "error" in body:
        findings = tuple(ParserFinding(**finding) for finding in body["findings"])
        raise EngineError(
            body["error"], kind=body["kind"], hint=body["hint"], findings=findings, log=tuple(body["log"])
        )
    return body


def _fallen(title: str, ended: child.Ended) -> EngineError:
    printed = ended.printed if ended.code == 0 else (*ended.printed, f"the compiler's process ended with {ended.code}")
    said = " | ".join(printed)[-300:]
    if ended.code == -signal.SIGKILL:
        return EngineError(
            f"{title} was killed while it compiled the model, as the kernel does when memory runs out",
            kind="killed",
            hint="free memory on the machine, or allow the build less",
            log=printed,
        )
    if any(sign in line for line in ended.printed for sign in _OUT_OF_MEMORY):
        return EngineError(
            f"{title} ran out of memory while it compiled the model", kind="memory", hint=said, log=printed
        )
    return EngineError(
        f"{title} crashed while it compiled the model",
        kind="crashed",
        hint=f"look for what it does not expect, such as scales that are no constants; it said: {said}",
        log=printed,
    )


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


def task(folder: Path, request: Mapping[str, Any], pipe: int) -> None:
    """What the child runs. Its progress goes out always: when nobody reads any more, writing ends the compilation."""

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
    child.write_answer(folder, answer)
    if built is not None and (layers := inspect(*built)):
        (folder / "layers.partial").write_text(layers, encoding="utf-8")
        (folder / "layers.partial").rename(folder / "layers.json")
