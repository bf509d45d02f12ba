"""How long people wait before anything happens: commands that only answer, and an agent until its first inference.

    python tools/bench/startup.py [--runs 20] [--smoke] [--out FILE.json]

Each command is a process from its start to its end, its output thrown away; all of them take turns, in an order drawn
anew in each run, after one run each that nobody counts (it fills the disk's cache). An agent is ready when it answers
200 to `/v2/health/ready`, which is when all of its models are loaded. Peers are measured where this environment has
them. What MLServer and FastAPI need to be ready is in tools/bench/serving.py, with models of their own size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from facts import conditions
from serving_client import Connection, prepare
from serving_servers import Server, kedge, kedge_empty, running
from transport import image_model

from kedge_agent.formats.oip import HEADER_LENGTH, encode_request

MODELS = ("first", "second", "third")
LATER = 20
ANSWERS = "a command, from its start to its end"
READY = "an agent, from its start to ready"
FIRST = "a request of a ready agent, 602 KB, next to no work"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each (default: 20)")
    parser.add_argument("--smoke", action="store_true", help="each five times")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.runs = 5
    started = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="kedge-startup-") as name:
        commands, missing = answers(Path(name), arguments.runs)
        commands |= agents(Path(name), arguments.runs)
    document = {
        "benchmark": "startup",
        "conditions": {**conditions(started), "runs": arguments.runs, "threads": 1},
        "commands": commands,
        "not_measured": missing,
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, row in commands.items():
        print(f"{row['group']}: {name}: {row['seconds']['median'] * 1e3:,.1f} ms")
    return 0


def answers(folder: Path, runs: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Seconds of commands and of the processor's time, by their words; and why a peer's is not measured."""
    kedge_words = {
        "kedge --version": ["-m", "kedge", "--version"],
        "kedge --help": ["-m", "kedge", "--help"],
        "kedge targets list": ["-m", "kedge", "targets", "list"],
        "kedge-agent --help": ["-m", "kedge_agent", "--help"],
    }
    commands = {name: [sys.executable, *words] for name, words in kedge_words.items()}
    missing = {}
    for program in ("polygraphy", "olive", "trtexec"):
        beside = Path(sys.executable).with_name(program)
        found = str(beside) if beside.exists() else shutil.which(program)
        if found is None:
            missing[program] = "it is not installed here"
        else:
            commands[f"{program} --help"] = [found, "--help"]
    environment = {**os.environ, **{f"XDG_{kind}_HOME": str(folder / kind) for kind in ("CONFIG", "STATE", "CACHE")}}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    processor: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name in random.sample(list(commands), len(commands)):
            begin, before = time.perf_counter(), os.times()
            done = subprocess.run(commands[name], capture_output=True, check=False, env=environment, cwd=folder)
            if done.returncode:
                seconds.pop(name, None)
                commands.pop(name)
                missing[name] = f"it ends with {done.returncode}"
            elif turn:
                seconds[name].append(time.perf_counter() - begin)
                after = os.times()
                processor[name].append(
                    after.children_user - before.children_user + after.children_system - before.children_system
                )
    return {name: {**row(ANSWERS, runs), "cpu_s": summary(processor[name])} for name, runs in seconds.items()}, missing


def agents(folder: Path, runs: int) -> dict[str, Any]:
    """Seconds until an agent is ready, with no model and with three; of its first request, and of the ones after."""
    model = image_model(folder / "image.onnx")
    (folder / "empty").mkdir()
    (folder / "three").mkdir()
    empty = kedge_empty(folder / "empty")
    loaded, _ = kedge(folder / "three", dict.fromkeys(MODELS, model), 1, 1)
    names = {"kedge-agent serve, no model": empty, "kedge-agent serve, three models": loaded}
    ready: dict[str, list[float]] = {name: [] for name in names}
    first, later = [], []
    for _ in range(runs):
        for name, server in names.items():
            with running(server) as (_, ready_s):
                ready[name].append(ready_s)
                if server is loaded:
                    asked = requests(server)
                    first.append(asked[0])
                    later.append(statistics.median(asked[1:]))
    out = {name: row(READY, seconds) for name, seconds in ready.items()}
    return out | {"the first": row(FIRST, first), f"the median of {LATER} after it": row(FIRST, later)}


def requests(server: Server) -> list[float]:
    """Seconds of the first requests on one connection, one after the other."""
    image = np.zeros((1, 3, 224, 224), np.float32)
    header, body = encode_request({"image": image})
    headers = [(HEADER_LENGTH, str(len(header)))]
    request = prepare("POST", f"/v2/models/{MODELS[0]}/infer", [header, *map(bytes, body)], headers)
    seconds = []
    with Connection(server.address) as connection:
        for _ in range(1 + LATER):
            begin = time.perf_counter()
            status, _, said = connection.ask(request)
            seconds.append(time.perf_counter() - begin)
            if status != 200:
                raise RuntimeError(f"{status}: {bytes(said[:200])!r}")
    return seconds


def row(group: str, seconds: list[float]) -> dict[str, Any]:
    """Percentiles of the samples, and the samples."""
    return {"group": group, "seconds": summary(seconds)}


def summary(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    share = {"median": statistics.median(ordered), "p90": ordered[max(len(ordered) - 1 - len(ordered) // 10, 0)]}
    return {**share, "min": ordered[0], "max": ordered[-1], "runs": seconds}


if __name__ == "__main__":
    sys.exit(main())
