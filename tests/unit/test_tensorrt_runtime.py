"""The TensorRT runtime on a fake of the seam to CUDA, which keeps CUDA's rules; no GPU is needed."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge_agent.errors import AgentError
from kedge_agent.runtime import cuda_lanes
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.buffers import ALIGNMENT
from kedge_agent.runtime.cuda_lanes import Gpu, lost_gpu
from kedge_agent.runtime.pool import ModelPool, PoolRules, Timing
from kedge_agent.runtime.tensorrt import TensorRTRuntime
from kedge_agent.runtime.tensorrt_model import TensorRTModel
from tests.support import fake_tensorrt
from tests.support.fake_cuda import COPY_MS, DISCRETE, JETSON, UNIFIED, WORK_MS, FakeCuda, FakeGraph, RuleError
from tests.support.fake_tensorrt import plan

COPY = LoadOptions(transfer="copy")
DYNAMIC = plan({"x": [-1, 4]}, [{"x": [[1, 4], [2, 4], [99, 4]]}])

Load = Callable[..., TensorRTModel]


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    made = FakeCuda()
    yield made
    made.assert_clean()


@pytest.fixture
def load(cuda: FakeCuda, tmp_path: Path) -> Iterator[Load]:
    """Loads plans on one GPU; closes what was loaded."""
    gpu = Gpu(cuda)
    models = []

    def load(engine: bytes, options: LoadOptions = COPY, name: str = "tensorrt") -> TensorRTModel:
        path = tmp_path / f"{len(models)}.engine"
        path.write_bytes(engine)
        models.append(TensorRTRuntime(name, library=fake_tensorrt.library(name), gpu=lambda: gpu).load(path, options))
        return models[-1]

    yield load
    for model in models:
        model.close()


def infer(model: TensorRTModel, value: float, shape: tuple[int, ...] = (4,)) -> Any:
    slot = model.slot()
    try:
        binding = slot.bind({"x": shape})
        binding.inputs["x"][...] = value
        binding.submit()
        binding.wait()
        return binding.outputs["x'"].copy()
    finally:
        slot.close()


def test_results_are_the_engines_and_not_there_before_they_were_waited_for(load: Load) -> None:
    slot = load(plan()).slot()
    binding = slot.bind({"x": (4,)})
    binding.inputs["x"][...] = [1, 2, 3, 4]
    binding.outputs["x'"][...] = -1
    binding.submit()
    assert binding.outputs["x'"].tolist() == [-1, -1, -1, -1]
    binding.wait()
    assert binding.outputs["x'"].tolist() == [2, 4, 6, 8]
    slot.close()


def test_a_run_copies_in_computes_and_copies_out_in_three_streams_joined_by_events(load: Load, cuda: FakeCuda) -> None:
    slot = load(plan()).slot()
    binding = slot.bind({"x": (4,)})
    cuda.log.clear()
    binding.submit()
    calls = [each.rpartition(" ") for each in cuda.log]
    assert [call for call, _, _ in calls] == [
        *("record", "h2d", "record"),
        *("wait", "record", "work", "record"),
        *("wait", "record", "d2h", "record"),
    ]
    streams = [number for _, _, number in calls]
    assert len(set(streams)) == 3
    assert [streams[:3], streams[3:7], streams[7:]] == [[streams[0]] * 3, [streams[3]] * 4, [streams[7]] * 4]
    cuda.log.clear()
    split = binding.wait()
    assert cuda.log == ["synchronise event"]
    assert (split.h2d_ns, split.compute_ns, split.d2h_ns) == (COPY_MS * 1e6, WORK_MS * 1e6, COPY_MS * 1e6)
    slot.close()


def test_the_copy_of_the_next_request_overlaps_the_computation_of_this_one(load: Load, cuda: FakeCuda) -> None:
    model = load(plan())
    assert model.in_flight == 2
    slots = [model.slot(), model.slot()]
    bindings = [slot.bind({"x": (4,)}) for slot in slots]
    start = cuda.now_ms
    for number, binding in enumerate(bindings):
        binding.inputs["x"][...] = number
        binding.submit()
    for binding in bindings:
        binding.wait()
    assert [binding.outputs["x'"][0] for binding in bindings] == [0, 2]
    # One after the other would take 24 ms; the second's copy in and the first's copy out cost nothing.
    assert cuda.now_ms - start == COPY_MS + 2 * WORK_MS + COPY_MS
    for slot in slots:
        slot.close()


def test_every_context_has_run_before_the_first_request(load: Load) -> None:
    model = load(plan())
    contexts = model.loaded.raw.contexts
    assert len(contexts) == 3
    assert all(context.addresses for context in contexts)


def test_workers_have_lanes_of_their_own(load: Load, cuda: FakeCuda) -> None:
    model = load(plan(), LoadOptions(transfer="copy", workers=2))
    slots = [model.slot() for _ in range(model.in_flight)]
    assert len(slots) == 4
    start = cuda.now_ms
    bindings = [slot.bind({"x": (4,)}) for slot in slots]
    for binding in bindings:
        binding.submit()
    for binding in bindings:
        binding.wait()
    # Four copies share no stream but two by two, and so do four inferences.
    assert cuda.now_ms - start == COPY_MS + 2 * WORK_MS + COPY_MS
    for slot in slots:
        slot.close()


def test_more_runs_than_there_are_contexts_for_are_refused(load: Load) -> None:
    model = load(plan())
    slots = [model.slot() for _ in range(4)]
    bindings = [slot.bind({"x": (4,)}) for slot in slots]
    for binding in bindings[:3]:
        binding.submit()
    with pytest.raises(AgentError, match="more runs") as caught:
        bindings[3].submit()
    assert caught.value.kind == "busy"
    bindings[0].wait()
    bindings[3].submit()
    for slot in slots:
        slot.close()


def test_two_models_share_one_scratch_block_and_never_overlap_in_it(load: Load, cuda: FakeCuda) -> None:
    small, large = load(plan(scratch=512)), load(plan(scratch=4096))
    sizes = [block.size for block in cuda.held("memory")]
    assert sizes == [4096]
    slots = [model.slot() for model in (small, large, small)]
    bindings = [slot.bind({"x": (4,)}) for slot in slots]
    for number, binding in enumerate(bindings):
        binding.inputs["x"][...] = number
        binding.submit()
    for number, binding in enumerate(bindings):
        binding.wait()
        assert binding.outputs["x'"][0] == 2 * number
    for slot in slots:
        slot.close()


def test_the_fake_would_have_found_two_models_in_one_scratch_block(load: Load, cuda: FakeCuda) -> None:
    one, two = (load(plan()).slot() for _ in range(2))
    first, second = one.bind({"x": (4,)}), two.bind({"x": (4,)})
    first.submit()
    with cuda.current():
        stray = cuda.stream()
        seat = two._model.seats._seats[0]  # type: ignore[attr-defined]
        seat.lane.compute, lanes_own = stray, seat.lane.compute
        with pytest.raises(RuleError, match="may still be using"):
            second.submit()
        seat.lane.compute = lanes_own
        stray.synchronise()
    first.wait()
    with cuda.current():
        stray.close()
    for slot in (one, two):
        slot.close()


def test_scratch_grows_while_another_model_computes_and_shrinks_when_the_larger_has_gone(
    load: Load, cuda: FakeCuda
) -> None:
    small = load(plan(scratch=512))
    slot = small.slot()
    binding = slot.bind({"x": (4,)})
    binding.inputs["x"][...] = 3
    binding.submit()
    large = load(plan(scratch=8192))
    binding.wait()
    assert binding.outputs["x'"][0] == 6
    scratch = small.ledger()[1]
    assert (scratch.what, scratch.bytes) == ("scratch", 8192)
    large.close()
    assert small.ledger()[1].bytes == 512
    binding.submit()
    binding.wait()
    assert binding.outputs["x'"][0] == 6
    slot.close()


def test_every_tensor_is_aligned_and_a_slots_addresses_never_move_while_they_are_bound(load: Load) -> None:
    engine = plan(
        {"x": [-1, 3], "y": [-1, 1]},
        [{"x": [[1, 3], [1, 3], [9, 3]], "y": [[1, 1], [1, 1], [9, 1]]}],
        types={"y": "INT8"},
    )
    slot = load(engine).slot()

    def addresses(binding: Any) -> dict[str, int]:
        return {name: array.ctypes.data for name, array in (*binding.inputs.items(), *binding.outputs.items())}

    large = slot.bind({"x": (9, 3), "y": (9, 1)})
    before = addresses(large)
    assert all(address % ALIGNMENT == 0 for address in before.values())
    small = slot.bind({"x": (1, 3), "y": (2, 1)})
    assert addresses(small) == before
    assert slot.bind({"x": (9, 3), "y": (9, 1)}) is large
    slot.close()


def test_a_binding_is_made_anew_when_its_memory_had_to_move(load: Load) -> None:
    slot = load(DYNAMIC).slot()
    small = slot.bind({"x": (1, 4)})
    slot.bind({"x": (99, 4)})
    again = slot.bind({"x": (1, 4)})
    assert again is not small
    again.inputs["x"][...] = 4
    again.submit()
    again.wait()
    assert again.outputs["x'"].tolist() == [[8, 8, 8, 8]]
    slot.close()


def test_outputs_have_the_size_of_the_shape_and_only_eight_bindings_are_kept(load: Load) -> None:
    slot = load(DYNAMIC).slot()
    slot.bind({"x": (8, 4)})
    for rows in range(1, 9):
        assert slot.bind({"x": (rows, 4)}).outputs["x'"].shape == (rows, 4)
    assert len(slot._bindings) == 8
    slot.close()


def test_a_shape_outside_the_profiles_is_refused_with_both_bounds(load: Load) -> None:
    slot = load(DYNAMIC).slot()
    for shape in ((100, 4), (1, 5), (4,)):
        with pytest.raises(AgentError, match=re.escape(f"{list(shape)}, the engine takes [1, 4] to [99, 4]")) as caught:
            slot.bind({"x": shape})
        assert caught.value.kind == "bad_input"
    slot.close()


def test_the_profile_that_covers_a_shape_is_chosen_and_switched_to(load: Load) -> None:
    model = load(plan({"x": [-1]}, [{"x": [[1], [2], [4]]}, {"x": [[5], [6], [64]]}]))
    assert infer(model, 1, (3,)).shape == (3,)
    assert infer(model, 1, (64,)).tolist() == [2] * 64
    assert infer(model, 1, (2,)).tolist() == [2, 2]
    with pytest.raises(AgentError, match=r"takes \[1\] to \[4\]; or input 'x' is \[65\], the engine takes \[5\] to"):
        infer(model, 1, (65,))


def test_what_cannot_be_served_is_refused_by_name_when_it_is_loaded(load: Load, cuda: FakeCuda) -> None:
    for engine, why in (
        (plan(types={"x": "BF16"}), "'x' of the engine has the type BF16"),
        (plan(locations={"x": "HOST"}), "'x' of the engine is a shape tensor"),
        (plan(formats={"x'": "CHW32"}), '"x\'" of the engine has another layout'),
        (
            plan({"x": [-1]}, [{"x": [[1], [2], [4]]}], data_dependent=["x'"]),
            'the size of output "x\'" depends on the data',
        ),
        (b"not a plan", "refuses the engine: Serialization assertion plan->header.magicTag failed"),
    ):
        with pytest.raises(AgentError, match=re.escape(why)) as caught:
            load(engine)
        assert caught.value.kind == "incompatible"
    cuda.assert_clean()


def test_an_enqueue_that_fails_says_what_tensorrt_said_and_the_slot_goes_on(load: Load) -> None:
    model = load(plan())
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    model.loaded.raw.spec["enqueue_fails_at"] = model.loaded.raw.spec["runs"] + 1
    with pytest.raises(AgentError, match="could not be queued: enqueue fails") as caught:
        binding.submit()
    assert caught.value.kind == "internal"
    binding.inputs["x"][...] = 5
    binding.submit()
    binding.wait()
    assert binding.outputs["x'"][0] == 10
    slot.close()


def test_a_copy_that_fails_leaves_nothing_in_flight(load: Load, cuda: FakeCuda) -> None:
    slot = load(plan({"x": [4], "y": [4]})).slot()
    binding = slot.bind({"x": (4,), "y": (4,)})
    cuda.copy_fails = True
    with pytest.raises(AgentError, match="h2d"):
        binding.submit()
    slot.close()


@pytest.mark.parametrize("what", ["address", "shape"])
def test_a_context_that_refuses_its_setting_is_an_error_of_the_load(load: Load, cuda: FakeCuda, what: str) -> None:
    with pytest.raises(AgentError, match=f"{what} fails"):
        load(plan(fails=[what]))
    cuda.assert_clean()


def test_nothing_leaks_wherever_in_a_load_memory_runs_out(load: Load, cuda: FakeCuda) -> None:
    options = LoadOptions(transfer="copy", workers=2)
    load(plan(), options).close()
    needed = cuda.allocations
    assert needed >= 3
    cuda.assert_clean()
    for number in range(1, needed + 1):
        cuda.allocations, cuda.memory_fails_at = 0, number
        with pytest.raises(AgentError, match="no GPU memory") as caught:
            load(plan(), options)
        assert caught.value.kind == "space"
        cuda.assert_clean()


def test_contexts_that_cannot_be_made_are_a_lack_of_memory_and_leak_nothing(load: Load, cuda: FakeCuda) -> None:
    with pytest.raises(AgentError, match="no memory for a context") as caught:
        load(plan(most_contexts=2))
    assert caught.value.kind == "space"
    cuda.assert_clean()


def test_a_slot_without_memory_for_a_shape_serves_smaller_ones(load: Load, cuda: FakeCuda) -> None:
    slot = load(plan({"x": [-1]}, [{"x": [[1], [2], [4096]]}])).slot()
    slot.bind({"x": (2,)})
    cuda.most = 1024
    with pytest.raises(AgentError, match="no GPU memory"):
        slot.bind({"x": (4096,)})
    binding = slot.bind({"x": (2,)})
    binding.inputs["x"][...] = 1
    binding.submit()
    binding.wait()
    assert binding.outputs["x'"].tolist() == [2, 2]
    slot.close()


def test_graphs_are_captured_after_one_plain_run_and_launched_from_then_on(load: Load, cuda: FakeCuda) -> None:
    cuda.graphs = True
    model = load(plan())
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    seen = []
    for value in range(4):
        cuda.log.clear()
        binding.inputs["x"][...] = value
        binding.submit()
        binding.wait()
        assert binding.outputs["x'"][0] == 2 * value
        seen.append([each.split()[0] for each in cuda.log if each.split()[0] in ("work", "capture", "launch")])
    assert seen == [["work"], ["capture", "work", "launch"], ["launch"], ["launch"]]
    assert model.facts()["graphs"] == {"captured": 1, "why_not": None}
    slot.close()


def test_a_graph_is_dropped_when_the_scratch_it_was_captured_with_goes(load: Load, cuda: FakeCuda) -> None:
    cuda.graphs = True
    model = load(plan())
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    for _ in range(3):
        binding.submit()
        binding.wait()
    load(plan(scratch=1 << 16))
    cuda.log.clear()
    binding.submit()
    binding.wait()
    assert not [each for each in cuda.log if each.startswith("launch")]
    slot.close()


def test_a_graph_goes_with_its_slot_and_after_a_run_that_failed(load: Load, cuda: FakeCuda) -> None:
    cuda.graphs = True
    slot = load(plan()).slot()
    binding = slot.bind({"x": (4,)})
    for _ in range(2):
        binding.submit()
        binding.wait()
    cuda.copy_fails = True
    with pytest.raises(AgentError):
        binding.submit()
    assert not [each for each in cuda.open if isinstance(each, FakeGraph)]
    for _ in range(2):
        binding.submit()
        binding.wait()
    assert [each for each in cuda.open if isinstance(each, FakeGraph)]
    slot.close()
    assert not [each for each in cuda.open if isinstance(each, FakeGraph)]


def test_captures_that_fail_are_given_up_after_the_third_and_that_is_told(load: Load, cuda: FakeCuda) -> None:
    cuda.graphs = cuda.capture_fails = True
    model = load(plan())
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    for value in range(8):
        binding.inputs["x"][...] = value
        binding.submit()
        binding.wait()
        assert binding.outputs["x'"][0] == 2 * value
    assert cuda.log.count("capture") == 3
    assert "not permitted when stream is capturing" in model.facts()["graphs"]["why_not"]
    slot.close()


@pytest.mark.parametrize("transfer", ["mapped", "managed"])
def test_in_place_there_are_no_copies_and_the_split_says_so(load: Load, cuda: FakeCuda, transfer: Any) -> None:
    model = load(plan(), LoadOptions(transfer=transfer))
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    cuda.log.clear()
    binding.inputs["x"][...] = 7
    binding.submit()
    split = binding.wait()
    assert binding.outputs["x'"][0] == 14
    assert [each.split()[0] for each in cuda.log] == ["record", "work", "record", "synchronise"]
    assert (split.h2d_ns, split.d2h_ns) == (None, None)
    assert split.compute_ns == WORK_MS * 1e6
    assert {item.what: item.bytes for item in model.ledger()}["buffers"] == 0
    assert {block.size for block in cuda.held("managed")} == ({512} if transfer == "managed" else set())
    slot.close()


def test_a_way_that_the_gpu_has_not_is_refused_and_said_why(load: Load, cuda: FakeCuda) -> None:
    cuda.device = JETSON
    with pytest.raises(AgentError, match="concurrentManagedAccess is 0") as caught:
        load(plan(), LoadOptions(transfer="managed"))
    assert caught.value.kind == "incompatible"
    assert "managed" in load(plan(), LoadOptions()).facts()["transfers"]["refused"]


def test_auto_tries_each_way_for_each_tensor_on_the_engine_and_reports_all(load: Load, cuda: FakeCuda) -> None:
    cuda.device = UNIFIED
    report = load(plan(), LoadOptions()).facts()["transfers"]
    assert set(report["chosen"]) == {"x", "x'"}
    assert report["copied_ms"] > 0
    for tried in report["tried_ms"].values():
        assert set(tried) == {"mapped", "managed"}
        assert all(took > 0 for took in tried.values())


def test_where_memory_can_only_be_copied_nothing_is_tried(load: Load, cuda: FakeCuda) -> None:
    cuda.device = DISCRETE
    report = load(plan(), LoadOptions()).facts()["transfers"]
    assert report["chosen"] == {"x": "copy", "x'": "copy"}
    assert "tried_ms" not in report


def test_tensorrt_for_rtx_starts_cold_once_and_warm_from_then_on(load: Load, tmp_path: Path) -> None:
    options = LoadOptions(transfer="copy", cache=tmp_path / "cache")
    cold = load(plan(), options, "tensorrt-rtx").facts()
    assert cold["kernels"]["state"] == "cold"
    assert cold["graphs"]["why_not"] == "fake TensorRT captures its own"
    files = list((tmp_path / "cache").iterdir())
    assert [path.read_bytes() for path in files] == [b"kernels"]
    assert load(plan(), options, "tensorrt-rtx").facts()["kernels"]["state"] == "warm"


def test_each_engine_keeps_its_own_kernels_and_the_oldest_files_go(load: Load, tmp_path: Path) -> None:
    options = LoadOptions(transfer="copy", cache=tmp_path / "cache")
    load(plan(scratch=256), options, "tensorrt-rtx")
    (first,) = (tmp_path / "cache").iterdir()
    os.utime(first, (1, 1))
    for size in range(15):
        load(plan(scratch=512 + size), options, "tensorrt-rtx")
    assert len(list((tmp_path / "cache").iterdir())) == 16
    load(plan(scratch=256), options, "tensorrt-rtx")  # used, so no longer the oldest
    load(plan(scratch=1024), options, "tensorrt-rtx")
    left = set((tmp_path / "cache").iterdir())
    assert len(left) == 16
    assert first in left


def test_a_kept_file_that_is_damaged_is_dropped_and_written_anew(load: Load, tmp_path: Path) -> None:
    options = LoadOptions(transfer="copy", cache=tmp_path / "cache")
    load(plan(), options, "tensorrt-rtx")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"dust")
    kernels = load(plan(), options, "tensorrt-rtx").facts()["kernels"]
    assert kernels["state"] == "cold"
    assert "dropped" in kernels["said"]
    assert file.read_bytes() == b"kernels"


def test_kernels_that_cannot_be_kept_cost_a_cold_start_and_no_more(load: Load, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    model = load(plan(), LoadOptions(transfer="copy", cache=tmp_path / "cache"), "tensorrt-rtx")
    assert model.facts()["kernels"]["state"] == "cold"
    assert "kept" in model.facts()["kernels"]["said"]
    assert infer(model, 2).tolist() == [4, 4, 4, 4]


def test_a_model_goes_with_its_last_slot(load: Load, cuda: FakeCuda) -> None:
    model = load(plan())
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    model.close()
    with pytest.raises(AgentError, match="unloaded"):
        model.slot()
    binding.inputs["x"][...] = 2
    binding.submit()
    binding.wait()
    assert binding.outputs["x'"][0] == 4
    slot.close()
    slot.close()
    cuda.assert_clean()


def test_a_gpu_that_a_kernel_took_away_is_told_and_its_model_still_goes(
    load: Load, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_lanes, "_gpu", [])
    assert lost_gpu() is None
    monkeypatch.setattr(cuda_lanes, "_gpu", [Gpu(cuda)])
    pool = ModelPool(load(plan()))
    shapes = {"x": (4,)}
    with pool.request(shapes, Timing()) as binding:
        pool.run(binding, Timing())
        assert lost_gpu() is None
        cuda.lost = True
        with pytest.raises(AgentError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            pool.run(binding, Timing())
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in (lost_gpu() or "")
    pool.retire()
    assert pool.wait_closed(0)
    # Such a driver frees nothing, and says so each time.
    cuda.lost = False
    cuda.open.clear()


def test_a_slot_that_closes_in_flight_waits_for_its_run(load: Load) -> None:
    slot = load(plan()).slot()
    binding = slot.bind({"x": (4,)})
    binding.submit()
    slot.close()


def test_halves_of_a_run_out_of_turn_are_errors(load: Load) -> None:
    slot = load(plan()).slot()
    binding = slot.bind({"x": (4,)})
    with pytest.raises(AgentError, match="had not been submitted"):
        binding.wait()
    binding.submit()
    with pytest.raises(AgentError, match="before it was waited for"):
        binding.submit()
    binding.wait()
    slot.close()


def test_the_ledger_names_what_is_held_and_how_it_is_known(load: Load) -> None:
    model = load(plan(scratch=1000))
    slot = model.slot()
    slot.bind({"x": (4,)})
    ledger = {item.what: item for item in model.ledger()}
    assert list(ledger) == ["weights", "scratch", "context", "pinned", "managed", "buffers"]
    assert ledger["scratch"].bytes == 1024
    assert "1000 bytes each" in ledger["scratch"].method
    assert ledger["pinned"].bytes == ledger["buffers"].bytes == 512
    assert ledger["managed"].bytes == 0
    assert "cuMemGetInfo" in ledger["context"].method
    assert "size of the engine file" in ledger["weights"].method
    slot.close()
    assert {item.what: item.bytes for item in model.ledger()}["pinned"] == 0


def test_layers_are_told_run_by_run_from_a_model_of_their_own(cuda: FakeCuda, tmp_path: Path) -> None:
    cuda.graphs = True
    path = tmp_path / "m.engine"
    path.write_bytes(plan())
    gpu = Gpu(cuda)
    runtime = TensorRTRuntime("tensorrt", library=fake_tensorrt.library(), gpu=lambda: gpu)
    layers = runtime.layers(path, LoadOptions(), {"x": np.ones(4, np.float32)}, 3)
    assert [(layer.name, layer.times_ms) for layer in layers] == [("first", (0.5,) * 3), ("second", (0.5,) * 3)]
    cuda.assert_clean()


def test_many_threads_through_the_pool_get_their_own_results(load: Load, cuda: FakeCuda) -> None:
    cuda.graphs = True
    pool = ModelPool(load(DYNAMIC), PoolRules())
    wrong = []

    def client(number: int) -> None:
        for turn in range(20):
            rows = 1 + (number + turn) % 8
            with pool.request({"x": (rows, 4)}, Timing()) as binding:
                binding.inputs["x"][...] = number * 100 + turn
                pool.run(binding, Timing())
                if not (binding.outputs["x'"] == 2 * (number * 100 + turn)).all():
                    wrong.append((number, turn))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    pool.retire()


def test_a_library_that_is_missing_is_an_error_with_a_hint(tmp_path: Path, cuda: FakeCuda) -> None:
    from kedge_agent.engine.library import Library

    absent = Library("tensorrt", "TensorRT", "no_such_tensorrt", (), "install it", cross=False)
    runtime = TensorRTRuntime("tensorrt", library=absent, gpu=lambda: Gpu(cuda))
    assert runtime.version() is None
    with pytest.raises(AgentError, match="cannot be imported") as caught:
        runtime.load(tmp_path / "m.engine", LoadOptions())
    assert (caught.value.kind, caught.value.hint) == ("incompatible", "install it")
