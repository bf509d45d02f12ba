"""Stained tissue: INT8 whose accuracy holds while it misses positives is refused; INT8 that finds them is deployed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from example import Example

STRONG = 1


def main() -> None:
    """From a slide to figures."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    given, sys.argv[1:] = parser.parse_known_args()
    with Example(__file__) as example:
        example.say("Training a small network on patches of every other field of a slide.")
        model.make(given.seed)

        example.say(
            """A mistake that is easily made: INT8, calibrated on patches without stain, as a negative control has
            them. The accuracy over all stays within its limit, the sensitivity does not: the gate by class refuses
            it, with exit code 5."""
        )
        wrong = example.kedge(
            "optimize", example.source / "recipe-control.toml", "-o", "staining-control.onnx", expect=5
        )

        example.say("Calibrated on patches of every kind, the same network passes the same gate.")
        right = example.kedge("optimize", example.source / "recipe.toml", "-o", "staining.onnx")

        example.say(
            """A release. It carries the gates of the recipe; the device checks answers to positive patches, latency and
            memory, and after the switch watches for 2 s."""
        )
        patches, labels = model.held_out()
        inputs = model.prepared(patches)
        np.save("held-out.npy", inputs)
        np.save("golden.npy", inputs[labels == STRONG][:8])
        example.kedge("build", "staining.onnx", "--target", example.target, "--golden", "golden.npy", "-o", "s.release")
        deployed, _ = example.deploy("s.release")

        example.say("The held-out patches, answered by the device.")
        example.kedge("infer", "staining", "--on", "local", "--input", "held-out.npy", "--output", "answers.npz")
        answers = np.load("answers.npz")["staining"].argmax(1)
        found = int((answers[labels == STRONG] == STRONG).sum())

        figures(example, wrong, right)
        example.figure("found on the device", found, "strong patches", ("abs", 4), f"of {(labels == STRONG).sum()}")
        latency = next(gate["figures"] for gate in deployed["gates"] if gate["gate"] == "latency")
        example.figure("p99 on the device", float(latency["p99_ms"]), "ms", note="gate: 100 ms")
        example.finish()


def figures(example: Example, wrong: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """What the two reports say of the network, of the INT8 model that was refused, and of the one that passed."""
    sides = (("FP32", right["before"]), ("INT8", right["after"]), ("INT8, refused", wrong["after"]))
    for side, of in sides:
        strong = of["metrics"]["per_class"][STRONG]
        # How much the mistake costs depends on the training; that nothing is lost would be outside.
        tolerance = 0.1 if of is wrong["after"] else 0.04
        example.figure(f"sensitivity, {side}", strong["share"], "share", ("abs", tolerance), on(strong))
    for side, of in sides:
        spared = of["metrics"]["per_class"][STRONG]["specificity"]
        example.figure(f"specificity, {side}", spared["share"], "share", ("abs", 0.02), on(spared))
    for side, of in sides:
        top1 = of["metrics"]["top1"]
        example.figure(f"accuracy, {side}", top1["share"], "share", ("abs", 0.02), on(top1))
    for side, of in sides:
        error = of["metrics"]["calibration_error"]["error"]
        example.figure(f"calibration error, {side}", error, "", ("abs", 0.02), "limit: 0.05")
    for side, document, tolerance in (("INT8", right, 2), ("INT8, refused", wrong, 12)):
        drop = condition(document, "sensitivity_drop")
        low, high = (100 * end for end in drop["interval_95"])
        note = f"sensitivity that is lost: 95 % interval {low:.1f} to {high:.1f} points"
        lost = drop["only_before"]
        example.figure(f"found by FP32 and missed, {side}", lost, "strong patches", ("abs", tolerance), note)
    for side, document in (("INT8", right), ("INT8, refused", wrong)):
        missed = int(not condition(document, "sensitivity_drop")["passed"])
        example.figure(f"refused for the sensitivity, {side}", missed, "", ("abs", 0), "1: it is")
    size = right["after"]["bytes"] / right["before"]["bytes"]
    example.figure("model, INT8 : FP32", size, "ratio", ("abs", 0.02))


def condition(document: Mapping[str, Any], figure: str) -> Mapping[str, Any]:
    """One condition of the gate on strong patches."""
    return next(check for check in document["gate"]["checks"] if check["figure"] == figure)


def on(accuracy: Mapping[str, Any]) -> str:
    """Counts and the interval of a share."""
    low, high = accuracy["interval_95"]
    return f"{accuracy['correct']} of {accuracy['count']}, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"


if __name__ == "__main__":
    main()
