"""The tools that tools/bench/optimize.py compares, each run in a fresh process with an empty cache."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray

__all__ = ["CPU", "GPU", "TOOLS", "Job", "Made", "Tool", "make_modelopt", "modelopt_version", "quantise"]

CPU, GPU = "cpu-generic-x86_64", "rtx-ada-2000"
_WORKER = Path(__file__).with_name("optimize_worker.py")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, eq=False)
class Tool:
    """One way to INT8. targets: where its result is compared. family: kedge, onnxruntime or modelopt.

    command: the command line is timed instead of the function; its report is more than the others write.
    """

    name: str
    family: str
    targets: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    about: str = ""
    command: bool = False


TOOLS = (
    Tool("kedge", "kedge", (CPU,), {"target": CPU}, "`quantize_int8`, its defaults"),
    Tool("kedge, command", "kedge", (CPU,), {"target": CPU}, "`kedge optimize`: also latency and report", command=True),
    Tool("kedge", "kedge", (GPU,), {"target": GPU}, "`quantize_int8`, its defaults"),
    Tool("onnxruntime", "onnxruntime", (CPU,), {}, "`quant_pre_process`, `quantize_static`: their defaults"),
    Tool(
        "onnxruntime, u8s8",
        "onnxruntime",
        (CPU,),
        {"per_channel": True, "activation_type": "QUInt8", "weight_type": "QInt8"},
        "the same, unsigned activations and weights per channel",
    ),
    Tool("ModelOpt", "modelopt", (CPU, GPU), {}, "its defaults: entropy, FP16 where not INT8"),
    Tool("ModelOpt, FP32", "modelopt", (CPU, GPU), {"high_precision_dtype": "fp32"}, "entropy, FP32 where not INT8"),
    Tool(
        "ModelOpt, FP32, max",
        "modelopt",
        (CPU, GPU),
        {"high_precision_dtype": "fp32", "calibration_method": "max"},
        "max, FP32 where not INT8",
    ),
)


@dataclass(frozen=True)
class Job:
    """A model to quantise, its input's name, calibration samples [n, …], and how many of them make a step.

    opset: see Case.
    """

    model: Path
    input: str
    calibration: NDArray[np.generic]
    batch: int
    opset: int | None


@dataclass(frozen=True)
class Made:
    """The artefact; wall seconds of the process, its CPU seconds (all threads), seconds of the call alone (or None)."""

    path: Path
    wall_s: float
    cpu_s: float
    call_s: float | None
    notes: tuple[str, ...]
    versions: dict[str, str]


def quantise(tool: Tool, job: Job, folder: Path, python: str) -> Made:
    """Run a tool on a copy of the model.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    folder.mkdir(parents=True)
    # A copy, and only the copy: some modes of ModelOpt write over the file they are given.
    given, out, answer = folder / "given.onnx", folder / "out.onnx", folder / "answer.json"
    if job.opset is None or tool.family == "kedge":
        shutil.copyfile(job.model, given)
    else:
        _convert(job.model, job.opset, given)
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    # The list of this machine's fonts is made once a machine, not once a run.
    environment.setdefault("MPLCONFIGDIR", str(folder.parent / "fonts"))
    if tool.command:
        data = folder / "calibration.npz"
        np.savez(data, **{job.input: job.calibration})
        arguments = ["-m", "kedge", "optimize", str(given), "--target", tool.options["target"], "--quantize", "int8"]
        arguments += ["--calibration", str(data), "--out", str(out)]
    else:
        data = folder / "calibration.npy"
        np.save(data, job.calibration)
        request = {
            "tool": tool.family,
            "model": str(given),
            "input": job.input,
            "calibration": str(data),
            "batch": job.batch,
            "out": str(out),
            "options": tool.options,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        arguments = [str(_WORKER), str(folder / "request.json"), str(answer)]
    wall, cpu = _timed([python, *arguments], folder, environment)
    said = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
    return Made(out, wall, cpu, said.get("seconds"), tuple(said.get("notes", ())), said.get("versions", {}))


def warm_up(folder: Path) -> None:
    """What is made once a machine: matplotlib's list of fonts."""
    environment = {**os.environ, "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(folder / "fonts"))}
    subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], env=environment, check=False)


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and all of them."""
    return {"median": statistics.median(seconds), "runs": [round(each, 3) for each in seconds]}


def modelopt_version(python: str) -> str:
    """ModelOpt's version in that environment.

    Raises:
        RuntimeError: it cannot be imported there; the message is Python's last line.
    """
    program = "import modelopt, modelopt.onnx.quantization; print(modelopt.__version__)"
    try:
        said = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    except OSError as error:
        raise RuntimeError(f"{python}: {error.strerror}") from error
    if said.returncode:
        raise RuntimeError((said.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    return said.stdout.strip().splitlines()[-1]


def make_modelopt(folder: Path, like: dict[str, str]) -> str:
    """Make ModelOpt's environment, with the same onnx, onnxruntime and torch as here. Returns its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        same = [f"{name}=={version.partition('+')[0]}" for name, version in like.items()]
        pinned = ["--constraint", str(_ROOT / "tools" / "setup" / "constraints.txt")]
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *pinned, *same, f"{_ROOT}[modelopt]"], check=True
        )
    return str(python)


def _convert(model: Path, opset: int, out: Path) -> None:
    converted = onnx.version_converter.convert_version(onnx.load(model), opset)
    converted.ir_version = 8
    weights = {tensor.name for tensor in converted.graph.initializer}
    # As old files must, this one lists its weights among its inputs; newer ones may not.
    inputs = [value for value in converted.graph.input if value.name not in weights]
    del converted.graph.input[:]
    converted.graph.input.extend(inputs)
    onnx.save(converted, out)


def _timed(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    log = folder / "log.txt"
    with log.open("wb") as file:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1].strip()[:300] if lines else f"it ended with {process.returncode}")
    return wall, usage.ru_utime + usage.ru_stime
