"""A rollout to sixteen real devices of which two go bad, whose host is killed; and one device that is too slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.build.gates import GateOptions
from kedge.build.release import BuildOptions, build_release
from kedge.release.bundle import Release
from kedge.targets import host_target
from tests.support.agents import assert_invariant
from tests.support.fleets import Fleet, FleetDevice, fleet
from tests.support.models import IR_VERSION, OPSET

MODEL = "perceptron"
WIDTH = 512
LAYERS = 4
# A run takes some milliseconds: of a hundred more than one meets a rest of the slow device.
TURNS = 32
RELEASE_BYTES = LAYERS * WIDTH * WIDTH * 4

DEVICES = 16
SLOW = "d05"
CUT = "d07"
# Far above what a run takes here, also where other devices compute beside it, and below how long SLOW rests each time.
P99_MS = 500
RUNS_S, RESTS_S = 0.1, 1.0
LINK_BYTES_PER_S = 200_000
CUT_AFTER_BYTES = 600_000
_END_S = 600.0


def perceptron(path: Path, seed: int) -> Path:
    """x [batch, 512] → y [batch, 512]: four matrices, 4.2 MB that nothing makes smaller, each used many times."""
    random = np.random.default_rng(seed)
    values = [random.standard_normal((WIDTH, WIDTH)).astype("f4") / 16 for _ in range(LAYERS)]
    weights = [numpy_helper.from_array(value, f"w{layer}") for layer, value in enumerate(values)]
    nodes, name = [], "x"
    for step in range(LAYERS * TURNS):
        nodes += [helper.make_node("MatMul", [name, f"w{step % LAYERS}"], [f"m{step}"])]
        nodes += [helper.make_node("Tanh", [f"m{step}"], ["y" if step == LAYERS * TURNS - 1 else f"h{step}"])]
        name = f"h{step}"
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", WIDTH]) for end in ("x", "y")]
    graph = helper.make_graph(nodes, MODEL, ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def perceptron_release(folder: Path, version: int, p99_ms: int | None = None) -> Release:
    gates = GateOptions(p99_ms=None if p99_ms is None else str(p99_ms), probation_s=0)
    golden = {"x": np.random.default_rng(0).standard_normal((1, WIDTH)).astype("f4")}
    path = perceptron(folder / f"{MODEL}-{version}.onnx", seed=version)
    options = BuildOptions(MODEL, version, gates, pack=False)
    return build_release(path, host_target(), folder / f"{MODEL}-{version}.release", options, golden).release


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("releases")


@pytest.fixture(scope="module")
def base(folder: Path) -> Release:
    """What every device serves already."""
    return perceptron_release(folder, version=1)


@pytest.fixture(scope="module")
def devices(base: Release) -> Iterator[Fleet]:
    with fleet(DEVICES, base) as made:
        yield made


@contextmanager
def unplugged_within_a_push(device: FleetDevice) -> Iterator[threading.Event]:
    """The device's link is slow, and is lost when some of the release has gone over it. The event: it is lost."""
    cut, over = threading.Event(), threading.Event()
    device.cable.limit(LINK_BYTES_PER_S)
    before = device.cable.bytes_to_device()

    def run() -> None:
        while not over.wait(0.05):
            if device.cable.bytes_to_device() - before > CUT_AFTER_BYTES:
                device.cable.down()
                cut.set()
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield cut
    finally:
        over.set()
        thread.join()
        device.cable.unlimited()
        device.cable.up()


def status(devices: Fleet) -> dict[str, Any]:
    """The document of the newest rollout; what the command's exit status says of it is looked at elsewhere."""
    said = devices.kedge("rollout", "status", "--json", code=None)
    document: dict[str, Any] = json.loads(said.stdout)
    return document


def wait_for(devices: Fleet, process: subprocess.Popen[bytes], holds: Callable[[dict[str, Any]], bool]) -> None:
    """Wait until the rollout that this process drives is so far."""
    deadline = time.monotonic() + _END_S
    while not holds(status(devices)):
        assert process.poll() is None, "it ended before it came so far"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def by_name(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["device"]: row for row in document["devices"]}


def assert_nothing_half_installed(
    devices: Fleet, states: dict[str, dict[str, Any]], old: Release, new: Release
) -> None:
    """Each device serves one release, whole: the new one where that is said of it, and else the one before."""
    for device in devices.devices:
        state = states[device.name]["state"]
        expected = {new.digest} if state in ("updated", "current") else {old.digest}
        if state in ("running", "late", "unknown"):
            expected = {old.digest, new.digest}
        assert_invariant(device.state, device.agent, expected, model=MODEL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_bad_devices_of_sixteen_halt_a_rollout_that_ends_although_its_host_is_killed(
    devices: Fleet, base: Release, folder: Path, tmp_path: Path
) -> None:
    release = perceptron_release(folder, version=2, p99_ms=P99_MS)
    asked = ("--canary", "2,50%,100%", "--max-failures", "1", "--concurrency", "4", "--deadline", "10m")
    with devices[SLOW].throttled(RUNS_S, RESTS_S), unplugged_within_a_push(devices[CUT]) as cut:
        devices.kedge("deploy", str(release.folder), "--to", "@fleet", *asked, code=11)
        assert cut.is_set()
    halted = status(devices)
    rows = by_name(halted)
    assert halted["state"] == "halted", halted
    assert halted["reason"]
    assert halted["hint"]
    assert [wave["state"] for wave in halted["waves"]] == ["passed", "failed", "waiting"]
    assert (rows[CUT]["state"], rows[CUT]["exit_code"]) == ("unreachable", 4), rows[CUT]
    assert (rows[SLOW]["state"], rows[SLOW]["exit_code"]) == ("refused", 5), rows[SLOW]
    assert "latency gate" in rows[SLOW]["reason"]
    # The last wave had not begun, and what else had begun ended.
    assert Counter(row["state"] for row in rows.values()) == {
        "updated": 6,
        "unreachable": 1,
        "refused": 1,
        "waiting": 8,
    }
    assert_nothing_half_installed(devices, rows, base, release)
    received = [path for path in (devices[CUT].state / "incoming").rglob("*") if path.is_file() and path.stat().st_size]
    assert received, "nothing of the release had arrived when the link was lost"

    process = devices.begin("rollout", "resume", "--skip-failed", "--quiet", log=tmp_path / "resumed.log")
    wait_for(devices, process, lambda now: sum(row["state"] == "updated" for row in now["devices"]) >= 8)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    broken = status(devices)
    assert broken["state"] == "interrupted", broken
    assert any(row["state"] not in ("updated", "unreachable", "refused") for row in broken["devices"]), broken
    assert_nothing_half_installed(devices, by_name(broken), base, release)

    devices.kedge("rollout", "resume", "--skip-failed", "--quiet", code=11)
    ended = status(devices)
    rows = by_name(ended)
    assert ended["state"] == "done", ended
    assert Counter(row["state"] for row in rows.values()) == {"updated": 14, "unreachable": 1, "refused": 1}, rows
    assert {name for name, row in rows.items() if row["state"] != "updated"} == {CUT, SLOW}
    assert all(rows[name]["reason"] and rows[name]["hint"] for name in (CUT, SLOW))
    assert_nothing_half_installed(devices, rows, base, release)


@pytest.mark.slow
def test_a_device_slower_than_its_deadline_is_late_and_holds_up_nobody(devices: Fleet, folder: Path) -> None:
    release = perceptron_release(folder, version=3)
    slow = devices["d01"]
    # In the time that it has, a quarter of the release comes through at most.
    slow.cable.limit(RELEASE_BYTES // 4 // 20)
    try:
        asked = ("--concurrency", "2", "--max-failures", "1", "--deadline", "20s")
        devices.kedge("deploy", str(release.folder), "--to", "d01,d02,d03,d04", *asked, code=11)
    finally:
        slow.cable.unlimited()
    rows = by_name(status(devices))
    assert {name: row["state"] for name, row in rows.items()} == {
        "d01": "late",
        **dict.fromkeys(("d02", "d03", "d04"), "updated"),
    }
    assert rows["d01"]["reason"]
    assert rows["d01"]["hint"]
    # Those after it went on meanwhile.
    assert max(rows[name]["ended_s"] for name in ("d02", "d03", "d04")) < rows["d01"]["ended_s"]
    row = assert_invariant(
        slow.state, slow.agent, {each for each in _digests(slow) if each != release.digest}, model=MODEL
    )
    assert row is not None


def _digests(device: FleetDevice) -> set[str]:
    return {path.name for path in (device.state / "releases").iterdir()}
