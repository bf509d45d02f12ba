"""Three models on one box, for eight cameras: trained, made INT8, batched, and one of them replaced while all serve."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import model
from cameras import Cameras, Played
from example import Example

from kedge.deploy.push import deploy
from kedge.release.bundle import open_release
from kedge.transport.base import Deadline
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from kedge_agent.store.layout import socket_directory

MODELS = tuple(model.TASKS)
ROUNDS, PLAY_S = 3, 1.5
FRAMES = 64
# A core a model that computes; with eight cameras, no more than eight requests of a model are there at a time.
ALONE = {"threads": 1}
BATCHED = {"threads": 1, "models": {"*": {"max_batch": 48, "max_delay_us": 500}}}


def main() -> None:
    """From scans and photographs to figures."""
    with Example(__file__) as example:
        example.say(
            "Three networks, trained on frames composed of scans and photographs, each made INT8 by its recipe."
        )
        for name in MODELS:
            optimised(example, name)
            built(example, name, version=1)

        example.say("One box: an agent with all three.")
        example.local(ALONE)
        for name in MODELS:
            example.deploy(f"{name}-1.release")
        example.say(
            f"Eight cameras, {ROUNDS} times {PLAY_S} s with each request computed alone, and in turns with that, "
            "with requests joined that come at nearly the same time."
        )
        alone: list[Played] = []
        batched: list[Played] = []
        for _ in range(ROUNDS):
            example.local(ALONE)
            alone.append(cameras(example).play(PLAY_S, alone[0].answers if alone else None))
            example.local(BATCHED)
            batched.append(cameras(example).play(PLAY_S, alone[0].answers))
        throughput(example, alone, batched)
        shared(example)
        together = pss_bytes(example.local())

        replaced(example, alone[0])
        apart(example, together)
        example.finish()


def optimised(example: Example, name: str, version: int = 1) -> None:
    """Train where there are no weights, quantise, and judge on held-out frames."""
    recipe = example.source / f"recipe-{name}.toml"
    proof = example.kedge("optimize", recipe, "-o", f"{name}-{version}.onnx")
    judged = proof["before"]["metrics"]["top1"]["count"]
    of = name if version == 1 else f"{name}, release {version}"
    for precision, side in (("FP32", "before"), ("INT8", "after")):
        share = proof[side]["metrics"]["top1"]["share"]
        example.figure(f"accuracy, {of}, {precision}", share, "share", ("abs", 0.03), f"{judged} held-out crops")
    if version == 1:
        ratio = proof["after"]["bytes"] / proof["before"]["bytes"]
        example.figure(f"bytes, {name}, INT8 : FP32", ratio, "ratio", ("abs", 0.03))


def built(example: Example, name: str, version: int) -> None:
    """A release with golden inputs that no pass has seen."""
    crops, _ = getattr(model, f"{name}_held_out")()
    np.save(f"{name}.npy", crops[:8])
    words = ["--name", name, "--model-version", version, "--golden", f"{name}.npy", "-o", f"{name}-{version}.release"]
    example.kedge("build", f"{name}-{version}.onnx", "--target", example.target, *words)


def cameras(example: Example, *names: str, agent: LocalAgent | None = None) -> Cameras:
    """The cameras before an agent; of held-out frames, what these models look at."""
    shown, _ = model.frames("held-out", model.HELD_OUT_FRAMES, seed=3)
    crops = {}
    for name in names or MODELS:
        task = model.TASKS[name]
        each = model.crops(shown[:FRAMES], task)
        crops[name] = each.reshape(FRAMES, task.repeats, *each.shape[1:])
    return Cameras(socket_directory((agent or example.local()).state) / "infer.sock", crops)


def throughput(example: Example, alone: list[Played], batched: list[Played]) -> None:
    """Frames of all cameras, and how many crops a run of each model computed."""
    single, joined = (float(np.median([each.frames_per_s for each in rounds])) for rounds in (alone, batched))
    example.figure("frames a second, all cameras, each request alone", single, "/s")
    example.figure("frames a second, all cameras, batched", joined, "/s", note="medians, in turns")
    note = "depends on the machine, and on what else it does"
    example.figure("frames a second, batched : alone", joined / single, "ratio", note=note)
    with closing(AgentClient(example.local())) as client:
        statistics = client.get("/v2/models/stats", "infer")["model_stats"]
    for each in sorted(statistics, key=lambda each: MODELS.index(each["name"])):
        crops = each["inference_count"] / each["execution_count"]
        sent = model.TASKS[each["name"]].repeats
        example.figure(f"crops a run, {each['name']}", crops, "", note=f"a request has {sent}")
    played = [*alone, *batched]
    changed = sum(sum(each.changed.values()) for each in played)
    example.figure("answers that batching changed", changed, "", ("abs", 0))
    example.figure("requests that failed", sum(each.failed for each in played), "", ("abs", 0), "before any deploy")


def shared(example: Example) -> None:
    """A batch that is limited lets a model compute in the memory of the others."""
    with closing(AgentClient(example.local())) as client:
        facts = {name: client.get(f"/kedge/v1/models/{name}/memory")["chosen"] for name in MODELS}
    count = sum(each["arena"] == "shared" for each in facts.values())
    if count != len(MODELS):
        sys.exit(f"{count} of {len(MODELS)} models compute in the memory that they share")
    example.figure("models that compute in one memory", count, "", ("abs", 0))


def replaced(example: Example, before: Played) -> None:
    """A new release of one model goes live, and back, while all three serve."""
    example.say("The plate reader is trained for twice as long, and becomes release 2.")
    model.train("plate", epochs=2 * model.TASKS["plate"].epochs)
    optimised(example, "plate", version=2)
    built(example, "plate", version=2)
    example.say("It is deployed while the cameras film, and taken back; the other two serve on.")
    with cameras(example).playing(before.answers) as played:
        example.deploy("plate-2.release")
        during = versions(example)
        example.kedge("rollback", "plate", "--on", "local")
        after = versions(example)
    if (during, after) != ({**dict.fromkeys(MODELS, 1), "plate": 2}, dict.fromkeys(MODELS, 1)):
        sys.exit(f"the releases that served were {during}, then {after}")
    example.say(f"{played.frames} frames meanwhile, {played.frames_per_s:.0f} a second.")
    example.figure("requests that failed in a deploy and a rollback", played.failed, "", ("abs", 0))
    others = sum(count for name, count in played.changed.items() if name != "plate")
    example.figure("answers of the other models that it changed", others, "", ("abs", 0))


def versions(example: Example) -> dict[str, int]:
    """What serves now."""
    status = example.kedge("status", "--on", "local")
    return {each["model"]: int(each["version"]) for each in status["models"]}


def apart(example: Example, together: int) -> None:
    """The same three models in three agents, which run at the same time."""
    example.say("For comparison, the same releases in three agents, one each.")
    example.stop()
    with ExitStack() as stack:
        agents = []
        for name in MODELS:
            agents.append(LocalAgent(example.folder / f"agent-{name}", ephemeral=True, threads=1))
            stack.callback(agents[-1].close)
            agents[-1].start(Deadline.after(60, "starting an agent"))
            deploy(agents[-1], open_release(example.folder / f"{name}-1.release"), remember=False)
        for name, agent in zip(MODELS, agents, strict=True):
            cameras(example, name, agent=agent).play(1.0)
        three = sum(map(pss_bytes, agents))
    note = "PSS: what processes have in common is counted once"
    example.figure("memory of one agent with three models", together, "bytes", note=note)
    example.figure("memory of three agents with one each", three, "bytes", note=note)
    # What other processes of the machine have mapped too counts less, so that this is of the moment.
    example.figure("memory, one agent : three", together / three, "ratio")


def pss_bytes(agent: LocalAgent) -> int:
    """An agent's share of the machine's memory."""
    with closing(AgentClient(agent)) as client:
        memory: dict[str, Any] = client.get("/kedge/v1/info")["memory"]
    return int(memory["pss_bytes"])


if __name__ == "__main__":
    main()
