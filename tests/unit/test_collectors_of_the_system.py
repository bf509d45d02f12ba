"""What is told of a machine: of recorded trees, and of this one."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kedge_agent.diagnose.collectors import disk, installs, kernel, memory, processes, runtimes, system, system_files
from kedge_agent.diagnose.collectors.doors import ask
from kedge_agent.diagnose.collectors.holder import lock_holder, process_facts
from kedge_agent.diagnose.device import Device, UnavailableError
from kedge_agent.diagnose.kernel_log import kinds_of
from kedge_agent.store.layout import socket_directory
from tests.support.stores import fill, small_disk
from tests.support.trees import unfold


def replayed(name: str, folder: Path) -> Device:
    return Device(folder / "state", root=unfold(name, folder / name))


def test_a_jetson_is_told_by_its_module_and_its_jetson_linux(tmp_path: Path) -> None:
    found = system.collect(replayed("jetson_orin_nano", tmp_path)).data
    assert "Orin Nano" in found["module"]
    assert found["l4t"].startswith("36.")
    assert (found["boot_id"], found["uptime_s"]) == (None, None)
    assert (found["synchronised"], found["synchronised_why"]) == (None, "a recorded tree has no clock")


def test_of_this_machine_the_kernel_says_whether_its_clock_follows_another(tmp_path: Path) -> None:
    found = system.collect(Device(tmp_path)).data
    assert found["kernel"] == os.uname().release
    assert isinstance(found["synchronised"], bool)
    assert found["uptime_s"] > 0


def test_memory_of_a_recorded_tree_is_told_and_its_rates_are_not(tmp_path: Path) -> None:
    found = memory.collect(replayed("jetson_orin_nano", tmp_path)).data
    assert 7 << 30 < found["total_bytes"] < 8 << 30
    assert found["swap_total_bytes"] > 0
    assert [disk["name"] for disk in found["zram"]] == [f"zram{number}" for number in range(len(found["zram"]))]
    assert (found["swap_in_per_s"], found["swap_in_per_s_why"]) == (None, "a recorded tree stands still")


def test_a_kernel_without_pressure_or_counters_says_nothing_of_them_rather_than_zero(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1024 kB\n")
    found = memory.collect(Device(tmp_path / "state", root=tmp_path)).data
    assert (found["total_bytes"], found["available_bytes"], found["oom_kills"]) == (1 << 20, None, None)
    assert found["pressure"] is None
    assert "psi=1" in found["pressure_why"]


def test_swapping_of_this_machine_is_measured_over_a_while(tmp_path: Path) -> None:
    found = memory.collect(Device(tmp_path)).data
    assert found["swap_in_per_s"] >= 0
    assert found["swap_out_per_s"] >= 0


def test_a_full_disk_and_one_that_is_mounted_read_only_are_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        (folder / "state").mkdir()
        fill(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        found = disk.collect(Device(folder / "state")).data
    state = next(each for each in found["file_systems"] if each["what"] == "state")
    assert (state["kind"], state["free_bytes"], state["total_bytes"], state["read_only"]) == ("tmpfs", 0, 1 << 20, True)
    assert {each["what"] for each in found["file_systems"]} == {"state", "root", "tmp", "log"}


def test_what_the_store_takes_is_counted_and_a_state_folder_that_is_not_there_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "state/objects/sha256/ab").mkdir(parents=True)
    (tmp_path / "state/objects/sha256/ab/cd").write_bytes(bytes(10_000))
    (tmp_path / "state/agent.log.1").write_bytes(bytes(100))
    found = disk.collect(Device(tmp_path / "state")).data["store"]
    assert found["objects_bytes"] >= 10_000
    assert (found["releases"], found["incoming_bytes"], found["recorder_bytes"]) == (0, 0, 0)
    assert found["log_bytes"] > 0
    absent = disk.collect(Device(tmp_path / "nowhere")).data
    assert absent["store"]["objects_bytes"] is None
    assert "is not here" in absent["store"]["objects_bytes_why"]
    assert absent["file_systems"][0]["path"] == str(tmp_path)


def test_who_holds_the_lock_is_told_by_the_kernel_and_a_number_that_was_left_behind_is_nobody(tmp_path: Path) -> None:
    device = Device(tmp_path)
    assert lock_holder(device) is None
    lock = tmp_path / "agent.lock"
    lock.write_text("4242")
    assert lock_holder(device) is None
    with lock.open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        lock.write_text(str(os.getpid()))
        assert lock_holder(device) == os.getpid()
    assert lock_holder(device) is None


def test_what_the_kernel_tells_of_a_process_is_told_whatever_its_name_is(tmp_path: Path) -> None:
    program = "import sys; open('/proc/self/comm', 'w').write('a) R (b'); print(1, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        facts = process_facts(Device(tmp_path), child.pid)
        assert facts.state in ("S", "R")
        assert facts.threads == 1
        assert facts.rss_bytes is not None
        assert facts.rss_bytes > 1 << 20
        assert processes.read_processes()[child.pid].name == "a) R (b"
    finally:
        child.communicate()
    assert process_facts(Device(tmp_path), child.pid).state is None


def test_a_hog_is_among_those_that_compute(tmp_path: Path) -> None:
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = processes.collect(Device(tmp_path)).data
    finally:
        hog.kill()
        hog.wait()
    mine = next(each for each in found["top"] if each["pid"] == hog.pid)
    assert mine["cores"] > 0.05
    assert len(found["top"]) <= 15


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[Device, socket.socket]]:
    """A door of an agent that does as the test says."""
    device = Device(tmp_path)
    folder = socket_directory(tmp_path)
    folder.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "infer.sock"))
        listener.listen()
        yield device, listener
    (folder / "infer.sock").unlink()
    folder.rmdir()


def test_an_agent_that_does_not_answer_is_not_waited_for(door: tuple[Device, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        ask(door[0], "infer", "/v2/health/live", 0.2)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{not json", "not valid JSON"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answers b'SSH-2.0-OpenSSH_9.2"),
        (b"", "answers b''"),
    ],
)
def test_an_answer_that_makes_no_sense_is_told(door: tuple[Device, socket.socket], said: bytes, reason: str) -> None:
    def answer() -> None:
        with door[1].accept()[0] as client:
            client.recv(4096)
            client.sendall(said)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(UnavailableError, match=reason):
        ask(door[0], "infer", "/v2/health/live", 20)
    thread.join()


def test_nobody_at_a_door_is_no_answer_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        ask(Device(tmp_path), "control", "/kedge/v1/info", 1)


def test_runtimes_are_told_without_importing_them_and_the_driver_by_its_own_words(tmp_path: Path) -> None:
    import numpy as np

    found = runtimes.collect(replayed("x86_server", tmp_path)).data
    assert found["numpy"] == np.__version__
    assert found["driver"] == "580.159.04"
    assert "CPUExecutionProvider" in found["providers"]
    assert (found["cuda"], found["cuda_why"]) == (None, "no GPU that NVIDIA's driver shows")


LINES = {
    "Out of memory: Killed process 4711 (python) total-vm:1000kB, anon-rss:900kB, file-rss:0kB": ["oom"],
    "Memory cgroup out of memory: Killed process 12 (kedge-agent) total-vm:1kB": ["oom"],
    "python invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0": ["oom"],
    "NVRM: Xid (PCI:0000:01:00): 31, pid=1234, name=python, Ch 00000008, intr 00000000. MMU Fault": ["gpu"],
    "nvgpu: 17000000.gpu ga10b_gr_intr_check_gr_mme_fe1_exception:246 [ERR] mme_fe1 exception": ["gpu"],
    "soctherm: OC ALARM 0x00000001": ["thermal"],
    "CPU3: Core temperature is above threshold, cpu clock is throttled (total events = 12)": ["thermal"],
    "thermal thermal_zone0: tj-thermal: critical temperature reached, shutting down": ["thermal"],
    "blk_update_request: I/O error, dev mmcblk0, sector 1234 op 0x0:(READ)": ["storage"],
    "EXT4-fs error (device mmcblk0p1): ext4_find_entry:1455: inode #2: comm python: reading lblock 0": ["storage"],
    "EXT4-fs (nvme0n1p1): Remounting filesystem read-only": ["storage"],
    "nvme nvme0: I/O 12 QID 3 timeout, aborting": ["storage"],
    "mmc0: error -110 whilst initialising SD card": ["storage"],
    "INFO: task python:4711 blocked for more than 120 seconds.": ["hung"],
    "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python:4711]": ["hung"],
    "rcu: INFO: rcu_preempt self-detected stall on CPU": ["hung"],
    "python[4711]: segfault at 18 ip 00007f93e0ec1c2a sp 00007ffcb372e9f0 error 4 in libnvinfer.so.10": ["crash"],
    "traps: python[18754] trap divide error ip:7f06df5573c5 sp:7ffe4a2281d8 error:0 in onnxruntime.so": ["crash"],
    # What a healthy system says when it starts.
    "Kernel command line: root=/dev/mmcblk0p1 rcupdate.rcu_cpu_stall_cputime=1 panic=1": [],
    "thermal_sys: Registered thermal governor 'step_wise'": [],
    "EXT4-fs (mmcblk0p1): mounted filesystem with ordered data mode. Opts: (null). Quota mode: none.": [],
    "nvme nvme0: 8/0/0 default/read/poll queues": [],
    "NVRM: loading NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build": [],
    "mmc0: new ultra high speed SDR104 SDXC card at address aaaa": [],
    "rcu: Hierarchical RCU implementation.": [],
    "tegra-soctherm: throttle-cfg: heavy: no throt prop or invalid prop": [],
    "Memory: 7620248K/8123392K available (17024K kernel code)": [],
}


@pytest.mark.parametrize("line", LINES)
def test_what_the_kernel_says_is_told_apart_from_what_it_says_when_all_is_well(line: str) -> None:
    assert kinds_of(line) == LINES[line]


def test_the_kernel_s_messages_of_a_recorded_tree_are_counted_and_the_telling_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "var/log").mkdir(parents=True)
    (tmp_path / "var/log/kern.log").write_text("".join(f"Nov 26 05:00:00 orin kernel: {line}\n" for line in LINES))
    collected = kernel.collect(Device(tmp_path / "state", root=tmp_path, raw=True))
    assert collected.data["source"] == "kern.log"
    assert collected.data["counts"] == {"oom": 3, "gpu": 2, "thermal": 3, "storage": 5, "hung": 3, "crash": 2}
    assert len(collected.data["lines"]) == 18
    [(name, data)] = collected.members
    assert name == "logs/kernel.log"
    assert data.count(b"\n") == len(LINES)


def test_where_the_kernel_s_messages_are_not_for_this_user_it_says_who_may_read_them(tmp_path: Path) -> None:
    found = kernel.collect(Device(tmp_path / "state", root=tmp_path)).data
    assert found["source"] is None
    assert set(found["counts"].values()) == {None}
    assert "systemd-journal" in found["source_why"]


def test_the_files_of_sensors_are_taken_as_they_are_and_one_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    device = replayed("jetson_orin_nano", tmp_path)
    [(name, data)] = system_files.collect_sensor_files(device).members
    lines = dict(line.split("\t", 1) for line in data.decode().splitlines())
    assert name == "system/sensors.txt"
    assert lines["/sys/class/thermal/thermal_zone0/type"] == "cpu-thermal"
    members = dict(system_files.collect_raw(device).members)
    assert members["system/proc/meminfo"] == (device.root / "proc/meminfo").read_bytes()


def test_both_distributions_in_one_interpreter_are_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/kedge-agent").write_text(f"#!{tmp_path}/venv/bin/python\nimport kedge_agent\n")
    site = tmp_path / "venv/lib/python3.11/site-packages"
    (site / "kedge-0.3.0.dist-info").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{tmp_path}/venv/bin:{os.environ['PATH']}")
    found = installs.collect(Device(tmp_path / "state")).data
    assert not any(str(site) in line for line in found["duplicates"])
    (site / "kedge_agent-0.2.0.dist-info").mkdir()
    found = installs.collect(Device(tmp_path / "state")).data
    assert sorted((each["name"], each["version"]) for each in found["agents"] if str(site) in str(each["path"])) == [
        ("kedge", "0.3.0"),
        ("kedge-agent", "0.2.0"),
    ]
    [told] = [line for line in found["duplicates"] if str(site) in line]
    assert told.startswith(f"kedge 0.3.0 and kedge-agent 0.2.0 are both installed in {site}: they own the same files")


def test_an_agent_on_another_state_folder_is_one_too_many_unless_somebody_tries_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(state: str, *options: str) -> subprocess.Popen[bytes]:
        program = "print(1, flush=True); import time; time.sleep(1000)"
        words = [sys.executable, "-c", program, "kedge-agent", "--state", state, "serve", *options]
        child = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    own = str(tmp_path / "state")
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    children = [
        begin("/srv/kedge-test"),
        begin("/nowhere/kedge-tried"),
        begin("/srv/kedge-local", "--parent-pipe"),
        begin(own),
        begin(own),
    ]
    try:
        found = installs.collect(Device(Path(own))).data
    finally:
        for child in children:
            child.kill()
            child.communicate()
    pids = {each["pid"] for each in found["agents"] if each["what"] == "process"}
    assert all(child.pid in pids for child in children)
    told = [[line for line in found["duplicates"] if f"process {child.pid} " in line] for child in children]
    # Nobody holds the lock here: one of the last two may be the agent itself.
    assert [len(lines) for lines in told] == [1, 0, 0, 0, 1]
    assert told[0][0].endswith("is an agent on another state folder: /srv/kedge-test")
    assert told[4][0].endswith("is another agent on this state folder")
