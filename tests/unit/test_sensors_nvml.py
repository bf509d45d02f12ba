"""NVIDIA's driver through a stand-in with the calls of nvidia-ml-py; its answers are those of an H200, driver 580."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kedge_agent.measure.sensors.nvml import Gpus, find_gpus
from kedge_agent.measure.sensors.reading import read_sensors
from kedge_agent.measure.sensors.sampler import Sampler
from tests.support.trees import unfold

THERMAL, POWER_CAP, IDLE = 0x20, 0x04, 0x01
HARDWARE, HARDWARE_THERMAL, POWER_BRAKE = 0x08, 0x40, 0x80


class DriverError(Exception):
    """As pynvml's NVMLError."""


@dataclasses.dataclass
class FakeNvml:
    """unsupported: names of calls that the driver does not answer. started: how often it was taken hold of, less how
    often it was let go."""

    unsupported: frozenset[str] = frozenset()
    reasons: int = 0
    supported: int = 0x1EF
    count: int = 1
    started: int = 0
    lost: bool = False
    NVMLError: type[Exception] = DriverError

    def _answer(self, call: str, value: Any) -> Any:
        if self.lost:
            raise DriverError("GPU is lost")
        if call in self.unsupported:
            raise DriverError("Not Supported")
        return value

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer("nvmlInit", None)
        self.started += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.started -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return int(self._answer("nvmlDeviceGetCount", self.count))

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.159.04"

    def __getattr__(self, call: str) -> Any:
        """Calls of one GPU."""
        answers: dict[str, Any] = {
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda gpu: "NVIDIA H200",
            "nvmlDeviceGetClockInfo": lambda gpu, kind: {1: 1980, 2: 3201}[kind],
            "nvmlDeviceGetMaxClockInfo": lambda gpu, kind: {1: 1980, 2: 3201}[kind],
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 41 + gpu,
            "nvmlDeviceGetTemperatureThreshold": lambda gpu, threshold: {0: 95, 1: 89}[threshold],
            "nvmlDeviceGetPowerUsage": lambda gpu: 564_238,
            "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 700_000,
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=100, memory=100),
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=150_754_820_096, used=3_344_826_368),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: self.reasons,
            "nvmlDeviceGetSupportedClocksEventReasons": lambda gpu: self.supported,
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [SimpleNamespace(pid=445, usedGpuMemory=2_690_646_016)],
        }
        if call not in answers:
            raise AttributeError(call)
        return lambda *arguments: self._answer(call, answers[call](*arguments))


def fake(unsupported: Iterable[str] = (), **more: Any) -> Any:
    return FakeNvml(frozenset(unsupported), **more)


def test_a_gpu_is_told_in_the_units_of_its_channels() -> None:
    gpus = Gpus(fake())
    assert gpus.sample() == {
        "clock.gpu": 1980e6,
        "clock.gpu_memory": 3201e6,
        "temperature.gpu": 41.0,
        "power.gpu": pytest.approx(564.238),
        "load.gpu": 1.0,
        "memory.gpu_used": 3_344_826_368,
        "memory.gpu_total": 150_754_820_096,
        "limit.GPU power cap": 0,
        "throttle.GPU thermal slowdown by software": 0,
        "throttle.GPU thermal slowdown by hardware": 0,
        "throttle.GPU power brake": 0,
    }
    assert gpus.channels["power.gpu"] == "W"
    assert gpus.missing == []


def test_what_slows_a_gpu_down_is_counted_as_often_as_it_is_seen_and_idling_is_nothing() -> None:
    nvml = fake(reasons=THERMAL | IDLE)
    gpus = Gpus(nvml)
    gpus.sample()
    told = gpus.sample()
    assert told["throttle.GPU thermal slowdown by software"] == 2
    nvml.reasons = IDLE
    told = gpus.sample()
    assert told["throttle.GPU thermal slowdown by software"] == 2
    assert gpus.facts()[0]["throttle_reasons"] == []


def test_a_gpu_at_its_power_limit_is_at_a_limit_and_not_throttled() -> None:
    gpus = Gpus(fake(reasons=POWER_CAP))
    told = gpus.sample()
    assert told["limit.GPU power cap"] == 1
    assert not any(value for name, value in told.items() if name.startswith("throttle."))
    assert gpus.channels["limit.GPU power cap"] == "ratio"
    assert gpus.facts()[0]["throttle_reasons"] == []


def test_a_change_of_clocks_that_is_told_as_slowdown_by_hardware_counts_only_where_its_reasons_are_not_told() -> None:
    nvml = fake(reasons=HARDWARE)
    gpus = Gpus(nvml)
    assert not any(value for name, value in gpus.sample().items() if name.startswith("throttle."))
    assert gpus.facts()[0]["throttle_reasons"] == []
    nvml.reasons = HARDWARE | HARDWARE_THERMAL
    assert gpus.sample()["throttle.GPU thermal slowdown by hardware"] == 1
    old = Gpus(fake(reasons=HARDWARE, supported=0x1EF & ~(HARDWARE_THERMAL | POWER_BRAKE)))
    assert old.sample()["throttle.GPU hardware slowdown"] == 1
    assert old.facts()[0]["throttle_reasons"] == ["GPU hardware slowdown"]
    silent = Gpus(fake({"nvmlDeviceGetSupportedClocksEventReasons"}, reasons=HARDWARE))
    assert "throttle.GPU hardware slowdown" not in silent.channels


def test_what_the_driver_does_not_support_is_left_out_with_its_reason() -> None:
    gpus = Gpus(fake({"nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetMemoryInfo"}))
    told = gpus.sample()
    assert told.keys() == {"clock.gpu", "clock.gpu_memory", "temperature.gpu", "load.gpu"}
    assert gpus.missing == [
        "power.gpu: the driver says: Not Supported",
        "memory.gpu_used: the driver says: Not Supported",
        "memory.gpu_total: the driver says: Not Supported",
        "what slows a GPU down: the driver does not tell",
    ]
    fact = gpus.facts()[0]
    assert (fact["memory_bytes"], fact["throttle_reasons"]) == (None, None)
    assert (fact["power_limit_w"], fact["trip_throttle_celsius"]) == (700.0, 89)


def test_a_call_that_the_installed_library_does_not_know_is_as_good_as_unsupported() -> None:
    class Older(FakeNvml):
        def __getattr__(self, call: str) -> Any:
            if call == "nvmlDeviceGetUtilizationRates":
                raise AttributeError(call)
            return super().__getattr__(call)

    gpus = Gpus(Older())
    assert "load.gpu" not in gpus.channels
    assert gpus.missing == ["load.gpu: the driver says: nvmlDeviceGetUtilizationRates"]


class Named(FakeNvml):
    """A library that knows these names of the call that gives the reasons, and no others."""

    names: frozenset[str] = frozenset()

    def __getattr__(self, call: str) -> Any:
        if call.startswith("nvmlDeviceGetCurrentClocks"):
            if call not in self.names:
                raise AttributeError(call)
            call = "nvmlDeviceGetCurrentClocksEventReasons"
        return super().__getattr__(call)


def test_a_library_that_knows_the_reasons_by_their_old_name_or_not_at_all_tells_the_rest() -> None:
    nvml = Named(reasons=THERMAL)
    gpus = Gpus(nvml)
    assert gpus.sample()["clock.gpu"] == 1980e6
    assert gpus.missing == ["what slows a GPU down: the driver does not tell"]
    assert gpus.facts()[0]["throttle_reasons"] is None
    nvml.names = frozenset({"nvmlDeviceGetCurrentClocksThrottleReasons"})
    assert Gpus(nvml).sample()["throttle.GPU thermal slowdown by software"] == 1


def test_a_gpu_that_is_lost_meanwhile_is_left_out_and_nothing_raises() -> None:
    nvml = fake()
    gpus = Gpus(nvml)
    nvml.lost = True
    assert gpus.sample() == {}
    assert gpus.facts()[0]["clock_high_hz"] is None
    gpus.close()


def test_each_gpu_has_names_of_its_own() -> None:
    told = Gpus(fake(count=3)).sample()
    assert (told["temperature.gpu"], told["temperature.gpu1"], told["temperature.gpu2"]) == (41, 42, 43)
    assert told["throttle.GPU power brake 2"] == 0


def test_the_driver_is_let_go_once_and_also_where_it_has_no_gpu() -> None:
    nvml = fake()
    gpus = Gpus(nvml)
    assert nvml.started == 1
    gpus.close()
    gpus.close()
    assert nvml.started == 0
    for none in (fake(count=0), fake({"nvmlDeviceGetCount"})):
        try:
            Gpus(none).close()
        except DriverError as error:
            assert str(error) == "Not Supported"  # noqa: PT017 - either may be
        assert none.started == 0


def test_without_a_driver_its_library_is_not_even_looked_for(tmp_path: Path) -> None:
    assert find_gpus(tmp_path) == "NVIDIA's driver: it is asked on the device itself"
    if not Path("/proc/driver/nvidia/version").exists():
        assert find_gpus(Path("/")) == "NVIDIA's driver: none is loaded here"


def test_what_the_system_tells_of_a_channel_goes_before_the_driver_and_the_driver_fills_the_rest(
    tmp_path: Path,
) -> None:
    root = unfold("jetson_thor", tmp_path)
    (root / "sys/class/thermal/thermal_zone1/temp").write_text("52500\n")
    told = read_sensors(root, window_s=0, gpus=lambda _: Gpus(fake(reasons=THERMAL)))
    values = {one["name"]: one["value"] for one in told["readings"]}
    assert values["clock.gpu"] == 315e6
    assert values["temperature.gpu"] == 52.5
    assert values["load.gpu"] == 1.0
    assert not [line for line in told["unavailable"] if line.startswith(("load of a GPU", "NVIDIA"))]
    assert told["facts"]["gpu"]["name"] == "NVIDIA H200"
    assert told["facts"]["gpu"]["processes"] == [{"pid": 445, "used_bytes": 2_690_646_016}]
    assert told["facts"]["throttling_now"] == ["GPU thermal slowdown by software"]


def test_a_pc_with_a_gpu_has_its_headroom_from_the_driver(tmp_path: Path) -> None:
    root = unfold("x86_laptop", tmp_path)
    facts = read_sensors(root, window_s=0, gpus=lambda _: Gpus(fake()))["facts"]
    assert {"zone": "gpu", "celsius": 48.0} in facts["headroom"]
    assert facts["gpus"] == 1


def test_a_driver_that_was_reloaded_is_taken_hold_of_anew(tmp_path: Path) -> None:
    drivers = [fake(), fake()]
    left = list(drivers)
    sampler = Sampler(unfold("x86_laptop", tmp_path), gpus=lambda _: Gpus(left.pop(0)))
    assert sampler.sample(0.0)["load.gpu"] == 1.0
    drivers[0].lost = True
    told = sampler.sample(1.0)
    assert "load.gpu" not in told
    assert "load.gpu: the driver does not answer now" in sampler.unread(told)
    assert sampler.sample(40.0)["load.gpu"] == 1.0
    sampler.close()
    assert [driver.started for driver in drivers] == [0, 0]


def test_a_driver_that_is_loaded_after_the_agent_is_found_later(tmp_path: Path) -> None:
    loaded: list[Gpus] = []
    sampler = Sampler(unfold("x86_laptop", tmp_path), gpus=lambda _: loaded[0] if loaded else "none yet")
    assert "none yet" in sampler.missing
    sampler.sample(0.0)
    nvml = fake()
    loaded.append(Gpus(nvml))
    assert "load.gpu" not in sampler.sample(1.0)
    assert sampler.sample(400.0)["load.gpu"] == 1.0
    assert sampler.channels["load.gpu"] == "ratio"
    assert "none yet" not in sampler.missing
    sampler.close()
    assert nvml.started == 0
