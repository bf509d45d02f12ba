"""Deploys and rollbacks while eight clients ask without a pause: no request is lost, none fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agents import Device
from tests.support.bad_models import obedient_release, slow_order
from tests.support.deploys import clients, deploy, eventually, history, must_deploy

CLIENTS = 8
ACTIVATIONS = 50
ROLLBACKS = 5

LIMIT_MS = 100
"""Golden inputs take a small part of a millisecond, and far less than this on a machine that eight clients hammer."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_request_is_lost_across_fifty_activations_and_ten_forced_rollbacks(tmp_path: Path) -> None:
    device = Device(tmp_path / "device")
    releases = [obedient_release(tmp_path, version=version) for version in (1, 2)]
    # It keeps what it promises on its golden inputs, and not on what these clients send.
    hasty = obedient_release(tmp_path, version=3, gates={"latency": {"p99_ms": f"{LIMIT_MS}"}}, probation_s=60)
    slow = slow_order(3 * LIMIT_MS)
    device.start("--threads", "1")
    try:
        for release in releases:
            must_deploy(device, release)
        device.push(hasty)
        with clients(device, CLIENTS, every=20) as hammering:
            for number in range(ACTIVATIONS):
                ended = deploy(device, releases[number % 2])
                assert ended["state"] == "done", ended
            assert hammering.answered > 100
            for number in range(ROLLBACKS):
                status, said = device.rollback()
                assert status == 200, said
                assert said["release"] == releases[number % 2].digest
            live = (device.row() or {})["release"]
            for _ in range(ROLLBACKS):
                assert device.begin_deploy(hasty)[0] == 200
                assert eventually(lambda: (device.row() or {})["release"] == hasty.digest)
                hammering.order = slow
                ended = device.follow_deploy(hasty)
                assert ended["state"] == "reverted", ended
                assert "p99 of what clients sent" in ended["error"]["error"]
                hammering.order = None
                assert (device.row() or {})["release"] == live
        assert hammering.failed == []
        steps = [entry["step"] for entry in history(device)]
        assert steps.count("committed") == ACTIVATIONS + len(releases)
        assert steps.count("rolled-back") == ROLLBACKS
        assert steps.count("reverted") == ROLLBACKS
    finally:
        device.kill()
