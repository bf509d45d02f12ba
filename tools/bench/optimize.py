"""Static INT8 by kedge, by onnxruntime's own tool and by NVIDIA's ModelOpt, side by side in one run.

    python tools/bench/optimize.py [--modelopt-python PYTHON | --make-peers FOLDER] [--smoke] [--out FILE.json]

For the same calibration samples: accuracy kept, size, latency on this CPU, and the seconds each tool takes, every
time in a fresh process with an empty cache. Writes FILE.json and FILE.md. Real models and data are read from
`shared/` beside the checkout, or from the folder that KEDGE_SHARED names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from facts import SHARED, commit, not_measured, now, processor
from optimize_cases import CASES, Case, missing
from optimize_measure import CONDITIONS, against, answers, compared, expected, latency
from optimize_table import markdown
from optimize_tools import CPU, GPU, TOOLS, Job, Made, Tool, make_modelopt, modelopt_version, quantise, summary, warm_up

LIBRARIES = ("onnx", "onnxruntime", "onnxslim", "numpy", "torch")
ALL = 10**9


class Bench:
    """One run. python: by family of tools, the interpreter, or None; unavailable: why a family is not measured."""

    def __init__(self, folder: Path, repeats: int, rounds: int, modelopt: str | None, reason: str) -> None:
        self.folder = folder
        self.repeats, self.rounds = repeats, rounds
        self.python = {"kedge": sys.executable, "onnxruntime": sys.executable, "modelopt": modelopt}
        self.reason = reason

    def case(self, key: str, case: Case) -> dict[str, Any]:
        """All tools on one model."""
        made, failed = self._made(key, case)
        whole = [case.model] * len(case.parts)
        reference = answers(case, whole, faithful=False)
        labels = expected(case, reference)
        fp32 = compared(reference, reference, labels)
        targets = {}
        for target in (CPU, GPU):
            tools = [tool for tool in TOOLS if target in tool.targets]
            rows, scores = [], {}
            for tool in tools:
                row = self._row(tool, made.get(tool), failed.get(tool, ""), case.model.stat().st_size)
                if tool in made and not tool.command:
                    try:
                        paths = [runs[0].path for runs in made[tool]]
                        scores[tool.name] = answers(case, paths, faithful=target == GPU)
                        row["accuracy"] = compared(reference, scores[tool.name], labels)
                    except Exception as error:  # what another tool made may fail in any way
                        row["not_measured"] = f"its result does not run: {str(error).splitlines()[0][:200]}"
                rows.append(row)
            times = {}
            if target == CPU:
                models = {
                    row["tool"]: made[tool][0][0].path for row, tool in zip(rows, tools, strict=True) if row["accuracy"]
                }
                times = latency(case, {"FP32": case.model, **models}, self.rounds)
                for row in rows:
                    row["latency"] = times.get(row["tool"])
            others = {name: each for name, each in scores.items() if name != "kedge"}
            right = {row["tool"]: row["accuracy"]["correct"] for row in rows if row["tool"] in others}
            best = max(right, key=lambda name: right[name]) if right else None
            targets[target] = {
                "fp32": {"bytes": case.model.stat().st_size, "accuracy": fp32, "latency": times.get("FP32")},
                "rows": rows,
                "best_other": best,
                "kedge_against_best": against(scores[best], scores["kedge"], labels)
                if best is not None and "kedge" in scores
                else None,
            }
        return {"model": case.name, "measured": case.measured, "targets": targets}

    def _made(self, key: str, case: Case) -> tuple[dict[Tool, list[list[Made]]], dict[Tool, str]]:
        """By tool, by part, by run; or why it failed."""
        jobs = [Job(case.model, case.input, part.calibration, case.batch, case.opset) for part in case.parts]
        made: dict[Tool, list[list[Made]]] = {}
        failed: dict[Tool, str] = {}
        # Repeats outside: what else the machine does meanwhile falls on all tools alike.
        for turn in range(self.repeats):
            for index, tool in enumerate(TOOLS):
                python = self.python[tool.family]
                if python is None:
                    failed[tool] = self.reason
                for number, job in enumerate(jobs):
                    if python is None or tool in failed:
                        continue
                    folder = self.folder / f"{key}-{index}-{number}-{turn}"
                    try:
                        done = quantise(tool, job, folder, python)
                    except RuntimeError as error:
                        made.pop(tool, None)
                        failed[tool] = f"failed: {error}"
                        continue
                    made.setdefault(tool, [[] for _ in jobs])[number].append(done)
                    print(f"{case.name}: {tool.name} ({', '.join(tool.targets)}): {done.wall_s:.1f} s", file=sys.stderr)
        return made, failed

    def _row(self, tool: Tool, made: list[list[Made]] | None, failed: str, before: int) -> dict[str, Any]:
        row: dict[str, Any] = {"tool": tool.name, "about": tool.about, "family": tool.family, "options": tool.options}
        row |= {"not_measured": failed or None, "accuracy": None, "latency": None, "bytes": None, "seconds": None}
        if made is None:
            return row
        runs = [run for part in made for run in part]
        calls = [run.call_s for run in runs if run.call_s is not None]
        size = made[0][0].path.stat().st_size
        row |= {
            "bytes": size,
            "bytes_over_fp32": size / before,
            "sha256": hashlib.sha256(made[0][0].path.read_bytes()).hexdigest(),
            "seconds": {
                "wall": summary([run.wall_s for run in runs]),
                "processor": summary([run.cpu_s for run in runs]),
                "call": summary(calls) if calls else None,
            },
            "notes": sorted({note for run in runs for note in run.notes}),
            "versions": runs[0].versions,
        }
        return row


def goals(cases: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What the comparison should show, and whether it does; held is None where it was not measured."""
    out = []
    for key, case in cases.items():
        for target, found in case["targets"].items():
            versus = found["kedge_against_best"]
            held = None if versus is None else versus["points_behind"] <= 0.1 + 1e-9
            figure = None if versus is None else -versus["points_behind"]
            out.append(
                {"goal": "accuracy", "case": key, "target": target, "than": found["best_other"]}
                | {"figure": figure, "held": held, "p_value": versus and versus["mcnemar"]["p_value"]}
            )
            walls = {row["tool"]: row["seconds"]["wall"]["median"] for row in found["rows"] if row["seconds"]}
            for ours in ("kedge", "kedge, command"):
                for theirs in [name for name in walls if name.startswith("ModelOpt")]:
                    if ours in walls:
                        ratio = walls[ours] / walls[theirs]
                        out.append(
                            {"goal": "seconds", "case": key, "target": target, "of": ours, "than": theirs}
                            | {"figure": ratio, "held": ratio < 1}
                        )
        rows = {row["tool"]: row for row in case["targets"][CPU]["rows"]}
        for theirs in [name for name in rows if name.startswith("ModelOpt")]:
            ours, other = rows["kedge"]["latency"], rows[theirs]["latency"]
            ratio = (
                None if ours is None or other is None else ours["summary"]["median_ms"] / other["summary"]["median_ms"]
            )
            out.append(
                {"goal": "latency", "case": key, "target": CPU, "of": "kedge", "than": theirs}
                | {"figure": ratio, "held": None if ratio is None else ratio < 1}
            )
        if key.startswith("resnet"):
            row = case["targets"][CPU]["rows"][0]
            figure = row["latency"] and row["latency"]["speedup"]["median"]
            out.append(
                {"goal": "speedup", "case": key, "target": CPU, "than": "FP32"}
                | {"figure": figure, "held": None if figure is None else figure >= 1.8}
            )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--modelopt-python", metavar="PYTHON", help="interpreter of an environment with nvidia-modelopt"
    )
    parser.add_argument("--make-peers", type=Path, metavar="FOLDER", help="make that environment here, or use it again")
    parser.add_argument("--smoke", action="store_true", help="ResNet-20 on 1,000 images, each tool once")
    parser.add_argument("--only", action="append", choices=tuple(CASES), help="this model alone; may be repeated")
    parser.add_argument("--repeats", type=int, default=3, help="how often each tool runs (default: 3)")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of latency (default: 21)")
    parser.add_argument("--out", type=Path, help="write the figures to this file, and the table beside it")
    arguments = parser.parse_args()
    lacking = missing(SHARED)
    if lacking:
        return not_measured(f"shared lacks {', '.join(lacking)} (KEDGE_SHARED names the folder): real models and data")
    if arguments.repeats < 1 or arguments.rounds < 1:
        parser.error("--repeats and --rounds take at least 1")
    if arguments.smoke:
        arguments.only, arguments.repeats, arguments.rounds = ["resnet20"], 1, 5
    started, load = now(), os.getloadavg()
    modelopt, reason = (
        arguments.modelopt_python,
        "not measured: neither --modelopt-python nor --make-peers was given",
    )
    if arguments.make_peers is not None:
        same = {name: metadata.version(name) for name in ("onnx", "onnxruntime", "torch")}
        modelopt = make_modelopt(arguments.make_peers.resolve(), same)
    version = None
    if modelopt is not None:
        try:
            version = modelopt_version(modelopt)
        except RuntimeError as error:
            modelopt, reason = None, f"not measured: {error}"
    document: dict[str, Any] = {
        "benchmark": "optimize",
        "conditions": {
            "started": started,
            "ended": None,
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "processor": processor(),
            "load_average": {"started": load, "ended": None},
            "python": platform.python_version(),
            "kedge": commit(),
            "libraries": {name: metadata.version(name) for name in LIBRARIES},
            "modelopt": version or reason,
            "repeats": arguments.repeats,
            "rounds": arguments.rounds,
            "latency": CONDITIONS,
            "seconds": "wall: a fresh process from start to end, its imports and an empty cache included; processor: "
            "user and system time of all its threads; call: the quantisation alone. Median of all runs",
            "rtx": "simulated on this CPU, Q/DQ pairs computed one by one as written; latency needs the GPU",
        },
        "goals": [],
        "cases": {},
    }
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as name:
        warm_up(Path(name))
        bench = Bench(Path(name), arguments.repeats, arguments.rounds, modelopt, reason)
        for key in arguments.only or list(CASES):
            document["cases"][key] = bench.case(key, CASES[key](SHARED, 1000 if arguments.smoke else ALL))
            document["goals"] = goals(document["cases"])
            document["conditions"]["ended"] = now()
            document["conditions"]["load_average"]["ended"] = os.getloadavg()
            # After each model: a run takes many minutes, and what was measured is not lost with the rest. Beside the
            # figures of before, which a run that is cut off leaves as they are.
            if arguments.out is not None:
                write(document, unfinished(arguments.out))
    if arguments.out is not None:
        unfinished(arguments.out).replace(arguments.out)
        arguments.out.with_suffix(".md").write_text(markdown(document), encoding="utf-8")
    print(markdown(document))
    return 0


def unfinished(path: Path) -> Path:
    """Where the figures are while not all models are measured; the page of all figures reads no such name."""
    return path.with_name(f"{path.stem}.unfinished{path.suffix}")


def write(document: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
