"""Bearing faults on a gateway with little memory: what does not fit is refused, what fits never misses a window."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from example import Example
from monitor import Gateway, Watch

from kedge.optimize.export import export_onnx
from kedge_agent.store.layout import socket_directory

BUDGET_BYTES = 80 << 20
NARROW = 512
OWN = "own memory of a process that runs it, at its peak"
RECORD_S, ONSET_S = 14.0, 6.0
SENSOR_GAIN = np.float32(10)


def main() -> None:
    """From a bearing's geometry to alarms."""
    with Example(__file__) as example:
        example.say("Training a 1-D network on computed vibration of healthy and damaged bearings.")
        model.make()

        example.say("INT8, judged at speeds, loads and noise that training never saw.")
        wide = example.kedge("optimize", example.source / "recipe-fp32.toml", "-o", "bearing-fp32.onnx")
        small = example.kedge("optimize", example.source / "recipe.toml", "-o", "bearing-int8.onnx")
        accuracy(example, small)
        example.figure("model, FP32", wide["after"]["bytes"], "bytes", ("rel", 0.02))
        example.figure("model, INT8 : FP32", small["after"]["bytes"] / wide["after"]["bytes"], "ratio", ("abs", 0.02))

        example.say(
            "Two releases of the same network, behind the same limits: 80 MiB of its own for a process, 80 ms a window."
        )
        windows, labels = model.held_out()
        np.save("golden.npy", windows[:8])
        for precision, version in (("fp32", 1), ("int8", 2)):
            release(example, precision, version)

        example.say("FP32 does not fit: the device tries it in a process of its own, refuses it, and serves on.")
        refused = example.kedge("deploy", "bearing-1.release", "--to", "local", expect=5)
        agent_bytes = rss_bytes(example)
        example.say("INT8 fits.")
        deployed, _ = example.deploy("bearing-2.release")
        memory(example, refused, deployed, agent_bytes)

        gateway = Gateway(socket_directory(example.local().state) / "infer.sock", "bearing")
        watches = stream(example, gateway)
        alarms(example, watches)

        example.say("A sensor of another sensitivity is mounted: the same vibration, ten times the signal.")
        changed_gain(example, gateway, windows, labels)

        example.say("What FP32 takes with a head of a sixth of the width: of memory only, its weights are not trained.")
        narrow(example)

        example.say("The agent is stopped. A monitor that hears nothing says so: silence is no sign of health.")
        example.stop()
        blind = Watch(gateway, windows[0, 0])
        blind.run()
        example.figure("alarms when the agent is gone", len(blind.alarms), "", ("abs", 0), "one: blind")
        example.finish()


def accuracy(example: Example, proof: Mapping[str, Any]) -> None:
    """What the report of `kedge optimize` says of the windows that training never saw."""
    for side, of in (("FP32", proof["before"]), ("INT8", proof["after"])):
        top1 = of["metrics"]["top1"]
        low, high = (100 * end for end in top1["interval_95"])
        note = f"{top1['correct']} of {top1['count']} windows, 95 % interval {low:.1f} to {high:.1f} %"
        example.figure(f"accuracy, {side}", top1["share"], "share", ("abs", 0.02), note)


def release(example: Example, precision: str, version: int) -> None:
    """A release of one of the two models; the recipe's gates go with it."""
    words = ["--target", example.target, "--golden", "golden.npy", "--name", "bearing", "--model-version", version]
    source = f"bearing-{precision}.onnx"
    example.kedge("build", source, *words, "-o", f"bearing-{version}.release")


def memory(example: Example, refused: Mapping[str, Any], deployed: Mapping[str, Any], agent_bytes: int) -> None:
    """What a process takes that runs the model, and what the agent takes."""
    found = re.search(r"memory gate: .* takes (\d+) bytes", refused["error"]["message"])
    if found is None:
        sys.exit(f"FP32 was refused for something else than its memory: {refused['error']['message']}")
    gates = {each["gate"]: each["figures"] for each in deployed["gates"]}
    example.figure(f"{OWN}, FP32", int(found[1]), "bytes", None, "refused by the memory gate, exit code 5")
    example.figure(f"{OWN}, INT8", gates["memory"]["peak_bytes"], "bytes", None, "serves")
    example.figure("the limit", BUDGET_BYTES, "bytes", ("abs", 0), "80 MiB")
    example.figure("agent without a model", agent_bytes, "bytes")
    example.figure("agent that serves INT8", rss_bytes(example), "bytes")
    p99_ms = float(gates["latency"]["p99_ms"])
    example.figure("p99 of a window on the device", p99_ms, "ms", note="the gate allows 80 ms")


def narrow(example: Example) -> None:
    """What a process takes that runs the network in FP32 with a head that is no wider than the task needs."""
    export_onnx(model.Network(NARROW).eval(), torch.zeros(2, 1, model.WINDOW), example.folder / "narrow.onnx")
    words = ["--target", example.target, "--golden", "golden.npy", "--peak-memory", "80MiB", "-o", "narrow.release"]
    example.kedge("build", "narrow.onnx", *words)
    deployed, _ = example.deploy("narrow.release")
    peak = next(each["figures"]["peak_bytes"] for each in deployed["gates"] if each["gate"] == "memory")
    note = f"a head of {NARROW} in the place of 3,072: would fit as it is"
    example.figure(f"{OWN}, FP32, width {NARROW}", peak, "bytes", None, note)


def rss_bytes(example: Example) -> int:
    """The agent's resident set, by its own account."""
    return int(example.kedge("status", "--on", "local")["agent"]["memory"]["rss_bytes"])


def stream(example: Example, gateway: Gateway) -> dict[str, Watch]:
    """Four machines for 14 s, three of them damaged at the 6th, while another version is deployed."""
    example.say(
        f"Four machines send a window each {1e3 * model.HOP / model.RATE_HZ:.0f} ms. After {ONSET_S:.0f} s three of "
        "them are damaged. Meanwhile a new version is deployed."
    )
    release(example, "int8", 3)
    random = np.random.default_rng(7)
    watches = {
        fault: Watch(gateway, model.record(fault, RECORD_S, model.UNSEEN, random, ONSET_S)) for fault in model.CLASSES
    }
    with ThreadPoolExecutor(len(watches)) as pool:
        running = [pool.submit(watch.run) for watch in watches.values()]
        example.deploy("bearing-3.release")
        for each in running:
            each.result()
    return watches


def alarms(example: Example, watches: Mapping[str, Watch]) -> None:
    """One alarm a fault, none without one, and no window without an answer."""
    for fault, watch in watches.items():
        raised = ", ".join(f"{what} {second - ONSET_S:.2f} s after the onset" for what, second in watch.alarms)
        example.say(f"{fault}: {raised or 'no alarm'}")
        if fault != "healthy":
            delays = [second - ONSET_S for what, second in watch.alarms if what == fault]
            delay = delays[0] if delays else None
            example.figure(f"from onset to alarm: {fault}", delay, "s", ("abs", 0.35), "in the signal's time")
    right = {fault: [] if fault == "healthy" else [fault] for fault in watches}
    wrong = sum(what not in right[fault] for fault, watch in watches.items() for what, _ in watch.alarms)
    missed = sum(len(set(right[fault]) - {what for what, _ in watch.alarms}) for fault, watch in watches.items())
    example.figure("faults without an alarm", missed, "", ("abs", 0))
    example.figure("wrong alarms", wrong, "", ("abs", 0))
    unanswered = sum(watch.unanswered for watch in watches.values())
    asked = sum(watch.windows for watch in watches.values())
    example.figure("windows without an answer", unanswered, "", ("abs", 0), f"of {asked}, through a switch of versions")


def changed_gain(example: Example, gateway: Gateway, windows: np.ndarray[Any, Any], labels: Any) -> None:
    """Ten times the signal: the model answers on, and the agent says that its inputs are not what was calibrated."""
    before = gateway.drift()
    answers = [gateway.classify(window * SENSOR_GAIN) for window in windows]
    after = gateway.drift()
    example.say(f"The agent: {after['warning']}")
    for side, drift in (("before", before), ("after", after)):
        warned = int(drift["warning"] is not None)
        example.figure(f"warnings {side} the change of gain", warned, "", ("abs", 0), f"{drift['share']:.2%} outside")
    share = float(np.mean(np.array(answers) == labels))
    example.figure("accuracy at ten times the gain", share, "share", None, "what the warning is about")


if __name__ == "__main__":
    main()
