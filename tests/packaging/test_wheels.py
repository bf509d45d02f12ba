"""What is built is what is meant: file lists of both wheels, and the agent alone in an empty environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kedge.deploy.agent_wheel import agent_wheel

ROOT = Path(__file__).parents[2]


def tracked(folder: str) -> set[str]:
    """Files under a source root that belong into a wheel, by their names there."""
    base = ROOT / folder
    return {
        str(path.relative_to(base))
        for path in base.rglob("*")
        if path.suffix in (".py", ".typed", ".toml", ".json", ".j2", ".css", ".js")
        and "__pycache__" not in path.parts
        and path.name != "pyproject.toml"
    }


def build(folder: Path, out: Path) -> Path:
    """Build a wheel with the back end alone: no isolated environment, no network."""
    chdir = "import os, sys; os.chdir(sys.argv[1])"
    program = f"{chdir}; from hatchling.build import build_wheel; print(build_wheel(sys.argv[2]))"
    pytest.importorskip("hatchling", reason="needs kedge[dev]")
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(out)], capture_output=True, text=True, check=True, timeout=120
    )
    return out / done.stdout.strip().splitlines()[-1]


def names(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    out = tmp_path_factory.mktemp("wheels")
    return build(ROOT, out), build(ROOT / "device_agent", out)


def test_kedge_ships_the_sdk_the_agent_and_the_profiles(built: tuple[Path, Path]) -> None:
    assert names(built[0]) == tracked("sdk") | tracked("device_agent") | tracked("targets")
    assert "kedge_targets/cpu-generic-aarch64.toml" in names(built[0])


def test_kedge_agent_ships_the_agent_alone(built: tuple[Path, Path]) -> None:
    assert names(built[1]) == tracked("device_agent")


def test_the_wheel_that_is_pushed_to_devices_is_the_wheel_that_is_built(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    name, data = agent_wheel()
    assert name == built[1].name
    assert agent_wheel()[1] == data
    pushed = tmp_path / name
    pushed.write_bytes(data)
    assert names(pushed) == names(built[1])
    for file in names(pushed):
        assert zipfile.ZipFile(pushed).read(file) == zipfile.ZipFile(built[1]).read(file)


def test_both_wheels_have_one_version(built: tuple[Path, Path]) -> None:
    from kedge import __version__

    assert built[0].name == f"kedge-{__version__}-py3-none-any.whl"
    assert built[1].name == f"kedge_agent-{__version__}-py3-none-any.whl"
    assert (
        f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
        or "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )


@pytest.mark.slow
def test_the_agent_runs_in_an_empty_environment_that_has_nothing_of_kedge(tmp_path: Path) -> None:
    name, data = agent_wheel()
    (tmp_path / name).write_bytes(data)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    # numpy comes from this environment's own installation: the test asks for no index.
    import numpy as np

    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    for package in ("numpy", "numpy.libs"):
        source = Path(np.__file__).parent.parent / package
        if source.exists():
            shutil.copytree(source, site / package)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", "--no-deps", str(tmp_path / name)], check=True)
    agent = str(tmp_path / "venv" / "bin" / "kedge-agent")
    state = str(tmp_path / "state")
    assert subprocess.run([python, "-c", "import kedge"], capture_output=True, check=False).returncode != 0
    subprocess.run([agent, "--state", state, "start"], check=True, timeout=60)
    try:
        said = subprocess.run(
            [agent, "--state", state, "status"], capture_output=True, text=True, check=True, timeout=60
        )
        status = json.loads(said.stdout)
        assert Path(status.pop("sockets"), "infer.sock").is_socket()
        assert status == {"ready": True, "models": [], "safe_mode": None}
    finally:
        subprocess.run([agent, "--state", state, "stop"], check=True, timeout=60)
