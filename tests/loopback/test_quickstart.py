"""docs/quickstart.md, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import lacks, sshd_path

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.md"


@pytest.mark.slow
def test_the_quickstart_works_as_written(tmp_path: Path) -> None:
    sshd_path()
    pytest.importorskip("torch", reason="the quickstart's model is trained: needs kedge[optimize]")
    blocks = re.findall(r"^```sh\n(.*?)^```", QUICKSTART.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 10
    # Each command's failure is the test's; the port must be one that is free here.
    script = "set -eu\n" + "\n".join(blocks)
    port = str(20000 + os.getpid() % 20000)
    script = script.replace("2222", port)
    if os.geteuid() == 0:
        # /run/sshd is made in a mount namespace of its own: the machine is left as it was.
        script = "mount -t tmpfs tmpfs /run\n" + script
    folder = tmp_path / "quickstart"
    folder.mkdir()
    command = ["bash", "-c", script]
    if os.geteuid() == 0:
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:
            lacks("sshd", "root may not make a mount namespace here, where sshd would find its /run/sshd")
        command = ["unshare", "--mount", "--propagation", "private", *command]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        for stop in ("device/state/bin/kedge-agent stop", "kill $(cat device/sshd.pid)"):
            subprocess.run(["sh", "-c", f"{stop} 2>/dev/null || true"], cwd=folder, check=False)
    assert "refused, exit code 9" in done.stdout
    right, total = map(int, re.search(r"(\d+) of (\d+) held-out images are right", done.stdout).groups())  # type: ignore[union-attr]
    assert (total, right / total > 0.93) == (360, True)
    assert "digits version 1, release" in done.stdout.split("held-out images are right")[1]
