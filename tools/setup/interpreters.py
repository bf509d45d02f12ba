"""Pythons of this machine by their version: where distributions put them, and pyenv."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["interpreter"]


def interpreter(version: str, needs: str = "sys") -> str | None:
    """A working CPython of this version ("3.11") that has a module, or None."""
    candidates = [shutil.which(f"python{version}"), f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)]
    for candidate in candidates:
        if candidate is None or not Path(candidate).exists():
            continue
        # A shim of a version that is not installed fails here.
        said = subprocess.run(
            [candidate, "-c", f"import {needs}, sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        if said.returncode == 0 and said.stdout.strip() == version:
            return candidate
    return None
