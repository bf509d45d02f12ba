"""What the figures say of each goal of optimising and building: one small function a goal, listed in page_goals.py.

Each takes the documents by the name of their file. A figure that is not in them is a KeyError or its like, which
`judge` takes for "not measured"; so it takes a verdict that is not whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.bench.page_read import Documents

__all__ = [
    "Verdict",
    "checked",
    "clustered",
    "compiles",
    "demo",
    "drops",
    "engines",
    "held",
    "help_time",
    "magika",
    "mixed",
    "pruned_accuracy",
    "pruned_speed",
    "speedups",
    "trained",
    "transformer",
    "two_of_four",
]

CPU, RTX = "cpu-generic-x86_64", "rtx-ada-2000"
_LABELLED = ("resnet20", "resnet56", "resnet8", "mnist")
_RESNETS = _LABELLED[:3]
_CASES = (*_LABELLED, "mobilenetv2", "magika")
_MODELOPT = ("ModelOpt", "ModelOpt, FP32", "ModelOpt, FP32, max")
#: By target: whom kedge is compared with.
_PEERS = {CPU: ("onnxruntime", "onnxruntime, u8s8", *_MODELOPT), RTX: _MODELOPT}
_ENGINES = ("resnet20_cifar10", "resnet56_cifar10", "resnet8_cifar10_mlperftiny", "mnist_cnn", "magika_v3_3")


@dataclass(frozen=True)
class Verdict:
    """What was found, in words; and whether it is within the goal, None where the goal asks for the figure alone.

    whole: whether all of what the goal asks was measured; a part of it is judged by nobody.
    """

    figure: str
    met: bool | None
    whole: bool = True


def _int8(documents: Documents, case: str, target: str) -> Any:
    rows = documents["optimize"]["cases"][case]["targets"][target]["rows"]
    return next(row for row in rows if row["tool"] == "kedge")


def drops(documents: Documents) -> Verdict:
    drops = {
        f"{case} on {target}": _int8(documents, case, target)["accuracy"]["against_fp32"]["drop"] * 100
        for case in _LABELLED
        for target in (CPU, RTX)
    }
    worst = max(drops, key=lambda name: drops[name])
    return Verdict(f"worst of {len(drops)}: {drops[worst]:.2f} points ({worst})", drops[worst] <= 0.3)


def magika(documents: Documents) -> Verdict:
    found = [_int8(documents, "magika", target)["accuracy"] for target in (CPU, RTX)]
    told = []
    for each in found:
        low, high = (edge * 100 for edge in each["interval_95"])
        told.append(f"{each['correct']} of {each['count']} ({low:.1f}–{high:.1f} %)")
    return Verdict("; ".join(told), None)


def speedups(documents: Documents) -> Verdict:
    found = {name: _int8(documents, name, CPU)["latency"]["speedup"]["median"] for name in _RESNETS}
    told = ", ".join(f"{name} {ratio:.2f} ×" for name, ratio in found.items())
    return Verdict(told, min(found.values()) >= 1.8)


def compiles(documents: Documents) -> Verdict:
    rows = {row["model"]: row for row in documents["engines"]["rows"] if row["precision"] == "int8"}
    made = [name for name in _ENGINES if rows[name]["engine_bytes"]]
    return Verdict(f"{len(made)} of {len(_ENGINES)} compiled", len(made) == len(_ENGINES))


def _recipe(documents: Documents, name: str) -> Any:
    return documents["recipes"]["recipes"][name]


def mixed(documents: Documents) -> Verdict:
    names = ("resnet20-mixed", "resnet20-w4a8-nearest", "resnet20-w4a8")
    mixed, plain, rounded = (_recipe(documents, name)["drop"] * 100 for name in names)
    text = f"{mixed:.2f} points lost; W4A8 {plain:.2f}, by AdaRound {rounded:.2f}"
    return Verdict(text, mixed <= 0.2 < plain)


def pruned_accuracy(documents: Documents) -> Verdict:
    found = _recipe(documents, "resnet56-pruned-int8")
    share, macs, minutes = found["top1"] * 100, found["macs_share"] * 100, found["seconds"] / 60
    text = f"{share:.2f} % at {macs:.1f} % of the MACs, {minutes:.0f} min"
    return Verdict(text, share >= 90.5 and macs <= 50 and minutes <= 60)


def pruned_speed(documents: Documents) -> Verdict:
    ratio = documents["recipes"]["pruned_int8_over_int8"]["median"]
    return Verdict(f"{ratio:.2f} ×", ratio >= 1.3)


def two_of_four(documents: Documents) -> Verdict:
    share = _recipe(documents, "resnet20-two-of-four")["top1"] * 100
    return Verdict(f"{share:.2f} %", share >= 90.0)


def trained(documents: Documents) -> Verdict:
    qat, ptq = (_recipe(documents, name)["top1"] * 100 for name in ("resnet20-w4a8-qat", "resnet20-w4a8"))
    return Verdict(f"{qat:.2f} % against {ptq:.2f} %", qat > ptq)


def clustered(documents: Documents) -> Verdict:
    found = _recipe(documents, "resnet20-cluster5")
    share, size = found["top1"] * 100, found["pushed_share"]
    return Verdict(f"{share:.2f} %, {size:.2f} × the bytes", share >= 91.3 and size <= 0.25)


def transformer(documents: Documents) -> Verdict:
    found = documents["recipes"]["transformer"]
    fp16, int8 = (found[name]["least_cosine"] for name in ("fp16", "int8-dynamic"))
    return Verdict(f"FP16 {fp16:.5f}, dynamic INT8 {int8:.4f}", min(fp16, int8) >= 0.99)


def held(kind: str, what: str) -> Callable[[Documents], Verdict]:
    def measure(documents: Documents) -> Verdict:
        optimize = documents["optimize"]
        entries = [each for each in optimize["goals"] if each["goal"] == kind and each["figure"] is not None]
        figures = [each["figure"] for each in entries]
        held = sum(figure >= -0.1 - 1e-9 if kind == "accuracy" else figure < 1 for figure in figures)
        worst = f"{min(figures):+.2f} points" if kind == "accuracy" else f"{max(figures):.2f} ×"
        if kind == "accuracy":
            wanted = {(case, target, tool) for case in _CASES for target, tools in _PEERS.items() for tool in tools}
            compared = {(each["case"], each["target"]) for each in entries}
            found = {key for key in _measured(optimize["cases"], kind) if key[:2] in compared}
        else:
            wanted = {(case, CPU, tool) for case in _CASES for tool in _MODELOPT}
            found = {(each["case"], each["target"], each["than"]) for each in entries}
        text = f"{held} of {len(entries)} {what}; worst {worst}"
        return Verdict(text, held == len(entries), wanted <= found)

    return measure


def _measured(cases: Documents, kind: str) -> set[tuple[str, str, str]]:
    """(case, target, tool) of all that has this figure."""
    return {
        (name, target, row["tool"])
        for name, case in cases.items()
        for target, found in case["targets"].items()
        for row in found["rows"]
        if row[kind]
    }


def checked(documents: Documents) -> Verdict:
    rows = {row["model"]: row for row in documents["engines"]["rows"] if row["precision"] == "int8"}
    found = {name: rows[name]["qdq_findings"] for name in _ENGINES}
    total = sum(found.values())
    return Verdict(f"{total} findings in {len(found)} artefacts", total == 0)


def engines(documents: Documents) -> Verdict:
    rows = documents["engines"]["rows"]
    models = {row["model"] for row in rows}
    made = {name for name in models if all(row["engine_bytes"] for row in rows if row["model"] == name)}
    refused = sum(bool(row["refused"]) for row in rows)
    text = f"{len(made)} of {len(models)} models in FP32, FP16 and INT8; {refused} artefacts refused with the reason"
    return Verdict(text, None)


def demo(documents: Documents) -> Verdict:
    results = documents["demo"]["demo"]["results"]
    fp32, int8 = (results[name]["accuracy"]["share"] * 100 for name in ("fp32", "int8"))
    images = documents["demo"]["demo"]["data"]["held_out_images"]
    return Verdict(f"FP32 {fp32:.2f} %, INT8 {int8:.2f} % of {images} images", abs(fp32 - int8) <= 1 + 1e-9)


def help_time(documents: Documents) -> Verdict:
    seconds = documents["startup"]["commands"]["kedge --help"]["cpu_s"]["median"]
    return Verdict(f"{seconds:.2f} s", seconds <= 0.25)
