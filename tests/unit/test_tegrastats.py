from __future__ import annotations

import time

import pytest

from kedge_agent.measure.sensors.figures import unit_of
from kedge_agent.measure.sensors.tegrastats import parse_tegrastats

MEGABYTE = 1 << 20
# Printed on an AGX Xavier with JetPack 4.2: github.com/martinkersner/gtop, pull request 7.
JETPACK_4 = (
    "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) "
    "CPU [0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@30C GPU@30.5C Tboard@31C Tdiode@32C AUX@30.5C CPU@31.5C thermal@30.8C PMIC@100C "
    "GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306"
)
# Printed by root on an AGX Orin with JetPack 5, published by its owner in a public repository's notes.
JETPACK_5 = (
    "04-24-2023 00:01:24 RAM 1282/62795MB (lfb 15152x4MB) SWAP 0/31398MB (cached 0MB) "
    "CPU [0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 GR3D2_FREQ 0%@0 VIC_FREQ 729 APE 174 CV0@-256C CPU@42.593C Tboard@32C "
    "SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C SOC1@40.468C CV2@-256C "
    "VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
# Printed by root on an Orin Nano with JetPack 6: github.com/henrygd/beszel, agent/gpu_test.go (issue 286).
JETPACK_6 = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) "
    "CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] "
    "NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C "
    "tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
# Printed on a Thor with Jetson Linux 39, loaded and idle: github.com/sunggonkim/JetsonDLAGreen, its tests.
JETPACK_7 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ 34%@4266 "
    "GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C "
    "gpu@56.937C/66.625C soc012@55.375C/58.781C soc345@55.812C/60.031C VDD_GPU 37939mW/8660mW/37939mW "
    "VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW "
    "FUTURE_TOKEN value"
)
JETPACK_7_IDLE = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[1574,1574,1574] cpu@49.75C/49.75C tj@51.218C/51.218C gpu@51.218C/51.218C "
    "VDD_GPU 6330mW/6330mW/6330mW VIN 28906mW/14453mW/28906mW"
)


def of(kind: str, figures: dict[str, float]) -> dict[str, float]:
    return {
        name.partition(".")[2]: round(value, 6) for name, value in figures.items() if name.partition(".")[0] == kind
    }


def test_rails_of_jetpack_4_are_in_milliwatts_without_a_unit_and_a_constant_is_no_temperature() -> None:
    told = parse_tegrastats(JETPACK_4)
    assert of("power", told) == {
        "GPU": 0.463,
        "CPU": 0.618,
        "SOC": 2.936,
        "CV": 0.0,
        "VDDRQ": 0.309,
        "SYS5V": 3.306,
    }
    assert of("temperature", told) == {
        "ao": 30.0,
        "gpu": 30.5,
        "tboard": 31.0,
        "tdiode": 32.0,
        "aux": 30.5,
        "cpu": 31.5,
        "thermal": 30.8,
    }
    assert of("swap", told) == {"used": 898 * MEGABYTE, "total": 8192 * MEGABYTE}


def test_of_jetpack_5_what_is_off_and_what_is_not_connected_are_left_out() -> None:
    told = parse_tegrastats(JETPACK_5)
    assert of("temperature", told) == {
        "cpu": 42.593,
        "tboard": 32.0,
        "soc2": 39.343,
        "tdiode": 33.25,
        "soc0": 39.375,
        "tj": 42.593,
        "soc1": 40.468,
    }
    assert of("power", told) == {
        "VDD_GPU_SOC": 2.399,
        "VDD_CPU_CV": 0.4,
        "VIN_SYS_5V0": 4.032,
        "VDDQ_VDD2_1V8AO": 0.301,
    }
    assert of("clock", told) == {"cpu": 729e6, "emc": 2133e6, "gpu": 0.0}


def test_a_line_of_jetpack_6_has_one_clock_of_the_gpu_in_brackets() -> None:
    told = parse_tegrastats(JETPACK_6)
    assert of("load", told) == {"cpu": 0.12, "emc": 0.43, "gpu": 0.63}
    assert of("clock", told) == {"cpu": 729e6, "emc": 2133e6, "gpu": 621e6}
    assert of("power", told) == {"VDD_IN": 12.479, "VDD_CPU_GPU_CV": 4.667, "VDD_SOC": 2.817}
    assert of("memory", told) == {"used": 6185 * MEGABYTE, "total": 7620 * MEGABYTE}


def test_a_line_of_jetpack_7_tells_what_is_now_and_not_the_mean_or_the_highest() -> None:
    told = parse_tegrastats(JETPACK_7)
    assert of("power", told) == {"VDD_GPU": 37.939, "VDD_CPU_SOC_MSS": 30.059, "VIN_SYS_5V0": 15.486, "VIN": 124.486}
    assert of("temperature", told) == {"cpu": 58.25, "tj": 66.625, "gpu": 56.937, "soc012": 55.375, "soc345": 55.812}
    assert of("load", told) == {"cpu": round((0.90 + 0.75 + 0.07) / 3, 6), "emc": 0.34, "gpu": 0.87}
    assert of("clock", told) == {"cpu": 2601e6, "emc": 4266e6, "gpu": 1574e6}


def test_a_load_that_is_not_told_is_left_out_and_is_not_zero() -> None:
    told = parse_tegrastats(JETPACK_7_IDLE)
    assert of("load", told) == {"cpu": 0.025}
    assert of("clock", told) == {"cpu": 2601e6, "emc": 4266e6, "gpu": 1574e6}


def test_a_rail_may_be_told_as_less_than_nothing() -> None:
    told = parse_tegrastats("RAM 1/2MB VDD_GPU -392mW/-392mW VDD_CPU_SOC_MSS 3924mW")
    assert of("power", told) == {"VDD_GPU": -0.392, "VDD_CPU_SOC_MSS": 3.924}


@pytest.mark.parametrize("line", [JETPACK_4, JETPACK_5, JETPACK_6, JETPACK_7, JETPACK_7_IDLE])
def test_every_figure_has_a_channel_with_a_unit(line: str) -> None:
    assert all(unit_of(name) for name in parse_tegrastats(line))


@pytest.mark.parametrize(
    "line",
    ["", "hello", "2026-11-26 12:00:00 INFO model loaded", "CPU [1%@729]", "RAM x/yMB", "VDD_IN 5mW/5mW", "\0" * 99],
)
def test_what_is_no_such_line_gives_nothing(line: str) -> None:
    assert parse_tegrastats(line) == {}


@pytest.mark.parametrize(
    "tail", ["CPU [" + "1%@1," * 9000, "a@" * 9000, "VDD 1/" * 9000, "GR3D_FREQ 1%@[" + "1," * 9000]
)
def test_a_line_that_never_ends_is_cut(tail: str) -> None:
    began = time.process_time()
    told = parse_tegrastats("RAM 1/2MB " + tail)
    assert told["memory.total"] == 2 * MEGABYTE
    assert time.process_time() - began < 5
