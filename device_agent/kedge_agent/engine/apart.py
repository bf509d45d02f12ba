"""Compile in a child process, so that a compiler that crashes, hangs or fills memory takes nothing with it.

Request and answer are a folder of plain files: `model.onnx`, `request.json`, then `engine` and `answer.json`. Progress
comes as lines of JSON through a pipe of its own, because TensorRT writes to standard output as it likes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from .report import CompileReport, EngineError, EngineTensor, ParserFinding, Profiles, Progress
from .tensorrt_rtx import compile_onnx

__all__ = ["compile_apart"]

_MAX_ANSWER_BYTES = 4 << 20
_MAX_LINE_BYTES = 4096
_MAX_PRINTED_BYTES = 1 << 16

# The child sees the packages that this process sees, in whatever way it came to see them.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kedge_agent.engine.apart import _child; _child(sys.argv[2], int(sys.argv[3]))"
)


def compile_apart(
    model: bytes,
    *,
    compute_capabilities: tuple[str, ...],
    profiles: Profiles | None = None,
    progress: Progress | None = None,
    timeout_s: float = 600.0,
) -> CompileReport:
    """Compile as `tensorrt_rtx.compile_onnx` does, in a child process.

    Raises:
        EngineError: as there; besides, the compiler crashed, or was not done in `timeout_s` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="kedge-engine-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        request = {"compute_capabilities": compute_capabilities, "profiles": dict(profiles or {})}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        cancelled, late, log = _run(folder, progress, timeout_s)
        if cancelled:
            raise EngineError("the compilation was cancelled", kind="cancelled")
        if late:
            raise EngineError(f"TensorRT for RTX was not done after {timeout_s:g} s", kind="timeout", log=log)
        return _answer(folder, log)


def _run(folder: Path, progress: Progress | None, timeout_s: float) -> tuple[bool, bool, tuple[str, ...]]:
    """Run the child. Whether progress cancelled it, whether the time ran out, the last of what it printed."""
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

        timer = threading.Timer(timeout_s, too_late)
        timer.start()
        try:
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
    return cancelled, late.is_set() and code != 0, tuple(said)


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


def _answer(folder: Path, log: tuple[str, ...]) -> CompileReport:
    file = folder / "answer.json"
    if not file.is_file() or file.stat().st_size > _MAX_ANSWER_BYTES:
        raise EngineError(
            "TensorRT for RTX crashed while it compiled the model",
            kind="crashed",
            hint="look for what it does not expect, such as scales that are no constants; "
            f"it said: {' | '.join(log)[-200:]}",
            log=log,
        )
    body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "error" in body:
        findings = tuple(ParserFinding(*finding) for finding in body["findings"])
        raise EngineError(
            body["error"], kind=body["kind"], hint=body["hint"], findings=findings, log=tuple(body["log"])
        )
    return CompileReport(
        engine=(folder / "engine").read_bytes(),
        seconds=body["seconds"],
        runtime=body["runtime"],
        runtime_version=body["runtime_version"],
        compute_capabilities=tuple(body["compute_capabilities"]),
        layers=body["layers"],
        inputs=tuple(_tensor(entry) for entry in body["inputs"]),
        outputs=tuple(_tensor(entry) for entry in body["outputs"]),
        log=tuple(body["log"]),
    )


def _tensor(entry: dict[str, Any]) -> EngineTensor:
    return EngineTensor(entry["name"], entry["datatype"], tuple(entry["shape"]))


def _child(folder_name: str, pipe: int) -> None:
    """What the child runs. Its progress goes out always: when nobody reads any more, writing ends the compilation."""
    folder = Path(folder_name)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))

    def tell(phase: str, step: int, steps: int) -> bool:
        os.write(pipe, json.dumps([phase[:200], step, steps]).encode() + b"\n")
        return True

    answer: dict[str, Any]
    try:
        report = compile_onnx(
            (folder / "model.onnx").read_bytes(),
            compute_capabilities=tuple(request["compute_capabilities"]),
            profiles=request["profiles"],
            progress=tell,
        )
    except EngineError as error:
        findings = [[finding.node, finding.op, finding.message] for finding in error.findings]
        answer = {"error": error.message, "kind": error.kind, "hint": error.hint, "findings": findings}
        answer["log"] = error.log
    else:
        (folder / "engine").write_bytes(report.engine)
        answer = asdict(replace(report, engine=b""))
        del answer["engine"]
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
