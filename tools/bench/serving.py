"""kedge, MLServer and a FastAPI application around the same real models, asked by the same client, in one run.

    python tools/bench/serving.py [--make-peers FOLDER] [--smoke] [--out FILE.json]

Measured: p50 and p99 of one client, answers a second of one and of four, memory of all of a server's processes, and
the seconds from a process's start to its first good answer. All servers run at once with all models loaded, and are
asked in turn, in rounds, in an order drawn anew: what else the machine does falls on all alike. Every way's answer is
compared with onnxruntime's own before anything is measured. --make-peers makes the environments of MLServer and FastAPI
in a folder, once. Models are read from `shared/models` beside the checkout, or from the folder that KEDGE_SHARED names;
where there are none, networks of random weights stand for them, and the page says so.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from facts import commit, now, processor
from serving_load import WARMUP_S, Bare, Clients, Load
from serving_servers import Memory, Server, make_peers, memory_of, running
from serving_table import markdown
from serving_ways import EMPTY, TCP, UNIX, cases, prepared, trial

from kedge.model.session import ReferenceModel
from kedge_agent.formats.latency import summarize

CLIENTS = (1, 4)
BARE = "bare session.run"
GOALS = {"image_p50_ratio": 1.03, "image_least_ms": 5.0, "tiny_added_us": 150.0, "idle_rss_mb": 40.0, "ready_s": 0.5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make-peers", type=Path, metavar="FOLDER", help="make the environments of the others here")
    parser.add_argument("--mlserver-python", metavar="PYTHON", help="an interpreter that has MLServer and onnxruntime")
    parser.add_argument("--fastapi-python", metavar="PYTHON", help="one that has FastAPI, uvicorn and onnxruntime")
    parser.add_argument("--rounds", type=int, default=11, help="of each measurement (default: 11)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement (default: 0.3)")
    parser.add_argument("--starts", type=int, default=5, help="of each server (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="intra-operator threads, everywhere (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="two rounds of 0.1 s, one start of each server")
    parser.add_argument("--out", type=Path, help="write the figures to this file, and the table beside it")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.seconds, arguments.starts = 2, 0.1, 1
    version = metadata.version("onnxruntime")
    peers = {"mlserver": arguments.mlserver_python, "fastapi": arguments.fastapi_python}
    if arguments.make_peers is not None:
        peers = make_peers(arguments.make_peers.absolute(), version)
    document: dict[str, Any] = {
        "benchmark": "serving",
        "conditions": {
            "started": now(),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "processor": processor(),
            "load_average": {"started": os.getloadavg()},
            "python": platform.python_version(),
            "kedge": commit(),
            "onnxruntime": version,
            "peers": {name: None if python is None else versions(python) for name, python in peers.items()},
            "threads": arguments.threads,
            "workers": len(os.sched_getaffinity(0)),
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "warmup_s": WARMUP_S,
            "starts": arguments.starts,
            "goals": GOALS,
        },
    }
    with tempfile.TemporaryDirectory(prefix="kedge-serving-") as name:
        document |= measured(Path(name), peers, arguments)
    document["conditions"]["ended"] = now()
    document["conditions"]["load_average"]["ended"] = os.getloadavg()
    document["goals"] = goals(document)
    text = markdown(document)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measured(folder: Path, peers: Mapping[str, str | None], arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured: of the models, of the starts, of the memory."""
    found = cases(folder)
    servers, ways, missing = prepared(folder, found, peers, arguments.threads)
    out: dict[str, Any] = {"starts": starts(servers, arguments.starts), "memory": {}, "models": {}}
    inputs = {}
    for case in found:
        np.save(folder / f"{case.key}.npy", case.x)
        inputs[case.key] = (case.path, folder / f"{case.key}.npy")
    with contextlib.ExitStack() as stack:
        clients = Clients(max(CLIENTS))
        stack.callback(clients.close)
        bare = Bare(inputs, arguments.threads)
        stack.callback(bare.close)
        pids = {BARE: bare.pid}
        out["starts"][BARE] = {"median": bare.ready_s, "runs": [bare.ready_s]}
        for server in servers:
            if any(way.server == server.name for way in ways):
                pids[server.name] = stack.enter_context(running(server))[0]
        requests: dict[tuple[str, str], Path] = {}
        for case in found:
            expected = next(iter(ReferenceModel(case.path, threads=1).run({case.input: case.x}).values()))
            for way in ways:
                why = trial(way, case, expected)
                if why is not None:
                    missing.setdefault(way.name, {})[case.key] = why
                    continue
                path = requests[way.name, case.key] = folder / f"{len(requests)}.request"
                path.write_bytes(way.request(case))
        loads: dict[str, dict[str, dict[int, list[Load]]]] = {case.key: {} for case in found}
        draw = random.Random(0)  # noqa: S311 - not for secrets
        turns = {case.key: [None, *ways] for case in found}
        for turn in range(arguments.rounds):
            print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr)
            # A model's ways follow each other closely, so that a ratio compares like times of the machine.
            draw.shuffle(found)
            for case in found:
                draw.shuffle(turns[case.key])
                for count, way in itertools.product(CLIENTS, turns[case.key]):
                    name = BARE if way is None else way.name
                    if way is not None and (name, case.key) not in requests:
                        continue
                    done = (
                        bare.load(case.key, count, arguments.seconds)
                        if way is None
                        else clients.load(way.address, requests[name, case.key], count, arguments.seconds)
                    )
                    loads[case.key].setdefault(name, {}).setdefault(count, []).append(done)
        out["memory"] = {name: asdict(memory_of(pid)) for name, pid in pids.items()}
    out["memory"] |= {EMPTY: asdict(idle_memory(next(s for s in servers if s.name == EMPTY)))}
    for case in sorted(found, key=lambda case: -case.path.stat().st_size):
        out["models"][case.key] = {
            "about": case.about,
            "input_bytes": case.x.nbytes,
            "ways": dict(sorted(rows(loads[case.key]).items(), key=lambda row: row[1]["p50_ms"]["median"])),
            "not_measured": {name: why[case.key] for name, why in missing.items() if case.key in why},
        }
    return out


def starts(servers: list[Server], count: int) -> dict[str, Any]:
    """Seconds to the first good answer, each server alone, all of them in turn."""
    seconds: dict[str, list[float]] = {server.name: [] for server in servers}
    for _ in range(count):
        for server in servers:
            with running(server) as (_, ready_s):
                seconds[server.name].append(ready_s)
    return {name: {"median": statistics.median(runs), "runs": runs} for name, runs in seconds.items()}


def idle_memory(server: Server) -> Memory:
    with running(server) as (pid, _):
        return memory_of(pid)


def rows(loads: Mapping[str, Mapping[int, list[Load]]]) -> dict[str, Any]:
    """Of one model, by way: latency of one client, rounds against the bare model's, answers a second."""
    typical = {name: [statistics.median(load.latencies_ms) for load in found[1]] for name, found in loads.items()}
    out = {}
    for name, found in loads.items():
        rounds = list(zip(typical[name], typical[BARE], strict=True))
        out[name] = {
            "latency": summarize([value for load in found[1] for value in load.latencies_ms]).to_json(),
            "p50_ms": spread([own for own, _ in rounds]),
            "over_bare": spread([own / bare for own, bare in rounds]),
            "added_us": spread([(own - bare) * 1e3 for own, bare in rounds]),
            "per_s": {str(count): spread([load.per_s for load in found[count]]) for count in CLIENTS},
        }
    return out


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def goals(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what came of it; held: None where it was not measured."""
    models = document["models"]
    image, tiny = (models.get(real) or models[made] for real, made in (("mobilenetv2", "image"), ("mnist", "tiny")))
    bare = image["ways"][BARE]["p50_ms"]["median"]
    out: list[dict[str, Any]] = []

    def goal(text: str, figure: float | None, most: float, unit: str) -> None:
        held = None if figure is None else figure <= most
        out.append({"goal": text, "figure": figure, "most": most, "unit": unit, "held": held})

    for way in (UNIX, TCP):
        ratio = image["ways"].get(way, {}).get("over_bare", {}).get("median")
        known = ratio if bare >= GOALS["image_least_ms"] else None
        goal(f"{way}: p50 over bare, 602 KB, a model of {bare:.1f} ms", known, GOALS["image_p50_ratio"], "×")
        added = tiny["ways"].get(way, {}).get("added_us", {}).get("median")
        goal(f"{way}: added to a tiny model's p50", added, GOALS["tiny_added_us"], "µs")
    rss = document["memory"][EMPTY]["rss_bytes"] / 1e6
    goal("memory (RSS) of an agent that has loaded no runtime", rss, GOALS["idle_rss_mb"], "MB")
    for name in (EMPTY, "kedge"):
        goal(f"{name}: process start to ready", document["starts"][name]["median"], GOALS["ready_s"], "s")
    return out


def versions(python: str) -> dict[str, str]:
    """Versions of what matters in another environment."""
    program = (
        "import importlib.metadata as m, json, platform\n"
        "names = {d.metadata['Name'].lower() for d in m.distributions()}\n"
        "wanted = ('mlserver', 'fastapi', 'uvicorn', 'uvloop', 'httptools', 'onnxruntime', 'numpy')\n"
        "print(json.dumps({'python': platform.python_version(), **{n: m.version(n) for n in wanted if n in names}}))"
    )
    said = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(said.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
