"""The search for a mix of precisions: on this host, on threads and on a dask cluster it chooses the same."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.cli.app import main
from kedge.errors import BadInputError, IncompatibleError, KedgeError
from kedge.fleet.executor import open_executor
from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.optimize.quantize.step import Quantize
from kedge.optimize.spread import spread
from kedge.optimize.work import Work
from kedge.targets import host_target
from tests.support import models, work
from tests.support.clusters import Cluster, dask_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask"), workers=2, threads=1) as cluster:
        yield cluster


def _search(folder: Path, helpers: Any) -> Any:
    graph = Graph.read(models.classifier(folder.with_suffix(".onnx"), seed=3))
    chance = np.random.default_rng(0)
    inputs = {"image": chance.standard_normal((96, *models.images().shape[1:])).astype(np.float32)}
    folder.mkdir()
    given = Work(
        target=host_target(),
        original=graph,
        calibration=Samples(inputs),
        train=None,
        scratch=folder,
        cache=folder,
        helpers=helpers,
    )
    step = Quantize(precision="auto", calibrator="mse", rounding="nearest", trials=14, max_drop=0.05)
    return step.apply(graph, given)


def test_one_host_threads_and_a_cluster_choose_the_same_mix(dask: Cluster, tmp_path: Path) -> None:
    alone = _search(tmp_path / "alone", None)
    with open_executor(None, 4) as threads:
        threaded = _search(tmp_path / "threads", threads)
    with open_executor(dask.address, 4) as workers:
        clustered = _search(tmp_path / "dask", workers)
    assert len(alone.evidence["search"]["trials"]) == 14
    assert alone.evidence == threaded.evidence == clustered.evidence
    assert alone.graph.digest == threaded.graph.digest == clustered.graph.digest


def refused(shared: str, model: bytes) -> int:
    if model == b"bad":
        raise BadInputError(f"{shared}: no model", hint="give another")
    return len(model)


def test_results_come_in_their_order_and_errors_as_they_are(dask: Cluster) -> None:
    with open_executor(dask.address, 4) as workers:
        models_given = [b"x" * number for number in range(80)]
        assert list(spread(refused, "s", models_given, workers)) == list(range(80))
        with pytest.raises(BadInputError, match="s: no model") as raised:
            list(spread(refused, "s", [b"", b"bad", b""], workers))
        assert raised.value.hint == "give another"


def test_what_tasks_share_outlives_the_worker_that_holds_it(tmp_path: Path) -> None:
    big = b"x" * 20_000_000  # dask warns of tasks that carry so much, and warnings are errors here
    with dask_cluster(tmp_path / "dask", workers=2, threads=1) as cluster, open_executor(cluster.address, 1) as workers:
        handle = workers.share(big)
        assert handle.result(60) == big
        [holder] = handle.client.who_has([handle])[handle.key]
        os.kill(handle.client.run(os.getpid, workers=[holder])[holder], signal.SIGKILL)
        assert workers.executor.submit(work.size, handle).result(60) == len(big)


def test_a_worker_that_is_lost_for_good_ends_the_search_with_its_reason(tmp_path: Path) -> None:
    with (
        dask_cluster(tmp_path / "dask", workers=5, threads=1) as cluster,
        open_executor(cluster.address, 1) as workers,
        pytest.raises(KedgeError, match="workers that ran it died"),
    ):
        list(spread(work.deadly_judge, None, [b""], workers))


def test_a_worker_that_would_judge_otherwise_is_refused(dask: Cluster) -> None:
    with open_executor(dask.address, 1) as workers:
        workers.require_alike(work.same_facts)
        with pytest.raises(IncompatibleError, match=r"would come to other results: process is \d+ here and \d+ there"):
            workers.require_alike(work.own_facts)


def test_the_command_searches_on_a_cluster(dask: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    data = tmp_path / "data.npz"
    np.savez(data, image=np.random.default_rng(0).standard_normal((48, *models.images().shape[1:])).astype(np.float32))
    words = ["optimize", str(model), "--target", host_target().name, "--quantize", "auto", "--trials", "8"]
    words += ["--calibration", str(data), "--cluster", dask.address, "--json"]
    code = main([*words, "-o", str(tmp_path / "out.onnx")])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert len(json.loads(said.out)["search"]["trials"]) == 8
