"""What the sensors of whole devices tell, from their trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kedge_agent.measure.sensors.figures import UNITS
from kedge_agent.measure.sensors.reading import read_sensors
from kedge_agent.measure.sensors.sampler import Sampler
from tests.support.schemas import FOLDER
from tests.support.trees import TREES, unfold


def read(name: str, folder: Path) -> dict[str, Any]:
    return read_sensors(unfold(name, folder / name), window_s=0)


def readings(told: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["value"] for one in told["readings"]}


def zones(told: dict[str, Any]) -> dict[str, tuple[float | None, float | None, float | None]]:
    return {
        zone["zone"]: (zone["celsius"], zone["trip_throttle_celsius"], zone["trip_shutdown_celsius"])
        for zone in told["facts"]["thermal"]
    }


def test_an_orin_nano_tells_its_rails_load_mode_and_clocks(tmp_path: Path) -> None:
    told = read("jetson_orin_nano", tmp_path)
    facts, values = told["facts"], readings(told)
    assert facts["module"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert facts["l4t"] == "36.4.3"
    assert facts["power_mode"] == {
        "name": "15W",
        "id": 0,
        "modes": [{"id": 0, "name": "15W"}, {"id": 1, "name": "7W"}],
        "highest": 0,
        "default": 0,
    }
    assert facts["jetson_clocks"] is True
    assert facts["throttling_now"] == []
    assert values["power.VDD_IN"] == pytest.approx(5.04 * 1.128)
    assert values["voltage.VDD_IN"] == pytest.approx(5.04)
    assert values["current.VDD_IN"] == pytest.approx(1.128)
    assert "power.sum of shunt voltages" not in values
    assert values["load.gpu"] == pytest.approx(0.455)
    assert values["fan.pwm"] == pytest.approx(76 / 255)
    assert values["fan.speed_rpm"] == 1850
    assert told["throttles"] == {"over-current oc1": 0, "over-current oc2": 0, "over-current oc3": 41}


def test_a_unit_that_is_off_has_no_temperature_and_that_is_said(tmp_path: Path) -> None:
    told = read("jetson_orin_nano", tmp_path)
    assert zones(told)["cv0"] == (None, 99.0, 104.5)
    assert "temperature.cv0" not in readings(told)
    assert "temperature.cv0: it was not told now" in told["unavailable"]


def test_a_trip_that_only_warns_of_a_hot_surface_is_not_where_a_device_is_slowed_down(tmp_path: Path) -> None:
    told = read("jetson_orin_nano", tmp_path)
    assert zones(told)["cpu"] == (48.906, 99.0, 104.5)
    nearest = told["facts"]["headroom"][0]
    assert (nearest["zone"], nearest["celsius"]) == ("cpu", pytest.approx(99 - 48.906))


def test_an_agx_orin_below_its_highest_mode_tells_which_that_is(tmp_path: Path) -> None:
    told = read("jetson_agx_orin", tmp_path)
    mode = told["facts"]["power_mode"]
    assert (mode["name"], mode["id"], mode["highest"], mode["default"]) == ("MODE_30W", 2, 0, 2)
    assert told["facts"]["jetson_clocks"] is False
    processor, gpu, memory = told["facts"]["clocks"]
    assert (processor["high_hz"], processor["hardware_high_hz"]) == (1_728_000_000, 2_201_600_000)
    assert (gpu["high_hz"], gpu["hardware_high_hz"]) == (624_750_000, 1_300_500_000)
    assert (memory["name"], memory["hz"], memory["locked"]) == ("EMC", 2_133_000_000, False)
    values = readings(told)
    assert values["clock.emc"] == 2_133_000_000
    assert values["load.gpu"] == 0
    assert [name for name in values if name.startswith("power.")] == [
        "power.VDDQ_VDD2_1V8AO",
        "power.VDD_CPU_CV",
        "power.VDD_GPU_SOC",
        "power.VIN_SYS_5V0",
    ]


def test_a_xavier_nx_that_is_too_hot_says_what_slows_it_down(tmp_path: Path) -> None:
    told = read("jetson_xavier_nx", tmp_path)
    facts = told["facts"]
    assert facts["throttling_now"] == ["processor slowed by heat", "GPU slowed by heat"]
    assert zones(told) == {
        "cpu": (92.5, 90.5, 96.0),
        "gpu": (91.0, 90.5, 96.0),
        "aux": (90.5, 90.5, 96.0),
        "ao": (89.5, None, 96.0),
    }
    assert facts["headroom"][0] == {"zone": "cpu", "celsius": -2.0}
    assert (facts["power_mode"]["name"], facts["power_mode"]["highest"]) == ("MODE_20W_6CORE", 8)
    assert (facts["swap_on"], facts["zram_on"]) == (True, True)
    assert readings(told)["load.gpu"] == pytest.approx(0.984)
    assert "pressure on memory: /proc/pressure/memory cannot be read" in told["unavailable"]


def test_a_thor_tells_its_clocks_apart_and_its_load_is_said_to_be_missing(tmp_path: Path) -> None:
    told = read("jetson_thor", tmp_path)
    values = readings(told)
    assert (values["clock.gpu"], values["clock.gpu-nvd-0"], values["clock.emc"]) == (315e6, 315e6, 4266e6)
    assert values["power.VIN"] == pytest.approx(28.906)
    assert values["voltage.VIN"] == pytest.approx(19.98)
    assert "load.gpu" not in values
    assert "load of a GPU: no Tegra's driver tells it here" in told["unavailable"]
    assert told["facts"]["power_mode"]["name"] == "120W"
    assert told["facts"]["power_mode"]["highest"] == 0
    assert told["facts"]["zram_on"] is False


def test_a_laptop_has_its_processor_s_own_sensor_and_not_the_same_twice(tmp_path: Path) -> None:
    told = read("x86_laptop", tmp_path)
    assert zones(told) == {"cpu": (61.0, 100.0, None), "acpitz": (58.0, None, 128.0)}
    assert readings(told)["fan.thinkpad_fan1_rpm"] == 3120
    assert told["facts"]["power_mode"] is None
    assert told["facts"]["jetson_clocks"] is None
    assert told["throttles"] == {"thermal throttling of cores": 16, "thermal throttling of the package": 17}


def test_without_its_own_sensor_the_zone_of_the_package_stands_for_the_processor(tmp_path: Path) -> None:
    root = unfold("x86_laptop", tmp_path)
    (root / "sys/class/hwmon/hwmon0/name").write_text("nct6775\n")
    assert zones(read_sensors(root, window_s=0)) == {"cpu": (61.0, None, None), "acpitz": (58.0, None, 128.0)}


@pytest.mark.parametrize("name", TREES)
def test_what_any_device_tells_fits_the_schema_of_facts_and_is_plain_json(tmp_path: Path, name: str) -> None:
    told = read(name, tmp_path)
    json.dumps(told, allow_nan=False)
    schema = json.loads((FOLDER / "facts.schema.json").read_text())
    sensors = {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": "#/$defs/sensors"}
    assert [error.message for error in Draft202012Validator(sensors).iter_errors(told)] == []


def test_a_root_with_nothing_in_it_gives_reasons_and_no_figure(tmp_path: Path) -> None:
    told = read_sensors(tmp_path, window_s=0)
    assert told["readings"] == []
    assert told["throttles"] == {}
    assert told["facts"]["power_mode"] is None
    assert told["facts"]["swap_on"] is None
    assert [line.partition(":")[0] for line in told["unavailable"]] == [
        "load of the processors",
        "memory",
        "swapping",
        "pressure on cpu",
        "pressure on io",
        "pressure on memory",
        "clock of the processor",
        "clock of a GPU",
        "clock of the memory",
        "load of a GPU",
        "temperatures",
        "power",
        "throttling",
        "fan",
        "NVIDIA's driver",
    ]


def test_the_machine_that_runs_this_tells_its_load_and_memory() -> None:
    values = readings(read_sensors())
    assert 0 <= values["load.cpu"] <= 1
    assert 0 < values["memory.available"] <= values["memory.total"]


def test_the_document_names_every_channel_that_a_device_here_has(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "sensors.md").read_text()
    families = ("temperature.", "power.", "voltage.", "current.", "fan.", "throttle.")
    for name in TREES:
        sampler = Sampler(unfold(name, tmp_path / name))
        for channel in sampler.channels:
            assert channel.startswith(families) or f"`{channel}`" in document
        sampler.close()
    assert all(f"`{kind}`" in document for kind in UNITS)
