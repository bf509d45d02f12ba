"""Build the site: pages that come from the code, then Sphinx, which takes a warning for an error."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from pathlib import Path

from tools.docs import api

__all__ = ["GENERATED", "ROOT", "build", "clear", "generate"]

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "generated"

_REFERENCE = "tools.docs.reference"
#: What Sphinx leaves in a folder that it has built: no other folder is emptied.
_MARK = ".buildinfo"
_START = """<!doctype html>
<html lang="en-GB"><meta charset="utf-8"><title>kedge</title>
<meta http-equiv="refresh" content="0; url=docs/index.html">
<p><a href="docs/index.html">kedge: the documentation</a></p></html>
"""


def generate(folder: Path = GENERATED) -> None:
    """Write the pages that come from the code, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "api").mkdir(parents=True)
    api.write_all(folder / "api")
    if importlib.util.find_spec(_REFERENCE):
        importlib.import_module(_REFERENCE).write_all(folder)


def build(out: Path, doctrees: Path) -> int:
    """Build the pages of the repository into a folder; Sphinx's exit status.

    All is read anew each time: what is kept from a build before would not be warned of again.
    """
    from sphinx.cmd.build import build_main

    status = build_main(
        [
            *("-b", "html", "-c", str(ROOT / "docs"), "-d", str(doctrees), "-j", "auto"),
            *("-E", "-n", "-W", "--keep-going", "-q", str(ROOT), str(out)),
        ]
    )
    # Pages keep the paths of their Markdown, so that links hold on GitHub too; who opens the folder is led on.
    (out / "index.html").write_text(_START, "utf-8")
    return status


def clear(out: Path) -> None:
    """Empty a folder that an earlier build has made.

    Raises:
        FileExistsError: the folder holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise FileExistsError(f"{out} holds what is no site of an earlier build")
    shutil.rmtree(out, ignore_errors=True)
