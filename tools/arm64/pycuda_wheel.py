"""pycuda for a Jetson, built on this x86 host: it has no wheel for aarch64, and a device should not have to compile.

    python -m tools.arm64.pycuda_wheel [--python 3.10]

Built from pycuda's source by Debian's compiler for arm64 (g++-aarch64-linux-gnu) against the CUDA headers of the oldest
JetPack with this Python (NVIDIA's own packages on PyPI), numpy's headers for aarch64, and a stub of libcuda.so.1 that
has every name of them. Nothing of it runs here, and no GPU has run it: the wheel is checked for what it needs. It
goes into kedge's wheelhouse, where `kedge device provision` finds it for a device with a GPU and that Python.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kedge.deploy.wheelhouse import built_wheels

__all__ = ["NotBuiltError", "build", "check"]

_VERSION = "2026.1"
# As PyPI states it (https://pypi.org/pypi/pycuda/2026.1/json).
_SHA256 = "759516160628ba06f32ce7e563e3f5b9214691dc9528a03ea99ea1073f4e14ba"
# By the device's Python: JetPack 6.1 to 6.2 (CUDA 12.6), JetPack 7 (CUDA 13.0 and later). A newer driver serves what
# was built against older headers; an older one lacks names that newer headers put in their place.
_HEADERS: Mapping[str, Sequence[str]] = {
    "3.10": ("nvidia-cuda-runtime-cu12==12.6.*", "nvidia-cuda-profiler-api-cu12==12.6.*"),
    "3.12": ("nvidia-cuda-runtime==13.0.*", "nvidia-cuda-profiler-api==13.0.*"),
}
_TOOLS = "aarch64-linux-gnu-"
_NAME = re.compile(r"\bcu[A-Z]\w*")
_GLIBC = re.compile(r"GLIBC_2\.(\d+)")


class NotBuiltError(Exception):
    """The wheel cannot be built here, or is not what it must be; the text says why."""


def build(python: str, folder: Path, interpreter: str | None = None) -> Path:
    """The wheel for a Python of 3.10 or 3.12, in a folder.

    Args:
        interpreter: of that version, on this machine; None: the one on the PATH.

    Raises:
        NotBuiltError: this machine lacks something, or the wheel needs what a Jetson has not.
    """
    interpreter = interpreter or shutil.which(f"python{python}")
    if interpreter is None:
        raise NotBuiltError(f"no python{python} on this machine: its headers are those of the wheel")
    for tool in ("g++", "readelf"):
        if shutil.which(_TOOLS + tool) is None:
            raise NotBuiltError(f"no {_TOOLS}{tool} on this machine (Debian: g++-aarch64-linux-gnu)")
    with tempfile.TemporaryDirectory(prefix="kedge-pycuda-") as name:
        made = _compile(interpreter, python, Path(name))
        glibc = check(made)
        tagged = f"manylinux_2_{glibc}_aarch64"
        _run([_python(Path(name)), "-m", "wheel", "tags", "--remove", "--platform-tag", tagged, str(made)])
        (done,) = made.parent.glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(done, folder / f".{done.name}")
        return (folder / f".{done.name}").replace(folder / done.name)


def check(wheel: Path) -> int:
    """The glibc 2.N that the wheel's extensions need; they are of aarch64, and take CUDA from the driver alone.

    Raises:
        NotBuiltError: they are not.
    """
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(wheel) as archive:
        extensions = [entry for entry in archive.namelist() if entry.endswith(".so")]
        shutil.unpack_archive(wheel, name, "zip")
        said = {entry: _run([f"{_TOOLS}readelf", "-hdVW", f"{name}/{entry}"]) for entry in extensions}
    driver = next((text for entry, text in said.items() if "/_driver." in entry), "")
    if "[libcuda.so.1]" not in driver:
        raise NotBuiltError(f"{wheel.name}: its driver module does not need libcuda.so.1")
    for entry, text in said.items():
        if "AArch64" not in text:
            raise NotBuiltError(f"{wheel.name}: {entry} is not of aarch64")
        needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", text))
        foreign = {each for each in needed if not re.match(r"lib(cuda|stdc\+\+|gcc_s|c|m)\.so|ld-linux", each)}
        if foreign:
            raise NotBuiltError(f"{wheel.name}: {entry} needs {', '.join(sorted(foreign))}")
    return max(int(minor) for text in said.values() for minor in _GLIBC.findall(text))


def _compile(interpreter: str, python: str, work: Path) -> Path:
    if _run([interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip() != python:
        raise NotBuiltError(f"{interpreter} is no Python {python}")
    _run([interpreter, "-m", "venv", str(work / "venv")])
    # Its build asks numpy where its headers are; those of aarch64 are searched before them.
    _pip(work, "install", "setuptools<81", "wheel", "numpy>=1.26,<3")
    for requirement in ("numpy>=1.26,<3", *_HEADERS[python]):
        wanted = ("--python-version", python, "--only-binary", ":all:", "--platform", "manylinux2014_aarch64")
        also = ("--platform", "manylinux_2_17_aarch64", "--platform", "manylinux_2_28_aarch64")
        _pip(work, "download", "--no-deps", *wanted, *also, "--dest", str(work / "wheels"), requirement)
    for wheel in (work / "wheels").glob("*.whl"):
        shutil.unpack_archive(wheel, work / "headers", "zip")
    source = _source(work)
    numpy = [path.parents[1] for path in (work / "headers").rglob("numpy/arrayobject.h")]
    cuda = [path.parent for name in ("cuda.h", "cudaProfiler.h") for path in (work / "headers").rglob(name)]
    _stub(work, [path for path in (work / "headers").rglob("cuda*.h") if path.name in ("cuda.h", "cudaProfiler.h")])
    settings = {
        "CC": f"{_TOOLS}gcc",
        "CXX": f"{_TOOLS}g++",
        "LDSHARED": f"{_TOOLS}g++ -shared",
        "LDCXXSHARED": f"{_TOOLS}g++ -shared",
        "CFLAGS": " ".join(["-O2", "-g0", *(f"-I{path}" for path in [*numpy, *dict.fromkeys(cuda)])]),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "SETUPTOOLS_EXT_SUFFIX": f".cpython-{python.replace('.', '')}-aarch64-linux-gnu.so",
    }
    options = [f"--cuda-root={work}/none", f"--cuda-inc-dir={cuda[0]}", f"--cudadrv-lib-dir={work}/stub"]
    _run([_python(work), "configure.py", *options, "--no-cuda-enable-curand"], source, settings)
    _run([_python(work), "setup.py", "-q", "bdist_wheel", "-d", str(work / "out")], source, settings)
    (made,) = (work / "out").glob("*.whl")
    return made


def _source(work: Path) -> Path:
    # pip runs its setup.py to learn its name, so it has to know beforehand what may be run.
    (work / "pinned.txt").write_text(f"pycuda=={_VERSION} --hash=sha256:{_SHA256}\n")
    pinned = ("--require-hashes", "-r", str(work / "pinned.txt"))
    _pip(work, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(work), *pinned)
    shutil.unpack_archive(work / f"pycuda-{_VERSION}.tar.gz", work)
    return work / f"pycuda-{_VERSION}"


def _stub(work: Path, headers: Sequence[Path]) -> None:
    """A library with every name of the headers, for the linker alone."""
    names = sorted({name for header in headers for name in _NAME.findall(header.read_text(errors="replace"))})
    (work / "stub").mkdir()
    text = "".join(f"void {name}(void) {{}}\n" for name in names)
    (work / "stub" / "cuda.c").write_text(text)
    out = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(work / "stub" / "libcuda.so")]
    _run([f"{_TOOLS}gcc", *out, str(work / "stub" / "cuda.c")])


def _python(work: Path) -> str:
    return str(work / "venv" / "bin" / "python")


def _pip(work: Path, *words: str) -> None:
    _run([_python(work), "-m", "pip", "--disable-pip-version-check", words[0], "--quiet", *words[1:]])


def _run(command: Sequence[str], cwd: Path | None = None, more: Mapping[str, str] | None = None) -> str:
    environment = {**os.environ, **(more or {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise NotBuiltError(f"{' '.join(command[:4])}: {' / '.join(said)}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.arm64.pycuda_wheel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", default="3.10", choices=tuple(_HEADERS), help="of the device  [3.10: JetPack 6]")
    parser.add_argument("--interpreter", help="of that version, on this machine  [the one on the PATH]")
    arguments = parser.parse_args()
    try:
        print(f"built, not run: {build(arguments.python, built_wheels(), arguments.interpreter)}")
    except NotBuiltError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
