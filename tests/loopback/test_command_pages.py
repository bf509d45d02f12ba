"""docs/commands: every block of every page, run as it is written, one page after the other, on the device local."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "commands"
_BLOCK = re.compile(r"^(<!-- needs devices -->\n\n)?```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PAGE = re.compile(r"\[[\w-]+\]\(([\w-]+)\.md\)")


def _pages() -> list[str]:
    """The pages in the order that the first of them states."""
    (order,) = re.findall(r"in this order: (.*?)\. A test", (FOLDER / "demo.md").read_text(), re.DOTALL)
    return ["demo", *_PAGE.findall(order)]


def test_the_order_of_the_pages_names_each_of_them_once() -> None:
    assert sorted(_pages()) == sorted(path.stem for path in FOLDER.glob("*.md"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pages_of_the_commands_work_as_written(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the demo's model is trained: needs kedge[optimize]")
    script = ["set -eu"]
    for page in _pages():
        for number, (needs_devices, block) in enumerate(_BLOCK.findall((FOLDER / f"{page}.md").read_text()), 1):
            if not needs_devices:
                script += [f"echo '== {page}.md, block {number}'", block]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "STATE", "CACHE")},
    }
    work = tmp_path / "work"
    work.mkdir()
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=880,
            check=False,
        )
    finally:
        stop = "kedge-agent --state agent stop 2>/dev/null || true"
        subprocess.run(["sh", "-c", stop], cwd=work, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    # Refusals that the pages show are the point of their blocks.
    assert re.findall(r"exit code (\d+)$", done.stdout, re.MULTILINE) == ["5", "7", "5", "10"]
    right, of = map(int, re.search(r"(\d+) of (\d+) are right", done.stdout).groups())  # type: ignore[union-attr]
    assert (of, right / of > 0.93) == (360, True)
