from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kedge_agent.measure.sensors.cgroup import read_cgroup
from kedge_agent.measure.sensors.clocks import find_clocks
from kedge_agent.measure.sensors.rails import find_rails
from kedge_agent.measure.sensors.sampler import Sampler
from kedge_agent.measure.sensors.system import read_pressure, read_zram, swaps
from kedge_agent.measure.sensors.tegra import find_fan, jetson_clocks, read_power_mode
from tests.support.trees import unfold


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_group_above_that_has_the_limit_is_told(tmp_path: Path) -> None:
    found = read_cgroup(unfold("x86_server", tmp_path))
    assert found == {
        "path": "/machine.slice",
        "limit_bytes": 137_438_953_472,
        "current_bytes": 817_217_536,
        "high_events": 0,
        "oom_kills": 0,
        "pressure": {"some_avg10": 0.0, "full_avg10": 0.0, "some_avg60": 0.0, "full_avg60": 0.0},
    }


def test_of_several_limits_the_lowest_counts(tmp_path: Path) -> None:
    root = unfold("x86_server", tmp_path)
    inner = root / "sys/fs/cgroup/machine.slice/service"
    (inner / "memory.max").write_text("268435456\n")
    (inner / "memory.events").write_text("low 0\nhigh 12\nmax 3\noom 1\noom_kill 2\n")
    (inner / "memory.pressure").write_text(
        "some avg10=31.40 avg60=20.00 avg300=1.00 total=9\nfull avg10=12.00 avg60=7.50 avg300=0.50 total=5\n"
    )
    found = read_cgroup(root)
    assert found is not None
    assert (found["path"], found["limit_bytes"]) == ("/machine.slice/service", 268_435_456)
    assert (found["high_events"], found["oom_kills"]) == (12, 2)
    assert found["pressure"] == {"some_avg10": 31.4, "full_avg10": 12.0, "some_avg60": 20.0, "full_avg60": 7.5}
    sampler = Sampler(root)
    told = sampler.sample(0.0)
    assert (told["memory.cgroup"], told["memory.cgroup_limit"]) == (5_898_240, 268_435_456)
    sampler.close()


def test_a_process_without_a_limit_has_its_own_group(tmp_path: Path) -> None:
    root = unfold("x86_server", tmp_path)
    (root / "sys/fs/cgroup/machine.slice/memory.max").write_text("max\n")
    found = read_cgroup(root)
    assert found is not None
    assert (found["path"], found["limit_bytes"]) == ("/machine.slice/service", None)
    sampler = Sampler(root)
    assert "memory.cgroup" not in sampler.channels
    sampler.close()


def test_control_groups_of_the_first_version_are_read_too(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/42/cgroup": "9:name=systemd:/\n4:memory:/system.slice/kedge.service\n0::/\n",
            "proc/42/mountinfo": "33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "34 23 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/memory/system.slice/kedge.service/memory.limit_in_bytes": "536870912\n",
            "sys/fs/cgroup/memory/system.slice/kedge.service/memory.usage_in_bytes": "400000000\n",
            "sys/fs/cgroup/memory/system.slice/kedge.service/memory.oom_control": "oom_kill_disable 0\noom_kill 5\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert read_cgroup(root, "42") == {
        "path": "/system.slice/kedge.service",
        "limit_bytes": 536_870_912,
        "current_bytes": 400_000_000,
        "high_events": None,
        "oom_kills": 5,
        "pressure": None,
    }


def test_in_a_container_the_group_is_looked_for_below_what_is_mounted(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc/app\n",
            "proc/self/mountinfo": "32 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup ro\n",
            "sys/fs/cgroup/app/memory.current": "1000\n",
            "sys/fs/cgroup/memory.current": "2000\n",
            "sys/fs/cgroup/memory.max": "5000\n",
        },
    )
    found = read_cgroup(root)
    assert found is not None
    assert (found["path"], found["limit_bytes"], found["current_bytes"]) == ("/", 5000, 2000)


@pytest.mark.parametrize(
    "said", ["", "nonsense\n", "0::\n", "0::/../../etc\n", "4:memory:relative\n", "0::/" + "a/" * 4000 + "\n"]
)
def test_what_the_kernel_says_of_control_groups_may_make_no_sense(tmp_path: Path, said: str) -> None:
    root = unfold("x86_server", tmp_path)
    (root / "proc/self/cgroup").write_text(said)
    found = read_cgroup(root)
    assert found is None or found["path"].startswith("/")


def test_this_machine_has_a_control_group_or_says_nothing_of_it() -> None:
    found = read_cgroup(Path("/"))
    assert found is None or found["current_bytes"] > 0


def test_pressure_is_told_as_the_kernel_tells_it(tmp_path: Path) -> None:
    path = tmp_path / "cpu"
    assert read_pressure(path) is None
    path.write_text("some avg10=67.55 avg60=43.82 avg300=25.96 total=7740919426\n")
    assert read_pressure(path) == {"some_avg10": 67.55, "full_avg10": None, "some_avg60": 43.82, "full_avg60": None}


def test_compressed_memory_that_is_in_use_is_told(tmp_path: Path) -> None:
    root = unfold("jetson_xavier_nx", tmp_path)
    assert swaps(root) == ["/dev/zram0", "/dev/zram1"]
    first, second = read_zram(root)
    assert first["name"] == "zram0"
    assert (second["original_bytes"], second["compressed_bytes"]) == (102_400_000, 31_457_280)
    (root / "sys/block/zram0/mm_stat").write_text("\n")
    (root / "sys/block/zram1/disksize").write_text("0\n")
    (only,) = read_zram(root)
    assert (only["original_bytes"], only["compressed_bytes"]) == (None, None)


def test_rails_of_jetpack_4_stand_in_other_files(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(
        tmp_path,
        {
            f"{folder}/rail_name_0": "POM_5V_IN\n",
            f"{folder}/in_voltage0_input": "5010\n",
            f"{folder}/in_current0_input": "480\n",
            f"{folder}/in_power0_input": "2404\n",
            f"{folder}/rail_name_1": "POM_5V_GPU\n",
            f"{folder}/in_voltage1_input": "5000\n",
            f"{folder}/in_current1_input": "40\n",
        },
    )
    sampler = Sampler(tmp_path)
    told = sampler.sample(0.0)
    sampler.close()
    assert told["power.POM_5V_IN"] == pytest.approx(2.404)
    assert told["power.POM_5V_GPU"] == pytest.approx(0.2)
    assert told["current.POM_5V_IN"] == pytest.approx(0.48)


def test_a_rail_whose_current_cannot_be_read_has_no_power(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/curr1_input").write_text("\n")
    sampler = Sampler(root)
    told = sampler.sample(0.0)
    sampler.close()
    assert "power.VDD_IN" not in told
    assert told["voltage.VDD_IN"] == pytest.approx(5.04)


def test_chips_that_are_no_power_monitors_have_no_rails(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/name").write_text("nct6775\n")
    assert find_rails(root).sources == ()


def test_a_fan_of_jetpack_4_is_told_too(tmp_path: Path) -> None:
    write(tmp_path, {"sys/devices/pwm-fan/cur_pwm": "255\n", "sys/devices/pwm-fan/rpm_measured": "4100\n"})
    assert [source.channels[0] for source in find_fan(tmp_path).sources] == ["fan.pwm", "fan.speed_rpm"]


CORES = ("CPU_ONLINE CORE_0 1\n", "CPU_ONLINE CORE_0 1\nCPU_ONLINE CORE_1 1\n")
XAVIER = (
    f"< POWER_MODEL ID=1 NAME=MODE_20W_2CORE >\n{CORES[0]}GPU MAX_FREQ 1109250000\n"
    f"< POWER_MODEL ID=2 NAME=MODE_20W_6CORE >\n{CORES[1]}GPU MAX_FREQ 1109250000\n"
    f"< POWER_MODEL ID=3 NAME=MODE_15W_6CORE >\n{CORES[1]}GPU MAX_FREQ -1\n"
)
CONF = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"


@pytest.mark.parametrize(
    ("conf", "highest"),
    [
        (CONF + "< POWER_MODEL ID=3 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n", 2),
        ("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=3 NAME=7W >\n", 0),
        ("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=5 NAME=MAXN_SUPER >\n", 5),
        (XAVIER, 2),
        ("< POWER_MODEL ID=4 NAME=OURS >\nGPU MAX_FREQ 5\n< POWER_MODEL ID=6 NAME=TOO >\nGPU MAX_FREQ -1\n", 6),
    ],
)
def test_the_highest_power_mode_is_the_one_that_allows_most_whatever_its_number(
    tmp_path: Path, conf: str, highest: int
) -> None:
    write(tmp_path, {"etc/nvpmodel.conf": conf})
    mode = read_power_mode(tmp_path)
    assert mode is not None
    assert mode["highest"] == highest


def test_a_mode_that_was_never_set_or_is_not_in_the_file_has_no_name(tmp_path: Path) -> None:
    write(tmp_path, {"etc/nvpmodel.conf": CONF})
    mode = read_power_mode(tmp_path)
    assert mode is not None
    assert (mode["id"], mode["name"], mode["default"]) == (None, None, None)
    write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007 fmode:quiet\n"})
    mode = read_power_mode(tmp_path)
    assert mode is not None
    assert (mode["id"], mode["name"]) == (7, None)
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert read_power_mode(tmp_path) == {"name": None, "id": 7, "modes": [], "highest": None, "default": None}


def test_clocks_that_are_held_elsewhere_are_no_jetson_clocks(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path / "one")
    clocks, _ = find_clocks(root)
    assert jetson_clocks(root, clocks) is True
    (root / "etc/nv_tegra_release").unlink()
    assert jetson_clocks(root, clocks) is None


def test_clocks_of_a_jetson_whose_gpu_cannot_be_read_may_be_held_or_not(tmp_path: Path) -> None:
    root = unfold("jetson_orin_nano", tmp_path / "one")
    shutil.rmtree(root / "sys/class/devfreq/17000000.gpu")
    clocks, _ = find_clocks(root)
    assert jetson_clocks(root, clocks) is None
