"""The way of a request on a real GPU, around a stand-in for TensorRT: order, overlap, graphs, errors, clean ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.cuda_lanes import Gpu
from kedge_agent.runtime.pool import ModelPool, PoolRules, Timing
from kedge_agent.runtime.tensorrt import TensorRTRuntime
from kedge_agent.runtime.tensorrt_model import TensorRTModel
from tests.gpu.test_agent_on_gpu import BINDINGS, opened
from tests.support import ptx_tensorrt
from tests.support.fake_tensorrt import plan

pytestmark = pytest.mark.gpu

IMAGE = (1, 3, 512, 512)
IMAGE_BYTES = int(np.prod(IMAGE)) * 4
ROWS = plan({"x": [-1, 4096]}, [{"x": [[1, 4096], [2, 4096], [16, 4096]]}], scratch=16 * 4096 * 4, spin_cycles=100_000)
Load = Callable[..., TensorRTModel]


@pytest.fixture(params=list(BINDINGS))
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Load]:
    """Loads plans of the stand-in; what they took must be given back in the end."""
    cuda = opened(request.param)
    pytest.importorskip("cuda.bindings.driver", reason="the stand-in's kernels are launched by cuda.bindings")
    gpu = Gpu(cuda)
    models: list[TensorRTModel] = []
    with cuda.current():
        before = cuda.free_bytes()

    def load(engine: bytes, options: LoadOptions) -> TensorRTModel:
        path = tmp_path / f"{len(models)}.engine"
        path.write_bytes(engine)
        runtime = TensorRTRuntime("tensorrt", library=ptx_tensorrt.library(), gpu=lambda: gpu)
        models.append(runtime.load(path, options))
        return models[-1]

    yield load
    for model in models:
        model.close()
    with cuda.current():
        # What the driver keeps: 104 MiB from the first managed memory that a kernel uses (H200, driver 580).
        assert before - cuda.free_bytes() < 160 << 20


def image(**rest: Any) -> bytes:
    return plan({"x": IMAGE}, scratch=IMAGE_BYTES, **rest)


def had(load: Load, engine: bytes, options: LoadOptions) -> TensorRTModel:
    """The model, or a skip where this GPU has not this way of moving tensors."""
    try:
        return load(engine, options)
    except AgentError as error:
        if "cannot be had" in error.message:
            pytest.skip(error.message)
        raise


@pytest.mark.parametrize("transfer", ["copy", "mapped", "managed", "auto"])
def test_each_run_has_the_results_of_its_own_inputs(load: Load, transfer: Any) -> None:
    model = had(load, image(), LoadOptions(transfer=transfer))
    slot = model.slot()
    binding = slot.bind({"x": IMAGE})
    ramp = np.arange(np.prod(IMAGE), dtype=np.float32).reshape(IMAGE)
    for turn in range(6):  # plain, captured, launched
        binding.inputs["x"][...] = ramp + turn
        binding.outputs["x'"][...] = np.nan
        binding.submit()
        split = binding.wait()
        np.testing.assert_array_equal(binding.outputs["x'"], 2 * (ramp + turn))
        assert split.compute_ns > 0
    slot.close()
    assert model.facts()["graphs"]["captured"] == 0 or model.cuda.graphs
    if model.cuda.graphs:
        assert model.facts()["graphs"] == {"captured": model.graphs.captured, "why_not": None}
        assert model.graphs.captured > 0


@pytest.mark.parametrize("transfer", ["copy", "mapped", "managed", "auto"])
def test_a_model_that_goes_leaves_nothing_on_the_gpu(load: Load, transfer: Any) -> None:
    left = []
    for _ in range(16):
        model = had(load, image(), LoadOptions(transfer=transfer, workers=2))
        model.close()
        with model.cuda.current():
            left.append(model.cuda.free_bytes())
    # Sixteen models have 480 MiB of buffers. What the driver keeps of managed memory comes and goes by 100 MiB.
    assert left[1] - left[-1] <= (4 << 20 if transfer in ("copy", "mapped") else 160 << 20)


@pytest.mark.parametrize("transfer", ["copy", "mapped", "managed"])
@pytest.mark.parametrize("workers", [1, 3])
def test_many_threads_with_many_shapes_get_their_own_results(load: Load, transfer: Any, workers: int) -> None:
    model = had(load, ROWS, LoadOptions(transfer=transfer, workers=workers))
    pool = ModelPool(model, PoolRules(workers=workers))
    wrong: list[tuple[int, int]] = []

    def client(number: int) -> None:
        for turn in range(100):
            rows = 1 + (number + turn // 3) % 16
            with pool.request({"x": (rows, 4096)}, Timing()) as binding:
                binding.inputs["x"][...] = number * 1000 + turn
                pool.run(binding, Timing())
                if not (binding.outputs["x'"] == 2 * (number * 1000 + turn)).all():
                    wrong.append((number, turn))

    together([lambda number=number: client(number) for number in range(8)])  # type: ignore[misc]
    assert wrong == []
    pool.retire()


def test_the_next_requests_copy_in_ends_while_this_one_computes(load: Load) -> None:
    model = load(image(spin_cycles=2_000_000), LoadOptions(transfer="copy"))
    slots = [model.slot(), model.slot()]
    bindings = [slot.bind({"x": IMAGE}) for slot in slots]
    for _ in range(4):
        for binding in bindings:
            binding.submit()
        one, two = (binding.seat for binding in bindings)  # type: ignore[attr-defined]
        for binding in bindings:
            binding.wait()
    with model.cuda.current():
        computed, copied, begun = (mark.elapsed_ms(one.in_begin) for mark in (one.run_end, two.in_end, two.run_begin))
    assert copied < computed, "the second copy was over while the first inference ran"
    assert begun >= computed, "inferences on one lane follow one another"
    for slot in slots:
        slot.close()


def test_two_models_that_share_lanes_and_scratch_serve_at_a_time(load: Load) -> None:
    options = LoadOptions(transfer="copy", workers=2)
    pools = [ModelPool(load(engine, options), PoolRules(workers=2)) for engine in (ROWS, image(spin_cycles=40_000))]
    wrong: list[int] = []

    def client(pool: ModelPool, shape: tuple[int, ...], number: int) -> None:
        for turn in range(60):
            with pool.request({"x": shape}, Timing()) as binding:
                binding.inputs["x"][...] = number + turn
                pool.run(binding, Timing())
                if not (binding.outputs["x'"] == 2 * (number + turn)).all():
                    wrong.append(number)

    together(
        [lambda number=number: client(pools[0], (8, 4096), 1000 * number) for number in range(3)]  # type: ignore[misc]
        + [lambda number=number: client(pools[1], IMAGE, 1000 * number) for number in range(3)]  # type: ignore[misc]
    )
    assert wrong == []
    for pool in pools:
        pool.retire()


def test_models_come_and_go_beside_one_that_serves(load: Load) -> None:
    pool = ModelPool(load(ROWS, LoadOptions(transfer="copy")))
    stop = threading.Event()
    wrong: list[int] = []

    def client(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            with pool.request({"x": (1 + turn % 16, 4096)}, Timing()) as binding:
                binding.inputs["x"][...] = number + turn
                pool.run(binding, Timing())
                if not (binding.outputs["x'"] == 2 * (number + turn)).all():
                    wrong.append(turn)

    def loader() -> None:
        try:
            for turn in range(10):
                load(image(spin_cycles=2000 * turn), LoadOptions(transfer="auto")).close()
        finally:
            stop.set()

    together([loader, lambda: client(1000), lambda: client(2000)])
    assert wrong == []
    pool.retire()


def test_scratch_that_moved_leaves_no_graph_of_the_old_one(load: Load) -> None:
    model = load(plan({"x": [4096]}, scratch=4 * 4096), LoadOptions(transfer="copy"))
    slot = model.slot()
    binding = slot.bind({"x": (4096,)})

    def run(value: float) -> None:
        binding.inputs["x"][...] = value
        binding.submit()
        binding.wait()
        assert (binding.outputs["x'"] == 2 * value).all()

    for value in range(4):
        run(value)
    generation = model.seats._seats[0].lane.generation
    load(image(), LoadOptions(transfer="copy"))
    assert model.seats._seats[0].lane.generation != generation
    for value in range(4):
        run(100 + value)
    slot.close()


def test_a_run_that_cannot_be_queued_leaves_the_slot_fit_for_the_next(load: Load) -> None:
    model = load(image(spin_cycles=200_000), LoadOptions(transfer="copy"))
    slots = [model.slot(), model.slot()]
    first, second = (slot.bind({"x": IMAGE}) for slot in slots)
    model.loaded.raw.spec["enqueue_fails_at"] = model.loaded.raw.spec["runs"] + 2
    first.inputs["x"][...] = 1
    first.submit()
    with pytest.raises(AgentError, match="enqueue fails"):
        second.submit()
    first.wait()
    assert (first.outputs["x'"] == 2).all()
    second.inputs["x"][...] = 3
    second.submit()
    second.wait()
    assert (second.outputs["x'"] == 6).all()
    for slot in slots:
        slot.close()


# A fault sticks to the context of its process: so it has one of its own.
_FAULTS = """
import sys
from pathlib import Path
from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime import cuda_lanes
from kedge_agent.runtime.pool import ModelPool, Timing
from kedge_agent.runtime.tensorrt import TensorRTRuntime
from tests.gpu.test_agent_on_gpu import BINDINGS
from tests.support import ptx_tensorrt
from tests.support.fake_tensorrt import plan

path, gpu = Path(sys.argv[1]), cuda_lanes.Gpu(BINDINGS[sys.argv[2]]())
cuda_lanes._gpu.append(gpu)
path.write_bytes(plan({"x": [4096]}, scratch=4 * 4096))
runtime = TensorRTRuntime("tensorrt", library=ptx_tensorrt.library(), gpu=lambda: gpu)
model = runtime.load(path, LoadOptions(transfer="copy"))
pool = ModelPool(model)

def ask():
    with pool.request({"x": (4096,)}, Timing()) as binding:
        pool.run(binding, Timing())

ask()
print("well", cuda_lanes.lost_gpu())
model.loaded.raw.spec["faults_at"] = model.loaded.raw.spec["runs"] + 1
for turn in range(3):
    try:
        ask()
        print("answered")
    except AgentError as error:
        print(error.kind, error.message, flush=True)
print("lost:", cuda_lanes.lost_gpu())
pool.retire()
print("closed", pool.wait_closed(5), flush=True)
try:
    runtime.load(path, LoadOptions(transfer="copy"))
except AgentError as error:
    print("load:", error.kind, error.message, flush=True)
"""


@pytest.mark.parametrize("name", list(BINDINGS))
def test_a_kernel_that_faults_is_an_error_of_this_and_all_further_requests_and_the_process_ends_well(
    name: str, tmp_path: Path
) -> None:
    opened(name)
    pytest.importorskip("cuda.bindings.driver", reason="the stand-in's kernels are launched by cuda.bindings")
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, str(tmp_path / "m.engine"), name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout + done.stderr
    assert [line.split()[0] for line in said] == ["well", *["internal"] * 3, "lost:", "closed", "load:"], told
    assert [said[0], said[4] == "lost: None", said[5]] == ["well None", False, "closed True"], told


def together(jobs: list[Callable[[], None]]) -> None:
    """Run each in a thread; the first error of any is raised."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        pytest.fail("a thread still runs")
