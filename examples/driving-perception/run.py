"""The surface ahead of a vehicle, from a camera's stream: trained, made INT8, deployed, and overloaded."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from camera import Camera, Stream
from example import Example

from kedge_agent.store.layout import socket_directory

DEADLINE_MS = 200.0
STREAM_S = 5.0
ATTEMPTS = 5
PAUSE_S = 5.0
# One core computes, the other is the camera's.
QUEUE = {"threads": 1, "models": {"road": {"queue": 100}}}
FRESH = {"threads": 1, "models": {"road": {"drop_stale": True, "deadline_ms": 100}}}


def main() -> None:
    """From photographs to figures."""
    with Example(__file__) as example:
        example.say("Training a small network on scenes composed of photographs of grass, gravel and brick.")
        model.make()

        example.say(
            "INT8, judged on frames made of the part of each photograph that training never saw: at most 1 point of "
            "mean IoU lost, and one frame of 48 whose surface in front of the wheels was right."
        )
        proof = example.kedge("optimize", example.source / "recipe.toml", "-o", "road.onnx")
        accuracy(example, proof)

        example.say("A release. The device checks its answers and its p99, and watches it for 2 s after the switch.")
        frames, _ = model.held_out()
        np.save("golden.npy", frames[:4])
        example.kedge("build", "road.onnx", "--target", example.target, "--golden", "golden.npy", "-o", "road.release")
        example.local(QUEUE)
        deployed = deploy(example)
        bench = example.kedge("bench", "road", "--on", "local", "--duration-ms", 2000)
        capacity = bench["end_to_end"]["throughput_per_s"]
        example.figure("p99 of a computation on the device", gate_p99_ms(deployed), "ms", note="the gate allows 90 ms")

        example.say(f"The device answers up to {capacity:.0f} frames a second. A camera of four fifths of that, 5 s.")
        calm = play(example, frames, 0.8 * capacity)
        example.say("Twice as many frames, into a queue as models have them: first come, first served.")
        queued = play(example, frames, 1.6 * capacity)
        example.say("The same stream, where a newer frame takes the place of the one that waits.")
        example.local(FRESH)
        fresh = play(example, frames, 1.6 * capacity)
        freshness(example, calm, queued, fresh)
        example.finish()


def accuracy(example: Example, proof: dict[str, Any]) -> None:
    """What INT8 kept, by the recipe's own metrics and gate."""
    before, after = proof["before"], proof["after"]
    note = f"{model.HELD_OUT_FRAMES} frames of the held-out part"
    for name, metric, tolerance in (
        ("mean IoU", "model:mean_iou", 0.02),
        ("cells that are right", "model:cell_accuracy", 0.02),
        ("surface ahead that is right", "model:ahead_accuracy", 0.05),
    ):
        for side, of in (("FP32", before), ("INT8", after)):
            example.figure(f"{name}, {side}", of["metrics"]["user"][metric], "share", ("abs", tolerance), note)
    checks = {(check["figure"], check["metric"]): check["value"] for check in proof["gate"]["checks"]}
    lost = checks["metric_drop", "mean_iou"]
    example.figure("mean IoU that INT8 lost", lost, "points", ("abs", 0.01), "the gate allows 1 point")
    example.figure("bytes, INT8 : FP32", after["bytes"] / before["bytes"], "ratio", ("abs", 0.02))
    speed = after["latency"]["p50_ms"] / before["latency"]["p50_ms"]
    example.figure("latency, INT8 : FP32", speed, "ratio", note="p50 of one thread here, both in alternation")


def deploy(example: Example) -> dict[str, Any]:
    """Deploy, and again where this machine was too busy just then for the p99: the device keeps what was pushed."""
    for _ in range(ATTEMPTS):
        deployed = example.kedge("deploy", "road.release", "--to", "local", expect=(0, 5))
        if "error" not in deployed:
            return deployed
        time.sleep(PAUSE_S)
    sys.exit(f"refused {ATTEMPTS} times: {deployed['error']['message']}")


def gate_p99_ms(deployed: dict[str, Any]) -> float:
    """What the device measured before it switched."""
    return next(float(gate["figures"]["p99_ms"]) for gate in deployed["gates"] if gate["gate"] == "latency")


def play(example: Example, frames: NDArray[np.uint8], rate_per_s: float) -> Stream:
    """A camera on the device, which is this machine: it speaks to the agent's own socket."""
    door = socket_directory(example.local().state) / "infer.sock"
    stream = Camera(door, "road", frames[:1], DEADLINE_MS).play(rate_per_s, STREAM_S)
    example.say(
        f"{stream.sent} frames at {rate_per_s:.0f} /s: {stream.answered} answered, {stream.refused} refused; "
        f"age at the answer p50 {stream.age_ms(0.5):.0f} ms, p99 {stream.age_ms(0.99):.0f} ms; "
        f"{stream.late(DEADLINE_MS):.1%} of the answers later than {DEADLINE_MS:.0f} ms; "
        f"in front of the wheels: {', '.join(model.SURFACES[number] for number in np.unique(stream.surfaces))}"
    )
    return stream


def freshness(example: Example, calm: Stream, queued: Stream, fresh: Stream) -> None:
    """How old a frame was when its answer came, and whether anybody acted on an old one."""
    streams = {
        "0.8 of what it can answer": calm,
        "twice that, queued": queued,
        "twice that, drop_stale": fresh,
    }
    for name, stream in streams.items():
        for share in (0.5, 0.99):
            example.figure(f"age at the answer, p{share * 100:.0f}: {name}", stream.age_ms(share), "ms")
    late = "answers later than 200 ms: twice that, "
    example.figure(f"{late}queued", queued.late(DEADLINE_MS), "share", ("abs", 0.35))
    example.figure(f"{late}drop_stale", fresh.late(DEADLINE_MS), "share", ("abs", 0.05))
    example.figure("frames answered: twice that, drop_stale", fresh.answered / fresh.sent, "share")
    acted = sum(int((stream.acted_ms > DEADLINE_MS).sum()) for stream in streams.values())
    example.figure("decisions on a frame older than 200 ms", acted, "", ("abs", 0), "who acts looks at the age first")
    lost = sum(stream.sent - stream.answered - stream.refused for stream in streams.values())
    example.figure("frames neither answered nor refused", lost, "", ("abs", 0))


if __name__ == "__main__":
    main()
