"""Rollouts on a real dask cluster that has fewer threads than tasks were asked for at a time."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kedge.fleet import cluster as cluster_module
from kedge.fleet.executor import Workers, open_executor
from kedge.fleet.rollout.drive import drive
from kedge.fleet.rollout.ledger import create
from kedge.fleet.rollout.machine import Rollout
from kedge.fleet.rollout.options import Options
from tests.support import work
from tests.support.clusters import dask_cluster
from tests.support.driven import plan_of


class _Driven:
    """A rollout to devices that take their time; most: in flight at once."""

    def __init__(self, count: int, options: Options) -> None:
        self.ledger = create(plan_of(count, options))
        self.begun = threading.Semaphore(0)
        self.most = 0
        self._rollout: Rollout | None = None

    def run(self, workers: Workers, seconds: float, grace_s: float) -> dict[str, Any]:
        told = workers.telling(functools.partial(work.serving, seconds=seconds), self._step)
        options: dict[str, Any] = {"explain": workers.explain, "threads": workers.threads, "grace_s": grace_s}
        return drive(self.ledger, workers.executor, work=told, hear=self._hear, **options).to_json()

    def _hear(self, rollout: Rollout, event: Mapping[str, Any]) -> None:
        self._rollout = rollout
        self.most = max(self.most, len(rollout.flying))

    def _step(self, device: str, step: str) -> None:
        assert self._rollout is not None
        self._rollout.note_step(device, step)
        self.begun.release()


@pytest.mark.slow
def test_no_task_waits_so_long_for_a_thread_that_it_is_late_unbegun(tmp_path: Path) -> None:
    options = Options(concurrency=8, deadline_s=4.0)
    with (
        dask_cluster(tmp_path / "dask", workers=1, threads=2) as cluster,
        open_executor(cluster.address, 8) as workers,
    ):
        driven = _Driven(12, options)
        # The last of six turns would begin after 5 s.
        document = driven.run(workers, 1.0, 0.2)
    assert document["counts"] == {"updated": 12}
    assert driven.most == 2
    assert document["options"]["concurrency"] == 8


@pytest.mark.slow
def test_tasks_of_a_worker_that_died_have_the_time_to_wait_for_those_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_ASK_S", 0.1)
    with (
        dask_cluster(tmp_path / "dask", workers=2, threads=2) as cluster,
        open_executor(cluster.address, 4) as workers,
    ):
        driven = _Driven(4, Options(concurrency=4, deadline_s=8.0))

        def kill() -> None:
            for _ in range(4):
                driven.begun.acquire()
            time.sleep(1)
            os.killpg(cluster.workers[0].pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        # The first two end after 5 s, and the two that begin anew after 10.
        document = driven.run(workers, 5.0, 0.0)
        killing.join()
    assert document["counts"] == {"updated": 4}


def test_a_cluster_without_workers_any_more_interrupts_the_rollout_and_blames_no_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_ASK_S", 0.1)
    with (
        dask_cluster(tmp_path / "dask", workers=1, threads=2) as cluster,
        open_executor(cluster.address, 4) as workers,
    ):
        driven = _Driven(4, Options(concurrency=4, deadline_s=60.0))

        def kill() -> None:
            driven.begun.acquire()
            os.killpg(cluster.workers[0].pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        document = driven.run(workers, 30.0, 0.5)
        killing.join()
    assert document["counts"] == {"waiting": 4}
    assert "no worker for 0.5 s" in driven.ledger.read().to_json(driven=False)["reason"]
    assert document["state"] == "interrupted"
