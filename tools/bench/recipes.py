"""What the recipes of examples/cifar10 come to, run by the command line, and a transformer in lower precisions.

    python tools/bench/recipes.py [--only NAME …] [--smoke] [--out FILE.json]

Each recipe is run as `kedge optimize RECIPE` in a copy of its folder, with an empty cache. Beside them run what they
are held against: W4A8 without training (rounded by AdaRound, and to nearest), and ResNet-56 in INT8 unpruned; it and
the pruned one are timed in turns in one process. What would be pushed is the size of a release without golden inputs.
kwt1 is calibrated on one recording, and its outputs are compared with FP32's on another, 20 windows of a second.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import wave
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from facts import ROOT, SHARED, conditions, not_measured
from numpy.typing import NDArray
from optimize_cases import CASES, missing
from optimize_measure import latency

from kedge.build.release import BuildOptions, build_release
from kedge.model.graph import Graph
from kedge.model.onnx_io import read_model
from kedge.model.samples import Samples
from kedge.optimize.proof.runner import run_all
from kedge.optimize.quantize.simulate import simulation
from kedge.optimize.quantize.step import Quantize
from kedge.optimize.work import Work
from kedge.targets import host_target, load_target

FOLDER = ROOT / "examples" / "cifar10"
SMOKE = ("resnet20-int8",)
#: Name → (the recipe that it is made of, its passes).
VARIANTS = {
    "resnet20-w4a8": ("resnet20-w4a8-qat", 'kind = "quantize"\nprecision = "w4a8"\n'),
    "resnet20-w4a8-nearest": ("resnet20-w4a8-qat", 'kind = "quantize"\nprecision = "w4a8"\nrounding = "nearest"\n'),
    "resnet56-int8": ("resnet56-pruned-int8", 'kind = "quantize"\nprecision = "int8"\n'),
}
PRUNED, UNPRUNED = "resnet56-pruned-int8", "resnet56-int8"
CLUSTERED = "resnet20-cluster5"
ROUNDS = 21
TRANSFORMER = {"fp16": ("rtx-ada-2000", 4), "int8-dynamic": ("cpu-generic-x86_64", 6)}
_REFUSED = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({path.stem for path in FOLDER.glob("*.toml")} | set(VARIANTS))
    parser.add_argument("--only", nargs="+", choices=names, help="these recipes alone")
    parser.add_argument("--smoke", action="store_true", help=f"{', '.join(SMOKE)} alone")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    lacking = missing(SHARED)
    if lacking:
        return not_measured(f"shared lacks {', '.join(lacking)} (KEDGE_SHARED names the folder): real models and data")
    chosen = arguments.only or (SMOKE if arguments.smoke else names)
    started, recipes = os.getloadavg(), {}
    document: dict[str, Any] = {"benchmark": "recipes"}
    with tempfile.TemporaryDirectory(prefix="kedge-recipes-") as name:
        folder = Path(name)
        prepared(folder / "cifar10")
        for each in chosen:
            print(f"recipe {each}", file=sys.stderr)
            recipes[each] = run(each, folder)
        if {PRUNED, UNPRUNED} <= recipes.keys():
            document["pruned_int8_over_int8"] = faster(folder)
        if CLUSTERED in recipes:
            recipes[CLUSTERED]["pushed_share"] = pushed(folder)
        document["transformer"] = {precision: transformer(precision, folder) for precision in TRANSFORMER}
    libraries = {each: metadata.version(each) for each in ("onnxruntime", "torch", "torch-pruning")}
    document |= {"conditions": {**conditions(started), **libraries}, "recipes": recipes}
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for each, row in recipes.items():
        print(f"{each}: {row['top1']:.2%}, {row['macs_share']:.2f} × MACs, {row['seconds']:.0f} s")
    return 0


def prepared(folder: Path) -> None:
    """A copy of the recipes, and the variants beside them."""
    shutil.copytree(FOLDER, folder)
    for name, (base, passes) in VARIANTS.items():
        text = (folder / f"{base}.toml").read_text(encoding="utf-8")
        changed = re.sub(r"\[\[pass\]\].*(?=\[gate\])", f"[[pass]]\n{passes}\n", text, flags=re.DOTALL)
        changed = changed.replace(f'name = "{base}"', f'name = "{name}"')
        (folder / f"{name}.toml").write_text(changed, encoding="utf-8")


def run(name: str, folder: Path) -> dict[str, Any]:
    """Figures of one recipe.

    Raises:
        RuntimeError: the command failed otherwise than by its gate.
    """
    caches = {f"XDG_{kind}_HOME": str(folder / name / kind) for kind in ("CONFIG", "STATE", "CACHE")}
    words = ["optimize", str(folder / "cifar10" / f"{name}.toml"), "--out", str(folder / f"{name}.onnx"), "--json"]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "kedge", *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **caches, "KEDGE_SHARED": str(SHARED)},
    )
    seconds = time.perf_counter() - begin
    if done.returncode not in (0, _REFUSED):
        raise RuntimeError(f"kedge optimize {name}.toml ended with {done.returncode}")
    report = json.loads(done.stdout)
    before, after = report["before"], report["after"]
    return {
        "top1": after["metrics"]["top1"]["share"],
        "interval_95": after["metrics"]["top1"]["interval_95"],
        "count": after["metrics"]["top1"]["count"],
        "before_top1": before["metrics"]["top1"]["share"],
        "drop": report["comparison"]["drop"],
        "macs_share": after["macs"] / before["macs"],
        "bytes_share": after["bytes"] / before["bytes"],
        "seconds": seconds,
        "passes": {each["kind"]: each["seconds"] for each in report["passes"]},
        "gate_passed": done.returncode == 0,
    }


def faster(folder: Path) -> dict[str, float]:
    """Unpruned INT8's p50 over pruned INT8's, round by round."""
    paths = {"FP32": folder / f"{UNPRUNED}.onnx", "pruned": folder / f"{PRUNED}.onnx"}
    # Both are exported from PyTorch, which names their input otherwise than the published file.
    case = replace(CASES["resnet56"](SHARED, 1), input=read_model(paths["pruned"]).inputs[0].name)
    found: dict[str, float] = latency(case, paths, ROUNDS)["pruned"]["speedup"]
    return found


def pushed(folder: Path) -> float:
    """Bytes of the clustered model's release over those of the FP32 model's."""
    paths = {"clustered": folder / f"{CLUSTERED}.onnx", "fp32": SHARED / "models" / "resnet20_cifar10.onnx"}
    sizes = {
        name: build_release(path, host_target(), folder / f"{name}.release", BuildOptions(name)).release.manifest
        for name, path in paths.items()
    }
    return sizes["clustered"].total_bytes / sizes["fp32"].total_bytes


def transformer(precision: str, folder: Path) -> dict[str, Any]:
    """kwt1 in this precision against FP32: the least cosine between its outputs, and that of all of them."""
    target, count = TRANSFORMER[precision]
    graph = Graph.read(SHARED / "models" / "kwt1_speechcommands.onnx")
    calibration, heard = (
        Samples({"input_1": recording(name, number)}, name=name)
        for name, number in (("noisy_snr0.wav", count), ("silero_test.wav", 20))
    )
    work = Work(load_target(target), graph, calibration, None, folder, folder)
    made = Quantize(precision=precision).apply(graph, work).graph
    # What this machine's runtime cannot compute as the target would is computed step by step.
    runnable = made if target.startswith("cpu") else simulation(made) or made
    expected, found = (next(iter(run_all(each, heard).values())).reshape(20, -1) for each in (graph, runnable))
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    cosines = np.sum(expected * found, axis=1) / norms
    return {"target": target, "least_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}


def recording(name: str, count: int) -> NDArray[np.float32]:
    """So many windows of a second."""
    with wave.open(str(SHARED / "data" / "audio" / name)) as audio:
        values = np.frombuffer(audio.readframes(count * 16000), "<i2").astype(np.float32) / 32768
    return values.reshape(count, 16000)


if __name__ == "__main__":
    sys.exit(main())
