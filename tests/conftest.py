"""Fixtures that every test may use. No test touches the user's own configuration, cache or state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge.build.gates import GateOptions
from kedge.build.release import BuildOptions, build_release
from kedge.config import cache_dir
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from tests.support import models

# Tests that use onnxruntime directly leave nothing of it in the user's home either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The wheels for test devices are kept between runs, where a user's would be; nothing else is.
_WHEELS = cache_dir() / "wheelhouse"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has a time limit of its own takes longest: it begins first, so that no process is left alone with it."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    _WHEELS.mkdir(parents=True, exist_ok=True)
    (home / "cache" / "kedge").mkdir(parents=True)
    (home / "cache" / "kedge" / "wheelhouse").symlink_to(_WHEELS, target_is_directory=True)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release of the small classifier, version 1."""
    return make_release(tmp_path, version=1)


def make_release(folder: Path, *, version: int, name: str = "digits", seed: int = 0) -> Release:
    """A release of the small classifier; another seed gives other weights."""
    model = models.classifier(folder / f"{name}-{version}.onnx", seed=seed)
    options = BuildOptions(name, version, GateOptions(probation_s=0))
    golden = {"image": models.images()}
    return build_release(model, host_target(), folder / f"{name}-{version}.release", options, golden).release


@pytest.fixture
def local_agent(tmp_path: Path) -> Iterator[LocalAgent]:
    """The real agent as a child process, on a fresh state folder."""
    state = tmp_path / "device"
    state.mkdir(mode=0o700)
    # Nobody waits for a probation but who asks for one.
    (state / "agent.json").write_text('{"releases": {"probation_s": 0}}')
    agent = LocalAgent(state)
    try:
        agent.start(Deadline.after(60, "starting the agent"))
        yield agent
    finally:
        agent.close()
