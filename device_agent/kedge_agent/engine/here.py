"""What this machine is, as far as engines care: its GPU, its module, its software.

Every reading takes a root folder, so that recorded trees of real devices can be read in tests.
"""

from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats.passport import Passport
from ..formats.plan_header import read_plan_header
from .library import library_of
from .report import EngineError

__all__ = [
    "Gpu",
    "built_passport",
    "compatible_modules",
    "driver_version",
    "gpu_here",
    "jetson_linux",
    "passport_here",
    "peak_rss",
    "power_mode",
]

_MAX_TREE_BYTES = 4096
# CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR, and CU_DEVICE_ATTRIBUTE_INTEGRATED.
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18


@dataclass(frozen=True)
class Gpu:
    """The first GPU that the driver shows. driver_cuda: the newest CUDA that the driver serves, as "13.0".

    integrated: it shares the memory of the CPU. memory_bytes: in all.
    """

    compute_capability: str
    driver_cuda: str
    integrated: bool = False
    memory_bytes: int = 0


_found: list[Gpu] = []


def gpu_here() -> Gpu | None:
    """The GPU of this machine, or None. Asks the driver, which makes no CUDA context; its library stays loaded.

    What was found is remembered; that nothing was found is not: a driver may come up after the agent.
    """
    if not _found:
        gpu = _asked()
        if gpu is None:
            return None
        _found.append(gpu)
    return _found[0]


def _asked() -> Gpu | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, version, major, minor, integrated = (ctypes.c_int() for _ in range(5))
    memory = ctypes.c_size_t()
    calls: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(integrated), _INTEGRATED, device),
        lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        lambda: driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    try:
        if any(call() != 0 for call in calls):
            return None
    except AttributeError:  # a library of that name without these functions: a stub
        return None
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(f"{major.value}.{minor.value}", cuda, bool(integrated.value), memory.value)


def passport_here(
    runtime: str, compute_capabilities: tuple[str, ...] | None = None, *, root: Path = Path("/")
) -> Passport | None:
    """The passport that an engine built here now would get; None where the runtime is not installed.

    Args:
        compute_capabilities: that are compiled for, where the compiler serves GPUs that are not here; None: the one
            that is.
    """
    try:
        version = library_of(runtime).version()
    except EngineError:
        return None
    if version is None:
        return None
    gpu = gpu_here()
    here = () if gpu is None else (gpu.compute_capability,)
    modules = compatible_modules(root)
    return Passport(
        runtime=runtime,
        runtime_version=version,
        os=platform.system().lower(),
        arch=platform.machine(),
        compute_capabilities=here if compute_capabilities is None else compute_capabilities,
        module=modules[0] if modules else None,
        l4t=jetson_linux(root),
        cuda=None if gpu is None else gpu.driver_cuda,
        driver=driver_version(root),
        power_mode=power_mode(root),
    )


def built_passport(engine: bytes, here: Passport) -> Passport:
    """The passport of an engine that was built on a machine; version and GPUs are those that the engine states."""
    header = read_plan_header(engine, file_bytes=len(engine))
    return replace(
        here,
        runtime=header.runtime,
        runtime_version=header.version,
        compute_capabilities=header.compute_capabilities or here.compute_capabilities,
    )


def compatible_modules(root: Path = Path("/")) -> tuple[str, ...]:
    """What the device tree says this board is, the most specific first; empty where there is no device tree."""
    data = _read(root / "proc/device-tree/compatible")
    return tuple(part for part in data.decode("ascii", "replace").split("\0") if part)


def jetson_linux(root: Path = Path("/")) -> str | None:
    """Version of Jetson Linux, as "36.4.3"; None elsewhere."""
    text = _read(root / "etc/nv_tegra_release").decode("ascii", "replace")
    found = re.search(r"#\s*R(\d+).*?REVISION:\s*(\d+(?:\.\d+)*)", text)
    return f"{found[1]}.{found[2]}" if found else None


def power_mode(root: Path = Path("/")) -> str | None:
    """The number of the power mode that nvpmodel set last, as it stores it; None elsewhere."""
    text = _read(root / "var/lib/nvpmodel/status").decode("ascii", "replace")
    found = re.search(r"pmode:(\d{1,4})", text)
    return str(int(found[1])) if found else None


def peak_rss(root: Path = Path("/")) -> int | None:
    """Highest resident set of this process in bytes; None where the kernel does not say.

    VmHWM, and not the `ru_maxrss` of getrusage: a child process begins with that of its parent.
    """
    found = re.search(rb"VmHWM:\s+(\d+) kB", _read(root / "proc/self/status"))
    return int(found[1]) * 1024 if found else None


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's driver, as "540.4.0"; None where there is none that says so."""
    text = _read(root / "proc/driver/nvidia/version").decode("ascii", "replace")
    found = re.search(r"(?:Module|for \S+)\s+(\d+\.\d+(?:\.\d+)?)", text)
    return found[1] if found else None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TREE_BYTES)
    except OSError:
        return b""
