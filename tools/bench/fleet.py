"""Rollouts against the number of devices: real agents in network namespaces, and devices simulated at the transport.

    python tools/bench/fleet.py [--agents N …] [--simulated N …] [--runs N] [--smoke] [--out FILE.json]

Each rollout is driven by a new process, with threads and with the workers of a dask cluster on this machine: the
seconds it takes, processor time, the most memory that the coordinator had, what the ledger and a task cost. Writes
the figures, the table (.md) and the figure (.svg). Real agents need root and what `tests/support/netns.py` names;
where they cannot be had the page says why.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from facts import ROOT, conditions
from fleet_table import figure, markdown

sys.path.insert(0, str(ROOT))

from tests.conftest import make_release
from tests.support.fleets import Fleet, fleet
from tests.support.simulated import plant, simulated_way

from kedge.fleet.inventory import Inventory
from kedge.release.bundle import Release
from kedge.targets import host_target

HERE = Path(__file__).parent
# One wave: small ones hold fewer devices at a time than are asked for, more so of a hundred than of a thousand, and
# it is growth at one concurrency that is measured.
CANARY = "100%"
SIMULATED_CONCURRENCY = 32
AGENTS_CONCURRENCY = 16
DASK_WORKERS = 2
GROWTH, DEVICE_BYTES = 1.1, 2e6
SMALL, LARGE = 100, 1000
FAULTY_EVERY = 100

Prefix = Callable[..., list[str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="rollouts to so many agents")
    parser.add_argument(
        "--simulated", type=int, nargs="*", default=[10, 100, 300, 1000], help="to so many simulated devices"
    )
    parser.add_argument("--runs", type=int, default=3, help="of each (default: 3)")
    parser.add_argument("--smoke", action="store_true", help="10 and 100 simulated devices, two agents, once each")
    parser.add_argument("--out", type=Path, help="write the figures here, the table and the figure beside it")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.agents, arguments.simulated, arguments.runs = [1, 2], [10, 100], 1
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="kedge-fleet-") as name:
        folder = Path(name)
        release = make_release(folder, version=1)
        simulated = list(_simulated(folder, release, sorted(arguments.simulated), arguments.runs))
        skipped, agents = "none was asked for", []
        if arguments.agents:
            try:
                agents = list(_agents(folder, release, sorted(arguments.agents), arguments.runs))
            except pytest.skip.Exception as error:
                skipped = str(error)
    document: dict[str, Any] = {
        "benchmark": "fleet",
        "conditions": conditions(load),
        "fixed": {
            "canary": CANARY,
            "runs": arguments.runs,
            "simulated_concurrency": SIMULATED_CONCURRENCY,
            "agents_concurrency": AGENTS_CONCURRENCY,
            "dask_workers": DASK_WORKERS,
            "release_bytes": release.manifest.total_bytes,
        },
        "simulated": simulated,
        "agents": agents,
        "agents_skipped": None if agents else skipped,
        "goals": goals(simulated),
    }
    picture = Path("fleet.svg") if arguments.out is None else arguments.out.with_suffix(".svg")
    text = markdown(document, picture.name)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
        figure(document, picture)
    print(text)
    return 0


def _simulated(folder: Path, release: Release, sizes: Sequence[int], runs: int) -> Iterator[dict[str, Any]]:
    """A row of each size, with threads and with dask."""
    environment = _environment(folder)

    def order(size: int, run: str) -> dict[str, Any]:
        disks = folder / f"disks-{size}-{run}"
        disks.mkdir()
        names = [f"s{index:05}" for index in range(size)]
        for index, name in enumerate(names):
            # In the last wave, where there are enough for it to matter.
            for place, fault in ((FAULTY_EVERY // 2, "unreachable"), (FAULTY_EVERY - 1, "gate")):
                if index % FAULTY_EVERY == place:
                    plant(disks, name, fault)
        devices = [{"name": name, "target": host_target().name, "way": simulated_way(disks)} for name in names]
        return {"devices": devices, "simulated": True, "concurrency": SIMULATED_CONCURRENCY, "release": release}

    with _cluster(SIMULATED_CONCURRENCY, environment, _here) as cluster:
        for size in sizes:
            for workers, found in (("threads", None), ("dask", cluster)):
                orders = [order(size, f"{workers}-{run}") for run in range(runs)]
                yield _row(folder, workers, found, orders, environment, _here)


def _agents(folder: Path, base: Release, sizes: Sequence[int], runs: int) -> Iterator[dict[str, Any]]:
    """The same, to the first so many devices of one fleet; each rollout brings a release that none has."""
    version = 1
    with (
        fleet(sizes[-1], base) as made,
        _cluster(AGENTS_CONCURRENCY, made.environment, made.network.command) as cluster,
    ):
        for size in sizes:
            for workers, found in (("threads", None), ("dask", cluster)):
                orders = []
                for _ in range(runs):
                    version += 1
                    release = make_release(folder, version=version, seed=version)
                    orders.append(
                        {
                            "devices": _devices(made, size),
                            "simulated": False,
                            "concurrency": AGENTS_CONCURRENCY,
                            "release": release,
                        }
                    )
                yield _row(folder, workers, found, orders, made.environment, made.network.command)


def _devices(made: Fleet, size: int) -> list[dict[str, Any]]:
    inventory = Inventory(made.inventory)
    chosen = [inventory.get(device.name) for device in made.devices[:size]]
    return [{"name": each.name, "target": each.target, "way": each.way()} for each in chosen]


def _here(*words: str) -> list[str]:
    return list(words)


def _environment(folder: Path) -> dict[str, str]:
    folders = {f"XDG_{kind.upper()}_HOME": str(folder / kind) for kind in ("config", "state", "cache")}
    return {**os.environ, **folders}


class Cluster:
    """A dask cluster of this machine."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        self.address = process.stdout.readline().strip()

    def cpu_s(self) -> float:
        """Processor time of the scheduler and the workers so far."""
        top = psutil.Process(self._process.pid)
        times = [each.cpu_times() for each in (top, *top.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))


@contextmanager
def _cluster(concurrency: int, environment: dict[str, str], prefix: Prefix) -> Iterator[Cluster]:
    threads = -(-concurrency // DASK_WORKERS)
    command = prefix(sys.executable, str(HERE / "fleet_cluster.py"), str(DASK_WORKERS), str(threads))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    ) as process:
        yield Cluster(process)
        assert process.stdin is not None
        process.stdin.close()


def _row(
    folder: Path,
    workers: str,
    cluster: Cluster | None,
    orders: Sequence[dict[str, Any]],
    environment: dict[str, str],
    prefix: Prefix,
) -> dict[str, Any]:
    """The medians of runs, each in a new process; their results must be the same."""
    runs = []
    for order in orders:
        before = 0.0 if cluster is None else cluster.cpu_s()
        release: Release = order["release"]
        told = {
            **order,
            "canary": CANARY,
            "cluster": None if cluster is None else cluster.address,
            "release": {
                "digest": release.digest,
                "source": str(release.folder),
                "model": release.manifest.model,
                "version": release.manifest.version,
            },
        }
        path = folder / "order.json"
        path.write_text(json.dumps(told))
        done = subprocess.run(
            prefix(sys.executable, str(HERE / "fleet_run.py"), str(path)),
            capture_output=True,
            text=True,
            check=False,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )
        if done.returncode:
            raise SystemExit(f"a rollout failed: {done.stdout}{done.stderr}")
        found = json.loads(done.stdout)
        found["workers_cpu_s"] = None if cluster is None else cluster.cpu_s() - before
        runs.append(found)
    tables = [each.pop("table") for each in runs]
    if any(table != tables[0] for table in tables):
        raise SystemExit("two runs of one rollout ended differently")
    names = ("seconds", "cpu_s", "peak_rss_bytes", "ledger_bytes", "plan_bytes", "task_bytes", "workers_cpu_s")
    medians = {
        name: None if runs[0][name] is None else statistics.median(each[name] for each in runs) for name in names
    }
    states: dict[str, int] = {}
    for _, state, *_ in tables[0]:
        states[state] = states.get(state, 0) + 1
    size = len(orders[0]["devices"])
    row = {"devices": size, "workers": workers, **medians, "states": states, "table": tables[0], "runs": runs}
    print(f"{size} devices, {workers}: {row['seconds']:.2f} s, {states}", file=sys.stderr)
    return row


def goals(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Which goals were met, and by what figure; takes the tables out of the rows."""
    by = {(row["workers"], row["devices"]): row for row in rows}
    out: list[dict[str, Any]] = []
    for workers in ("threads", "dask"):
        small, large = by.get((workers, SMALL)), by.get((workers, LARGE))
        growth = work = memory = None
        if small is not None and large is not None:
            growth = large["seconds"] / small["seconds"] / (LARGE / SMALL)
            work = _cpu_s(large) / _cpu_s(small) / (LARGE / SMALL)
            memory = (large["peak_rss_bytes"] - small["peak_rss_bytes"]) / (LARGE - SMALL)
        out += [
            _goal(
                f"{workers}: time grows from {SMALL} to {LARGE} devices by at most {GROWTH} × linear", growth, GROWTH
            ),
            # What else this machine has to do is in the time, and hardly in this.
            _goal(f"{workers}: processor time of all: at most {GROWTH} × linear", work, GROWTH),
            _goal(
                f"{workers}: memory of the host, a device, from {SMALL} to {LARGE}: at most {DEVICE_BYTES / 1e6:g} MB",
                None if memory is None else memory / 1e6,
                DEVICE_BYTES / 1e6,
            ),
        ]
    differ = [
        row["devices"]
        for row in rows
        if row["workers"] == "dask" and row["table"] != by["threads", row["devices"]]["table"]
    ]
    out.append(_goal("rollouts by dask that end otherwise than by threads (state, reason, wave)", len(differ), 0))
    for row in rows:
        del row["table"]
    return out


def _cpu_s(row: dict[str, Any]) -> float:
    return float(row["cpu_s"] + (row["workers_cpu_s"] or 0.0))


def _goal(goal: str, figure: float | None, most: float) -> dict[str, Any]:
    return {"goal": goal, "figure": figure, "met": None if figure is None else figure <= most}


if __name__ == "__main__":
    sys.exit(main())
