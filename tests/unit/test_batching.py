"""Requests joined into one run, on the real runtime."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.batching import Batcher
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import ModelPool, PoolRules, Timing
from tests.support import models

HOUR_US = 3_600_000_000


def make_pool(tmp_path: Path, **rules: int) -> ModelPool:
    model = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions())
    return ModelPool(model, PoolRules(**{"max_batch": 8, "max_delay_us": 300_000, **rules}))


def infer(pool: ModelPool, images: np.ndarray) -> tuple[np.ndarray, Timing]:
    timing = Timing()
    with pool.request({"image": images.shape}, timing) as binding:
        binding.inputs["image"][...] = images
        pool.run(binding, timing)
        return binding.outputs["logits"].copy(), timing


def infer_together(pool: ModelPool, requests: list[np.ndarray]) -> list[tuple[np.ndarray, Timing]]:
    answers: list[tuple[np.ndarray, Timing] | None] = [None] * len(requests)

    def one(index: int) -> None:
        answers[index] = infer(pool, requests[index])

    threads = [threading.Thread(target=one, args=(index,), daemon=True) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        # The bound tells a hang; nothing is said of how fast it is.
        thread.join(60)
    assert all(answer is not None for answer in answers)
    return answers  # type: ignore[return-value]


def alone(tmp_path: Path, requests: list[np.ndarray]) -> list[np.ndarray]:
    pool = make_pool(tmp_path, max_batch=1)
    return [infer(pool, request)[0] for request in requests]


def test_joined_requests_get_their_own_rows(tmp_path: Path) -> None:
    images = models.images(8)
    requests = [images[:1], images[1:3], images[3:4], images[4:8]]
    pool = make_pool(tmp_path)
    answers = infer_together(pool, requests)
    for (found, _), expected in zip(answers, alone(tmp_path, requests), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert [timing.joined for _, timing in answers] == [4] * 4
    assert sorted(timing.led for _, timing in answers) == [0, 0, 0, 8], "one of them counts the run"


def test_a_full_batch_does_not_wait_for_more(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, deadline_ms=HOUR_US // 1000)
    # Who waited for more would do so for an hour.
    pool._batcher = Batcher(pool.model, pool.rules.max_batch, HOUR_US, pool._turn)
    answers = infer_together(pool, [models.images(4), models.images(4)])
    assert [timing.joined for _, timing in answers] == [2, 2]


def test_a_request_that_nobody_joins_is_run_alone_after_the_delay(tmp_path: Path) -> None:
    images = models.images(2)
    found, timing = infer(make_pool(tmp_path, max_delay_us=20_000), images)
    np.testing.assert_allclose(found, alone(tmp_path, [images])[0], rtol=1e-5, atol=1e-6)
    assert timing.joined == 1
    assert timing.queue_ns >= 20_000_000


def test_what_would_be_too_much_begins_a_batch_of_its_own(tmp_path: Path) -> None:
    images = models.images(6)
    requests = [images[:5], images[:6], images[:5]]
    answers = infer_together(make_pool(tmp_path, max_delay_us=100_000), requests)
    for (found, timing), expected in zip(answers, alone(tmp_path, requests), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert timing.joined == 1


def test_a_model_whose_outputs_do_not_count_samples_is_never_joined(tmp_path: Path) -> None:
    model = OnnxRuntime().load(models.nonzero(tmp_path / "m.onnx"), LoadOptions())
    pool = ModelPool(model, PoolRules(max_batch=16, max_delay_us=100_000))
    found: list[tuple[list[int], int]] = []

    def one(values: list[int]) -> None:
        timing = Timing()
        with pool.request({"x": (5,)}, timing) as binding:
            binding.inputs["x"][...] = values
            pool.run(binding, timing)
            found.append((binding.outputs["indices"].ravel().tolist(), timing.joined))

    threads = [threading.Thread(target=one, args=(values,)) for values in ([0, 1, 0, 2, 0], [1, 0, 0, 0, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [([0], 1), ([1, 3], 1)]


def test_a_batch_whose_turn_does_not_come_fails_for_all_of_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, deadline_ms=200, max_delay_us=50_000)
    pool._turns.take(time.monotonic() + 1)
    said: list[str] = []

    def one() -> None:
        with pytest.raises(AgentError) as caught:
            infer(pool, models.images(1))
        said.append(caught.value.kind)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["busy"] * 3
    pool._turns.give()
    assert infer(pool, models.images(1))[1].joined == 1


def late(pool: ModelPool, timeout_s: float, said: list[str]) -> None:
    timing = Timing()
    images = models.images(1)
    with pool.request({"image": images.shape}, timing) as binding:
        binding.inputs["image"][...] = images
        try:
            pool.run(binding, timing, deadline=time.monotonic() + timeout_s)
            said.append("served")
        except AgentError as error:
            said.append(error.kind)


def started(pool: ModelPool, timeout_s: float, said: list[str]) -> threading.Thread:
    before = pool.inside
    thread = threading.Thread(target=late, args=(pool, timeout_s, said))
    thread.start()
    while pool.inside == before:
        time.sleep(0.001)
    time.sleep(0.02)
    return thread


def test_a_leader_whose_deadline_passes_takes_nobody_with_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, max_delay_us=0)
    pool._turns.take(time.monotonic() + 1)
    leader: list[str] = []
    others: list[str] = []
    threads = [started(pool, 0.2, leader), started(pool, 60, others), started(pool, 60, others)]
    threads[0].join()
    assert leader == ["busy"]
    pool._turns.give()
    for thread in threads:
        thread.join()
    assert others == ["served", "served"]


def test_a_member_whose_deadline_passes_leaves_its_batch(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, max_delay_us=0)
    pool._turns.take(time.monotonic() + 1)
    leader: list[str] = []
    hasty: list[str] = []
    threads = [started(pool, 60, leader), started(pool, 0.1, hasty)]
    threads[1].join()
    assert (hasty, leader) == (["busy"], []), "it is told at its own deadline, not when the batch has run"
    pool._turns.give()
    threads[0].join()
    assert leader == ["served"]
