"""A model that is slower than it was: because somebody computes beside it, the power mode is another, or it throttles.

The models, their requests, the recorder and the hogs are real. What a Jetson alone has is a tree of its files, which
the device sees in /sys and /etc; that its clocks are lower then is what `slowed` does to the agent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.loopback.doctor.conftest import Bench
from tests.support.bad_models import ask, obedient_release, order
from tests.support.deploys import eventually
from tests.support.doctors import finding, on_device, told
from tests.support.pressure import slowed

pytestmark = pytest.mark.slow

WORK = order(turns=1200)
"""Some 12 ms on a PC: what a busy machine adds by itself is little beside it."""

REQUESTS, SLOW_REQUESTS = 120, 60
MODES = "var/lib/nvpmodel/status"
OVER_CURRENT = "sys/class/hwmon/hwmon*/oc2_event_cnt"


@pytest.fixture(scope="module")
def deployed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """It serves a model that went through a latency gate while nothing was amiss."""
    folder = tmp_path_factory.mktemp("release")
    # What else this machine does while a gate measures is not to hide what comes later: the calmest of some.
    for version in range(1, 6):
        bench.deploy(obedient_release(folder, version=version, golden=WORK, gates={"latency": {"p99_ms": "1000"}}))
        bench.asked(ask(WORK), 1)
        assert eventually(lambda: "was_p99_ms" in finding(bench.nano.live(), "latency")["figures"])
        figures = finding(bench.nano.live(), "latency")["figures"]
        if figures["was_p99_ms"] < 3 * figures["was_p50_ms"]:
            break
    return bench


@pytest.fixture
def well(deployed: Bench) -> Iterator[Bench]:
    """Nothing was recorded yet but requests that nobody hindered."""
    deployed.forget()
    deployed.asked(ask(WORK), REQUESTS)
    yield deployed
    (deployed.tree / MODES).write_text("pmode:0000 fmode:fan_mode_quiet\n")


def test_a_hog_beside_a_model_that_has_become_slow_is_the_first_cause_and_yields_by_the_cure(well: Bench) -> None:
    number = 12 * (os.cpu_count() or 1)
    # Each in a session of its own: the kernel shares processors among sessions, then among what is in one.
    hog = "setsid python3 -c 'while True: pass' >/dev/null 2>&1 & echo $!;"
    pids = {int(line) for line in well.run(hog * number).split()}
    try:
        well.asked(ask(WORK), SLOW_REQUESTS)
        document = well.nano.names("processes")
        first, slow = document["first_cause"], finding(document, "latency")
        assert slow["result"] == "fault", told(document)
        assert slow["figures"]["p99_ms"] > 2 * slow["figures"]["was_p99_ms"]
        assert f"{slow['figures']['p99_ratio']:.1f} × what it was" in document["sentence"]
        assert "python3 takes" in document["sentence"]
        inner = on_device(first["cure"])
        assert inner.startswith("renice -n 19 -p ")
        assert {int(word) for word in inner.split()[4:]} <= pids
        well.run(inner)
    finally:
        well.run(f"kill -KILL {' '.join(map(str, pids))}")
    document = well.nano.live()
    # The last hour is as it was, and nobody is to blame for it any more.
    assert finding(document, "processes")["result"] == "ok", told(document)


def test_a_power_mode_that_is_not_the_highest_is_the_first_cause_of_a_model_that_has_become_slow(well: Bench) -> None:
    (well.tree / MODES).write_text("pmode:0001 fmode:fan_mode_quiet\n")
    with slowed(well.outside(well.pid())):
        well.asked(ask(WORK), SLOW_REQUESTS)
    document = well.nano.names("power-mode")
    first = document["first_cause"]
    assert finding(document, "latency")["result"] == "fault", told(document)
    assert on_device(first["cure"]) == "nvpmodel -m 0"
    # As nvpmodel does, which writes down what it set.
    (well.tree / MODES).write_text("pmode:0000 fmode:fan_mode_quiet\n")
    assert finding(well.nano.live(), "power-mode")["result"] == "ok"


def test_throttling_is_the_first_cause_of_a_model_that_has_become_slow_and_for_how_much_of_the_time(
    well: Bench,
) -> None:
    (counter,) = well.tree.glob(OVER_CURRENT)
    with slowed(well.outside(well.pid())):
        well.asked(ask(WORK), SLOW_REQUESTS)
    # The recorder looks each second.
    for _ in range(8):
        counter.write_text(f"{int(counter.read_text()) + 1}\n")
        time.sleep(1.1)
    document = well.nano.names("throttling")
    first = document["first_cause"]
    assert first["figures"]["last_hour"], told(document)
    assert first["figures"]["throttled_share"] >= 0.05
    assert "% of the last hour" in document["sentence"]
