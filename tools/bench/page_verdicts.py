"""What the figures say of each goal: one small function a goal, which page_goals.py lists with its words.

Each takes the documents by the name of their file. A figure that is not in them is a KeyError or its like, which
`judge` takes for "not measured".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.bench.page_read import Documents

__all__ = [
    "Verdict",
    "again",
    "clustered",
    "compiles",
    "doctor",
    "drawn",
    "drops",
    "fleet",
    "fuzz",
    "gpu_bandwidth",
    "gpu_latency",
    "gpu_overlap",
    "held",
    "idle_memory",
    "magika",
    "mixed",
    "pruned_accuracy",
    "pruned_speed",
    "push",
    "ready",
    "recorder",
    "redeploy",
    "rsync",
    "same_table",
    "serving",
    "soak",
    "speedups",
    "trained",
    "transformer",
    "two_of_four",
]

CPU, RTX = "cpu-generic-x86_64", "rtx-ada-2000"
_LABELLED = ("resnet20", "resnet56", "resnet8", "mnist")
_RESNETS = _LABELLED[:3]
_ENGINES = ("resnet20_cifar10", "resnet56_cifar10", "resnet8_cifar10_mlperftiny", "mnist_cnn", "magika_v3_3")


@dataclass(frozen=True)
class Verdict:
    """What was found, in words; and whether it is within the goal, None where the goal asks for the figure alone."""

    figure: str
    met: bool | None


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
        entries = [each for each in documents["optimize"]["goals"] if each["goal"] == kind and each["held"] is not None]
        held = sum(each["held"] for each in entries)
        figures = [each["figure"] for each in entries]
        worst = f"{min(figures):+.2f} points" if kind == "accuracy" else f"{max(figures):.2f} ×"
        return Verdict(f"{held} of {len(entries)} {what}; worst {worst}", held == len(entries))

    return measure


def serving(way: str, kind: str, most: float) -> Callable[[Documents], Verdict]:
    def measure(documents: Documents) -> Verdict:
        models = documents["serving"]["models"]
        # Where no real model was at hand, one of random weights was served.
        image, tiny = (models.get(real) or models[made] for real, made in (("mobilenetv2", "image"), ("mnist", "tiny")))
        if kind == "over_bare":
            ratio = image["ways"][way]["over_bare"]["median"]
            bare = image["ways"]["bare session.run"]["p50_ms"]["median"]
            if bare < 5:
                raise ValueError("the model takes less than 5 ms here")
            return Verdict(f"{ratio:.3f} ×", ratio <= most)
        added = tiny["ways"][way]["added_us"]["median"]
        return Verdict(f"{added:.0f} µs", added <= most)

    return measure


def idle_memory(documents: Documents) -> Verdict:
    size = documents["serving"]["memory"]["kedge, no model"]["rss_bytes"] / 1e6
    return Verdict(f"{size:.1f} MB", size <= 40)


def ready(documents: Documents) -> Verdict:
    starts = documents["serving"]["starts"]
    seconds, loaded = (starts[name]["median"] for name in ("kedge, no model", "kedge"))
    return Verdict(f"{seconds:.2f} s; {loaded:.2f} s until three models are loaded", seconds <= 0.5)


def soak(documents: Documents) -> Verdict:
    found = documents["soak"]
    growth, minutes = found["rss_bytes"]["growth"], found["rules"]["seconds"] / 60
    text = f"{found['failed']} of {found['requests']:,} failed, RSS {growth * 100:+.2f} %, {minutes:g} min"
    return Verdict(text, found["failed"] == 0 and growth < 0.01 and minutes >= 30)


def fuzz(documents: Documents) -> Verdict:
    found = documents["fuzz"]
    findings = len(found["findings"])
    return Verdict(f"{findings} findings in {found['cases']:,} cases", findings == 0 and found["cases"] >= 100_000)


def gpu_latency(documents: Documents) -> Verdict:
    found = [documents[name] for name in ("gpu-latency", "gpu-latency-pycuda") if name in documents]
    ratios = [each["results"]["agent_over_bare_p50"] for each in found]
    told = [f"{each['conditions']['binding']} {ratio:.3f} ×" for each, ratio in zip(found, ratios, strict=True)]
    facts = documents["gpu-latency"]["conditions"]
    return Verdict(f"{', '.join(told)}; {facts['name']}, {facts['runtime']}", max(ratios) <= 1.05)


def gpu_overlap(documents: Documents) -> Verdict:
    found = documents["gpu-overlap"]
    share = found["results"]["copy_in_beside_computation_share"]["median"]
    return Verdict(f"{share * 100:.0f} % of the next copy; {found['conditions']['name']}", share > 0)


def gpu_bandwidth(documents: Documents) -> Verdict:
    row = max(documents["gpu-bandwidth"]["results"]["rows"], key=lambda each: int(each["bytes"]))
    name = documents["gpu-bandwidth"]["conditions"]["name"]
    return Verdict(f"{row['pinned_gb_per_s']:.1f} against {row['pageable_gb_per_s']:.1f} GB/s; {name}", None)


def push(documents: Documents) -> Verdict:
    shares = {
        f"{each['size_mb']} MB, {each['link']}": each["ways"]["kedge"]["of_the_best"]
        for each in documents["push"]["pushes"]
        if each["size_mb"] >= 64
    }
    worst = min(shares, key=lambda name: shares[name])
    return Verdict(f"worst of {len(shares)}: {shares[worst]:.2f} × the best ({worst})", shares[worst] >= 0.95)


def redeploy(documents: Documents) -> Verdict:
    case = documents["push"]["redeploys"][0]
    share = case["kedge"]["bytes"] / (case["size_mb"] * 1e6)
    return Verdict(f"{share * 100:.2f} % of the bytes", share <= 0.06)


def rsync(documents: Documents) -> Verdict:
    ratios = [each["kedge"]["bytes"] / each["rsync"]["bytes"] for each in documents["push"]["redeploys"]]
    return Verdict(f"{', '.join(f'{ratio:.3f}' for ratio in ratios)} × rsync's", max(ratios) <= 1)


def again(documents: Documents) -> Verdict:
    cuts = documents["push"]["interrupted"]
    again = max(each["acknowledged_and_sent_again_bytes"] for each in cuts)
    return Verdict(f"{again:,} acknowledged bytes sent again, {len(cuts)} cuts", again == 0)


def recorder(documents: Documents) -> Verdict:
    shares = [each["cpu_share"]["mean"] for each in documents["recorder"]["loads"].values()]
    return Verdict(f"at most {max(shares) * 100:.2f} %", max(shares) <= 0.01)


def doctor(documents: Documents) -> Verdict:
    devices = documents["doctor"]["devices"]
    told = ", ".join(f"{name} {each['worst_s']:.2f} s" for name, each in devices.items())
    faults = sum(len(each["faults"]) for each in devices.values())
    worst = max(each["worst_s"] for each in devices.values())
    return Verdict(f"slowest: {told}; {faults} faults", worst < 5 and not faults)


def fleet(workers: str, what: str, unit: str) -> Callable[[Documents], Verdict]:
    def measure(documents: Documents) -> Verdict:
        goal = next(each for each in documents["fleet"]["goals"] if each["goal"].startswith(f"{workers}: {what}"))
        if goal["figure"] is None:
            raise ValueError("not measured")
        return Verdict(f"{goal['figure']:.3f} {unit}", bool(goal["met"]))

    return measure


def same_table(documents: Documents) -> Verdict:
    goal = documents["fleet"]["goals"][-1]
    return Verdict(f"{goal['figure']} of them differ", bool(goal["met"]))


def drawn(documents: Documents) -> Verdict:
    counts = sorted({each["devices"] for each in documents["fleet"]["simulated"]})
    return Verdict(f"[drawn](results/fleet.svg) for {counts[0]} to {counts[-1]} devices", None)
