"""The whole way on the device named `local`: the real agent as a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kedge.bench.batches import infer_batches
from kedge.bench.run import BenchRules, run_bench
from kedge.deploy.push import deploy, rollback
from kedge.errors import AgentMissingError, BadInputError, GateRefusedError, UnreachableError
from kedge.model.session import ReferenceModel
from kedge.release.bundle import Release
from kedge.transport.base import Deadline
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from kedge_agent.wire import FRAME_BYTES, MESSAGE_HEADER, Message
from tests.conftest import make_release
from tests.support import models
from tests.support.schemas import validate


def soon() -> Deadline:
    return Deadline.after(30, "the test")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_a_release_is_deployed_runs_and_is_rolled_back(local_agent: LocalAgent, tmp_path: Path) -> None:
    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2, seed=5)
    states: list[str] = []
    progress: list[tuple[int, int]] = []
    done = deploy(local_agent, first, state=states.append, progress=lambda *at: progress.append(at))
    assert states == ["plan", "push", "verify", "stage", "gate", "switch", "probation", "done"]
    assert (done.model, done.version, done.previous) == ("digits", 1, None)
    assert done.sent_bytes == first.manifest.total_bytes
    assert progress[0] == (0, done.sent_bytes)
    assert progress[-1] == (done.sent_bytes, done.sent_bytes)
    assert done.parity[0]["cosine"] > 0.9999
    client = AgentClient(local_agent)
    images = models.images(10)
    expected = ReferenceModel(tmp_path / "digits-1.onnx").run({"image": images})["logits"]
    for batch in (1, 3, 10):
        outputs, timings = infer_batches(client, "digits", {"image": images}, batch=batch)
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
        assert len(timings) == -(-10 // batch)
    assert deploy(local_agent, second).previous == first.digest
    assert deploy(local_agent, second).sent_bytes == 0
    assert rollback(local_agent, "digits")["release"] == first.digest
    outputs, _ = infer_batches(client, "digits", {"image": images})
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
    client.close()


def test_a_model_of_many_frames_arrives_whole(local_agent: LocalAgent, tmp_path: Path) -> None:
    from kedge.build.release import BuildOptions, build_release
    from kedge.targets import host_target

    model = models.padded(tmp_path / "big.onnx", 2 * FRAME_BYTES + 12345)
    release = build_release(model, host_target(), tmp_path / "r", BuildOptions("big")).release
    assert len(release.manifest.file("model.onnx").frames) == 3
    done = deploy(local_agent, release)
    assert done.sent_bytes == release.manifest.total_bytes


def test_the_bench_report_is_as_documented_and_adds_up(local_agent: LocalAgent, release: Release) -> None:
    deploy(local_agent, release)
    ticks: list[tuple[str, float]] = []
    report = run_bench(
        local_agent, "digits", BenchRules(warmup_ms=10, duration_ms=200, batch=2), lambda *at: ticks.append(at)
    )
    validate(report, "bench")
    assert report["conditions"]["batch"] == 2
    end, inside = report["end_to_end"], report["in_agent"]
    assert end["count"] >= 10
    assert end["seconds"] >= 0.2
    assert end["total"]["mean_ms"] == pytest.approx(
        sum(end[part]["mean_ms"] for part in ("transport", "queue", "input", "compute", "output")), rel=1e-6
    )
    assert inside["total"]["median_ms"] < end["total"]["median_ms"]
    assert report["memory"]["model_bytes"] == release.manifest.file("model.onnx").size_bytes
    assert report["memory"]["now"]["rss_bytes"] > 1e6
    assert ticks[-1] == ("in the agent", 1.0)


def test_a_model_of_a_fixed_batch_is_measured_and_reported_at_that_batch(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    from kedge.build.release import BuildOptions, build_release
    from kedge.targets import host_target

    model = models.classifier(tmp_path / "m.onnx", batch=8)
    golden = {"image": models.images(8)}
    deploy(local_agent, build_release(model, host_target(), tmp_path / "r", BuildOptions("fixed"), golden).release)
    report = run_bench(local_agent, "fixed", BenchRules(warmup_ms=0, duration_ms=1))
    assert report["conditions"]["batch"] == 8


def test_a_model_whose_first_dimension_is_no_batch_is_not_split(local_agent: LocalAgent, tmp_path: Path) -> None:
    from kedge.build.release import BuildOptions, build_release
    from kedge.targets import host_target

    model = models.nonzero(tmp_path / "m.onnx")
    golden = {"x": np.array([0, 1, 0, 2], "f4")}
    deploy(local_agent, build_release(model, host_target(), tmp_path / "r", BuildOptions("nz"), golden).release)
    client = AgentClient(local_agent)
    values = (np.arange(100) % 3).astype("f4")
    outputs, timings = infer_batches(client, "nz", {"x": values})
    assert len(timings) == 1
    np.testing.assert_array_equal(outputs["indices"], [np.nonzero(values)[0]])
    with pytest.raises(BadInputError, match="cannot be split"):
        infer_batches(client, "nz", {"x": values}, batch=10)
    with pytest.raises(BadInputError, match="not a model's name"):
        infer_batches(client, "my model", {"x": values})
    client.close()


def test_a_second_ephemeral_agent_that_is_refused_leaves_the_first_one_s_store(
    local_agent: LocalAgent, release: Release
) -> None:
    deploy(local_agent, release)
    command = [sys.executable, "-m", "kedge_agent", "--state", str(local_agent.state), "serve", "--ephemeral"]
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 13
    assert (local_agent.state / "releases" / release.digest / "manifest.json").is_file()


def test_code_in_the_working_folder_is_not_run(
    tmp_path: Path, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    agent = LocalAgent(Path("device"))
    agent.start(soon())
    deploy(agent, release)
    agent.close()
    assert not (tmp_path / "ran").exists()


def test_a_large_request_that_is_refused_before_it_is_read_is_told_why(local_agent: LocalAgent) -> None:
    client = AgentClient(local_agent)
    with pytest.raises(BadInputError, match="no model named 'ghost'"):
        client.infer("ghost", {"x": np.zeros(4_000_000, "f4")})
    client.close()


def test_two_that_start_the_local_agent_at_once_share_one(tmp_path: Path) -> None:
    agents = [LocalAgent(tmp_path / "device") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda agent: agent.start(soon()), agents))
    assert sum(agent.pid is not None for agent in agents) == 1
    for agent in sorted(agents, key=lambda agent: agent.pid is not None):
        agent.close()


def test_a_push_whose_host_falls_silent_gives_its_lock_back(tmp_path: Path, release: Release) -> None:
    program = "import sys, kedge_agent.cli as cli; cli._SILENCE_S = 0.3; sys.exit(cli.main(sys.argv[1:]))"
    receive = subprocess.Popen(
        [sys.executable, "-c", program, "--state", str(tmp_path / "device"), "receive"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert receive.stdin is not None
    receive.stdin.write(MESSAGE_HEADER.pack(Message.MANIFEST, len(release.manifest_bytes)) + release.manifest_bytes)
    receive.stdin.flush()
    assert receive.wait(20) == 3
    for stream in (receive.stdin, receive.stdout, receive.stderr):
        assert stream is not None
        stream.close()


def test_what_is_not_there_is_told(local_agent: LocalAgent) -> None:
    with pytest.raises(BadInputError, match="serves no model named 'ghost'"):
        run_bench(local_agent, "ghost", BenchRules())
    with pytest.raises(BadInputError, match="no model named 'ghost'"):
        rollback(local_agent, "ghost")


def test_the_gate_refuses_across_the_whole_way_and_the_live_release_serves_on(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    from tests.unit.test_serving import rewritten

    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2, seed=5)
    deploy(local_agent, first)
    (second.folder / "golden-out-0.bin").write_bytes(np.ones((8, 4), "f4").tobytes())
    with pytest.raises(GateRefusedError, match="cosine"):
        deploy(local_agent, rewritten(second, second.folder))
    client = AgentClient(local_agent)
    assert client.get("/kedge/v1/status")["models"][0]["release"] == first.digest
    client.close()


def test_a_second_transport_joins_the_agent_that_serves_already(local_agent: LocalAgent, release: Release) -> None:
    deploy(local_agent, release)
    second = LocalAgent(local_agent.state)
    second.start(soon())
    assert second.pid is None
    client = AgentClient(second)
    assert client.get("/kedge/v1/info")["pid"] == local_agent.pid
    client.close()
    second.close()
    assert local_agent.pid is not None
    assert alive(local_agent.pid)


def test_an_agent_killed_hard_comes_back_serving_what_it_served(tmp_path: Path, release: Release) -> None:
    agent = LocalAgent(tmp_path / "device")
    agent.start(soon())
    deploy(agent, release)
    client = AgentClient(agent)
    client.get("/kedge/v1/info")
    assert agent.pid is not None
    os.kill(agent.pid, signal.SIGKILL)
    assert gone(agent.pid)
    with pytest.raises(UnreachableError, match="stopped answering"):
        client.get("/kedge/v1/info")
    agent.close()
    agent.start(soon())
    outputs, _ = infer_batches(client, "digits", {"image": models.images(2)})
    assert outputs["logits"].shape == (2, 4)
    client.close()
    agent.close()


def test_an_agent_whose_parent_is_killed_stops_and_removes_its_ephemeral_state(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
agent = LocalAgent(Path({str(tmp_path / "device")!r}), ephemeral=True)
agent.start(Deadline.after(30, "x"))
print(agent.pid, flush=True)
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)
    assert not (tmp_path / "device").exists()


def test_a_second_daemon_on_one_state_folder_is_refused(local_agent: LocalAgent) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kedge_agent", "--state", str(local_agent.state), "serve"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 13
    assert f"process {local_agent.pid}" in done.stderr


def test_start_status_and_stop_by_hand(tmp_path: Path) -> None:
    def agent(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kedge_agent", "--state", str(tmp_path / "device"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert agent("status").returncode == 14
    assert agent("start").returncode == 0
    try:
        assert '"models": []' in agent("status").stdout
        again = agent("start")
        assert again.returncode == 13
        assert "already serves" in again.stderr
    finally:
        assert agent("stop").returncode == 0
    assert agent("stop").returncode == 0
    assert agent("status").returncode == 14


def test_an_agent_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((AgentMissingError, OSError)):
        LocalAgent(tmp_path / "file").start(soon())


def test_settings_that_cannot_be_used_are_told_with_the_agents_own_hint(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text('{"nonsense": 1}')
    with pytest.raises(AgentMissingError, match=r"did not start: .*nonsense") as caught:
        LocalAgent(tmp_path).start(soon())
    assert caught.value.hint
    assert "agent.log" not in caught.value.hint


def test_a_hint_of_the_devices_is_a_command_that_runs(local_agent: LocalAgent) -> None:
    with pytest.raises(BadInputError) as caught:
        rollback(local_agent, "absent")
    assert caught.value.hint == "see: kedge status --on local"
