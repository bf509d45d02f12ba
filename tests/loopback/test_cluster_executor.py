"""Tasks on threads and on a real dask cluster: answers, steps, and what becomes of those that never come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from kedge.errors import BadInputError, IncompatibleError, InternalError, UnreachableError
from kedge.fleet import cluster as cluster_module
from kedge.fleet.executor import SchedulerLostError, WorkerLostError, Workers, open_executor
from kedge.release.bundle import Release
from kedge.release.remote import push_to
from tests.support import work
from tests.support.clusters import Cluster, dask_cluster

_ANSWER_S = 60


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture(params=["threads", "dask"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    address = request.getfixturevalue("dask").address if request.param == "dask" else None
    with open_executor(address, 4) as found:
        yield found


def test_answers_and_steps_of_every_task_arrive(workers: Workers) -> None:
    heard: set[tuple[str, str]] = set()
    names = {f"d{number}" for number in range(20)}
    told = workers.telling(work.stepping, lambda device, step: heard.add((device, step)))
    futures = [workers.executor.submit(told, {"device": name}) for name in sorted(names)]
    assert {future.result(_ANSWER_S)["device"] for future in futures} == names
    assert any(future.result()["worker"] != os.getpid() for future in futures) is not workers.shared
    expected = {(name, step) for name in names for step in ("push", "done")}
    end = time.monotonic() + _ANSWER_S
    while heard != expected and time.monotonic() < end:
        time.sleep(0.01)
    assert heard == expected


def test_two_tasks_that_are_alike_both_run(workers: Workers) -> None:
    told = workers.telling(work.stepping, lambda device, step: None)
    first, second = (workers.executor.submit(told, {"device": "a"}) for _ in range(2))
    assert first.result(_ANSWER_S) is not second.result(_ANSWER_S)


def test_what_is_shared_reaches_every_task(workers: Workers) -> None:
    shared = workers.share([1, 2, 3])
    futures = [workers.executor.submit(work.total, shared, number) for number in range(4)]
    assert [future.result(_ANSWER_S) for future in futures] == [6, 7, 8, 9]


def test_a_defect_of_the_work_is_no_devices_fault(workers: Workers) -> None:
    future = workers.executor.submit(workers.telling(work.failing, lambda device, step: None), {"device": "a"})
    with pytest.raises(ZeroDivisionError) as raised:
        future.result(_ANSWER_S)
    explained = workers.explain(raised.value)
    assert isinstance(explained, InternalError)
    assert "by design" in explained.message


def test_a_thread_that_hangs_keeps_no_process_alive() -> None:
    program = (
        "import threading\n"
        "from kedge.fleet.executor import open_executor\n"
        "from tests.support import work\n"
        "hangs = threading.Event()\n"
        "with open_executor(None, 1) as workers:\n"
        "    workers.executor.submit(workers.telling(work.hanging, lambda *_: hangs.set()), {'device': 'a'})\n"
        "    assert hangs.wait(30)\n"
        "print('ended')\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "ended\n"
    assert said.stderr == ""


def test_threads_that_hang_leave_room_for_others() -> None:
    with open_executor(None, 1) as workers:
        hangs = threading.Event()
        hanging = workers.telling(work.hanging, lambda device, step: hangs.set())
        workers.executor.submit(hanging, {"device": "a"})
        assert hangs.wait(_ANSWER_S)
        told = workers.telling(work.stepping, lambda device, step: None)
        assert workers.executor.submit(told, {"device": "b"}).result(_ANSWER_S)["device"] == "b"


def test_nobody_at_the_address_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 1.0)
    with pytest.raises(UnreachableError, match="no dask scheduler answers"), open_executor("tcp://127.0.0.1:1", 1):
        pass


def test_no_thread_is_left_of_a_cluster_that_was_closed_or_never_answered(
    dask: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loops() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name in ("kedge-cluster", "IO loop")]

    before = loops()
    with open_executor(dask.address, 1) as workers:
        assert workers.executor.submit(work.size, b"four").result(_ANSWER_S) == 4
        assert len(loops()) == len(before) + 1
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 1.0)
    with pytest.raises(UnreachableError), open_executor("tcp://127.0.0.1:1", 1):
        pass
    assert loops() == before


@pytest.mark.parametrize("address", ["nonsense://x:1", "tls://127.0.0.1:1"])
def test_an_address_that_cannot_be_used_is_an_error_of_one_line(address: str) -> None:
    with pytest.raises(BadInputError, match="cannot be used"), open_executor(address, 1):
        pass


def test_a_scheduler_without_workers_is_said_before_anything_begins(tmp_path: Path) -> None:
    with (
        dask_cluster(tmp_path / "dask", workers=0) as cluster,
        pytest.raises(UnreachableError, match="has no workers"),
        open_executor(cluster.address, 1),
    ):
        pass


def test_another_kedge_on_a_worker_is_said_before_anything_begins(
    dask: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "__version__", "0.0.1")
    with (
        pytest.raises(IncompatibleError, match=r"kedge is 0\.0\.1 here, and .* on tcp://"),
        open_executor(dask.address, 1),
    ):
        pass


def test_fewer_threads_than_tasks_at_a_time_are_told(dask: Cluster) -> None:
    with open_executor(dask.address, 100) as workers:
        assert "8 threads in all, fewer than the 100" in workers.notes[0]
    with open_executor(dask.address, 8) as workers:
        assert workers.notes == ()


def test_a_release_that_workers_cannot_read_is_said_before_anything_begins(
    dask: Cluster, release: Release, tmp_path: Path
) -> None:
    source = {"digest": release.digest, "source": f"file://{tmp_path}/store"}
    with open_executor(dask.address, 1) as workers:
        with pytest.raises(BadInputError, match="2 of 2 workers cannot read the release"):
            workers.require_source(source)
        push_to(release, source["source"])
        workers.require_source(source)


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_scheduler_are_told_apart(tmp_path: Path) -> None:
    with dask_cluster(tmp_path / "dask", workers=5, threads=1) as cluster, open_executor(cluster.address, 1) as workers:
        deadly = workers.telling(work.deadly, lambda device, step: None)
        with pytest.raises(Exception, match=r".") as raised:
            workers.executor.submit(deadly, {"device": "a"}).result(_ANSWER_S)
        assert isinstance(workers.explain(raised.value), WorkerLostError)
        # One of five is left; then the scheduler goes.
        begun = threading.Event()
        hanging = workers.telling(work.hanging, lambda device, step: begun.set())
        future = workers.executor.submit(hanging, {"device": "b"})
        assert begun.wait(_ANSWER_S)
        os.killpg(cluster.scheduler.pid, signal.SIGKILL)
        with pytest.raises(CancelledError) as cancelled:
            future.result(_ANSWER_S)
        assert isinstance(workers.explain(cancelled.value), SchedulerLostError)


_DRIVEN = """
import concurrent.futures as cf, signal, sys, threading
from kedge.fleet.executor import open_executor
from tests.support import work
signal.signal(signal.SIGTERM, signal.default_int_handler)
begun = threading.Event()
try:
    with open_executor(sys.argv[1] if len(sys.argv) > 1 else None, 1) as workers:
        future = workers.executor.submit(workers.telling(work.hanging, lambda *_: begun.set()), {"device": "a"})
        assert begun.wait(120)
        print("hangs", flush=True)
        while not cf.wait([future], 1.0)[0]:
            pass
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("where", ["threads", "dask"])
def test_a_signal_ends_the_driver_although_a_task_hangs(where: str, tmp_path: Path) -> None:
    with dask_cluster(tmp_path / "dask") as cluster:
        words = [cluster.address] if where == "dask" else []
        driver = subprocess.Popen(
            [sys.executable, "-c", _DRIVEN, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"hangs\n"
        driver.terminate()
        said, _ = driver.communicate(timeout=60)
    assert said == b"interrupted\n"
    assert driver.returncode == 0
