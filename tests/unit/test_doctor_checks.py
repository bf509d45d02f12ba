"""Every check of the doctor: well, at fault, and not known; on a device whose facts are spoiled one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.diagnose.doctor import CHECKS
from kedge.diagnose.evidence import Clock, Evidence, Link
from kedge.diagnose.finding import Finding
from kedge_agent.measure.sensors.reading import read_sensors
from tests.support.doctors import assert_can_be_done
from tests.support.evidence import BEFORE, LINK, LIVE, NOW_S, STATE, data, healthy, judged, slow
from tests.support.schemas import validate
from tests.support.trees import TREES, unfold

Facts = dict[str, Any]
Spoil = Callable[[Facts], object]
_LOOK = {check.name: check.look for check in CHECKS}


def look(check: str, evidence: Evidence) -> Finding:
    found = _LOOK[check](evidence)
    if isinstance(found, list):
        assert len(found) == 1
        return found[0]
    return found


def spoilt(spoil: Spoil) -> Facts:
    document = healthy()
    spoil(document)
    return document


def put(collector: str, *keys: str, **values: Any) -> Spoil:
    """Change values below a collector's data."""

    def spoil(document: Facts) -> None:
        found = data(document, collector)
        for key in keys:
            found = found[key]
        found.update(values)

    return spoil


def row(collector: str, *path: str | int, **values: Any) -> Spoil:
    """Change values of an object in lists below a collector's data."""

    def spoil(document: Facts) -> None:
        found: Any = data(document, collector)
        for step in path:
            found = found[step]
        found.update(values)

    return spoil


def all_of(*spoils: Spoil) -> Spoil:
    def spoil(document: Facts) -> None:
        for each in spoils:
            each(document)

    return spoil


def hog(cores: float) -> Spoil:
    return row("processes", "top", 1, pid=4242, name="stress-ng", cores=cores)


def throttled(part: float) -> Spoil:
    return put("recorder", "hour", throttled_share=part, throttles={"over-current oc1": 412})


def kernel(kind: str, *lines: str) -> Spoil:
    def spoil(document: Facts) -> None:
        found = data(document, "kernel")
        found["counts"][kind] = len(lines)
        found["lines"] = list(lines)

    return spoil


def crashed(times: int) -> Spoil:
    starts = [{"at_s": NOW_S - 60 * each, "version": "0.1.0", "how": "after-crash"} for each in range(times)]
    return put("agent", starts=starts)


def went_live(document: Facts) -> None:
    entry = {"sequence": 9, "model": "camera", "release": LIVE, "step": "committed", "at_s": int(NOW_S)}
    data(document, "journal")["entries"].append(entry)


def suspect(crashes: int) -> Spoil:
    return put("agent", "crashes", suspects=[{"model": "camera", "release": LIVE, "crashes": crashes, "doubts": 0}])


def power(name: str, number: int) -> Spoil:
    return put("sensors", "facts", "power_mode", name=name, id=number)


def built_elsewhere(document: Facts) -> None:
    data(document, "engines")["engines"][0]["passport"].pop("power_mode")


def duplicate(line: str) -> Spoil:
    return put("installs", duplicates=[line])


def model_row(**values: Any) -> Spoil:
    return row("agent", "status", "models", 0, **values)


def release(place: int, **values: Any) -> Spoil:
    return row("releases", "models", 0, "releases", place, **values)


_BAD = {"whole": False, "bad": [{"file": "model.engine", "why": "frame 0 has other bytes"}]}
_OTHER_TENSORRT = "engine: TensorRT 10.7.0.23, CC 8.7; device: TensorRT 10.3.0, CC 8.7"
_OOM = "2026-11-25T09:40:00Z Out of memory: Killed process 812 ({}) total-vm:9000000kB, anon-rss:7000000kB"

# check, what is spoilt, the result, and words of evidence, cause or cure.
AMISS: list[tuple[str, str, Spoil, str, str]] = [
    ("disk", "full", row("disk", "file_systems", 0, free_bytes=3_000_000), "fault", "3 MB free of 68.7 GB"),
    ("disk", "nearly", row("disk", "file_systems", 0, free_bytes=1_500_000_000), "warning", "1.5 GB free"),
    ("disk", "inodes", row("disk", "file_systems", 0, inodes_free=12), "fault", "12 inodes free of 4,000,000"),
    ("disk", "read-only", row("disk", "file_systems", 0, read_only=True), "fault", "mount -o remount,rw"),
    ("disk", "root alone", row("disk", "file_systems", 1, free_bytes=0), "warning", "the state folder has room"),
    ("disk-errors", "fails", kernel("storage", "mmcblk0: I/O error, dev mmcblk0"), "fault", "replace the disk"),
    ("memory", "low", put("memory", available_bytes=200_000_000), "fault", "2.3 % of the memory is left"),
    ("memory", "lowish", put("memory", available_bytes=600_000_000), "warning", "7.0 % of the memory is left"),
    ("memory", "stalled", put("memory", "pressure", full_avg10=31.0), "fault", "stands still for memory 31 % of"),
    ("memory", "waiting", put("memory", "pressure", some_avg60=22.0), "warning", "waits for memory 22 %"),
    ("memory", "cgroup stalled", put("memory", "cgroup", "pressure", full_avg10=64.0), "fault", "64 % of the time"),
    ("memory", "cgroup full", put("memory", "cgroup", limit_bytes=410_000_000), "warning", "holds 400 MB of its 410"),
    ("memory", "cgroup kills", put("memory", "cgroup", oom_kills=2), "warning", "2 processes of the agent's cgroup"),
    ("swap", "storm", put("memory", swap_in_per_s=900.0, swap_out_per_s=700.0), "fault", "900 pages/s read back"),
    ("swap", "some", put("memory", swap_in_per_s=90.0, swap_out_per_s=70.0), "warning", "90 pages/s"),
    ("swap", "full", put("memory", swap_free_bytes=100_000_000), "warning", "4.19 GB of 4.29 GB used"),
    ("agent", "older", lambda document: document.update(agent_version="0.0.9"), "warning", "installed one 0.0.9"),
    ("agent", "replaced", put("agent", "info", version="0.0.9"), "warning", "the agent that runs is 0.0.9"),
    (
        "installs",
        "two run",
        duplicate("process 4711 of user root is an agent on another state folder: /var/lib/kedge"),
        "fault",
        "kill 4711",
    ),
    (
        "installs",
        "old slot",
        duplicate("process 812 serves from the slot abc, though the slot def is current"),
        "fault",
        "restart kedge-agent.service",
    ),
    ("service", "none", put("agent", running=False, pid=None, responds=None), "fault", "start kedge-agent.service"),
    ("service", "stopped", put("agent", process_state="T", responds=False), "fault", "kill -CONT 812"),
    ("service", "hung", put("agent", responds=False), "fault", "restart kedge-agent.service"),
    ("service", "in the kernel", put("agent", process_state="D", responds=False), "fault", "dmesg"),
    ("service", "settings", put("agent", "settings", file="/x.json", problem="no such setting"), "warning", "/x.json"),
    ("service", "disabled", put("agent", "service", enabled="disabled"), "warning", "enable kedge-agent.service"),
    (
        "restarts",
        "safe mode",
        put("agent", safe_mode="it crashed five times"),
        "fault",
        "kedge deploy RELEASE --to nano",
    ),
    ("restarts", "loop", all_of(crashed(4), suspect(2)), "fault", "kedge rollback camera --on nano"),
    ("restarts", "loop of no model's", crashed(3), "fault", "3 crashes in the last hour"),
    ("restarts", "once", crashed(1), "warning", "1 crash"),
    ("restarts", "mended", all_of(crashed(4), went_live), "warning", "4 crashes, and none since another release"),
    ("restarts", "and again", all_of(went_live, crashed(4), suspect(2)), "fault", "kedge rollback camera --on nano"),
    (
        "restarts",
        "by systemd",
        all_of(put("agent", uptime_s=4.0), put("agent", "service", restarts=17, result="oom-kill")),
        "fault",
        "for want of memory",
    ),
    (
        "releases",
        "live",
        release(0, **_BAD),
        "fault",
        "the live release of camera (aaaaaaaaaaaa) is damaged: model.engine",
    ),
    ("releases", "previous", release(1, **_BAD), "warning", "that a rollback would serve of camera (bbbbbbbbbbbb)"),
    ("releases", "state", row("releases", "models", 0, problem="state.json is gone"), "fault", "state.json is gone"),
    ("engines", "TensorRT", row("engines", "engines", 0, fits=False, refusals=[_OTHER_TENSORRT]), "fault", "10.7.0.23"),
    (
        "engines",
        "soft",
        row("engines", "engines", 0, warnings=["CUDA: built on 12.2, this is 12.6"]),
        "warning",
        "12.2",
    ),
    (
        "runtimes",
        "numpy",
        all_of(put("runtimes", numpy=None), put("agent", info=None)),
        "fault",
        "kedge device provision nano --force",
    ),
    (
        "runtimes",
        "needed",
        all_of(put("runtimes", tensorrt=None, tensorrt_why="no libnvinfer"), put("agent", info=None)),
        "fault",
        "no libnvinfer",
    ),
    ("runtimes", "replaced", put("runtimes", onnxruntime="1.24.0"), "warning", "runs with onnxruntime 1.23.2"),
    (
        "models",
        "failed",
        model_row(state="failed", problem="cannot be loaded"),
        "fault",
        "camera is not served: cannot",
    ),
    ("models", "previous", model_row(problem="the release before serves"), "fault", "the release before serves"),
    ("models", "loading", model_row(state="loading"), "warning", "camera"),
    ("power-mode", "was higher", power("15W", 0), "fault", "power mode 15W, was MAXN_SUPER"),
    ("power-mode", "not the highest", all_of(power("15W", 0), built_elsewhere), "warning", "sudo nvpmodel -m 2"),
    ("clocks", "lowered", row("sensors", "facts", "clocks", 0, high_hz=960_000_000), "warning", "960 of 1,728 MHz"),
    ("throttling", "often", throttled(0.31), "fault", "throttled 31 % of the last hour (over-current oc1: 412 times)"),
    ("throttling", "a little", throttled(0.01), "warning", "throttled 1.0 % of the last hour"),
    (
        "throttling",
        "now",
        put("sensors", "facts", throttling_now=["GPU slowed by heat"]),
        "fault",
        "jetson_clocks --fan",
    ),
    (
        "throttling",
        "at some time",
        all_of(put("recorder", hour=None), put("sensors", throttles={"over-current oc3": 9})),
        "warning",
        "over-current oc3: 9 times; when is not known",
    ),
    (
        "thermal",
        "hot",
        put("sensors", "facts", headroom=[{"zone": "gpu", "celsius": 0.5}]),
        "fault",
        "gpu is 0 °C from",
    ),
    ("thermal", "above", put("sensors", "facts", headroom=[{"zone": "gpu", "celsius": -3}]), "fault", "3 °C above"),
    ("thermal", "warm", put("sensors", "facts", headroom=[{"zone": "gpu", "celsius": 5}]), "warning", "5 °C from"),
    (
        "gpu-users",
        "another",
        row("processes", "gpu_users", 0, ours=False, pid=99, name="blender"),
        "warning",
        "blender",
    ),
    ("gpu-users", "and slow", all_of(row("processes", "gpu_users", 0, ours=False, pid=99), slow), "fault", "kill 99"),
    ("processes", "a hog", hog(5.5), "warning", "stress-ng (process 4242): 5.5"),
    ("processes", "a hog, and slow", all_of(hog(3.5), slow), "fault", "sudo renice -n 19 -p 4242"),
    (
        "processes",
        "one of many that take a little each, and slow",
        all_of(hog(0.2), put("processes", others_cores=3.5), slow),
        "fault",
        "others take 3.5 of 6 cores (58 %), most of it stress-ng (process 4242): 0.2",
    ),
    (
        "processes",
        "many that are not named, and slow",
        all_of(
            put("processes", top=[{"pid": 812, "name": "python3", "cores": 0.6, "rss_bytes": 1, "ours": True}]),
            put("processes", others_cores=3.5),
            slow,
        ),
        "fault",
        "most of it many small ones",
    ),
    (
        "latency",
        "slow",
        slow,
        "fault",
        "p99 2.3 × what it was (34 ms of compute in the last hour, 14.8 ms at its gate)",
    ),
    ("latency", "slower", lambda document: slow(document, 1.6), "warning", "p99 1.6 × what it was"),
    (
        "requests",
        "fail",
        row("recorder", "hour", "models", "camera", failures={"internal": 900}),
        "fault",
        "900 of 36,900",
    ),
    ("requests", "refused", row("recorder", "hour", "models", "camera", failures={"busy": 900}), "warning", "too many"),
    ("logs", "errors", put("logs", errors=[{"at": "2026-11-25T09:30:00", "line": "no room"}]), "warning", '"no room"'),
    ("kernel", "ours", kernel("oom", _OOM.format("python3")), "fault", "for want of memory in the last day: python3"),
    ("kernel", "others", kernel("oom", _OOM.format("gnome-shell")), "warning", "gnome-shell"),
    ("kernel", "GPU", kernel("gpu", "nvgpu: 17000000.gpu gk20a_fifo_handle_mmu_fault"), "fault", "mmu_fault"),
    ("kernel", "hung", kernel("hung", "INFO: task x:1 blocked for more than 120 seconds"), "warning", "blocked for"),
    ("recorder", "gaps", put("recorder", "hour", gaps=3), "warning", "3 gaps in the last hour"),
    ("recorder", "silent", put("recorder", "status", last_s=NOW_S - 900), "warning", "nothing recorded for 15 min"),
    ("recorder", "dear", put("recorder", "status", cost=0.03), "warning", "3.0 % of a core"),
]

LINKS: list[tuple[str, str, Link, str, str]] = [
    ("reachability", "gone", replace(LINK, reachable=False, problem="timed out"), "fault", "ssh -v kedge@192.0.2.7"),
    ("reachability", "no key", replace(LINK, login=False, problem="no key"), "fault", "ssh-copy-id kedge@192.0.2.7"),
    ("host-key", "changed", replace(LINK, host_key="changed", problem="changed"), "fault", "trust nano --replace"),
    ("host-key", "unknown", replace(LINK, host_key="not pinned", problem="none"), "fault", "kedge device trust nano"),
    ("clock-skew", "hours", replace(LINK, clock=Clock(7300.0, 0.4)), "fault", "2 h behind this host's"),
    ("clock-skew", "ahead", replace(LINK, clock=Clock(-300.0, 0.4)), "fault", "5 min ahead of this host's"),
    ("clock-skew", "seconds", replace(LINK, clock=Clock(20.0, 0.4)), "warning", "20 s behind"),
]


def told(finding: Finding) -> str:
    return " | ".join((finding.evidence, finding.cause, finding.cure))


def test_the_healthy_device_of_these_tests_tells_a_document_as_the_schema_wants_it() -> None:
    validate(healthy(), "facts")


@pytest.mark.parametrize("check", [check.name for check in CHECKS])
def test_a_healthy_device_is_well_by_every_check(check: str) -> None:
    finding = look(check, judged(healthy()))
    assert (finding.check, finding.result, finding.cure) == (check, "ok", ""), finding


def _called(each: object) -> str:
    # Where a function lies in memory is no name: each worker of xdist has another.
    return str(getattr(each, "__name__", each))[:24]


@pytest.mark.parametrize(("check", "what", "spoil", "result", "words"), AMISS, ids=_called)
def test_what_is_amiss_is_found_and_told_with_a_cause_and_a_cure(
    check: str, what: str, spoil: Spoil, result: str, words: str
) -> None:
    finding = look(check, judged(spoilt(spoil)))
    assert (finding.check, finding.result) == (check, result), finding
    assert words in told(finding)
    assert all((finding.cause, finding.cure, finding.brief)), finding
    assert "\n" not in told(finding)


@pytest.mark.parametrize(("check", "what", "link", "result", "words"), LINKS, ids=lambda each: str(each)[:24])
def test_what_this_host_saw_of_the_way_is_judged(check: str, what: str, link: Link, result: str, words: str) -> None:
    finding = look(check, judged(healthy(), link))
    assert (finding.result, words in told(finding)) == (result, True), finding
    assert all((finding.cause, finding.cure, finding.brief)), finding


def test_every_check_has_a_case_in_which_it_finds_something_amiss() -> None:
    assert {each[0] for each in (*AMISS, *LINKS)} == {check.name for check in CHECKS}


@pytest.mark.parametrize(
    ("check", "collector"),
    [
        ("clock-skew", None),
        ("disk", "disk"),
        ("disk-errors", "kernel"),
        ("memory", "memory"),
        ("swap", "memory"),
        ("installs", "installs"),
        ("service", "agent"),
        ("restarts", "agent"),
        ("releases", "releases"),
        ("engines", "engines"),
        ("runtimes", "runtimes"),
        ("models", "agent"),
        ("power-mode", "sensors"),
        ("clocks", "sensors"),
        ("thermal", "sensors"),
        ("gpu-users", "processes"),
        ("processes", "processes"),
        ("latency", "recorder"),
        ("requests", "recorder"),
        ("logs", "logs"),
        ("kernel", "kernel"),
        ("recorder", "recorder"),
    ],
)
def test_what_a_collector_could_not_tell_is_unknown_and_why(check: str, collector: str | None) -> None:
    document = healthy()
    if collector is None:
        finding = look(check, judged(document, replace(LINK, clock=None)))
        assert finding.result == "unknown"
        return
    document["collectors"][collector] = {"status": "timeout", "reason": "it hung", "ms": 5000.0, "data": None}
    finding = look(check, judged(document))
    assert (finding.result, "it hung" in finding.evidence) == ("unknown", True), finding
    del document["collectors"][collector]
    assert look(check, judged(document)).result == "unknown"


def test_throttling_is_unknown_where_nothing_counts_it() -> None:
    document = healthy()
    data(document, "sensors").update(throttles={}, unavailable=["throttling: no counter here"])
    data(document, "recorder")["hour"].update(throttled_share=0.0, throttles={})
    finding = look("throttling", judged(document))
    assert (finding.result, finding.evidence) == ("unknown", "throttling: no counter here")


def test_an_agent_that_tells_nothing_is_a_fault_and_one_that_cannot_be_reached_is_unknown() -> None:
    missing = replace(LINK, agent_problem="no agent is installed there")
    assert look("agent", judged(None, missing)).cure == "kedge device provision nano"
    damaged = replace(LINK, agent_problem="the agent cannot be used: it ended with status 1")
    assert look("agent", judged(None, damaged)).cure == "kedge device provision nano --force"
    gone = replace(LINK, reachable=False, problem="timed out")
    assert look("agent", judged(None, gone)).result == "unknown"


def test_what_does_not_apply_to_a_kind_of_device_is_well_and_says_so() -> None:
    document = healthy()
    data(document, "sensors")["facts"].update(power_mode=None, l4t=None)
    data(document, "processes").update(gpu_users=None, gpu_users_why="no GPU's nodes here")
    evidence = judged(document, target="cpu-generic-x86_64")
    assert look("power-mode", evidence).result == look("gpu-users", evidence).result == "ok"
    assert look("power-mode", judged(document)).result == "unknown"


def test_a_clock_that_went_back_behind_its_own_journal_is_found_out_of_a_snapshot_too() -> None:
    document = healthy()
    document["at_s"] = 1000.0
    finding = look("clock-skew", judged(document, None))
    assert (finding.result, "clock went back" in finding.evidence) == ("fault", True)


def test_a_small_difference_or_too_few_requests_are_no_drift() -> None:
    document = healthy()
    told = data(document, "recorder")
    told["hour"]["models"]["camera"].update(compute_p99_ms=0.4, compute_p50_ms=0.1)
    told["since_deploy"]["camera"]["at_deploy"]["gate"]["p99_ms"] = 0.1
    assert look("latency", judged(document)).result == "ok"
    document = slow(healthy())
    data(document, "recorder")["hour"]["models"]["camera"]["requests"] = 60
    assert "too few to judge" in look("latency", judged(document)).evidence


def test_what_it_was_is_of_its_gate_or_of_its_first_minutes_or_of_the_journal() -> None:
    document = slow(healthy())
    told = data(document, "recorder")["since_deploy"]["camera"]["at_deploy"]
    told["first"] = {"models": {"camera": {"requests": 500, "compute_p99_ms": 30.0}}}
    assert "30 ms in the ten minutes after its deploy" in look("latency", judged(document)).evidence
    # These minutes are part of what is judged as long as they are not long over.
    told["at_s"] = int(NOW_S) - 300
    since = data(document, "recorder")["since_deploy"]["camera"]
    since["from_s"] = NOW_S - 299.5
    since["models"]["camera"]["compute_p99_ms"] = 14.8 * 2.3
    assert look("latency", judged(document)).result == "fault"
    told.update(first=None, gate=None)
    assert "14.8 ms at its gate" in look("latency", judged(document)).evidence
    data(document, "journal")["entries"].clear()
    assert look("latency", judged(document)).result == "unknown"


@pytest.mark.parametrize("begins", ["then", "before", "untold"])
def test_what_a_release_took_before_it_was_deployed_again_is_not_held_against_its_new_gate(begins: str) -> None:
    document = slow(healthy())
    since = data(document, "recorder")["since_deploy"]["camera"]
    since["at_deploy"]["at_s"] = int(NOW_S) - 600
    since["from_s"] = {"then": NOW_S - 599.2, "before": NOW_S - 3600, "untold": None}[begins]
    since["models"]["camera"].update(compute_p99_ms=15.0, requests=5_000)
    finding = look("latency", judged(document))
    assert finding.result == "ok"
    words = "15 ms of compute since its deploy" if begins == "then" else "0 requests since its deploy, too few to judge"
    assert words in finding.evidence
    # What computes beside it is no fault either then.
    assert look("processes", judged(document)).result == "ok"


def test_what_slows_a_device_down_now_says_what_to_do_before_what_did_once() -> None:
    hot = put("sensors", "facts", throttling_now=["processor slowed by heat"])
    document = spoilt(all_of(hot, put("sensors", throttles={"over-current oc3": 7})))
    assert "jetson_clocks --fan" in look("throttling", judged(document)).cure
    assert "a stronger power supply" in look("throttling", judged(spoilt(throttled(0.3)))).cure


def test_a_clock_that_a_power_mode_caps_is_no_fault_of_the_clock() -> None:
    lowered = row("sensors", "facts", "clocks", 0, high_hz=960_000_000)
    finding = look("clocks", judged(spoilt(all_of(lowered, power("15W", 0)))))
    assert (finding.result, "as power mode 15W has it" in finding.evidence) == ("ok", True)


@pytest.mark.parametrize(
    ("tree", "results"),
    [
        ("jetson_agx_orin", {"power-mode": "ok", "clocks": "ok", "throttling": "ok", "thermal": "ok"}),
        ("jetson_orin_nano", {"power-mode": "ok", "clocks": "ok", "throttling": "ok", "thermal": "ok"}),
        ("jetson_thor", {"power-mode": "ok", "clocks": "ok", "throttling": "ok", "thermal": "ok"}),
        ("jetson_xavier_nx", {"power-mode": "ok", "clocks": "ok", "throttling": "fault", "thermal": "fault"}),
        ("x86_laptop", {"power-mode": "ok", "clocks": "warning", "throttling": "ok", "thermal": "ok"}),
        ("x86_server", {"power-mode": "ok", "clocks": "unknown", "throttling": "ok", "thermal": "unknown"}),
    ],
)
def test_what_the_sensors_of_each_tree_tell_is_judged(tree: str, results: dict[str, str], tmp_path: Path) -> None:
    document = healthy()
    document["collectors"]["sensors"]["data"] = read_sensors(unfold(tree, tmp_path), window_s=0.01)
    if tree.startswith("x86"):
        data(document, "system")["l4t"] = None
    evidence = judged(document, target=None)
    assert {check: look(check, evidence).result for check in results} == results


def test_every_tree_is_judged() -> None:
    marks = test_what_the_sensors_of_each_tree_tell_is_judged.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == set(TREES)


def test_a_tree_of_a_jetson_that_is_too_hot_is_at_fault_for_it(tmp_path: Path) -> None:
    document = healthy()
    document["collectors"]["sensors"]["data"] = read_sensors(unfold("jetson_xavier_nx", tmp_path), window_s=0.01)
    finding = look("throttling", judged(document, target="xavier-nx"))
    assert (finding.result, "processor slowed by heat" in finding.evidence) == ("fault", True)


def test_wrong_settings_are_mended_before_the_agent_is_started() -> None:
    document = spoilt(put("agent", running=False, pid=None))
    data(document, "agent")["settings"] = {"file": "/etc/kedge/agent.json", "problem": "there is no setting x"}
    cure = look("service", judged(document)).cure
    assert cure.startswith("ssh -t kedge@192.0.2.7 '${EDITOR:-vi} /etc/kedge/agent.json' && ssh kedge@192.0.2.7 ")
    assert_can_be_done(cure)


def test_an_engine_that_only_a_rollback_would_serve_is_a_warning() -> None:
    refused = row("engines", "engines", 0, release=BEFORE, fits=False, refusals=[_OTHER_TENSORRT])
    assert look("engines", judged(spoilt(refused))).result == "warning"


def test_a_runtime_that_the_agent_has_loaded_is_there_whoever_installed_it() -> None:
    assert look("runtimes", judged(spoilt(put("runtimes", tensorrt=None)))).result == "ok"
    assert look("runtimes", judged(spoilt(put("runtimes", tensorrt="10.3.0.30")))).result == "ok"


def test_a_device_whose_profile_has_a_gpu_and_no_runtime_for_it_is_warned_of() -> None:
    document = spoilt(all_of(put("runtimes", tensorrt=None), put("agent", info=None, status=None)))
    data(document, "engines")["engines"].clear()
    finding = look("runtimes", judged(document))
    assert (finding.result, "models run on its CPU" in finding.evidence) == ("warning", True)


def test_others_that_leave_cores_free_slow_nothing_down() -> None:
    assert look("processes", judged(spoilt(hog(3.5)))).result == "ok"


def test_of_a_gate_of_few_runs_the_median_is_compared_alone() -> None:
    document = healthy()
    told = data(document, "recorder")
    told["since_deploy"]["camera"]["at_deploy"]["gate"] = {"runs": 7, "median_ms": 12.0, "p99_ms": 243.0}
    assert look("latency", judged(document)).result == "ok"
    told["hour"]["models"]["camera"].update(compute_p50_ms=30.0, compute_p99_ms=60.0)
    finding = look("latency", judged(document))
    assert (finding.result, finding.brief) == ("fault", "p50 2.5 × what it was")


def test_a_gap_before_each_start_of_the_agent_is_no_wonder() -> None:
    document = spoilt(put("recorder", "hour", gaps=1))
    data(document, "agent")["starts"].append({"at_s": NOW_S - 900, "version": "0.1.0", "how": "start"})
    finding = look("recorder", judged(document))
    assert (finding.result, "1 gap in the last hour while no agent ran" in finding.evidence) == ("ok", True)


def test_another_agent_on_this_machine_is_a_fault_of_a_device_and_a_warning_of_local() -> None:
    document = spoilt(duplicate("process 9 of user root is an agent on another state folder: /var/lib/kedge"))
    here = Link("local", reachable=True)
    assert look("installs", judged(document)).result == "fault"
    assert look("installs", judged(document, here)).result == "warning"
    both = "kedge 1 and kedge-agent 1 are both installed in /x: they own the same files"
    data(document, "installs")["duplicates"].append(both)
    assert look("installs", judged(document, here)).result == "fault"


def test_a_model_that_nobody_asked_anything_is_well() -> None:
    document = healthy()
    data(document, "recorder")["hour"]["models"].clear()
    assert look("latency", judged(document)).result == "ok"


def test_a_device_whose_engine_was_built_in_a_lower_mode_is_well_in_a_higher_one() -> None:
    document = healthy()
    data(document, "engines")["engines"][0]["passport"]["power_mode"] = "0"
    assert look("power-mode", judged(document)).result == "ok"


def test_what_the_kernel_told_long_ago_is_no_fault_of_today() -> None:
    document = spoilt(kernel("oom", _OOM.format("python3").replace("2026", "2025")))
    assert look("kernel", judged(document)).result == "ok"
    document = spoilt(kernel("storage", "2025-01-01T00:00:00Z EXT4-fs error (device nvme0n1p1)"))
    assert look("disk-errors", judged(document)).result == "ok"


def test_a_previous_release_and_releases_of_no_role_do_not_hide_the_live_one() -> None:
    document = spoilt(all_of(release(1, **_BAD), release(0, **_BAD)))
    finding = look("releases", judged(document))
    assert (finding.result, finding.figures["release"], finding.figures["damaged"]) == ("fault", LIVE, 2)


def test_a_release_that_was_not_read_in_time_is_unknown() -> None:
    document = spoilt(all_of(release(1, whole=None, whole_why="no time was left"), put("releases", left_out=[BEFORE])))
    finding = look("releases", judged(document))
    assert (finding.result, "no time was left" in finding.evidence) == ("unknown", True)


def test_both_distributions_in_one_interpreter_are_mended_in_that_interpreter() -> None:
    site = "/opt/k e/lib/python3.11/site-packages"
    line = f"kedge 0.1.0 and kedge-agent 0.1.0 are both installed in {site}: they own the same files"
    document = spoilt(duplicate(line))
    data(document, "installs")["agents"].append(
        {"what": "distribution", "path": f"{site}/kedge_agent-0.1.0.dist-info", "name": "kedge-agent"}
    )
    cure = look("installs", judged(document, None)).cure
    assert cure.startswith("'/opt/k e/bin/python3' -m pip uninstall -y kedge-agent && ")


def test_a_service_of_root_is_the_systems_and_another_its_users() -> None:
    document = spoilt(put("agent", running=False, pid=None))
    assert "'systemctl --user start kedge-agent.service'" in look("service", judged(document)).cure
    document["state"] = "/var/lib/kedge"
    assert "'sudo systemctl start kedge-agent.service'" in look("service", judged(document)).cure
    data(document, "agent")["service"] = None
    assert "/var/lib/kedge/bin/kedge-agent start" in look("service", judged(document)).cure


def test_commands_go_through_ssh_to_another_machine_and_stand_alone_in_a_snapshot() -> None:
    document = spoilt(put("agent", process_state="T"))
    odd = replace(LINK, port=2222, address="kedge@fe80::1")
    assert look("service", judged(document, odd)).cure == "ssh -p 2222 kedge@fe80::1 'kill -CONT 812'"
    assert look("service", judged(document, None)).cure == "kill -CONT 812"


def test_a_key_that_the_inventory_names_is_named_in_every_way_in_too() -> None:
    keyed = replace(LINK, port=2222, key="/home/me/a key")
    document = spoilt(put("agent", process_state="T"))
    way = "-p 2222 -i '/home/me/a key' kedge@192.0.2.7"
    assert look("service", judged(document, keyed)).cure == f"ssh {way} 'kill -CONT 812'"
    refused = replace(keyed, login=False)
    assert look("reachability", judged(None, refused)).cure == f"ssh-copy-id {way}"
    silent = replace(keyed, reachable=False, login=None)
    assert look("reachability", judged(None, silent)).cure == f"ssh -v {way} true"


def test_what_asks_for_a_password_gets_a_terminal() -> None:
    document = spoilt(put("agent", running=False, pid=None))
    document["state"] = "/var/lib/kedge"
    assert look("service", judged(document)).cure.startswith("ssh -t kedge@192.0.2.7 'sudo systemctl start ")


@pytest.mark.parametrize("host", ["$(touch pwn)", "a;b", "`id`"])
def test_an_address_is_one_word_in_every_command(host: str) -> None:
    odd = replace(LINK, address=f"u@{host}")
    for link in (replace(odd, login=False), replace(odd, reachable=False, login=None)):
        assert f" 'u@{host}'" in look("reachability", judged(None, link)).cure
    stopped = look("service", judged(spoilt(put("agent", process_state="T")), odd))
    assert stopped.cure.startswith(f"ssh 'u@{host}' ")


@pytest.mark.parametrize(
    ("running", "settings", "path"),
    [
        (True, {"file": "/home/kedge/agent.json", "problem": "p"}, "/home/kedge/agent.json"),
        (False, {"file": None, "problem": "/srv/a b.json: it is no JSON"}, "'/srv/a b.json'"),
        (False, {"file": None, "problem": "it is no JSON"}, f"{STATE}/agent.json"),
    ],
)
def test_wrong_settings_have_commands_that_open_the_file_and_have_it_read(
    running: bool, settings: Facts, path: str
) -> None:
    document = spoilt(put("agent", running=running, settings=settings))
    cure = look("service", judged(document, None)).cure
    then = "kill -HUP 812" if running else "systemctl --user start kedge-agent.service"
    assert cure == f"${{EDITOR:-vi}} {path} && {then}"
    assert_can_be_done(look("service", judged(document)).cure)


def test_of_one_crash_the_cure_shows_when_it_was() -> None:
    started = {"at_s": NOW_S - 60, "version": "0.1.0", "how": "after-crash"}
    finding = look("restarts", judged(spoilt(put("agent", starts=[started]))))
    # The log of an agent that was killed has no error.
    assert (finding.result, finding.cure) == ("warning", "kedge history --on nano --since 1h")


def test_failures_that_a_deploy_has_mended_are_no_fault() -> None:
    document = healthy()
    data(document, "recorder")["hour"]["models"]["camera"]["failures"] = {"internal": 9_000}
    assert look("requests", judged(document)).result == "fault"
    since = data(document, "recorder")["since_deploy"]["camera"]
    since["at_deploy"]["at_s"], since["from_s"] = int(NOW_S) - 600, NOW_S - 599.2
    assert look("requests", judged(document)).result == "ok"


def test_of_requests_that_are_too_many_the_cure_is_commands() -> None:
    document = healthy()
    data(document, "recorder")["hour"]["models"]["camera"]["failures"] = {"busy": 9_000}
    cure = look("requests", judged(document)).cure
    assert f"${{EDITOR:-vi}} {STATE}/agent.json" in cure
    # How a model is served is read when it is loaded.
    assert "restart" in cure
    assert_can_be_done(cure)


@pytest.mark.parametrize("what", ["; touch /tmp/x; #", "$(touch /tmp/x)", "`touch /tmp/x`", "a'b\"c\n;d"])
def test_nothing_that_a_device_tells_gets_into_a_command_unquoted(what: str) -> None:
    cures = []
    for check, _, spoil, _, _ in AMISS:
        document = _poisoned(spoilt(spoil), what)
        document["kedge_facts"] = 1
        for evidence in (judged(document), judged(document, None)):
            found = _LOOK[check](evidence)
            cures += [each.cure for each in (found if isinstance(found, list) else [found]) if each.cure]
    assert cures
    for cure in cures:
        # What is left where quoted parts, and what follows a comment's sign, are taken out.
        bare = re.sub(r"'[^']*'|\"'\"", "", cure).split("#")[0]
        assert not any(word in bare for word in ("touch", "`", ";d")), cure


def _poisoned(value: Any, what: str) -> Any:
    """The same document with every text poisoned that no check compares with a word."""
    if isinstance(value, dict):
        return {key: _poisoned(each, what) if key not in _KEPT else each for key, each in value.items()}
    if isinstance(value, list):
        return [_poisoned(each, what) for each in value]
    return f"{value}{what}" if isinstance(value, str) else value


_KEPT = ("status", "what", "role", "process_state", "enabled", "how", "step", "gate", "duplicates", "lines", "at")
