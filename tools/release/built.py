"""Source archive and wheels of the last commit: the same bytes twice, described as PyPI wants, nothing missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .steps import BrokenError, shell

__all__ = ["build_all", "check_contents", "check_descriptions", "clear", "committed", "exported", "require_clean"]

_SHIPPED = {
    "kedge": ("sdk", "device_agent", "targets"),
    "kedge_agent": ("device_agent",),
}
_MAX_BYTES = 5_000_000
_NEVER = (".pyc", ".so", ".onnx", ".plan", ".engine", ".pem", ".key", ".env")


def clear(out: Path) -> None:
    """Remove an earlier run's folder, and none that is anything else.

    Raises:
        BrokenError: it holds something, and no checks of an earlier run.
    """
    if out.exists() and any(out.iterdir()) and not (out / "checks.json").is_file():
        raise BrokenError(f"{out} is no folder of an earlier run (it has no checks.json): give --out another")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)


def committed(name: str) -> str:
    """The text of a file as the last commit has it."""
    return shell(["git", "show", f"HEAD:{name}"])


def require_clean(*, final: bool) -> str:
    """Say what is built, and what lies about that is not.

    Raises:
        BrokenError: a version that goes out is built from a tree that has changes.
    """
    commit = shell(["git", "log", "-1", "--format=%h"]).strip()
    changed = [line[3:] for line in shell(["git", "status", "--porcelain"]).splitlines()]
    if changed and final:
        raise BrokenError(f"{len(changed)} files are not committed: {', '.join(changed[:3])}")
    return f"{commit}" + (f"; {len(changed)} files that are not committed are left out" if changed else "")


@contextmanager
def exported(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kedge-dist-") as name:
        source = Path(name) / "source"
        source.mkdir()
        shell(["git", "archive", "--format=tar", "-o", source.with_suffix(".tar"), commit])
        with tarfile.open(source.with_suffix(".tar")) as archive:
            archive.extractall(source, filter="data")
        yield source


def build_all(out: Path) -> list[Path]:
    """sdist and wheels in a folder: kedge's wheel is made from its sdist, as a packager would.

    Raises:
        BrokenError: a build fails, or a second one of the same commit has other bytes.
    """
    commit, epoch = shell(["git", "log", "-1", "--format=%H %ct"]).split()
    env = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    found: list[dict[str, str]] = []
    for _ in range(2):
        with exported(commit) as source:
            folder = source.parent / "out"
            python = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
            shell([*python, source], env=env)
            shell([*python, "--wheel", source / "device_agent"], env=env)
            found.append({path.name: _sha256(path) for path in sorted(folder.iterdir())})
            for key in found[0]:
                shutil.copy2(folder / key, out / key)
    differing = [key for key in found[0] | found[1] if found[0].get(key) != found[1].get(key)]
    if differing:
        raise BrokenError(f"two builds of one commit differ: {', '.join(differing)}")
    return [out / key for key in found[0]]


def check_descriptions(files: list[Path]) -> str:
    """By twine, warnings included."""
    shell([sys.executable, "-m", "twine", "check", "--strict", *files])
    return f"{len(files)} files"


def check_contents(files: list[Path]) -> str:
    """Held against the files that git tracks.

    Raises:
        BrokenError: a file is missing, or is there and should not be.
    """
    counts = []
    for path in files:
        if path.stat().st_size > _MAX_BYTES:
            raise BrokenError(f"{path.name} has {path.stat().st_size} bytes, more than {_MAX_BYTES}")
        if path.suffix == ".whl":
            distribution = path.name.split("-", 1)[0]
            wanted = {name for source in _SHIPPED[distribution] for name in _tracked(source, strip=True)}
            wanted -= {"pyproject.toml", "LICENSE", "README.md"}
            held = {n for n in zipfile.ZipFile(path).namelist() if ".dist-info/" not in n}
            info = {n.rsplit("/", 1)[1] for n in zipfile.ZipFile(path).namelist() if ".dist-info/" in n}
            lacking = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "LICENSE"} - info
        else:
            wanted, lacking = set(_tracked("", strip=False)), set()
            with tarfile.open(path) as archive:
                held = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
            wanted = {name for name in wanted if not name.startswith((".", "benchmarks/")) or name == ".gitignore"}
            held -= {"PKG-INFO"}
        lacking |= wanted - held
        if lacking or held - wanted:
            missing, extra = sorted(lacking)[:3], sorted(held - wanted)[:3]
            raise BrokenError(
                f"{path.name}: missing {missing or 'nothing'}, not meant to be there {extra or 'nothing'}"
            )
        odd = [name for name in held if path.suffix == ".whl" and name.endswith(_NEVER)]
        if odd:
            raise BrokenError(f"{path.name} holds {odd[0]}")
        counts.append(f"{path.name} {len(held)}")
    return "files: " + ", ".join(counts)


def _tracked(folder: str, *, strip: bool) -> list[str]:
    names = shell(["git", "ls-tree", "-r", "-z", "--name-only", "HEAD", "--", folder or "."]).split("\0")
    return [name[len(folder) + 1 :] if strip else name for name in names if name]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
