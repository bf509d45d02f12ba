"""What this machine can run; a test that needs more skips with the reason, or fails where it is required.

KEDGE_REQUIRE=sshd,… turns those skips into failures: CI names what it has installed.
"""

from __future__ import annotations

import ctypes.util
import importlib
import importlib.util
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from tools.setup import interpreters
from tools.setup.axe import axe_path

if TYPE_CHECKING:
    from tools.conformance.bindings import Bindings

# Where it is for the user; each test has a cache of its own.
AXE = axe_path()
SHARED = Path(__file__).resolve().parents[3] / "shared"


def required() -> set[str]:
    return {name for name in os.environ.get("KEDGE_REQUIRE", "").split(",") if name}


def lacks(what: str, reason: str) -> NoReturn:
    """Skip, or fail where `what` is required."""
    if what in required():
        pytest.fail(f"{what} is required here (KEDGE_REQUIRE): {reason}")
    pytest.skip(reason)


def sshd_path() -> str:
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        lacks("sshd", "no sshd on this machine (Debian: openssh-server)")
    if shutil.which("ssh-keygen") is None:
        lacks("sshd", "no ssh-keygen on this machine (Debian: openssh-client)")
    return found


def tensorrt_rtx() -> None:
    """Skip where TensorRT for RTX, which compiles without a GPU, is not installed."""
    try:
        importlib.import_module("tensorrt_rtx_bindings")
    except Exception as error:  # besides ImportError: libraries that do not load
        lacks("tensorrt", f"no TensorRT for RTX on this machine (pip: tensorrt-rtx-cu13-bindings): {error}")


def tensorrt_bindings(cache: Path) -> list[Bindings]:
    """NVIDIA's bindings of every TensorRT that is checked; skips where this machine cannot get or load them."""
    from tools.conformance.bindings import UnavailableError
    from tools.conformance.check import all_bindings

    tensorrt_rtx()
    others = [found for version in ("3.12", "3.11", "3.10") if (found := interpreter(version)) is not None]
    try:
        return all_bindings(cache, others)
    except UnavailableError as error:
        lacks("trt-bindings", f"no bindings of TensorRT on this machine: {error}")


@cache
def systemd_analyze() -> str:
    """The tool that reads units; it needs no systemd that runs."""
    found = shutil.which("systemd-analyze")
    if found is None:
        lacks("systemd", "no systemd-analyze on this machine (Debian: systemd)")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout.split()
    if len(said) < 2 or not said[1].isdigit() or int(said[1]) < 250:
        lacks("systemd", "systemd-analyze judges files since version 250; this machine has an older one")
    return found


def modelopt() -> None:
    """Skip where NVIDIA's ModelOpt is not installed."""
    if importlib.util.find_spec("modelopt") is None:
        lacks("modelopt", "no ModelOpt on this machine (pip install 'kedge[modelopt]')")


def chromium() -> str:
    """The browser in which pages are looked at; skips where it, or what drives it, is not there."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        lacks("chromium", "no Chromium on this machine (Debian: chromium)")
    if importlib.util.find_spec("playwright") is None:
        lacks("chromium", "no playwright on this machine (pip: playwright)")
    return found


def axe() -> str:
    """The script that judges whether everyone can read a page; tests fetch nothing themselves."""
    if not AXE.is_file():
        lacks("axe", f"no axe-core at {AXE} (python tools/setup/axe.py fetches it)")
    return AXE.read_text(encoding="utf-8")


def fuse() -> None:
    """Skip where no file system in user space can be made; whether it can be mounted shows when it is."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacks("fuse", "this user may not use /dev/fuse")
    if importlib.util.find_spec("mfusepy") is None or ctypes.util.find_library("fuse3") is None:
        lacks("fuse", "no libfuse 3 on this machine (Debian: libfuse3-3, fuse3; pip: mfusepy)")


@cache
def interpreter(version: str) -> str | None:
    """A working CPython of this version, or None."""
    return interpreters.interpreter(version)


def shared_model(name: str) -> Path:
    """A real model beside the checkout; skips where there is none."""
    path = SHARED / "models" / name
    if not path.is_file():
        pytest.skip(f"needs the real model {name} in a folder `shared/models` beside the checkout")
    return path
