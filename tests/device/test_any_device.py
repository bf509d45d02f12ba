"""What any device must do: the same on loopback, on an emulated aarch64 one, and on a real one (docs/arm64.md)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kedge.diagnose.opened import open_snapshot
from kedge.model.session import ReferenceModel
from kedge.targets import load_target
from tests.device.conftest import NAME, Provisioned
from tests.loopback.test_upgrade_ssh import other_agent, transport_of, upgrade
from tests.support import models
from tests.support.schemas import validate

pytestmark = [pytest.mark.slow, pytest.mark.device]

_OURS = ("reachability", "host-key", "agent", "restarts", "releases", "runtimes", "models")


def test_it_is_what_its_profile_says_and_only_a_trusted_one_is_spoken_to(device: Provisioned) -> None:
    probed = device.cli.json("device", "probe", NAME)
    info = device.cli.json("status", "--on", NAME)["agent"]
    arch = load_target(device.device.target).arch
    assert (probed["arch"], info["arch"], info["os"]) == (arch, arch, "linux")
    assert device.provisioned["agent"] in probed["agents"]
    assert device.device.run("uname -m").stdout.strip() == arch
    device.cli("device", "trust", NAME, "--fingerprint", "SHA256:AAAA", code=6)


def test_its_libraries_came_from_the_host_and_nothing_was_downloaded_there(device: Provisioned) -> None:
    assert device.provisioned["sent_bytes"] > 1e6
    assert device.provisioned["info"]["runtimes"]["onnxruntime"]
    state, arch = device.device.state, load_target(device.device.target).arch
    tags = device.device.run(f"grep -h ^Tag: {state}/agent/*/site/*.dist-info/WHEEL").stdout.split()[1::2]
    assert {tag.split("-")[-1].split("_")[-1] for tag in tags} == {"any", arch.split("_")[-1]}
    assert device.device.run(f"ls {state}/agent/*/site | grep -c ^pip").stdout.strip() == "0"
    assert device.device.run(f"test -e {state}/provision").returncode == 1
    again = device.cli.json("device", "provision", NAME, "--no-service")
    assert (again["sent_bytes"], again["started"]) == (0, "already running")
    if device.device.sealed:
        assert "No module named pip" in device.device.run("python3 -m pip --version").stderr
        # Destination and mask of every route; both are 0 in one that leads anywhere.
        routes = [line.split() for line in device.device.run("cat /proc/net/route").stdout.splitlines()[1:]]
        assert routes
        assert all(route[1] != "00000000" and route[7] != "00000000" for route in routes)
        dialled = "python3 -c \"import socket; socket.create_connection(('151.101.0.223', 443), 5)\""
        assert "Network is unreachable" in device.device.run(dialled).stderr


def test_a_release_goes_live_and_answers_as_the_host_computes(device: Provisioned, tmp_path: Path) -> None:
    release = device.build("answers", 1, seed=3)
    deployed = device.cli.json("deploy", str(release), "--to", NAME)
    assert (deployed["model"], deployed["version"]) == ("answers", 1)
    images, out = device.folder / "images.npy", tmp_path / "out.npz"
    device.cli.json("infer", "answers", "--on", NAME, "--input", str(images), "--output", str(out))
    expected = ReferenceModel(device.folder / "answers-1.onnx").run({"image": models.images(20)})["logits"]
    np.testing.assert_allclose(np.load(out)["logits"], expected, rtol=1e-4, atol=1e-5)


def test_a_release_that_its_gate_refuses_leaves_the_live_one_and_a_rollback_goes_back(device: Provisioned) -> None:
    first = device.cli.json("deploy", str(device.build("guarded", 1)), "--to", NAME)
    second = device.cli.json("deploy", str(device.build("guarded", 2, seed=5)), "--to", NAME)
    slow = device.build("guarded", 3, "--p99-ms", "0.000001", seed=7)
    assert "latency gate" in device.cli("deploy", str(slow), "--to", NAME, code=5).stderr
    assert _row(device, "guarded")["release"] == second["release"]
    back = device.cli.json("rollback", "guarded", "--on", NAME)
    assert (back["release"], back["previous"]) == (first["release"], second["release"])
    assert _row(device, "guarded")["state"] == "serving"


def test_a_bench_has_figures_and_says_where_no_processor_made_them(device: Provisioned) -> None:
    device.cli("deploy", str(device.build("timed", 1)), "--to", NAME)
    report = device.cli.json("bench", "timed", "--on", NAME, "--duration-ms", "200", "--waterfall", "--layers")
    validate(report, "bench")
    judged = report["in_agent"]["trust"]
    assert any(reason["what"] == "emulated" for reason in judged["reasons"]) == device.device.emulated
    if device.device.emulated:
        assert not judged["stable"]


def test_it_is_well_for_the_doctor_and_its_history_and_a_snapshot_say_what_it_did(
    device: Provisioned, tmp_path: Path
) -> None:
    device.cli("deploy", str(device.build("known", 1)), "--to", NAME)
    # Whatever else ails the machine: kedge is well there.
    said = subprocess.run(
        [sys.executable, "-m", "kedge", "doctor", "--on", NAME, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=device.cli.environment,
    )
    results = {each["check"]: each["result"] for each in json.loads(said.stdout)["findings"]}
    assert {results[check] for check in _OURS} == {"ok"}, results
    history = device.cli.json("history", "--on", NAME)
    assert "known" in json.dumps(history)
    file = tmp_path / "unit1.kedge-snapshot.tar.zst"
    device.cli("snapshot", "--on", NAME, "-o", str(file))
    assert open_snapshot(file).problems == ()
    device.cli("snapshot", "open", str(file), "-o", str(tmp_path / "page.html"))
    assert "</html>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_its_agent_is_upgraded_while_it_serves(
    device: Provisioned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device.cli("deploy", str(device.build("kept", 1)), "--to", NAME)
    with monkeypatch.context() as patch:
        other_agent(patch, tmp_path, "9.9.9", {})
        transport = transport_of(device.cli, NAME)
        try:
            done = upgrade(transport, load_target(device.device.target))
        finally:
            transport.close()
    assert (done.state, done.to_version) == ("committed", "9.9.9")
    assert done.sent_bytes < 2_000_000 < done.skipped_bytes
    assert _row(device, "kept")["state"] == "serving"
    # What the other tests know is the agent of before.
    back = device.cli.json("device", "upgrade", NAME)
    assert back["from_version"] == "9.9.9"


def _row(device: Provisioned, model: str) -> dict[str, object]:
    rows = device.cli.json("status", "--on", NAME)["models"]
    return dict(next(row for row in rows if row["model"] == model))
