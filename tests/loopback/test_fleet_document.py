"""docs/fleet.md: run as it is written; and it explains every state that there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.report.rollout_words import STATES
from tests.support.environment import lacks, sshd_path

FLEET = Path(__file__).parents[2] / "docs" / "fleet.md"


def test_the_document_explains_every_state_and_no_other() -> None:
    section = FLEET.read_text().split("\n## States\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(STATES)


@pytest.mark.slow
def test_the_walk_through_works_as_written(tmp_path: Path) -> None:
    sshd_path()
    blocks = re.findall(r"^```sh\n(.*?)^```", FLEET.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    # Each command's failure is the test's; the port must be one that is free here.
    script = "set -eu\n" + "\n".join(blocks)
    script = script.replace("2222", str(20000 + os.getpid() % 20000))
    folder = tmp_path / "fleet"
    folder.mkdir()
    command = ["bash", "-c", script]
    if os.geteuid() == 0:
        # /run/sshd is made in a mount namespace of its own: the machine is left as it was.
        command[-1] = "mount -t tmpfs tmpfs /run\n" + script
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
            lacks("sshd", "root may not make a mount namespace here, where sshd would find its /run/sshd")
        command = ["unshare", "--mount", "--propagation", "private", *command]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "STATE", "CACHE")}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=420, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        stops = [f"device/edge-{n}/bin/kedge-agent stop" for n in (1, 2)]
        for stop in (*stops, "kill $(cat device/sshd.pid)"):
            subprocess.run(["sh", "-c", f"{stop} 2>/dev/null || true"], cwd=folder, check=False)
    told = done.stdout
    assert "exit code 11" in told
    assert "killed" in told
    # Halted, mended, gone on with; killed, and gone on with.
    ends = re.findall(r"^result +(.*)$", told, re.MULTILINE)
    assert [end.split()[0] for end in ends] == ["2", "halted", "halted", "halted", "2", "interrupted:", "2"], ends
    assert (folder / "rollout.html").read_text().startswith("<!DOCTYPE html>")
    rows = re.findall(r"^ *(\d{8}-\d{6}-[0-9a-f]{6}) .*? (done|halted|interrupted) ", told, re.MULTILINE)
    assert [state for _, state in rows] == ["done"] * 3
