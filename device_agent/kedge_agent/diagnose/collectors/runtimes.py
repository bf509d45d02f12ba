"""Runtimes and libraries that are installed for the agent's interpreter, and NVIDIA's driver; none of them is imported.

Sources: PyPA, "Recording installed projects"; onnxruntime, docs/execution-providers ("shared library" providers lie
beside the package's own library as libonnxruntime_providers_NAME.so).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ...engine.here import driver_version, gpu_here
from ..device import Collected, Device

__all__ = ["collect"]

# By what the facts call them: distributions, of which any will do.
_DISTRIBUTIONS = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
    "cuda_bindings": ("cuda-bindings", "cuda-python"),
    "pycuda": ("pycuda",),
    "zstd": ("backports.zstd",),
    "nvml": ("nvidia-ml-py",),
}
# Without these the agent does not start, or runs no model: that their files are there too is looked at.
_NEEDED = ("numpy", "onnxruntime")
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    data: dict[str, Any] = {name: _version(names) for name, names in _DISTRIBUTIONS.items()}
    for name in _NEEDED:
        if data[name] is not None and importlib.util.find_spec(name) is None:
            data |= {name: None, f"{name}_why": f"it is recorded as installed ({data[name]}), and its files are gone"}
    if data["zstd"] is None and importlib.util.find_spec("compression") is not None:
        data["zstd"] = "of Python"
    data["driver"] = driver_version(device.root)
    if data["driver"] is None:
        data["driver_why"] = "/proc/driver/nvidia/version is not here, or names none"
    gpu = gpu_here() if device.live else None
    data["cuda"] = None if gpu is None else gpu.driver_cuda
    if gpu is None:
        data["cuda_why"] = "no GPU that NVIDIA's driver shows"
    return Collected({**data, **_providers()})


def _version(names: tuple[str, ...]) -> str | None:
    # Others need not wait for the parsers of e-mail that it brings along.
    from importlib import metadata

    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _providers() -> dict[str, Any]:
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        return {"providers": None, "providers_why": "onnxruntime is not installed"}
    folder = Path(next(iter(spec.submodule_search_locations)), "capi")
    found = [
        name for library, name in _PROVIDERS.items() if (folder / f"libonnxruntime_providers_{library}.so").exists()
    ]
    return {"providers": [*found, "CPUExecutionProvider"]}
