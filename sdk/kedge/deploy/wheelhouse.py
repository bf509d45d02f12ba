"""The wheels a device needs, for its Python, processor and C library, resolved on the host.

pip downloads them here and nothing is downloaded on the device. Only the libraries the agent
imports are taken, not what they declare for features it does not use: numpy and onnxruntime
need nothing else to run a model. A set that was resolved once is kept and used again, so that
the second device of a kind gets the same bytes, and needs no network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..config import cache_dir
from ..errors import BadInputError, IncompatibleError, KedgeError, UnreachableError
from .agent_wheel import agent_wheel

__all__ = ["DevicePython", "Wheel", "built_wheels", "resolve"]

REQUIREMENTS = ("numpy>=1.26,<3", "onnxruntime>=1.20,<2")
ZSTD = "backports.zstd>=1,<2"
"""Differences of releases are sent with it; Python has it itself from 3.14 on. The agent does without where need be."""
NVML = "nvidia-ml-py>=13,<14"
"""NVIDIA's own binding of what its driver tells of a GPU; pure Python. The agent does without where need be."""
PYCUDA = "pycuda>=2024.1"
"""CUDA for a device with a GPU. No index has a wheel of it: one that was built on this host is sent along."""

_ZSTD_PYTHON = (3, 14)
_PIP_S = 900
# For what one can do without, a host without network is not kept waiting.
_SHORT_PIP_S = 60

Note = Callable[[str], None]


@dataclass(frozen=True)
class DevicePython:
    """What decides which wheels fit: Python (major, minor), machine, glibc (major, minor)."""

    python: tuple[int, int]
    machine: str
    glibc: tuple[int, int]

    @property
    def key(self) -> str:
        """For file names."""
        return f"cp{self.python[0]}{self.python[1]}-{self.machine}-glibc{self.glibc[0]}.{self.glibc[1]}"

    def platforms(self) -> list[str]:
        """Platform tags that fit, newest first (PEP 600: every glibc up to the device's own)."""
        major, minor = self.glibc
        tags = [f"manylinux_{major}_{m}_{self.machine}" for m in range(minor, 4, -1)]
        return [*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]


@dataclass(frozen=True)
class Wheel:
    """A wheel on this machine: file name, sha256 of its bytes, where it lies."""

    name: str
    sha256: str
    path: Path


def built_wheels() -> Path:
    """Where wheels lie that this host built itself because no index has them; the folder may not be there."""
    return cache_dir() / "wheelhouse" / "built"


def resolve(
    device: DevicePython,
    *,
    offline: Path | None = None,
    needs_onnxruntime: bool = True,
    has_gpu: bool = False,
    note: Note = lambda line: None,
) -> list[Wheel]:
    """The agent's wheel and those of its libraries, for a device.

    Args:
        offline: a folder of wheels to take instead of asking pip's index.
        needs_onnxruntime: False where the device's own runtime serves.
        has_gpu: whether NVIDIA's driver may be there.
        note: told what is left out because there is no wheel of it, though the device would be better with it.

    Raises:
        BadInputError: the offline folder lacks a wheel that fits.
        IncompatibleError: there is no wheel for this Python and processor, or pip is missing.
    """
    requirements = [r for r in REQUIREMENTS if needs_onnxruntime or not r.startswith("onnxruntime")]
    folder = cache_dir() / "wheelhouse"
    folder.mkdir(parents=True, exist_ok=True)
    name, data = agent_wheel()
    agent = folder / f"{hashlib.sha256(data).hexdigest()[:16]}-{name}"
    if not agent.is_file() or agent.read_bytes() != data:
        _write(agent, data)
    wheels = [Wheel(name, hashlib.sha256(data).hexdigest(), agent), *_kept(device, requirements, offline, folder)]
    wanted = []
    if device.python < _ZSTD_PYTHON:
        wanted.append((ZSTD, "changed releases are sent to this device whole"))
    if has_gpu:
        wanted.append((NVML, "this device does not tell what NVIDIA's driver knows of its GPU"))
    for requirement, loss in wanted:
        try:
            wheels += _kept(device, [requirement], offline, folder, _SHORT_PIP_S)
        except KedgeError as error:
            note(f"without {requirement}: {loss} ({error.message})")
    if has_gpu and any(built_wheels().glob("pycuda-*.whl")):
        # One for another Python than the device's is none; it takes its own pycuda then, as without us.
        try:
            with suppress(BadInputError):
                wheels += _kept(device, [PYCUDA], built_wheels(), folder, _SHORT_PIP_S)
        except KedgeError as error:
            note(f"without {PYCUDA}, which was built here: this device takes its own, if it has one ({error.message})")
    return wheels


def _kept(
    device: DevicePython, requirements: Sequence[str], offline: Path | None, folder: Path, timeout_s: int = _PIP_S
) -> list[Wheel]:
    """Wheels of these libraries: from a folder, from the set that was kept, or by pip."""
    if offline is not None:
        source = ["--no-index", "--find-links", str(offline.absolute())]
        fresh = _downloaded(device, requirements, source, folder, timeout_s)
        digest = hashlib.sha256("".join(sorted(wheel.sha256 for wheel in fresh)).encode()).hexdigest()
        return _keep(fresh, folder / f"{device.key}-offline-{digest[:16]}")
    wanted = hashlib.sha256("\n".join([device.key, *requirements]).encode()).hexdigest()[:16]
    libraries = folder / f"{device.key}-{wanted}"
    kept = _read_lock(libraries)
    return kept if kept is not None else _keep(_downloaded(device, requirements, [], folder, timeout_s), libraries)


def _downloaded(
    device: DevicePython, requirements: Sequence[str], source: Sequence[str], folder: Path, timeout_s: int
) -> list[Wheel]:
    target = Path(tempfile.mkdtemp(prefix=".download-", dir=folder))
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"),
        *("--only-binary=:all:", "--implementation", "cp", "--dest", str(target)),
        *("--python-version", f"{device.python[0]}.{device.python[1]}"),
        *(option for platform in device.platforms() for option in ("--platform", platform)),
        *source,
        *requirements,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/")
    except subprocess.TimeoutExpired as error:
        shutil.rmtree(target, ignore_errors=True)
        raise UnreachableError(f"pip found no wheels within {timeout_s} s", hint="check the network") from error
    if done.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        raise _explain(device, done.stderr, source)
    return [Wheel(path.name, _sha256(path), path) for path in sorted(target.glob("*.whl"))]


def _explain(device: DevicePython, said: str, source: Sequence[str]) -> Exception:
    if "No module named pip" in said:
        return IncompatibleError(
            "this Python has no pip, which resolves the device's wheels",
            hint="python -m ensurepip, or give --wheelhouse FOLDER",
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else (said.strip().splitlines() or ["no reason given"])[-1]
    if source:
        return BadInputError(
            f"the wheelhouse does not serve {device.key}: {reason}", hint=f"it needs {', '.join(REQUIREMENTS)}"
        )
    return IncompatibleError(
        f"no wheels for {device.key}: {reason}",
        hint="check the network and pip's index; or collect wheels elsewhere and give --wheelhouse FOLDER",
    )


def _keep(wheels: Sequence[Wheel], folder: Path) -> list[Wheel]:
    source = wheels[0].path.parent
    lock = {"wheels": [{"name": wheel.name, "sha256": wheel.sha256} for wheel in wheels]}
    (source / "lock.json").write_text(json.dumps(lock, indent=1), encoding="utf-8")
    if (kept := _read_lock(folder)) is not None:
        # Another command kept the same set meanwhile, and may be sending it now.
        shutil.rmtree(source, ignore_errors=True)
        return kept
    shutil.rmtree(folder, ignore_errors=True)
    try:
        source.rename(folder)
    except OSError:
        kept = _read_lock(folder)
        if kept is None:
            raise
        return kept
    return [Wheel(wheel.name, wheel.sha256, folder / wheel.name) for wheel in wheels]


def _read_lock(folder: Path) -> list[Wheel] | None:
    """The kept set, if every wheel of it still has the recorded hash."""
    try:
        body = json.loads((folder / "lock.json").read_text(encoding="utf-8"))
        wheels = [Wheel(item["name"], item["sha256"], folder / item["name"]) for item in body["wheels"]]
        intact = all(_sha256(wheel.path) == wheel.sha256 for wheel in wheels)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return wheels if intact else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
    Path(name).replace(path)
