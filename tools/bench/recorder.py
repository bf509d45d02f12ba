"""What the flight recorder costs: of a core, of a request, of the disk; and how far back its recording then reaches.

    python tools/bench/recorder.py [--seconds 60] [--requests-per-s 1000] [--smoke] [--out FILE.json]

A real agent serves two small models: idle, asked by two cameras of 30 images a second, and under load, by requests that
are due at set times. The recorder's share of a core is its own measurement of its thread's processor time, as it is in
the recording and in /metrics. Beside it stands what the idle agent's whole process takes with the recorder and without
it. How far back a ring reaches is its size over what the records take that were made here, packed as a full file is.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from facts import conditions
from onnx import TensorProto, helper
from serving_client import Connection, prepare

from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from kedge_agent.formats.histogram import Histogram
from kedge_agent.formats.oip import HEADER_LENGTH, encode_request
from kedge_agent.formats.recording import Encoder, Record, pack, resample, summarise
from kedge_agent.measure.recorder.places import MINUTES, SECONDS, SHARES
from kedge_agent.measure.recorder.reading import read_back
from kedge_agent.settings import RecorderRules
from kedge_agent.store.layout import socket_directory

MODELS = ("first", "second")
CAMERAS_PER_S = 60.0
GOALS = {"cpu_share": 0.01, "disk_bytes": 32_000_000, "record_ns": 1000.0}
_SETTLE_S = 3.0
_CALLS = 100_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load (default: 60)")
    parser.add_argument("--requests-per-s", type=float, default=1000.0, help="of both models (default: 1000)")
    parser.add_argument("--smoke", action="store_true", help="4 s of each load, 200 requests a second")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.seconds, arguments.requests_per_s = 4.0, 200.0
    started = os.getloadavg()
    loads = {"idle": 0.0, "two cameras": CAMERAS_PER_S, "loaded": arguments.requests_per_s}
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as name:
        found = {each: measured(Path(name) / each, rate, arguments.seconds) for each, rate in loads.items()}
        without = measured(Path(name) / "without", 0.0, arguments.seconds, enabled=False)
    document = {
        "conditions": {**conditions(started), "seconds": arguments.seconds},
        "record_ns": record_ns(),
        "loads": found,
        "idle_without": without,
        "goals": GOALS,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(table(document))
    return 0


def measured(folder: Path, rate: float, seconds: float, *, enabled: bool = True) -> dict[str, Any]:
    """One agent under one load; without a recorder, its processor time alone."""
    folder.mkdir()
    state = folder / "state"
    state.mkdir(mode=0o700)
    (state / "agent.json").write_text(json.dumps({"recorder": {"enabled": enabled}}))
    agent = LocalAgent(state, threads=1)
    try:
        agent.start(Deadline.after(60, "starting the agent"))
        for number, name in enumerate(MODELS):
            release = build_release(
                tiny_model(folder / f"{name}.onnx", number + 2.0), host_target(), folder / f"{name}.release",
                BuildOptions(name, 1), {"x": np.ones((1, 64), np.float32)},
            ).release  # fmt: skip
            deploy(agent, release, remember=False)
        pid = int((state / "agent.lock").read_text())
        time.sleep(_SETTLE_S)
        before, began = processor_s(pid), time.monotonic()
        ask(socket_directory(state) / "infer.sock", rate, seconds)
        took = time.monotonic() - began
        used = processor_s(pid) - before
    finally:
        agent.close()
    out: dict[str, Any] = {"process_cpu_share": used / took}
    if not enabled:
        return out
    records = [each for each in read_back(state, took, SECONDS) if each.start is None]
    told = summarise(records)
    channels = told["channels"]
    # What a record adds to a file that has its table already: a full file has few tables.
    (first_raw, first_packed), (all_raw, all_packed) = sizes(records[:1]), sizes(records)
    more = len(records) - 1
    raw, packed = (all_raw - first_raw) / more, (all_packed - first_packed) / more
    minute = max(sizes([*records, each])[1] - all_packed for each in resample(records, 60.0))
    return out | {
        "requests_per_s": sum(each["requests"] for each in told["models"].values()) / told["seconds"],
        "channels": len(channels),
        "cpu_share": {key: channels["recorder.cpu_share"][key] for key in ("mean", "max")},
        "written_bytes_per_s": raw,
        "packed_bytes_per_s": packed,
        "minute_bytes": minute,
        "reaches_s": {SECONDS: capacity(SECONDS) / packed, MINUTES: capacity(MINUTES) / minute * 60},
    }


def tiny_model(path: Path, factor: float) -> Path:
    """x [1, 64] → y [1, 64]: next to no work, so that the agent's own is what is seen."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor("k", TensorProto.FLOAT, [1], [factor])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def ask(address: Path, rate: float, seconds: float) -> None:
    """Ask every model at its share of the rate, by one connection each."""
    if not rate:
        time.sleep(seconds)
        return
    begin = time.monotonic()
    with ThreadPoolExecutor() as pool:
        share = rate / len(MODELS)
        for each in [pool.submit(_ask_one, address, name, share, begin, seconds) for name in MODELS]:
            each.result()


def _ask_one(address: Path, model: str, rate: float, begin: float, seconds: float) -> None:
    header, body = encode_request({"x": np.ones((1, 64), np.float32)})
    request = prepare(
        "POST", f"/v2/models/{model}/infer", [header, *map(bytes, body)], [(HEADER_LENGTH, str(len(header)))]
    )
    with Connection(address) as connection:
        for number in range(int(rate * seconds)):
            time.sleep(max(begin + number / rate - time.monotonic(), 0.0))
            status, _, said = connection.ask(request)
            if status != 200:
                raise RuntimeError(f"{status}: {bytes(said)!r}")


def processor_s(pid: int) -> float:
    """Processor time of a process in seconds (proc(5), stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sizes(records: Sequence[Record]) -> tuple[int, int]:
    """Bytes of records as they are written, and when their file is packed."""
    encoder = Encoder(records[0].boot)
    data = b"".join(map(encoder.encode, records))
    return len(data), len(pack(data))


def capacity(ring: str) -> float:
    """Bytes of full files that a ring keeps, at the least: two files' room is left for the one that is written."""
    return RecorderRules().limit_bytes * SHARES[ring] - 2 * (256 << 10)


def record_ns() -> float:
    """Processor time of counting one time of one request in nanoseconds, the call included: best of seven."""
    times = [int(each) for each in np.random.default_rng(0).lognormal(0, 0.2, _CALLS) * 1e6]
    best = float("inf")
    for _ in range(7):
        record = Histogram().record
        began = time.thread_time_ns()
        for each in times:
            record(each)
        best = min(best, (time.thread_time_ns() - began) / _CALLS)
    return best


def table(document: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{document['record_ns']:.0f} ns to count one time of a request; there are two a request"]
    for name, found in document["loads"].items():
        share, reach = found["cpu_share"], found["reaches_s"]
        lines += [
            f"{name}: {found['requests_per_s']:.0f} requests/s, {len(MODELS)} models, {found['channels']} channels",
            f"  recorder's share of a core {share['mean']:.2%} (at most {share['max']:.2%} over a minute)",
            f"  {found['written_bytes_per_s']:.0f} bytes a second written, {found['packed_bytes_per_s']:.0f} kept",
            f"  {found['minute_bytes']:.0f} bytes a minute kept beside them",
            f"  seconds reach back {reach[SECONDS] / 3600:.0f} h, minutes {reach[MINUTES] / 86_400:.0f} days",
        ]
    idle, without = document["loads"]["idle"]["process_cpu_share"], document["idle_without"]["process_cpu_share"]
    lines.append(f"on the disk: {RecorderRules().limit_bytes / 1e6:.0f} MB at the most")
    lines.append(f"idle agent in all: {idle:.2%} of a core with the recorder, {without:.2%} without")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
