"""A device whose clock is wrong: by this host's, and by what the device wrote down itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.conftest import make_release
from tests.loopback.doctor.conftest import Bench
from tests.support.clock import YEAR_S
from tests.support.doctors import finding

pytestmark = pytest.mark.slow

HOUR_S = 3600


@pytest.fixture(autouse=True)
def right_again(bench: Bench) -> Iterator[None]:
    yield
    bench.clock.move(0)


@pytest.mark.parametrize("ahead_s", [3 * HOUR_S, -3 * HOUR_S, 20 * YEAR_S])
def test_a_clock_that_is_wrong_is_the_first_cause_and_by_how_much(bench: Bench, ahead_s: int) -> None:
    bench.clock.move(ahead_s)
    # By itself a snapshot does not tell: it knows no other clock.
    document = bench.doctor.names("clock-skew", offline=False)
    first = document["first_cause"]
    assert abs(first["figures"]["behind_s"] + ahead_s) < 30
    assert "timedatectl" in first["cure"]
    assert finding(bench.doctor.offline(), "clock-skew")["result"] == "unknown"
    # As `timedatectl set-ntp true` does.
    bench.clock.move(0)
    bench.doctor.finds_no_fault()


def test_a_clock_that_begins_anew_after_a_power_cut_is_behind_what_the_device_wrote_down_as_a_snapshot_tells_too(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    release = make_release(tmp_path_factory.mktemp("release"), version=1)
    bench.deploy(release)
    # The date of a kernel without a battery's clock; the agent starts then.
    bench.clock.set(365 * 24 * HOUR_S)
    bench.restart()
    first = bench.doctor.names("clock-skew")["first_cause"]
    assert first["figures"]["journal_ahead_s"] > time.time() - 366 * 24 * HOUR_S - HOUR_S
    bench.clock.move(0)
    bench.restart()
    bench.doctor.finds_no_fault()
