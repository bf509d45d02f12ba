"""docs/commands: every block of every page, run as it is written, one page after the other, on the device local.

In two halves, so that neither takes long: the second makes its models anew, by the blocks that make them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "commands"
_BLOCK = re.compile(r"^(<!-- needs devices -->\n\n)?```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A machine that runs other tests may be found at fault by the doctor, which is a result, and no page's fault.
_BEGINNING = """set -eu
kedge() {
  local code=0
  command kedge "$@" || code=$?
  case "$code $*" in "10 doctor --on "*) return 0 ;; *) return $code ;; esac
}"""
SECOND = "build"
_PAGE = re.compile(r"\[[\w-]+\]\(([\w-]+)\.md\)")


def _pages() -> list[str]:
    """The pages in the order that the first of them states."""
    (order,) = re.findall(r"in this order: (.*?)\. A test", (FOLDER / "demo.md").read_text(), re.DOTALL)
    return ["demo", *_PAGE.findall(order)]


def test_the_order_of_the_pages_names_each_of_them_once() -> None:
    assert sorted(_pages()) == sorted(path.stem for path in FOLDER.glob("*.md"))


def _blocks(page: str) -> list[str]:
    """Blocks of a page that need no device of the reader's."""
    found = _BLOCK.findall((FOLDER / f"{page}.md").read_text())
    return [
        f'echo "== $SECONDS s: {page}.md, block {number}"\n{text}'
        for number, (needs, text) in enumerate(found, 1)
        if not needs
    ]


def _halves() -> dict[str, tuple[list[str], list[str]]]:
    """Both halves: their blocks, and the exit codes that these show: refusals and faults that are the point."""
    pages = _pages()
    first, second = pages[: pages.index(SECOND)], pages[pages.index(SECOND) :]
    models = [*_blocks("demo")[:1], *_blocks("optimize")[:2]]
    return {
        "first": ([block for page in first for block in _blocks(page)], ["5", "7"]),
        "second": ([*models, *(block for page in second for block in _blocks(page))], ["5", "5", "10"]),
    }


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("half", ["first", "second"])
def test_the_pages_of_the_commands_work_as_written(half: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the demo's model is trained: needs kedge[optimize]")
    blocks, codes = _halves()[half]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "STATE", "CACHE")},
    }
    work = tmp_path / "work"
    work.mkdir()
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join([_BEGINNING, *blocks, 'echo "== $SECONDS s: the end"'])],
            cwd=work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
    finally:
        stop = "kedge-agent --state agent stop 2>/dev/null || true"
        subprocess.run(["sh", "-c", stop], cwd=work, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.findall(r"exit code (\d+)$", done.stdout, re.MULTILINE) == codes
    if half == "second":
        right, of = map(int, re.search(r"(\d+) of (\d+) are right", done.stdout).groups())  # type: ignore[union-attr]
        assert (of, right / of > 0.93) == (360, True)
