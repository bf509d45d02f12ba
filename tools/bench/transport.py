"""What the way to the model costs: the same request bare, inside the agent, and from the host; and a push.

    python tools/bench/transport.py [--on DEVICE] [--smoke] [--out FILE.json]

All of it in one run on one machine, so that the ratios mean something where the times do not. The model takes a 602 KB
image and does little with it: what is measured is the way. SSH is an OpenSSH server of its own on loopback, or with
`--on` a device of the inventory, which keeps the two test models.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from facts import ROOT, conditions
from onnx import TensorProto, helper, numpy_helper

from kedge.bench.run import BenchRules, run_bench
from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy
from kedge.fleet.inventory import open_device
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge.transport.base import Deadline, Transport
from kedge.transport.local import LocalAgent
from kedge_agent.formats.latency import summarize

sys.path.insert(0, str(ROOT))

from tests.support.sshd import make_sshd, remove_sshd


@dataclass(frozen=True)
class Size:
    """rounds: of each measurement, and pushes. duration_ms: of a loop. push_bytes: of a model's weights."""

    rounds: int
    duration_ms: int
    push_bytes: int


FULL, SMOKE = Size(3, 2000, 64_000_000), Size(1, 500, 16_000_000)


def image_model(path: Path) -> Path:
    """image [batch, 3, 224, 224] → scores [batch, 8]: one strided convolution and a mean."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], strides=[16, 16]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["scores"]),
    ]
    return save(path, nodes, ("image", ["batch", 3, 224, 224]), ("scores", ["batch", 8]), {"w": weights})


def heavy_model(path: Path, seed: int, size_bytes: int) -> Path:
    """x [n] → y [n], with so many bytes of weights that no compression helps."""
    blob = np.random.default_rng(seed).standard_normal(size_bytes // 4).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMax", ["blob"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    return save(path, nodes, ("x", ["n"]), ("y", ["n"]), {"blob": blob})


def save(path: Path, nodes: list, source: tuple, sink: tuple, weights: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
        [helper.make_tensor_value_info(sink[0], TensorProto.FLOAT, sink[1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bare(model: Path, image: np.ndarray, duration_ms: int) -> dict[str, Any]:
    """The same model in a session with the agent's own options, called as people call it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    samples = []
    end = time.perf_counter() + 0.2
    while time.perf_counter() < end:
        session.run(None, {"image": image})
    end = time.perf_counter() + duration_ms / 1e3
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(None, {"image": image})
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return summarize(samples).to_json()


def measure(transport: Transport, small: Release, heavy: Sequence[Release], size: Size) -> dict[str, Any]:
    deploy(transport, small)
    reports = [run_bench(transport, "image", BenchRules(duration_ms=size.duration_ms)) for _ in range(size.rounds)]
    report = sorted(reports, key=lambda found: found["end_to_end"]["total"]["median_ms"])[size.rounds // 2]
    pushes = [deploy(transport, release) for release in heavy]
    rates = sorted(push.sent_bytes / push.push_s / 1e6 for push in pushes)
    return {
        "end_to_end": report["end_to_end"],
        "in_agent": report["in_agent"],
        "push_mb_per_s": rates[len(rates) // 2],
        "push_runs": len(pushes),
    }


@contextmanager
def over_ssh(folder: Path, device: str | None) -> Iterator[Transport]:
    """A device over SSH: of the inventory, or with a server and an inventory of this run's own.

    Raises:
        pytest.skip.Exception: there is no SSH server on this machine; the message says so.
    """
    if device is not None:
        with open_device(device) as (transport, _):
            yield transport
        return
    server = make_sshd()
    try:
        os.environ.update({f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CONFIG", "STATE")})
        words = (
            ("add", "ssh", server.address, "--target", host_target().name, "--key", str(server.key)),
            ("trust", "ssh", "--fingerprint", server.fingerprint()),
            ("provision", "ssh", "--no-service"),
        )
        for each in words:
            subprocess.run([sys.executable, "-m", "kedge", "device", *each], check=True, stdout=subprocess.DEVNULL)
        with open_device("ssh") as (transport, _):
            yield transport
    finally:
        remove_sshd(server)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", help="a device of the inventory, instead of a server on loopback")
    parser.add_argument("--smoke", action="store_true", help="a round of 0.5 s, a push of 16 MB")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    size, started, missing = SMOKE if arguments.smoke else FULL, os.getloadavg(), {}
    with tempfile.TemporaryDirectory(prefix="kedge-bench-") as name:
        folder = Path(name)
        model = image_model(folder / "image.onnx")
        image = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
        target = host_target()
        small = build_release(model, target, folder / "image", BuildOptions("image"), {"image": image}).release

        def fresh() -> list[Release]:
            # Other weights every time: what a device has already it is not sent.
            seeds = [int.from_bytes(os.urandom(4), "big") for _ in range(size.rounds)]
            made = [(seed, heavy_model(folder / f"{seed}.onnx", seed, size.push_bytes)) for seed in seeds]
            return [
                build_release(path, target, folder / str(seed), BuildOptions("heavy", version)).release
                for version, (seed, path) in enumerate(made, 1)
            ]

        results = {"bare": bare(model, image, size.duration_ms)}
        agent = LocalAgent(folder / "device", ephemeral=True)
        try:
            agent.start(Deadline.after(60, "starting the agent"))
            results["local"] = measure(agent, small, fresh(), size)
        finally:
            agent.close()
        try:
            with over_ssh(folder, arguments.on) as transport:
                results["ssh"] = measure(transport, small, fresh(), size)
        except pytest.skip.Exception as error:
            missing["kedge, over SSH"] = str(error)
    document = {
        "benchmark": "transport",
        "conditions": {
            **conditions(started),
            "onnxruntime": onnxruntime.__version__,
            "input_bytes": image.nbytes,
            "push_bytes": size.push_bytes,
            "rounds": size.rounds,
            "loop": "closed, one request at a time, batch 1",
            "ssh": f"device {arguments.on}" if arguments.on else "OpenSSH on loopback",
        },
        "results": results,
        "over_bare_p50": {
            where: found["end_to_end"]["total"]["median_ms"] / results["bare"]["median_ms"]
            for where, found in results.items()
            if where != "bare"
        },
        "not_measured": missing,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
