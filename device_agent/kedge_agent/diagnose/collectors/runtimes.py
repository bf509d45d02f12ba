"""Runtimes and libraries that are installed."""

from __future__ import annotations

from ..device import Collected, Device

__all__ = ["collect"]


def collect(device: Device) -> Collected:
    """See docs/diagnose.md."""
    return Collected(
        {
            "numpy": None,
            "onnxruntime": None,
            "tensorrt": None,
            "tensorrt_rtx": None,
            "cuda_bindings": None,
            "pycuda": None,
            "zstd": None,
            "nvml": None,
            "driver": None,
            "cuda": None,
            "providers": None,
        }
    )
