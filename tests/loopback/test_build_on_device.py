"""Engines built by the agent: the real agent, NVIDIA's real compiler in a real child process, no GPU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.build.cache import EngineCache
from kedge.build.release import BuildOptions, build_release
from kedge.deploy.engines import complete, engine_on_device, needs_engine, prepared
from kedge.deploy.push import deploy
from kedge.errors import BusyError, IncompatibleError, IntegrityError
from kedge.release.bundle import Release, write_release
from kedge.targets import Target, load_target
from kedge.transport.base import Channel, Deadline
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent, ProcessChannel
from kedge.transport.upload import upload
from tests.support import environment, models
from tests.support.qdq import Net

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _compiler() -> None:
    environment.tensorrt_rtx()


@pytest.fixture
def target() -> Target:
    return load_target("rtx-ada-2000")


@contextlib.contextmanager
def device(state: Path) -> Iterator[LocalAgent]:
    """An agent with a state folder of its own."""
    agent = LocalAgent(state)
    try:
        agent.start(Deadline.after(30, "the test"))
        yield agent
    finally:
        agent.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[LocalAgent]:
    with device(tmp_path / "device") as found:
        yield found


def small_model(folder: Path) -> Path:
    return models.classifier(folder / "small.onnx", batch=1)


def planned(model: Path, target: Target, folder: Path, **options: Any) -> Release:
    """A release that a device has yet to compile."""
    asked = BuildOptions("net", on_device=True, **options)
    return build_release(model, target, folder / "net.release", asked).release


def silent(step: str, share: float) -> None:
    """Progress for nobody."""


def push(agent: LocalAgent, release: Release) -> None:
    channel, protocol = agent.open_receive(Deadline.after(30, "the test"))
    upload(channel, agent.name, release.manifest_bytes, release.files(), protocol=protocol)


def agent_pid(agent: LocalAgent) -> int:
    client = AgentClient(agent)
    try:
        return int(client.get("/kedge/v1/info")["pid"])
    finally:
        client.close()


def builder_of(pid: int, seconds: float = 20) -> int:
    """The agent's compiler process, once it has offered itself to the kernel."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for child in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for found in child.read_text(encoding="ascii").split():
                    if Path(f"/proc/{found}/oom_score_adj").read_text(encoding="ascii").strip() == "1000":
                        return int(found)
        time.sleep(0.002)
    raise AssertionError("no compiler was started")


def ended(pid: int, seconds: float = 10) -> bool:
    """Whether the agent has no compiler running, now or soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        children = [child.read_text(encoding="ascii") for child in Path(f"/proc/{pid}/task").glob("*/children")]
        if not "".join(children).split():
            return True
        time.sleep(0.02)
    return False


def test_the_first_device_builds_and_the_second_of_the_same_passport_takes_what_it_built(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path / "cache")
    release = planned(small_model(tmp_path), target, tmp_path)
    artefact = needs_engine(release)
    assert artefact is not None
    assert artefact.file == "model.onnx"
    steps: list[str] = []
    engine, built = engine_on_device(agent, target, release, lambda step, share: steps.append(step), cache=cache)
    assert built
    assert "compiling on local" in steps
    assert engine.path.read_bytes()[:4] == b"vtrt"
    assert engine.passport.compute_capabilities == ("8.9",)
    assert [attempt["outcome"] for attempt in engine.report["attempts"]] == ["built"]
    assert engine.report["network"]

    with device(tmp_path / "second") as second:
        again, built = engine_on_device(second, target, release, silent, cache=cache)
    assert not built
    assert again.sha256 == engine.sha256
    assert not (tmp_path / "second" / "engines").exists()

    whole = complete(release, engine, tmp_path / "whole.release")
    whole.verify()
    assert needs_engine(whole) is None
    assert whole.manifest.artefacts[0].passport == engine.passport
    assert {entry.name for entry in whole.manifest.files} == {"model.engine", "golden-in-0.bin", "golden-out-0.bin"}
    assert prepared(agent, target, whole, tmp_path / "unused", silent) is whole


def test_a_device_that_lost_the_host_keeps_building_and_whoever_asks_again_gets_the_engine(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    release = planned(small_model(tmp_path), target, tmp_path)
    push(agent, release)
    client = AgentClient(agent)
    asked = client.post("/kedge/v1/build", {"release": release.digest})
    client.close()
    engine, _ = engine_on_device(agent, target, release, silent, cache=EngineCache(tmp_path / "cache"))
    stored = json.loads((agent.state / "engines" / asked["job"] / "entry.json").read_text(encoding="utf-8"))
    assert stored["sha256"] == engine.sha256


def test_what_is_to_be_compiled_is_pushed_no_faster_than_asked_and_again_where_the_link_breaks(
    target: Target, tmp_path: Path
) -> None:
    portions: list[int] = []

    class Link(LocalAgent):
        breaks = True

        def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
            channel, protocol = super().open_receive(deadline)
            assert isinstance(channel, ProcessChannel)
            send = channel.sendall

            def sendall(data: bytes | memoryview, /) -> None:
                if self.breaks and len(portions) > 9:
                    self.breaks = False
                    channel._process.kill()
                portions.append(len(data))
                send(data)

            channel.sendall = sendall  # type: ignore[method-assign]
            return channel, protocol

    link = Link(tmp_path / "device")
    with contextlib.closing(link):
        link.start(Deadline.after(30, "the test"))
        release = planned(small_model(tmp_path), target, tmp_path)
        limit = 4 * release.manifest.total_bytes
        cache = EngineCache(tmp_path / "cache")
        _, built = engine_on_device(link, target, release, silent, cache=cache, limit_bytes_per_s=limit)
    assert built
    assert not link.breaks
    assert max(portions) < release.manifest.total_bytes // 2


def test_a_workspace_that_is_too_small_is_raised_on_the_device(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    model = environment.shared_model("resnet20_cifar10.onnx")
    shapes = {"input": ((1, 3, 32, 32), (64, 3, 32, 32), (64, 3, 32, 32))}
    release = planned(model, target, tmp_path, workspace_bytes=8 * MIB, shapes=shapes)
    steps: list[str] = []
    engine, _ = engine_on_device(
        agent, target, release, lambda step, share: steps.append(step), cache=EngineCache(tmp_path / "cache")
    )
    *failed, last = engine.report["attempts"]
    assert failed
    assert {attempt["outcome"] for attempt in failed} == {"more"}
    assert last["outcome"] == "built"
    assert last["workspace_bytes"] > 8 * MIB
    assert "compiling on local: not within 8 MiB of workspace, trying again" in steps


def test_a_compiler_that_is_killed_is_started_again_with_less_and_the_agent_serves_on(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    pid = agent_pid(agent)
    release = planned(small_model(tmp_path), target, tmp_path)
    killer = threading.Thread(target=lambda: os.kill(builder_of(pid), signal.SIGKILL), daemon=True)
    killer.start()
    engine, _ = engine_on_device(agent, target, release, silent, cache=EngineCache(tmp_path / "cache"))
    killer.join()
    first, *_, last = engine.report["attempts"]
    assert (first["outcome"], last["outcome"]) == ("less", "built")
    assert "was killed" in first["reason"]
    assert last["workspace_bytes"] < first["workspace_bytes"]
    assert agent_pid(agent) == pid


def test_ctrl_c_ends_the_build_on_the_device_too_and_another_can_begin(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    model = environment.shared_model("mobilenetv2_imagenet.onnx")
    release = planned(model, target, tmp_path, compute_capabilities=("8.6", "12.0"))

    def stop(step: str, share: float) -> None:
        if step.startswith("compiling"):
            raise KeyboardInterrupt

    cache = EngineCache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        engine_on_device(agent, target, release, stop, cache=cache)
    assert cache.entries() == []
    # Nothing was kept, and no compiler is left.
    kept = [entry.name for entry in (agent.state / "engines").iterdir() if not entry.name.startswith(".")]
    assert kept == []
    assert ended(agent_pid(agent))
    other = tmp_path / "other"
    other.mkdir()
    end = time.monotonic() + 30
    while True:
        try:
            engine, built = engine_on_device(
                agent, target, planned(small_model(other), target, other), silent, cache=cache
            )
            break
        except BusyError:
            assert time.monotonic() < end, "the build that was ended goes on"
            time.sleep(0.05)
    assert built
    assert engine.size_bytes


def test_an_agent_that_stops_takes_its_compiler_with_it_and_leaves_no_files(target: Target, tmp_path: Path) -> None:
    model = environment.shared_model("mobilenetv2_imagenet.onnx")
    release = planned(model, target, tmp_path, compute_capabilities=("8.0", "8.6", "12.0", "12.1"))
    with device(tmp_path / "device") as agent:
        push(agent, release)
        client = AgentClient(agent)
        client.post("/kedge/v1/build", {"release": release.digest})
        builder = builder_of(agent_pid(agent))
        client.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{builder}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{builder}").exists()
    assert list((tmp_path / "device" / "engines").iterdir()) == []


def test_what_a_device_says_while_it_builds_is_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    from kedge.cli.live import live_display
    from kedge.deploy.compiling import _tell

    with live_display() as live:
        for line in ("WARNING: [/layer1/conv + /relu] Half", "ERROR: [red]x[/nonsense]", "WARNING: \x1b[2Jgone"):
            _tell({"event": "log", "line": line}, "edge1", live.share)
    assert "\x1b[2Jgone" not in capsys.readouterr().err


def test_a_model_that_the_device_s_compiler_refuses_is_refused_with_its_words(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    net = Net()
    path = tmp_path / "odd.onnx"
    proto = net.graph(net.add("Det", "x"), (4, 4)).proto
    proto.graph.output[0].type.tensor_type.shape.SetInParent()
    path.write_bytes(proto.SerializeToString())
    release = planned(path, target, tmp_path)
    with pytest.raises(IncompatibleError, match="refuses Det"):
        engine_on_device(agent, target, release, silent, cache=EngineCache(tmp_path / "cache"))


def test_a_release_with_nothing_but_a_plan_does_not_go_live(agent: LocalAgent, target: Target, tmp_path: Path) -> None:
    release = planned(small_model(tmp_path), target, tmp_path)
    with pytest.raises(IncompatibleError, match="a build plan for tensorrt-rtx, and no engine yet"):
        deploy(agent, release)
    # Nor is an engine built for an agent that could not run it.
    with pytest.raises(IncompatibleError, match="local has no runtime for tensorrt-rtx: it could build the engine"):
        prepared(agent, target, release, tmp_path / "unused", silent)
    with pytest.raises(IncompatibleError, match="local is h100, the release is for rtx-ada-2000"):
        prepared(agent, load_target("h100"), release, tmp_path / "unused", silent)
    assert not (agent.state / "engines").exists()


@pytest.mark.parametrize("body", [{}, {"release": "x"}, {"release": "0" * 64, "runtime": "x"}, [], {"release": 5}])
def test_a_request_for_a_build_is_checked(agent: LocalAgent, body: Any) -> None:
    from kedge.errors import BadInputError

    client = AgentClient(agent)
    try:
        with pytest.raises(BadInputError):
            client.post("/kedge/v1/build", body)
    finally:
        client.close()


class TestEnginesThatDoNotFit:
    """Each is refused by the device before anything loads it, with both sides named."""

    @pytest.fixture
    def whole(self, target: Target, tmp_path: Path) -> Release:
        options = BuildOptions("net")
        cache = EngineCache(tmp_path / "cache")
        return build_release(small_model(tmp_path), target, tmp_path / "whole", options, cache=cache).release

    def edited(self, release: Release, folder: Path, edit: dict[int, bytes], **passport: Any) -> Release:
        """The release with bytes of its engine and keys of its passport changed: a manifest that is itself sound."""
        body = json.loads(release.manifest_bytes)
        del body["files"]
        body["artefacts"][0]["passport"] |= passport
        sources: dict[str, Path | bytes] = {entry.name: path.read_bytes() for entry, path in release.files()}
        engine = bytearray(sources["model.engine"])  # type: ignore[arg-type]
        for offset, value in edit.items():
            engine[offset : offset + len(value)] = value
        sources["model.engine"] = bytes(engine)
        return write_release(folder / "edited", sources, body)

    def refusal(self, agent: LocalAgent, release: Release) -> Exception:
        with pytest.raises((IncompatibleError, IntegrityError)) as caught:
            deploy(agent, release)
        return caught.value

    def test_another_version(self, agent: LocalAgent, whole: Release, tmp_path: Path) -> None:
        release = self.edited(whole, tmp_path, {24: bytes((1, 6, 0, 4))}, runtime_version="1.6.0.4")
        error = self.refusal(agent, release)
        assert isinstance(error, IncompatibleError)
        expected = "engine: TensorRT for RTX 1.6.0.4, CC 8.9; device: TensorRT for RTX 1.7.1.116"
        assert expected in str(error)
        assert error.hint == "rebuild with: kedge build … --target rtx-ada-2000"

    def test_a_passport_that_is_not_the_engine_s(self, agent: LocalAgent, whole: Release, tmp_path: Path) -> None:
        error = self.refusal(agent, self.edited(whole, tmp_path, {24: bytes((1, 6, 0, 4))}))
        assert isinstance(error, IntegrityError)
        assert "is an engine of TensorRT for RTX 1.6.0.4, CC 8.9, its passport says TensorRT for RTX 1.7.1.116" in str(
            error
        )

    def test_another_kind_of_gpu(self, agent: LocalAgent, whole: Release, tmp_path: Path) -> None:
        error = self.refusal(agent, self.edited(whole, tmp_path, {32: (16).to_bytes(4, "little")}))
        assert "CC 12.0, its passport says TensorRT for RTX 1.7.1.116, CC 8.9" in str(error)

    def test_a_wrong_length(self, agent: LocalAgent, whole: Release, tmp_path: Path) -> None:
        error = self.refusal(agent, self.edited(whole, tmp_path, {16: (99_999_999).to_bytes(8, "little")}))
        assert "truncated: it claims 99999999 bytes" in str(error)

    def test_something_else(self, agent: LocalAgent, whole: Release, tmp_path: Path) -> None:
        error = self.refusal(agent, self.edited(whole, tmp_path, {0: b"\x7fELF"}))
        assert "no TensorRT engine" in str(error)

    def test_another_processor(self, agent: LocalAgent, whole: Release, tmp_path: Path) -> None:
        error = self.refusal(agent, self.edited(whole, tmp_path, {}, arch="aarch64"))
        assert "engine: linux/aarch64; device: linux/x86_64" in str(error)

    def test_a_sound_one_needs_the_runtime_that_loads_it(self, agent: LocalAgent, whole: Release) -> None:
        error = self.refusal(agent, whole)
        assert "the release needs a runtime among: tensorrt-rtx" in str(error)


def test_a_device_of_another_kind_is_refused_before_anything_is_sent(
    agent: LocalAgent, target: Target, tmp_path: Path
) -> None:
    release = planned(small_model(tmp_path), target, tmp_path)
    with pytest.raises(IncompatibleError, match="local is linux/x86_64, its target orin is linux/aarch64"):
        engine_on_device(
            agent, replace(target, name="orin", arch="aarch64"), release, silent, cache=EngineCache(tmp_path / "c")
        )
