"""The surface ahead of a vehicle, from a camera's stream: trained, made INT8, deployed, and overloaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from camera import Camera, Stream
from example import ATTEMPTS, Example

from kedge_agent.store.layout import socket_directory

DEADLINE_MS = 200.0
GATE_MS = 90
STREAM_S = 5.0
# Half a second without a decision, and a robot that goes 2 m/s has to stand still.
INTERVAL_S = 0.5
OVERLOAD = 1.6
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
        deploy(example)
        bench = example.kedge("bench", "road", "--on", "local", "--duration-ms", 2000)
        capacity = bench["end_to_end"]["throughput_per_s"]

        example.say(f"The device answers up to {capacity:.0f} frames a second. A camera of half of that, 5 s.")
        camera = Camera(socket_directory(example.local().state) / "infer.sock", "road", frames, DEADLINE_MS)
        calm = play(example, camera, capacity / 2)
        example.say("More frames than it can answer, into a queue as models have them: first come, first served.")
        rate, queued = overload(example, camera, OVERLOAD * capacity)
        example.say("The same stream, where a newer frame takes the place of the one that waits.")
        example.local(FRESH)
        fresh = play(example, camera, rate)
        example.figure("what it can answer, by the bench", capacity, "frames/s")
        example.figure("overload", rate, "frames/s", note="at which the queue was full")
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


def deploy(example: Example) -> None:
    """The release behind its gates, and what the device found."""
    deployed, attempts = example.deploy("road.release")
    p99_ms = next(float(gate["figures"]["p99_ms"]) for gate in deployed["gates"] if gate["gate"] == "latency")
    example.figure("p99 of a computation on the device", p99_ms, "ms", note=f"the gate allows {GATE_MS} ms")
    example.figure("attempts of the deploy", attempts, "", note=f"at most {ATTEMPTS}")


def play(example: Example, camera: Camera, rate_per_s: float) -> Stream:
    """A camera on the device, which is this machine: it speaks to the agent's own socket."""
    stream = camera.play(rate_per_s, STREAM_S)
    example.say(
        f"{stream.sent} frames at {rate_per_s:.0f} /s: {stream.answered} answered, {stream.refused} refused; "
        f"age at the answer p50 {stream.age_ms(0.5):.0f} ms, p99 {stream.age_ms(0.99):.0f} ms; "
        f"{stream.late(DEADLINE_MS):.1%} of the answers later than {DEADLINE_MS:.0f} ms; "
        f"{stream.blind(INTERVAL_S):.0%} of the half seconds without a decision"
    )
    return stream


def overload(example: Example, camera: Camera, rate_per_s: float) -> tuple[float, Stream]:
    """A rate at which the queue is full for long, and its stream: this machine may be faster now than at the bench."""
    for factor in (1, 2, 4, 8):
        stream = play(example, camera, factor * rate_per_s)
        if stream.refused > stream.sent / 10:
            return factor * rate_per_s, stream
    sys.exit(f"the queue was not full at {factor * rate_per_s:.0f} frames a second")


def met(holds: bool) -> str:
    """In words."""
    return "met" if holds else "not met"


def freshness(example: Example, calm: Stream, queued: Stream, fresh: Stream) -> None:
    """How old a frame was when its answer came, what could be decided by the answers, and whether that was right."""
    streams = {"half of what it can answer": calm, "overload, queued": queued, "overload, drop_stale": fresh}
    for name, stream in streams.items():
        example.figure(f"age at the answer, p50: {name}", stream.age_ms(0.5), "ms")
        p99_ms = stream.age_ms(0.99)
        note = f"the deadline of {DEADLINE_MS:.0f} ms is {met(p99_ms <= DEADLINE_MS)}"
        example.figure(f"age at the answer, p99: {name}", p99_ms, "ms", note=note)
    for name, stream in streams.items():
        example.figure(f"answers later than {DEADLINE_MS:.0f} ms: {name}", stream.late(DEADLINE_MS), "share")
    for name, stream in streams.items():
        blind = stream.blind(INTERVAL_S)
        note = f"a decision in each is {met(blind == 0)}"
        example.figure(f"half seconds without a decision: {name}", blind, "share", note=note)
    example.figure("frames answered: overload, drop_stale", fresh.answered / fresh.sent, "share")
    found, shown = (np.concatenate([getattr(each, of) for each in streams.values()]) for of in ("surfaces", "frames"))
    right = float((found == model.true_surface_ahead()[shown]).mean())
    example.figure("decisions that are right", right, "share", ("abs", 0.05), "by the answers within the deadline")
    lost = sum(stream.sent - stream.answered - stream.refused for stream in streams.values())
    example.figure("frames neither answered nor refused", lost, "", ("abs", 0))
    # What drop_stale is for; the rest is of the machine.
    if not (fresh.late(DEADLINE_MS) < queued.late(DEADLINE_MS) and fresh.blind(INTERVAL_S) < queued.blind(INTERVAL_S)):
        sys.exit("with drop_stale, no fewer answers were late than with a queue, or no more could be decided")


if __name__ == "__main__":
    main()
