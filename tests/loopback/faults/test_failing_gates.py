"""A candidate that fails on the device, in every way: it is refused, the reason is told, and the live one serves on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.measure.memory import read_memory
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import FOREVER, TOO_MUCH, crash, obedient_release, order, variant, wrong_outputs
from tests.support.deploys import clients, deploy, history, must_deploy

SLOW = 3000
"""Turns of some 50 ms."""


def children(pid: int) -> list[int]:
    """Processes that a process started, and they."""
    out = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                out += [child, *children(child)]
    return out


@contextlib.contextmanager
def killing_children(pid: int, number: signal.Signals) -> Iterator[None]:
    """Meanwhile a process's children get this signal, as the kernel sends SIGKILL when memory runs out."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(OSError):
                for child in children(pid):
                    os.kill(child, number)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def refused(device: Device, live: Release, bad: Release, kind: str) -> dict[str, Any]:
    """The device refuses it and says why; clients of the live one notice nothing."""
    device.push(bad)
    with clients(device) as asking:
        # There are answers before, meanwhile and after.
        time.sleep(0.2)
        ended = deploy(device, bad)
        before = asking.answered
        time.sleep(0.2)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", kind), ended
    assert ended["error"]["error"]
    assert ended["error"]["hint"]
    assert asking.answered > before > 0
    assert not asking.failed
    row = assert_invariant(device.state, device.agent, {live.digest})
    assert row is not None
    assert not row["problem"]
    entry = history(device)[-1]
    assert (entry["step"], entry["release"]) == ("refused", bad.digest)
    # The journal tells whoever asks later what the host was told.
    assert ended["error"]["error"][:40] in str(entry)
    return ended


def gates(ended: dict[str, Any]) -> dict[str, bool]:
    return {event["gate"]: event["passed"] for event in ended["events"] if event["event"] == "gate"}


@pytest.fixture
def live(device: Device, tmp_path: Path) -> Release:
    """What serves."""
    release = obedient_release(tmp_path, version=1)
    device.start()
    must_deploy(device, release)
    return release


def test_other_outputs_than_the_golden_ones_are_refused(device: Device, live: Release, tmp_path: Path) -> None:
    bad = wrong_outputs(obedient_release(tmp_path, version=2), tmp_path / "bad")
    ended = refused(device, live, bad, "gate")
    assert gates(ended)["parity"] is False
    assert "parity" in ended["error"]["error"]


@pytest.mark.slow
def test_a_model_that_is_slower_than_its_limit_is_refused(device: Device, live: Release, tmp_path: Path) -> None:
    limit = {"latency": {"p99_ms": "1"}}
    ended = refused(device, live, obedient_release(tmp_path, version=2, golden=order(turns=SLOW), gates=limit), "gate")
    assert gates(ended) == {"parity": True, "latency": False, "memory": True}
    event = next(event for event in ended["events"] if event.get("gate") == "latency")
    assert event["figures"]["p99_ms"] > 1


@pytest.mark.slow
def test_a_model_that_is_much_slower_than_the_live_one_is_refused(
    device: Device, live: Release, tmp_path: Path
) -> None:
    limit = {"latency": {"p99_ratio_max": "2"}}
    ended = refused(device, live, obedient_release(tmp_path, version=2, golden=order(turns=SLOW), gates=limit), "gate")
    assert gates(ended)["latency"] is False
    assert "live release" in ended["error"]["error"]


@pytest.mark.slow
def test_a_model_that_needs_more_memory_than_its_limit_is_refused(
    device: Device, live: Release, tmp_path: Path
) -> None:
    hundred_mb = order(size=25 * 1000 * 1000)
    limit = {"memory": {"peak_bytes": 64 << 20}}
    ended = refused(device, live, obedient_release(tmp_path, version=2, golden=hundred_mb, gates=limit), "gate")
    assert gates(ended)["memory"] is False
    event = next(event for event in ended["events"] if event.get("gate") == "memory")
    assert event["figures"]["peak_bytes"] > 100 * 1000 * 1000


@pytest.mark.slow
def test_a_model_that_asks_for_more_memory_than_there_is_ends_nothing_but_itself(
    device: Device, live: Release, tmp_path: Path
) -> None:
    refused(device, live, obedient_release(tmp_path, version=2, golden=order(size=TOO_MUCH)), "space")


@pytest.mark.slow
def test_a_model_that_asks_for_all_of_the_memory_that_is_free_ends_nothing_but_itself(
    device: Device, live: Release, tmp_path: Path
) -> None:
    # A little more than is free: the candidate's own limit refuses it, before the kernel has to choose whom to end.
    available = read_memory().available_bytes
    assert available is not None
    refused(
        device, live, obedient_release(tmp_path, version=2, golden=order(size=available // 4 + (64 << 20))), "space"
    )


@pytest.mark.slow
def test_a_candidate_that_the_kernel_kills_for_memory_is_refused(device: Device, live: Release, tmp_path: Path) -> None:
    bad = obedient_release(tmp_path, version=2, golden=order(turns=FOREVER))
    assert device.agent is not None
    with killing_children(device.agent.pid, signal.SIGKILL):
        refused(device, live, bad, "space")


@pytest.mark.slow
def test_a_model_that_crashes_its_runtime_is_refused(device: Device, live: Release, tmp_path: Path) -> None:
    ended = refused(device, live, obedient_release(tmp_path, version=2, golden=crash()), "incompatible")
    assert "SIGFPE" in ended["error"]["error"]


@pytest.mark.slow
def test_a_model_that_crashes_its_runtime_while_it_is_loaded_is_refused(
    device: Device, live: Release, tmp_path: Path
) -> None:
    good = obedient_release(tmp_path, version=2)
    assert device.agent is not None
    device.push(good)
    with killing_children(device.agent.pid, signal.SIGSEGV):
        refused(device, live, good, "incompatible")
    # It was none of its own doing: the same release passes the next time.
    assert deploy(device, good)["state"] == "done"
    assert_invariant(device.state, device.agent, {good.digest})


@pytest.mark.slow
def test_a_model_that_fails_on_its_golden_inputs_is_refused(device: Device, live: Release, tmp_path: Path) -> None:
    bad = obedient_release(tmp_path, version=2, golden=order(index=9))
    device.push(bad)
    ended = deploy(device, bad)
    assert ended["state"] == "refused", ended
    assert "out of data bounds" in ended["error"]["error"]
    assert_invariant(device.state, device.agent, {live.digest})


@pytest.mark.slow
def test_golden_inputs_of_other_tensors_are_refused(device: Device, live: Release, tmp_path: Path) -> None:
    def change(body: dict[str, Any]) -> None:
        for tensor in body["golden"]["inputs"]:
            tensor["name"] += "-2"

    refused(device, live, variant(obedient_release(tmp_path, version=2), tmp_path / "bad", change), "incompatible")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_that_never_ends_is_refused_in_time(device: Device, live: Release, tmp_path: Path) -> None:
    bad = obedient_release(tmp_path, version=2, golden=order(turns=FOREVER))
    device.push(bad)
    with clients(device) as asking:
        status, said = device.begin_deploy(bad)
        assert status == 200, said
        ended = device.follow_deploy(bad, timeout_s=200)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "gate"), ended
    assert "was not done after" in ended["error"]["error"]
    assert asking.answered
    assert not asking.failed
    assert device.agent is not None
    assert not children(device.agent.pid)
    assert_invariant(device.state, device.agent, {live.digest})
    # Whoever comes next finds nothing held.
    good = obedient_release(tmp_path, version=3)
    must_deploy(device, good)
    assert_invariant(device.state, device.agent, {good.digest})


@pytest.mark.slow
def test_a_candidate_that_never_ends_is_gone_with_the_agent(device: Device, live: Release, tmp_path: Path) -> None:
    bad = obedient_release(tmp_path, version=2, golden=order(turns=FOREVER))
    device.push(bad)
    assert device.begin_deploy(bad)[0] == 200
    assert device.agent is not None
    deadline = time.monotonic() + 30
    while not (left := children(device.agent.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    device.restart()
    assert_invariant(device.state, device.agent, {live.digest})
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline, "a candidate outlived the agent that tried it"
        time.sleep(0.02)
    must_deploy(device, obedient_release(tmp_path, version=3))


@pytest.mark.slow
def test_a_release_that_was_damaged_after_it_was_accepted_is_refused(
    device: Device, live: Release, tmp_path: Path
) -> None:
    bad = obedient_release(tmp_path, version=2)
    device.push(bad)
    model = device.state / "releases" / bad.digest / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(data)
    ended = deploy(device, bad)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity"), ended
    assert "model.onnx" in ended["error"]["error"]
    assert_invariant(device.state, device.agent, {live.digest})
