"""Source archive and wheels of the last commit: the same bytes twice, described as PyPI wants, nothing missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from .steps import BrokenError, shell

__all__ = ["build_all", "check_contents", "check_descriptions"]

_SHIPPED = {
    "kedge": ("sdk", "device_agent", "targets"),
    "kedge_agent": ("device_agent",),
}
_MAX_BYTES = 5_000_000
_NEVER = ("__pycache__", ".pyc", ".so", ".onnx", ".plan", ".pem", "id_", ".env")


def build_all(out: Path) -> list[Path]:
    """sdist and wheels in a folder: kedge's wheel is made from its sdist, as a packager would.

    Raises:
        BrokenError: a build fails, or a second one of the same commit has other bytes.
    """
    commit, epoch = shell(["git", "log", "-1", "--format=%H %ct"]).split()
    env = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="kedge-dist-") as name:
        for turn in ("first", "second"):
            source, folder = Path(name) / turn / "source", Path(name) / turn / "out"
            source.mkdir(parents=True)
            shell(["git", "archive", "--format=tar", "-o", source.with_suffix(".tar"), commit])
            with tarfile.open(source.with_suffix(".tar")) as archive:
                archive.extractall(source, filter="data")
            python = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
            shell([*python, source], env=env)
            shell([*python, "--wheel", source / "device_agent"], env=env)
            found.append({path.name: _sha256(path) for path in sorted(folder.iterdir())})
        differing = [key for key in found[0] | found[1] if found[0].get(key) != found[1].get(key)]
        if differing:
            raise BrokenError(f"two builds of one commit differ: {', '.join(differing)}")
        for key in found[0]:
            shutil.copy2(folder / key, out / key)
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
        odd = [
            name for name in held if any(part in name.rsplit("/", 1)[-1] for part in _NEVER) and path.suffix == ".whl"
        ]
        if odd:
            raise BrokenError(f"{path.name} holds {odd[0]}")
        counts.append(f"{path.name} {len(held)}")
    return "files: " + ", ".join(counts)


def _tracked(folder: str, *, strip: bool) -> list[str]:
    names = shell(["git", "ls-tree", "-r", "-z", "--name-only", "HEAD", "--", folder or "."]).split("\0")
    return [name[len(folder) + 1 :] if strip else name for name in names if name]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
