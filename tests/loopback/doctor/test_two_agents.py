"""Two agents: a second daemon, two in one interpreter, and a daemon that is not the one that was installed last."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kedge.deploy.agent_wheel import agent_wheel
from tests.loopback.doctor.conftest import Bench, Local
from tests.packaging.test_wheels import ROOT, build
from tests.support.deploys import eventually
from tests.support.doctors import commands, finding, on_device, told

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("alone")
def test_a_second_daemon_is_the_first_cause_and_is_ended_by_the_cure(bench: Bench) -> None:
    # What lies in the temporary folder is somebody's trial.
    other = "/dev/shm/kedge-other"
    bench.run(f"mkdir -m 700 {other}; {bench.program} --state {other} start")
    try:
        first = bench.doctor.names("installs")["first_cause"]
        assert f"is an agent on another state folder: {other}" in first["evidence"]
        pid = int(bench.run(f"cat {other}/agent.lock").split()[0])
        assert on_device(first["cure"]) == f"kill {pid}"
        bench.run(on_device(first["cure"]))
        assert eventually(lambda: bench.server.run(f"kill -0 {pid}").returncode != 0)
        bench.doctor.finds_no_fault()
    finally:
        bench.server.run(f"{bench.program} --state {other} stop; rm -rf {other}")


def test_kedge_and_kedge_agent_in_one_interpreter_are_the_first_cause_and_the_cure_leaves_kedge_whole(
    local: Local, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    kedge = build(ROOT, wheels)
    name, data = agent_wheel()
    (wheels / name).write_bytes(data)
    interpreter = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(interpreter)], check=True)
    pip = [str(interpreter / "bin/python"), "-m", "pip"]
    # No index is asked: all that there is lies in a folder.
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_QUIET": "2"}
    for wheel in (kedge, wheels / name):
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True, env=environment)
    local.doctor.environment = {**local.doctor.environment, "PATH": f"{interpreter}/bin:{os.environ['PATH']}"}
    first = local.doctor.names("installs")["first_cause"]
    assert "kedge-agent" in first["evidence"]
    found = list(commands(first["cure"]))
    assert [words[1:5] for words in found] == [
        ["-m", "pip", "uninstall", "-y"],
        ["-m", "pip", "install", "--force-reinstall"],
    ]
    for words in found:
        subprocess.run(words, check=True, env=environment)
    document = local.doctor.finds_no_fault()
    assert finding(document, "installs")["result"] == "ok", told(document)
    # Removing one takes the other's files along; the cure puts them back.
    site = next(interpreter.glob("lib/python3*/site-packages"))
    assert all((site / name).is_file() for name in zipfile.ZipFile(kedge).namelist())
