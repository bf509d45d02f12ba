from __future__ import annotations

import os
from pathlib import Path

import pytest

from kedge_agent.measure.sensors import sampler as module
from kedge_agent.measure.sensors.figures import channel_name, unit_of
from kedge_agent.measure.sensors.files import KeptFile
from kedge_agent.measure.sensors.sampler import Sampler
from tests.support.trees import TREES, unfold

STAT = "cpu  {user} 0 0 {idle} 0 0 0 0 0 0\n"


def descriptors(root: Path) -> int:
    links = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return sum(link.startswith(os.path.realpath(root)) for link in links)


@pytest.mark.parametrize("name", TREES)
def test_every_figure_of_a_sample_has_a_unit(tmp_path: Path, name: str) -> None:
    sampler = Sampler(unfold(name, tmp_path))
    told = sampler.sample(0.0)
    assert told
    assert told.keys() <= sampler.channels.keys()
    assert all(isinstance(value, float) for value in told.values())
    sampler.close()


def test_files_are_kept_open_and_closed_in_the_end(tmp_path: Path) -> None:
    sampler = Sampler(unfold("jetson_orin_nano", tmp_path))
    sampler.sample(0.0)
    kept = descriptors(tmp_path)
    assert kept > 20
    sampler.sample(1.0)
    assert descriptors(tmp_path) == kept
    sampler.close()
    assert descriptors(tmp_path) == 0


def test_what_changes_is_read_anew(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    sampler = Sampler(root)
    assert sampler.sample(0.0)["temperature.cpu"] == pytest.approx(48.906)
    (root / "sys/class/thermal/thermal_zone0/temp").write_text("-12500\n")
    assert sampler.sample(1.0)["temperature.cpu"] == pytest.approx(-12.5)
    sampler.close()


def test_a_sensor_that_goes_away_is_left_out_and_comes_back(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    policy = root / "sys/devices/system/cpu/cpufreq/policy0"
    sampler = Sampler(root)
    load = root / "sys/devices/platform/gpu.0/load"
    sampler.sample(0.0)
    sampler.close()
    load.rename(load.with_name("gone"))
    policy.rename(policy.with_name("off"))
    told = sampler.sample(1.0)
    assert "load.gpu" not in told
    assert told["clock.cpu"] == 1_510_400_000
    assert "load.gpu: No such file or directory" in sampler.unread(told)
    load.with_name("gone").rename(load)
    assert sampler.sample(2.0)["load.gpu"] == pytest.approx(0.455)
    sampler.close()


@pytest.mark.parametrize("text", ["-256000\n", "", "hot\n", "1e9\n", "9" * 40])
def test_a_temperature_that_makes_no_sense_is_left_out(tmp_path: Path, text: str) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    (root / "sys/class/thermal/thermal_zone0/temp").write_text(text)
    sampler = Sampler(root)
    assert "temperature.cpu" not in sampler.sample(0.0)
    sampler.close()


def test_rails_are_read_every_other_second_only(tmp_path: Path) -> None:
    sampler = Sampler(unfold("jetson_orin_nano", tmp_path))
    told = ["power.VDD_IN" in sampler.sample(at) for at in (0.0, 1.0, 1.98, 3.0, 3.99)]
    assert told == [True, False, True, False, True]
    sampler.close()


def test_load_is_the_share_between_two_samples_and_the_first_has_none(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    stat = root / "proc/stat"
    stat.write_text(STAT.format(user=100, idle=900))
    sampler = Sampler(root)
    assert "load.cpu" not in sampler.sample(0.0)
    stat.write_text(STAT.format(user=175, idle=925))
    assert sampler.sample(1.0)["load.cpu"] == pytest.approx(0.75)
    assert "load.cpu" not in sampler.sample(2.0)
    stat.write_text("cpu  a b c\n")
    assert "load.cpu" not in sampler.sample(3.0)
    sampler.close()


def test_swapping_is_told_in_bytes_a_second(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    (root / "proc/vmstat").write_text("pswpin 100\npswpout 1000\n")
    sampler = Sampler(root)
    sampler.sample(10.0)
    (root / "proc/vmstat").write_text("pswpin 300\npswpout 1000\n")
    told = sampler.sample(12.0)
    assert told["swap.in_per_s"] == 100 * os.sysconf("SC_PAGE_SIZE")
    assert told["swap.out_per_s"] == 0
    assert sampler.channels["swap.in_per_s"] == "bytes/s"
    sampler.close()


def test_cooling_by_slowing_down_is_counted_while_it_lasts(tmp_path: Path) -> None:
    root = unfold("jetson_xavier_nx", tmp_path)
    sampler = Sampler(root)
    seen = [sampler.sample(at)["throttle.GPU slowed by heat"] for at in (0.0, 1.0)]
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("0\n")
    seen += [sampler.sample(at)["throttle.GPU slowed by heat"] for at in (2.0, 3.0)]
    assert seen == [1, 2, 2, 2]
    assert not [name for name in sampler.channels if "fan" in name and name.startswith("throttle")]
    sampler.close()


def test_what_appears_later_is_found_and_what_was_there_goes_on(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    for path in (root / "sys/class/hwmon/hwmon1").iterdir():
        path.rename(tmp_path / path.name)
    sampler = Sampler(root)
    assert "power: no power monitor with named rails here" in sampler.missing
    sampler.sample(0.0)
    for name in ("name", "in1_label", "in1_input", "curr1_input"):
        (tmp_path / name).rename(root / "sys/class/hwmon/hwmon1" / name)
    (root / "proc/stat").write_text(STAT.format(user=100, idle=900))
    assert "power.VDD_IN" not in sampler.sample(29.0)
    (root / "proc/stat").write_text(STAT.format(user=150, idle=950))
    told = sampler.sample(30.0)
    assert told["power.VDD_IN"] == pytest.approx(5.68512)
    assert told["load.cpu"] == pytest.approx(0.5)
    assert sampler.channels["power.VDD_IN"] == "W"
    sampler.close()


def test_more_files_than_a_process_should_hold_are_opened_for_each_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    sampler = Sampler(root)
    all_of_them = sampler.sample(0.0)
    sampler.close()
    monkeypatch.setattr(module, "_MOST_KEPT", 3)
    sampler = Sampler(root)
    assert sampler.sample(0.0) == all_of_them
    assert descriptors(tmp_path) == 3
    sampler.close()


def test_a_kept_file_says_why_it_cannot_be_read(tmp_path: Path) -> None:
    file = KeptFile(tmp_path / "none")
    assert file.text() is None
    assert file.problem == "No such file or directory"
    (tmp_path / "none").write_text("7\n")
    assert (file.text(), file.problem) == ("7", None)
    file.close()
    file.close()


def test_what_a_device_calls_a_thing_cannot_be_longer_or_stranger_than_a_name() -> None:
    assert channel_name("power", 'VDD\n"IN"\x1b[31m' + "x" * 500) == "power.VDD IN 31m" + "x" * 38
    assert unit_of("fan.speed_rpm") == "rpm"
    assert unit_of("fan.pwm") == "ratio"
