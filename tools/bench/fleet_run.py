"""One rollout, in a process of its own, for tools/bench/fleet.py: reads an order, prints what was measured."""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.simulated import open_simulated

from kedge.fleet.executor import open_executor
from kedge.fleet.rollout.drive import drive
from kedge.fleet.rollout.ledger import create
from kedge.fleet.rollout.plan import Options, make_plan
from kedge.fleet.rollout.tasks import task_for
from kedge.fleet.task import run_task


@dataclass(frozen=True)
class Chosen:
    """A device of the order, as a plan wants it."""

    name: str
    target: str
    address: Mapping[str, Any]

    def way(self) -> Mapping[str, Any]:
        return self.address


def memory_bytes(name: str) -> int:
    """VmRSS or VmHWM of this process: the kernel's ru_maxrss is that of who forked it, where that had more."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def main() -> int:
    order = json.loads(Path(sys.argv[1]).read_text())
    work = functools.partial(run_task, opener=open_simulated) if order["simulated"] else run_task
    release = order["release"]
    devices = [Chosen(each["name"], each["target"], each["way"]) for each in order["devices"]]
    options = Options(
        canary=tuple(order["canary"].split(",")),
        max_failures=len(devices),
        deadline_s=300.0,
        concurrency=order["concurrency"],
        # With a limit on errors, each device is looked at when its wave ends.
        max_error_rate=0.5,
        cluster=order["cluster"],
    )
    with open_executor(order["cluster"], order["concurrency"]) as workers:
        before = memory_bytes("VmRSS")
        began, cpu = time.monotonic(), time.process_time()
        plan = make_plan(
            devices,
            model=release["model"],
            version=release["version"],
            digest=release["digest"],
            source=release["source"],
            options=options,
        )
        ledger = create(plan)
        told = workers.telling(work, lambda device, step: None)
        rollout = drive(ledger, workers.executor, work=told, explain=workers.explain)
        seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu
        document = rollout.to_json()
    found = {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "rss_before_bytes": before,
        "peak_rss_bytes": memory_bytes("VmHWM"),
        "ledger_bytes": (ledger.folder / "events.ndjson").stat().st_size,
        "plan_bytes": (ledger.folder / "plan.json").stat().st_size,
        "task_bytes": len(json.dumps(task_for(rollout, devices[0].name, "deploy"))),
        "state": document["state"],
        "table": sorted([row["device"], row["state"], row["reason"], row["wave"]] for row in document["devices"]),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
