"""What TensorRT for RTX makes of real models on this host's CPU: engine bytes and build seconds, by precision.

    python tools/bench/engines.py [--out FILE.json] [--only MODEL] [--smoke]

Each ONNX model under `shared/models`, as published (FP32), and as `kedge optimize` makes it in FP16 and INT8, is
compiled for compute capability 8.9, each time in a fresh process. What it refuses is asked of preflight first, and the
table says which node. Writes FILE.json and FILE.md. An INT8 engine is not promised to be smaller: for small networks
it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from facts import SHARED, commit, not_measured, now, processor

from kedge.build.cache import EngineCache
from kedge.build.engines import order_of
from kedge.build.plan import Plan
from kedge.build.preflight.run import preflight
from kedge.build.shapes import shape_profiles
from kedge.errors import KedgeError
from kedge.model.graph import Graph
from kedge.model.onnx_io import read_model
from kedge.model.qdq_check import check_qdq
from kedge.model.samples import Samples
from kedge.optimize.quantize.step import Quantize
from kedge.optimize.work import Work
from kedge.targets import load_target
from kedge_agent.engine.apart import compile_apart
from kedge_agent.engine.library import RUNTIMES

TARGET = "rtx-ada-2000"
PRECISIONS = ("fp32", "fp16", "int8")
SAMPLES = 64
SMOKE = ["mnist_cnn", "resnet20_cifar10", "fns_candy"]
# Shapes of inputs whose free dimensions are more than the batch.
SHAPES = {"silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures to this file, and the table beside it")
    parser.add_argument("--only", action="append", help="this model alone; may be repeated")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is compiled (default: 3)")
    parser.add_argument("--smoke", action="store_true", help=f"{', '.join(SMOKE)} alone, once each")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.only, arguments.repeats = SMOKE, 1
    paths = sorted((SHARED / "models").glob("*.onnx"))
    if not paths:
        return not_measured("shared/models holds no models (KEDGE_SHARED names the folder)")
    if RUNTIMES["tensorrt-rtx"].version() is None:
        return not_measured(f"TensorRT for RTX is not installed ({RUNTIMES['tensorrt-rtx'].hint})")
    rows = []
    started = now()
    for path in paths:
        if arguments.only and path.stem not in arguments.only:
            continue
        rows += [row(path, precision, arguments.repeats) for precision in PRECISIONS]
    document = {
        "benchmark": "engines",
        "conditions": {
            "started": started,
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU",
            "processor": processor(),
            "load_average": os.getloadavg(),
            "kedge": commit(),
            "compiler": f"TensorRT for RTX {RUNTIMES['tensorrt-rtx'].version()}",
            "target": TARGET,
            "repeats": arguments.repeats,
            "seconds": "parsing and compiling, in a fresh process, without loading the library; median of all",
            "int8": f"calibrated on {SAMPLES} samples of noise: sizes and times do not depend on the ranges",
        },
        "rows": rows,
    }
    text = markdown(document)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def row(path: Path, precision: str, repeats: int) -> dict[str, Any]:
    """One model in one precision; of INT8, how many faults and warnings the checker of Q/DQ finds in what was made."""
    print(f"{path.stem}: {precision}", file=sys.stderr)
    out: dict[str, Any] = {"model": path.stem, "precision": precision, "onnx_bytes": None, "engine_bytes": None}
    out |= {"seconds": None, "peak_rss_bytes": None, "layers": None, "refused": None}
    out |= {"qdq_findings": None}
    with tempfile.TemporaryDirectory(prefix="kedge-engines-") as name:
        folder = Path(name)
        try:
            model = path if precision == "fp32" else made(path, precision, folder)
        except KedgeError as error:
            return out | {"refused": f"kedge optimize: {error.message}"}
        shapes = {key: (shape,) * 3 for key, shape in SHAPES.get(path.stem, {}).items()}
        target = load_target(TARGET)
        report = preflight(model, target, shapes=shapes, cache=EngineCache(folder / "cache"))
        out["onnx_bytes"] = model.stat().st_size
        if precision == "int8":
            out["qdq_findings"] = len(check_qdq(Graph.read(model), target.precisions).findings)
        if report.errors:
            first = report.errors[0]
            where = f"{first.op} {first.node}: ".lstrip() if first.node else ""
            return out | {"refused": f"preflight: {where}{first.message[:160]} ({len(report.errors)} in all)"}
        assert target.compute_capability is not None
        profiles = shape_profiles(read_model(model), shapes)
        plan = Plan("tensorrt-rtx", precision, "host", "", (target.compute_capability,), profiles)
        done = [compile_apart(model.read_bytes(), order_of(plan)) for _ in range(repeats)]
        return out | {
            "engine_bytes": len(done[0].engine),
            "seconds": {"median": statistics.median(each.seconds for each in done), "runs": [d.seconds for d in done]},
            "peak_rss_bytes": max(each.peak_rss_bytes or 0 for each in done) or None,
            "layers": done[0].layers,
        }


def made(path: Path, precision: str, folder: Path) -> Path:
    """The model as kedge optimises it for the target.

    Raises:
        KedgeError: it refuses.
    """
    graph = Graph.read(path)
    spec = read_model(path)
    draw = np.random.default_rng(0)
    known = SHAPES.get(path.stem, {})
    count = SAMPLES if all(each.shape and each.shape[0] in (-1, 1) for each in spec.inputs) else 1
    data = {
        each.name: draw.uniform(0, 1, (count, *(max(d, 1) for d in known.get(each.name, each.shape)[1:]))).astype(
            each.dtype
        )
        for each in spec.inputs
    }
    work = Work(load_target(TARGET), graph, Samples(data, name="noise"), None, folder, folder)
    result = Quantize(precision=precision).apply(graph, work)
    out = folder / f"{path.stem}-{precision}.onnx"
    result.graph.write(out)
    return out


def markdown(document: dict[str, Any]) -> str:
    """The table."""
    conditions = document["conditions"]
    lines = [
        "# Engines of TensorRT for RTX, compiled without a GPU",
        "",
        "Made by `tools/bench/engines.py`; the figures with all their digits are in the `.json` beside this.",
        "",
        f"- {conditions['processor']}, {conditions['machine']}; {conditions['started']}; {conditions['kedge']}.",
        f"- {conditions['compiler']}, for {conditions['target']} (compute capability 8.9).",
        f"- Seconds: {conditions['seconds']} {conditions['repeats']}. INT8: {conditions['int8']}.",
        "- That an engine compiles says nothing of its speed or accuracy on a GPU: neither was measured.",
        "",
        "| model | precision | ONNX | engine | engine / ONNX | seconds | peak memory | layers |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in document["rows"]:
        if each["refused"]:
            lines.append(
                f"| {each['model']} | {each['precision']} | refused: {each['refused'].replace('|', '/')} |||||| "
            )
            continue
        ratio = each["engine_bytes"] / each["onnx_bytes"]
        lines.append(
            f"| {each['model']} | {each['precision']} | {each['onnx_bytes'] / 1e3:,.0f} kB | "
            f"{each['engine_bytes'] / 1e3:,.0f} kB | {ratio:.2f} | {each['seconds']['median']:.2f} | "
            f"{(each['peak_rss_bytes'] or 0) / 1e6:,.0f} MB | {each['layers']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
