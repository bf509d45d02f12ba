"""NVIDIA's own Python bindings, without TensorRT: fetched from PyPI, loaded over an empty library, and listed.

Only `tensorrt-cu12-bindings` is fetched, as wheels. The packages that hold TensorRT itself are never asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VERSIONS", "Bindings", "Member", "UnavailableError", "rtx_bindings", "tensorrt_bindings"]

VERSIONS = ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")

_DUMP = Path(__file__).with_name("dump.py")
_TIMEOUT_S = 120
# What the bindings want of TensorRT's libraries when they are loaded; none of it is ever called.
_SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


class UnavailableError(Exception):
    """This machine cannot get or load the bindings."""


@dataclass(frozen=True)
class Member:
    """An attribute. signatures: as its docstring shows them, such as "(self: Builder, flags: int = 0) -> Network"."""

    signatures: tuple[str, ...] = ()
    writable: bool = False


@dataclass(frozen=True)
class Bindings:
    """One version's. classes: by a class's name its attributes; those of the module itself by `uses.MODULE`."""

    runtime: str
    version: str
    classes: Mapping[str, Mapping[str, Member]]

    @property
    def title(self) -> str:
        """For people."""
        return f"TensorRT {'for RTX ' if self.runtime == 'tensorrt-rtx' else ''}{self.version}"

    def has(self, path: str) -> bool:
        """Whether a class has an attribute, both in one path."""
        owner, _, name = path.rpartition(".")
        return name in self.classes.get(owner, {})


def tensorrt_bindings(version: str, cache: Path, pythons: Sequence[str] = ()) -> Bindings:
    """The bindings of one version of TensorRT.

    Args:
        cache: a folder to keep downloads in; what is there is not fetched again.
        pythons: other interpreters, for a version that has no wheel for this one.

    Raises:
        UnavailableError: no wheel can be fetched, there is no C compiler, or the bindings do not load.
    """
    stub = _stub(cache / "stub", version.partition(".")[0])
    python, folder = _fetched(version, cache, (sys.executable, *pythons))
    return _listed("tensorrt", [python, "-I", "-S"], ["tensorrt_bindings", str(folder)], stub)


def rtx_bindings() -> Bindings:
    """The bindings of TensorRT for RTX that are installed here, over its real libraries.

    Raises:
        UnavailableError: they are not installed, or do not load.
    """
    return _listed("tensorrt-rtx", [sys.executable, "-I"], ["tensorrt_rtx_bindings"], None)


def _fetched(version: str, cache: Path, pythons: Sequence[str]) -> tuple[str, Path]:
    """An interpreter, and a folder with the bindings for it."""
    said = ""
    for python in pythons:
        shown = _run([python, "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).stdout.strip()
        folder = cache / f"{version}-python{shown}"
        if folder.is_dir():
            return python, folder
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as name:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--retries",
                "2",
            ]
            command += ["--no-deps", "--no-compile", "--only-binary", ":all:", "--python-version", shown]
            done = _run([*command, "--target", f"{name}/made", f"tensorrt-cu12-bindings=={version}"])
            if done.returncode == 0:
                Path(name, "made").rename(folder)
                return python, folder
        said = _last_line(done.stderr)
        if "(from versions: none)" in done.stderr:  # there is no index to ask
            break
    raise UnavailableError(f"no wheel of tensorrt-cu12-bindings {version} for the Pythons here: {said}")


def _stub(folder: Path, major: str) -> Path:
    """A folder with libraries that have TensorRT's names and export what the bindings want, and do nothing."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler on this machine (Debian: gcc)")
    folder.mkdir(parents=True, exist_ok=True)
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{library}.so.{major}"
        symbols = _SYMBOLS if library == "nvinfer" else ()
        source = folder / f"{library}.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in symbols), encoding="ascii")
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-nostdlib",
            f"-Wl,-soname,{file}",
            "-o",
            str(folder / file),
            str(source),
        ]
        done = _run(command)
        if done.returncode != 0:
            raise UnavailableError(f"{compiler} makes no library: {_last_line(done.stderr)}")
    return folder


def _listed(runtime: str, python: Sequence[str], arguments: Sequence[str], libraries: Path | None) -> Bindings:
    """Have a child process list the bindings."""
    environment = dict(os.environ)
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dump.json"
        done = _run([*python, str(_DUMP), arguments[0], str(out), *arguments[1:]], environment)
        if done.returncode != 0:
            raise UnavailableError(f"{arguments[0]} does not load: {_last_line(done.stderr)}")
        body = json.loads(out.read_text(encoding="utf-8"))
    classes = {
        owner: {name: Member(tuple(one["signatures"]), one["writable"]) for name, one in members.items()}
        for owner, members in body["classes"].items()
    }
    return Bindings(runtime, body["version"], classes)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: {error}") from error


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:300]
