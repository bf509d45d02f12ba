"""The agent on every Python it may meet on a device: installed from wheels, as provisioning does it, without SSH."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kedge.bench.batches import infer_batches
from kedge.deploy import bootstrap
from kedge.deploy.push import deploy
from kedge.deploy.wheelhouse import DevicePython, Wheel, resolve
from kedge.errors import IncompatibleError
from kedge.model.session import ReferenceModel
from kedge.release.bundle import Release
from kedge.transport.base import Deadline
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.support import models
from tests.support.environment import interpreter


def wheels_for(python: str) -> list[Wheel]:
    libc = tuple(int(part) for part in platform.libc_ver()[1].split(".")[:2])
    major, minor = python.split(".")
    try:
        return resolve(DevicePython((int(major), int(minor)), platform.machine(), (libc[0], libc[1])))
    except IncompatibleError as error:
        pytest.skip(f"no wheels for Python {python} within reach: {error}")


def ask(python: str, request: dict[str, object]) -> dict[str, object]:
    """Run the bootstrap program as SSH would: on the device's bare interpreter."""
    program = Path(bootstrap.__file__).read_text()
    done = subprocess.run(
        [python, "-I", "-c", program],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_agent_installs_serves_and_stops(version: str, tmp_path: Path, release: Release) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    state = tmp_path / "state"
    probed = ask(python, {"do": "probe", "state": str(state)})
    assert probed["python"][:2] == [int(part) for part in version.split(".")]  # type: ignore[index]
    assert probed["installed"] == []
    wheels = wheels_for(version)
    (state / "provision").mkdir(parents=True)
    for wheel in wheels:
        shutil.copy(wheel.path, state / "provision" / f"{wheel.sha256}.whl")
    request = {
        "do": "install",
        "state": str(state),
        "digest": "d" * 64,
        "manifest": "{}",
        "service": False,
        "wheels": [{"sha256": wheel.sha256, "name": wheel.name} for wheel in wheels],
    }
    launcher = str(state / "bin" / "kedge-agent")
    try:
        assert ask(python, request)["unpacked"] is True
        assert ask(python, request)["started"] == "already running"
        agent = LocalAgent(state, command=[launcher])
        agent.start(Deadline.after(30, "joining the agent"))
        assert agent.pid is None
        deploy(agent, release)
        client = AgentClient(agent)
        assert client.get("/kedge/v1/info")["python"].startswith(f"{version}.")
        images = models.images(6)
        outputs, _ = infer_batches(client, "digits", {"image": images})
        expected = ReferenceModel(tmp_path / "digits-1.onnx").run({"image": images})["logits"]
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
        client.close()
    finally:
        subprocess.run([launcher, "stop"], check=True, timeout=60)


def test_a_wheel_with_other_bytes_than_named_is_not_unpacked(tmp_path: Path) -> None:
    (tmp_path / "provision").mkdir()
    (tmp_path / "provision" / f"{'a' * 64}.whl").write_bytes(b"PK")
    with pytest.raises(SystemExit, match="other bytes"):
        bootstrap._lay_down(tmp_path, "d" * 64, [{"sha256": "a" * 64, "name": "x"}], "{}")
    assert not (tmp_path / "agent" / ("d" * 64)).exists()


@pytest.mark.parametrize("name", ["../escape.py", "/etc/escape.py", "a/../../escape.py"])
def test_a_wheel_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    import hashlib
    import zipfile

    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), "boo")
    with pytest.raises(SystemExit, match="holds the path"):
        bootstrap._unpack(path, hashlib.sha256(path.read_bytes()).hexdigest(), tmp_path / "site")
    assert not (tmp_path / "escape.py").exists()


def test_the_units_for_systemd_are_ones_it_accepts(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    binary = tmp_path / "bin" / "kedge-agent"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    for system in (True, False):
        text = bootstrap.unit_text(str(tmp_path), system=system)
        assert f'ExecStart="{tmp_path}/bin/kedge-agent" serve' in text
        assert "Restart=on-failure" in text
        assert "RuntimeDirectory" not in text
        unit = tmp_path / "kedge-agent.service"
        unit.write_text(text)
        if shutil.which("systemd-analyze") is None:
            continue
        command = ["systemd-analyze", *([] if system else ["--user"]), "verify", str(unit)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "kedge-agent.service" not in said.stderr, said.stderr


def test_the_default_system_unit_owns_its_socket_folder_and_odd_paths_are_escaped() -> None:
    assert "RuntimeDirectory=kedge\n" in bootstrap.unit_text("/var/lib/kedge", system=True)
    assert "RuntimeDirectory" not in bootstrap.unit_text("/var/lib/kedge", system=False)
    assert 'ExecStart="/opt/my 100%% state/bin/kedge-agent" serve' in bootstrap.unit_text(
        "/opt/my 100% state", system=True
    )
