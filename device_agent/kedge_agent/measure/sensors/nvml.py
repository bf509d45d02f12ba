"""What NVIDIA's driver tells of its GPUs: discrete ones, and Thor's.

Source: NVIDIA, NVML API Reference Guide (docs.nvidia.com/deploy/nvml-api), through nvidia-ml-py, which is optional: it
is imported where a driver is loaded. Orin's GPU has another driver, of which NVML says NotSupported to most. This is
the one module that knows NVML; tests give it one of their own, which has the same calls.
"""

# ruff: noqa: N802 - the names are NVML's

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from .figures import channel_name, unit_of
from .files import there

__all__ = ["Gpus", "Nvml", "find_gpus"]

_DRIVER = "proc/driver/nvidia/version"
_MOST_GPUS = 8
_MOST_PROCESSES = 256
# nvml.h: nvmlClockType_t, nvmlTemperatureSensors_t, nvmlTemperatureThresholds_t.
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_SENSOR_GPU = 0
_SHUTDOWN, _SLOWDOWN = 0, 1

_SLOWED: Mapping[int, str] = {
    0x20: "GPU thermal slowdown by software",
    0x40: "GPU thermal slowdown by hardware",
    0x80: "GPU power brake",
}
"""Reasons of clocks' events (nvml.h, nvmlClocksEventReason…) for which a GPU is slower than it could be. The others are
settings (0x02 application clocks, 0x10 sync boost, 0x100 display clock), or that it has nothing to do (0x01)."""

_HARDWARE: Mapping[int, str] = {0x08: "GPU hardware slowdown"}
"""That it is slowed by hardware, for whatever reason: it "may be also reported during PState or clock change" (nvml.h).
So it counts only where the driver tells neither of the reasons 0x40 and 0x80."""
_HARDWARE_REASONS = 0x40 | 0x80

_POWER_CAP = 0x04
"""At full load a discrete GPU is at its power limit: that is how its clocks are set, and no throttling."""


class Nvml(Protocol):
    """The calls of the module pynvml that are made here. Each raises NVMLError where it cannot be answered."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None:
        """Before any other call."""

    def nvmlShutdown(self) -> None:
        """After the last."""

    def nvmlSystemGetDriverVersion(self) -> str:
        """As "550.54.15"."""

    def nvmlDeviceGetCount(self) -> int:
        """How many GPUs there are."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        """What a GPU is called in other calls."""

    def nvmlDeviceGetName(self, handle: Any) -> str:
        """Of the product."""

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        """MHz now."""

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:
        """MHz at most."""

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        """°C."""

    def nvmlDeviceGetTemperatureThreshold(self, handle: Any, threshold: int) -> int:
        """°C."""

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        """mW."""

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        """mW, the lowest of all limits."""

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        """gpu, memory: per cent of the last sampling period."""

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        """total, used: bytes."""

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        """Bits."""

    def nvmlDeviceGetSupportedClocksEventReasons(self, handle: Any) -> int:
        """Those that it may ever give."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        """pid, usedGpuMemory: bytes, or None."""


class Gpus:
    """The GPUs of a driver. Close it.

    Channels are those that it answered when it was asked first: `clock.gpu` of the first GPU, `clock.gpu1` of the next,
    and so on; `throttle.…` counts how often a reason was seen at work; `limit.…` says whether it is at a limit.
    """

    def __init__(self, nvml: Nvml) -> None:
        """Take hold of the driver.

        Raises:
            Exception: its NVMLError.
        """
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles: list[Any] = []
        self._tallies: dict[str, int] = {}
        self._slowed: dict[int, Mapping[int, str]] = {}
        self._closed = False
        self.missing: list[str] = []
        try:
            count = min(nvml.nvmlDeviceGetCount(), _MOST_GPUS)
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except Exception:
            nvml.nvmlShutdown()
            raise
        self._figures: dict[str, Callable[[], float]] = {}
        for index in range(count):
            for channel, read in self._readers(index).items():
                try:
                    read()
                except (nvml.NVMLError, AttributeError) as error:
                    self.missing.append(f"{channel}: the driver says: {_said(error)}")
                else:
                    self._figures[channel] = read
        for index in range(count):
            if self._reason_bits(index) is None:
                continue
            supported = self._reason_bits(index, "Supported")
            unnamed = supported is not None and not supported & _HARDWARE_REASONS
            self._slowed[index] = {**_SLOWED, **_HARDWARE} if unnamed else _SLOWED
            self._tallies |= dict.fromkeys(self._throttles(index).values(), 0)
        if len(self._slowed) < count:
            self.missing.append("what slows a GPU down: the driver does not tell")

    @property
    def channels(self) -> dict[str, str]:
        """Unit by the name of each channel."""
        limits = map(_limit, self._slowed)
        return {name: unit_of(name) for name in (*self._figures, *self._tallies, *limits)}

    def sample(self) -> dict[str, float]:
        """Figures by channel; what the driver does not answer now is left out."""
        out: dict[str, float] = {}
        for channel, read in self._figures.items():
            try:
                out[channel] = read()
            except self._nvml.NVMLError:
                continue
        for index in self._slowed:
            bits = self._reason_bits(index)
            if bits is None:
                continue
            out[_limit(index)] = float(bool(bits & _POWER_CAP))
            for bit, channel in self._throttles(index).items():
                self._tallies[channel] += bool(bits & bit)
                out[channel] = float(self._tallies[channel])
        return out

    def facts(self) -> list[dict[str, Any]]:
        """What each GPU is, and may do; null: the driver does not say (docs/sensors.md)."""
        return [self._fact(index) for index in range(len(self._handles))]

    def close(self) -> None:
        """Let go of the driver."""
        if self._closed:
            return
        self._closed = True
        self._figures, self._slowed, self._handles = {}, {}, []
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _readers(self, index: int) -> dict[str, Callable[[], float]]:
        nvml, gpu = self._nvml, self._handles[index]
        name = "gpu" if index == 0 else f"gpu{index}"
        return {
            f"clock.{name}": lambda: nvml.nvmlDeviceGetClockInfo(gpu, _CLOCK_SM) * 1e6,
            f"clock.{name}_memory": lambda: nvml.nvmlDeviceGetClockInfo(gpu, _CLOCK_MEMORY) * 1e6,
            f"temperature.{name}": lambda: float(nvml.nvmlDeviceGetTemperature(gpu, _SENSOR_GPU)),
            f"power.{name}": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            f"load.{name}": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
            f"memory.{name}_used": lambda: float(nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            f"memory.{name}_total": lambda: float(nvml.nvmlDeviceGetMemoryInfo(gpu).total),
        }

    def _reason_bits(self, index: int, which: str = "Current") -> int | None:
        # Before driver 535 the calls had other names, and libraries of that time know no others.
        for name in ("EventReasons", "ThrottleReasons"):
            bits = self._ask(f"nvmlDeviceGet{which}Clocks{name}", index)
            if bits is not None:
                return int(bits)
        return None

    def _throttles(self, index: int) -> dict[int, str]:
        """Channel by reason."""
        return {bit: channel_name("throttle", f"{name}{_which(index)}") for bit, name in self._slowed[index].items()}

    def _ask(self, call: str, index: int, *more: int) -> Any:
        """None: the driver does not answer, or the library that is installed does not know the call."""
        try:
            return getattr(self._nvml, call)(self._handles[index], *more)
        except (self._nvml.NVMLError, AttributeError):
            return None

    def _driver(self) -> str | None:
        try:
            return self._nvml.nvmlSystemGetDriverVersion()
        except (self._nvml.NVMLError, AttributeError):
            return None

    def _fact(self, index: int) -> dict[str, Any]:
        bits = self._reason_bits(index)
        clock = self._ask("nvmlDeviceGetMaxClockInfo", index, _CLOCK_SM)
        limit = self._ask("nvmlDeviceGetEnforcedPowerLimit", index)
        memory = self._ask("nvmlDeviceGetMemoryInfo", index)
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses", index)
        return {
            "name": self._ask("nvmlDeviceGetName", index),
            "driver": self._driver(),
            "clock_high_hz": None if clock is None else clock * 1_000_000,
            "power_limit_w": None if limit is None else limit / 1000,
            "trip_throttle_celsius": self._ask("nvmlDeviceGetTemperatureThreshold", index, _SLOWDOWN),
            "trip_shutdown_celsius": self._ask("nvmlDeviceGetTemperatureThreshold", index, _SHUTDOWN),
            "memory_bytes": None if memory is None else int(memory.total),
            "throttle_reasons": None
            if bits is None
            else [name for bit, name in self._slowed.get(index, _SLOWED).items() if bits & bit],
            "processes": None
            if processes is None
            else [
                {"pid": int(one.pid), "used_bytes": None if one.usedGpuMemory is None else int(one.usedGpuMemory)}
                for one in list(processes)[:_MOST_PROCESSES]
            ],
        }


def find_gpus(root: Path) -> Gpus | str:
    """The GPUs of the driver that is loaded, or why there are none. A root that is no system's own has none: the
    driver tells of this machine."""
    if root.resolve() != Path("/"):
        return "NVIDIA's driver: it is asked on the device itself"
    if not there(root / _DRIVER):
        return "NVIDIA's driver: none is loaded here"
    try:
        nvml = cast("Nvml", importlib.import_module("pynvml"))
    except ImportError:
        return "NVIDIA's driver: nvidia-ml-py is not installed"
    try:
        return Gpus(nvml)
    except (nvml.NVMLError, OSError) as error:
        return f"NVIDIA's driver: {_said(error)}"


def _limit(index: int) -> str:
    """Channel: 1 while it is at its power limit, else 0."""
    return channel_name("limit", f"GPU power cap{_which(index)}")


def _which(index: int) -> str:
    return "" if index == 0 else f" {index}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
