"""Memory that runs short, and pages that are written out and read back all the time: a real hog, limit and swap."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.conftest import make_release
from tests.loopback.doctor.conftest import Bench
from tests.support.deploys import eventually
from tests.support.doctors import finding, on_device
from tests.support.pressure import MEMORY_HOG, memory_group, memory_stalled, swap_file, swapped_in

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("alone")
def test_a_swap_storm_in_the_agent_s_control_group_is_the_first_cause_and_the_cure_shows_who_holds_the_memory(
    bench: Bench, tmp_path: Path
) -> None:
    release = make_release(tmp_path, version=1)
    bench.deploy(release)
    bench.doctor.finds_no_fault()
    with swap_file(tmp_path, 512 * MIB), memory_group(256 * MIB) as group:
        group.add(bench.outside(bench.pid()))
        # What it takes before it is in the group would not be counted there.
        go = bench.server.home / "go"
        begin = f"while [ ! -e {go} ]; do sleep 0.1; done; exec python3 -c {shlex.quote(MEMORY_HOG)} {400 * MIB}"
        hog = int(bench.run(f"sh -c {shlex.quote(begin)} >/dev/null 2>&1 & echo $!"))
        try:
            group.add(bench.outside(hog))
            go.touch()
            # It takes a while until the first page has to be read back.
            begun = swapped_in()
            assert eventually(lambda: swapped_in() > begun + 20_000)
            # Which of both it is: how long the storm has lasted. The kernel's averages of what stands still are slow.
            document = bench.doctor.names("memory", "swap")
            storm = finding(document, "swap")
            assert storm["result"] == "fault"
            assert storm["figures"]["in_per_s"] > 1000
            memory = finding(document, "memory")
            assert memory["result"] in ("fault", "warning")
            assert memory["figures"]["cgroup_limit_bytes"] == 256 * MIB
            assert int(bench.run(on_device(storm["cure"])).splitlines()[1].split()[0]) == hog
        finally:
            bench.run(f"kill -KILL {hog}")
    # The kernel's average forgets it in its own time; whoever comes next is not to find it.
    assert eventually(lambda: memory_stalled() < 1)
    document = bench.doctor.finds_no_fault()
    assert finding(document, "swap")["result"] == "ok"
