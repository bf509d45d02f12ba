from __future__ import annotations

import contextlib
import ctypes
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from kedge_agent.errors import AgentError
from kedge_agent.formats.tensors import TensorSpec
from kedge_agent.runtime.base import LayerTime, LoadOptions, Provider
from kedge_agent.runtime.buffers import ALIGNMENT, Arena, aligned_bytes, round_up
from kedge_agent.runtime.onnx_binding import Served
from kedge_agent.runtime.onnx_profile import read_profile
from kedge_agent.runtime.onnx_providers import chosen
from kedge_agent.runtime.onnx_slot import OnnxSlot
from kedge_agent.runtime.onnxruntime import OnnxRuntime
from kedge_agent.runtime.pool import ModelPool, PoolRetiredError, PoolRules, Timing
from kedge_agent.runtime.turns import Turns
from tests.support import models


@pytest.mark.parametrize("size", [1, 255, 256, 1 << 20])
def test_buffers_begin_on_the_alignment_tensorrt_asks_for(size: int) -> None:
    block = aligned_bytes(size)
    assert block.size == size
    assert block.ctypes.data % ALIGNMENT == 0


def test_an_arena_keeps_its_memory_until_a_shape_needs_more() -> None:
    arena = Arena()
    first = arena.tensor("x", np.dtype("f4"), (4, 8))
    before = arena.generation
    smaller = arena.tensor("x", np.dtype("f4"), (2, 8))
    assert smaller.ctypes.data == first.ctypes.data
    assert arena.generation == before
    larger = arena.tensor("x", np.dtype("f4"), (64, 8))
    assert larger.ctypes.data != first.ctypes.data
    assert arena.generation > before


def test_outputs_lie_in_memory_the_agent_allocated_and_equal_a_plain_run(tmp_path: Path) -> None:
    import onnxruntime

    path = models.classifier(tmp_path / "m.onnx")
    images = models.images(3)
    slot = OnnxRuntime().load(path, LoadOptions()).slot()
    binding = slot.bind({"image": images.shape})
    address = binding.outputs["logits"].ctypes.data
    binding.inputs["image"][...] = images
    binding.submit()
    binding.wait()
    expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    np.testing.assert_allclose(binding.outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    binding.inputs["image"][...] = 0
    binding.submit()
    binding.wait()
    assert binding.outputs["logits"].ctypes.data == address
    assert not np.allclose(binding.outputs["logits"], expected)


def test_bindings_are_reused_for_shapes_that_return_and_made_anew_when_memory_moved(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()).slot()
    one = slot.bind({"image": (1, 1, 8, 8)})
    assert slot.bind({"image": (1, 1, 8, 8)}) is one
    sixteen = slot.bind({"image": (16, 1, 8, 8)})
    moved = slot.bind({"image": (1, 1, 8, 8)})
    assert moved is not one
    images = models.images(16)
    sixteen.inputs["image"][...] = images
    sixteen.submit()
    sixteen.wait()
    batch = sixteen.outputs["logits"].copy()
    moved.inputs["image"][...] = images[:1]
    moved.submit()
    moved.wait()
    np.testing.assert_allclose(moved.outputs["logits"], batch[:1], rtol=1e-5, atol=1e-6)


def test_an_output_whose_size_depends_on_the_data_is_served(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.nonzero(tmp_path / "m.onnx"), LoadOptions()).slot()
    binding = slot.bind({"x": (5,)})
    for values, expected in (([0, 1, 0, 2, 0], [[1, 3]]), ([1, 1, 1, 1, 1], [[0, 1, 2, 3, 4]]), ([0] * 5, [[]])):
        binding.inputs["x"][...] = values
        binding.submit()
        binding.wait()
        np.testing.assert_array_equal(binding.outputs["indices"], np.array(expected, dtype=np.int64))
    assert slot.bind({"x": (5,)}) is binding
    assert binding.outputs == {}


def test_inputs_that_disagree_about_a_named_size_are_refused(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.adder(tmp_path / "m.onnx"), LoadOptions()).slot()
    with pytest.raises(AgentError, match="disagree"):
        slot.bind({"a": (2,), "b": (3,)})


def test_a_tensor_no_device_could_hold_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.adder(tmp_path / "m.onnx"), LoadOptions()).slot()
    with pytest.raises(AgentError, match="too large") as caught:
        slot.bind({"a": (1 << 39,), "b": (1 << 39,)})
    assert caught.value.kind == "too_large"


def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(AgentError) as caught:
        OnnxRuntime().load(path, LoadOptions())
    assert caught.value.kind == "incompatible"
    assert "\n" not in caught.value.message


def run(binding: Any, **inputs: Any) -> dict[str, Any]:
    for name, values in inputs.items():
        binding.inputs[name][...] = values
    binding.submit()
    assert binding.wait().compute_ns > 0
    return dict(binding.outputs)


def test_a_model_that_gives_another_shape_than_it_declares_is_served_and_remembered(tmp_path: Path) -> None:
    model = OnnxRuntime().load(models.misdeclared(tmp_path / "m.onnx"), LoadOptions())
    slot = model.slot()
    binding = slot.bind({"x": (4,)})
    assert binding.copied == ()
    for values in ([1, 2, 3, 4], [5, 6, 7, 8]):
        np.testing.assert_array_equal(run(binding, x=values)["firsts"], values[:2])
    assert binding.copied == ("firsts",)
    assert slot.bind({"x": (4,)}) is not binding
    assert model.slot().bind({"x": (3,)}).copied == ("firsts",)


def test_a_binding_names_what_does_not_lie_in_the_slots_memory(tmp_path: Path) -> None:
    fixed = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()).slot()
    assert fixed.bind({"image": (1, 1, 8, 8)}).copied == ()
    free = OnnxRuntime().load(models.nonzero(tmp_path / "n.onnx"), LoadOptions()).slot()
    assert free.bind({"x": (5,)}).copied == ("indices",)
    text = OnnxRuntime().load(models.words(tmp_path / "w.onnx"), LoadOptions()).slot()
    assert text.bind({"text": (1,), "weight": (1,)}).copied == ("text", "twice", "score")


def test_text_goes_in_as_bytes_or_str_and_comes_out_as_str_beside_numbers_in_our_memory(tmp_path: Path) -> None:
    model = OnnxRuntime().load(models.words(tmp_path / "m.onnx"), LoadOptions())
    assert [(spec.name, spec.datatype) for spec in (*model.inputs, *model.outputs)] == [
        ("text", "BYTES"),
        ("weight", "FP32"),
        ("twice", "BYTES"),
        ("score", "FP32"),
    ]
    binding = model.slot().bind({"text": (3,), "weight": (3,)})
    score = binding.outputs["score"]
    given = np.array(["größer".encode(), "no", "yes\0"], dtype=object)
    outputs = run(binding, text=given, weight=[2, 3, 4])
    assert outputs["twice"].tolist() == ["größergrößer", "nono", "yes\0yes\0"]
    assert outputs["score"] is score
    np.testing.assert_array_equal(score, [0, -3, 0])


def test_strings_of_a_request_are_gone_with_it(tmp_path: Path) -> None:
    slot = OnnxRuntime().load(models.words(tmp_path / "m.onnx"), LoadOptions()).slot()
    shapes = {"text": (1,), "weight": (1,)}
    slot.bind(shapes).inputs["text"][0] = b"secret"
    assert slot.bind(shapes).inputs["text"][0] is None


@pytest.mark.parametrize(
    ("element", "said"), [(b"\xff", "not UTF-8"), ("\ud800", "UTF-8 cannot say"), (7, "text or bytes")]
)
def test_what_is_no_text_is_refused_by_the_name_of_its_tensor(tmp_path: Path, element: Any, said: str) -> None:
    binding = (
        OnnxRuntime().load(models.words(tmp_path / "m.onnx"), LoadOptions()).slot().bind({"text": (1,), "weight": (1,)})
    )
    binding.inputs["text"][0] = element
    with pytest.raises(AgentError, match=f"input 'text': .*{said}") as caught:
        binding.submit()
    assert caught.value.kind == "bad_input"


def test_a_tensor_of_a_type_the_protocol_has_no_name_for_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="does not serve") as caught:
        OnnxRuntime().load(models.to_float(tmp_path / "m.onnx", datatype=TensorProto.BFLOAT16), LoadOptions())
    assert caught.value.kind == "incompatible"


def test_workers_run_the_one_session_at_once_each_in_its_own_slot(tmp_path: Path) -> None:
    model = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions(workers=3))
    assert model.in_flight == 3
    images = models.images(24)
    expected = run(model.slot().bind({"image": images.shape}), image=images)["logits"].copy()
    wrong: list[int] = []

    def work(first: int) -> None:
        slot = model.slot()
        binding = slot.bind({"image": (8, 1, 8, 8)})
        for _ in range(50):
            got = run(binding, image=images[first : first + 8])["logits"]
            if not np.allclose(got, expected[first : first + 8], rtol=1e-5, atol=1e-6):
                wrong.append(first)
        slot.close()

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_ledger_counts_the_buffers_of_all_slots_and_says_what_is_not_told(tmp_path: Path) -> None:
    model = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions())
    slots = [model.slot(), model.slot()]
    for slot in slots:
        slot.bind({"image": (2, 1, 8, 8)})
    slots[0].bind({"image": (1, 1, 8, 8)})
    one = round_up(2 * 64 * 4) + round_up(2 * 4 * 4)
    sizes = {item.what: item.bytes for item in model.ledger()}
    assert sizes == {"weights": None, "activations": None, "buffers": 2 * one}
    slots[0].close()
    assert {item.what: item.bytes for item in model.ledger()}["buffers"] == one
    model.close()
    model.close()
    assert all(item.what and item.method for item in model.ledger())


def test_layers_are_told_by_node_and_run_and_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    layers = OnnxRuntime().layers(
        models.classifier(tmp_path / "m.onnx"), LoadOptions(), {"image": models.images(2)}, runs=5
    )
    assert "MatMul" in {layer.kind for layer in layers}
    assert len({layer.name for layer in layers}) == len(layers)
    assert all(len(layer.times_ms) == 5 and min(layer.times_ms) >= 0 for layer in layers)
    assert list(scratch.iterdir()) == []


def test_layers_of_a_model_of_strings(tmp_path: Path) -> None:
    inputs = {"text": np.array(["yes"], dtype=object), "weight": np.ones(1, dtype=np.float32)}
    layers = OnnxRuntime().layers(models.words(tmp_path / "m.onnx"), LoadOptions(), inputs, runs=2)
    assert {"StringConcat", "LabelEncoder", "Mul"} <= {layer.kind for layer in layers}


@pytest.mark.parametrize("runs", [0, 10_001])
def test_a_count_of_profiled_runs_out_of_range_is_refused(tmp_path: Path, runs: int) -> None:
    with pytest.raises(AgentError, match="runs is"):
        OnnxRuntime().layers(tmp_path / "none.onnx", LoadOptions(), {}, runs)


def profile(path: Path, *events: str) -> Path:
    path.write_text("[\n" + ",\n".join(events) + "\n]\n", encoding="ascii")
    return path


RUN = '{"cat":"Session","name":"model_run","dur":9,"ts":1}'
NODE = '{{"cat":"Node","name":"{}_kernel_time","dur":{},"ts":1,"args":{{"op_name":"{}"}}}}'


def test_a_profile_sums_what_ran_twice_in_a_run_and_has_0_for_what_did_not(tmp_path: Path) -> None:
    path = profile(
        tmp_path / "p.json",
        *(NODE.format("a", 1000, "Add"), RUN),
        *(NODE.format("a", 2000, "Add"), NODE.format("a", 500, "Add"), NODE.format("b", 250, "If"), RUN),
        *(NODE.format("a", 3000, "Add"), RUN),
    )
    assert read_profile(path, 2) == (LayerTime("a", "Add", (2.5, 3.0)), LayerTime("b", "If", (0.25, 0.0)))


def test_a_profile_from_which_events_were_dropped_is_an_error(tmp_path: Path) -> None:
    path = profile(tmp_path / "p.json", NODE.format("a", 1, "Add"), RUN)
    with pytest.raises(AgentError, match="1 of 2 runs") as caught:
        read_profile(path, 2)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("text", ['{"cat":"Node","name":"a', '{"name":"model_run","dur":1', "{]", '{"a":1,"a":2}'])
def test_a_profile_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text, encoding="ascii")
    with pytest.raises(AgentError) as caught:
        read_profile(path, 1)
    assert caught.value.kind == "internal"


def test_providers_that_are_here_come_in_the_order_asked_for_and_the_cpu_last() -> None:
    asked = (
        Provider("CPUExecutionProvider"),
        Provider("TensorrtExecutionProvider", {"trt_fp16_enable": "1"}),
        Provider("OpenVINOExecutionProvider"),
        Provider("CUDAExecutionProvider", {"device_id": "0"}),
    )
    here = ["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]
    assert chosen(asked, here) == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": "1"}),
        ("CUDAExecutionProvider", {"device_id": "0"}),
        ("CPUExecutionProvider", {}),
    ]
    assert chosen((), here) == [("CPUExecutionProvider", {})]


def test_facts_tell_the_providers_asked_for_and_those_in_use(tmp_path: Path) -> None:
    options = LoadOptions(threads=2, providers=(Provider("CUDAExecutionProvider"),))
    facts = OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), options).facts()
    assert facts["providers_asked_for"] == ["CUDAExecutionProvider"]
    assert facts["providers"][-1] == "CPUExecutionProvider"
    assert (facts["threads"], facts["bound"]) == (2, True)
    text = OnnxRuntime().load(models.words(tmp_path / "w.onnx"), LoadOptions()).facts()
    assert text["bound"] is False


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("NoSuchExecutionProvider", {}),
        ("QNNExecutionProvider", {"backend_path": "/tmp/libevil.so"}),
        ("TensorrtExecutionProvider", {"trt_extra_plugin_lib_paths": "evil.so"}),
        ("TensorrtExecutionProvider", {"trt_engine_cache_path": "."}),
        ("CUDAExecutionProvider", {"gpu_external_alloc": "140737488355328"}),
        ("CUDAExecutionProvider", {"user_compute_stream": "1"}),
        ("CUDAExecutionProvider", {"device_id": "../0"}),
        ("CUDAExecutionProvider", {"device_id": "1" * 257}),
        ("CUDAExecutionProvider", {"device_id": ""}),
        ("CPUExecutionProvider", {"x": "1"}),
    ],
)
def test_providers_and_options_that_could_load_code_or_follow_addresses_are_refused(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    with pytest.raises(AgentError) as caught:
        OnnxRuntime().load(path, LoadOptions(providers=(Provider(name, options),)))
    assert caught.value.kind == "bad_input"
    assert caught.value.hint


def test_memory_that_one_large_request_needed_is_given_back_after_usual_ones(tmp_path: Path) -> None:
    from kedge_agent.measure.memory import read_memory

    slot = OnnxRuntime().load(models.wide(tmp_path / "m.onnx"), LoadOptions()).slot()

    def run(batch: int) -> int:
        binding = slot.bind({"x": (batch, 64)})
        binding.submit()
        binding.wait()
        rss = read_memory().rss_bytes
        assert rss is not None
        return rss

    usual = run(4)
    large = run(8192)
    assert large - usual > 128 << 20, "the large request must have needed something"
    assert run(4) - usual > (large - usual) / 2, "large and small ones may come in turns"
    for _ in range(63):
        run(4)
    assert run(4) - usual < (large - usual) / 4
    assert slot.buffer_bytes < 1 << 20


def make_pool(tmp_path: Path, **rules: Any) -> ModelPool:
    return ModelPool(OnnxRuntime().load(models.classifier(tmp_path / "m.onnx"), LoadOptions()), PoolRules(**rules))


SHAPE = {"image": (1, 1, 8, 8)}


def test_who_finds_the_model_busy_waits_and_the_wait_is_told(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool._turns.take(time.monotonic() + 1)
    timing = Timing()

    def request() -> None:
        with pool.request(SHAPE, timing) as binding:
            pool.run(binding, timing)

    waiter = threading.Thread(target=request)
    waiter.start()
    time.sleep(0.2)
    assert (pool.inside, pool.waiting) == (1, 1)
    pool._turns.give()
    waiter.join()
    assert timing.queue_ns > 50_000_000
    assert (pool.inside, pool.waiting) == (0, 0)


def test_a_request_beyond_the_queue_is_told_to_come_back_at_once(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, queue=1)
    with (
        pool.request(SHAPE, Timing()),
        pool.request(SHAPE, Timing()),
        pytest.raises(AgentError, match="2 requests are with this model already") as caught,
        pool.request(SHAPE, Timing()),
    ):
        pass
    assert caught.value.kind == "busy"
    with pool.request(SHAPE, Timing()):
        pass


def test_a_request_whose_turn_does_not_come_before_its_deadline_gives_up_and_leaves_no_trace(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    pool._turns.take(time.monotonic() + 1)
    with pool.request(SHAPE, Timing()) as binding, pytest.raises(AgentError, match="deadline") as caught:
        pool.run(binding, Timing(), deadline=time.monotonic() + 0.05)
    assert caught.value.kind == "busy"
    assert pool.waiting == 0
    pool._turns.give()
    with pool.request(SHAPE, Timing()) as binding:
        pool.run(binding, Timing())


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns = Turns(1)
    turns.take(time.monotonic() + 1)
    order: list[int] = []

    def wait(number: int) -> None:
        turns.take(time.monotonic() + 20)
        order.append(number)
        turns.give()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while turns.waiting() <= number:
            time.sleep(0.001)
    turns.give()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_a_newer_frame_takes_the_place_of_one_that_waits() -> None:
    turns = Turns(1, drop_stale=True)
    turns.take(time.monotonic() + 1)
    said: list[str] = []

    def old_frame() -> None:
        with pytest.raises(AgentError) as caught:
            turns.take(time.monotonic() + 20)
        said.append(str(caught.value))

    old = threading.Thread(target=old_frame)
    old.start()
    while not turns.waiting():
        time.sleep(0.001)
    new = threading.Thread(target=turns.take, args=(time.monotonic() + 20,))
    new.start()
    old.join()
    assert "newer request" in said[0]
    assert turns.waiting() == 1
    turns.give()
    new.join()


def test_slots_of_a_burst_are_given_back_after_it(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(pool.request(SHAPE, Timing()))
    assert len(pool._idle) == 2


def test_a_retired_pool_serves_who_is_inside_and_closes_after_them(tmp_path: Path) -> None:
    pool = make_pool(tmp_path)
    timing = Timing()
    with pool.request(SHAPE, timing) as binding:
        pool.retire()
        with pytest.raises(PoolRetiredError), pool.request(SHAPE, Timing()):
            pass
        pool.run(binding, timing)
    assert timing.compute_ns > 0
    with pytest.raises(AgentError, match="unloaded"):
        pool.model.slot()


def test_a_slot_comes_back_when_its_request_fails(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, queue=1)
    for _ in range(4):
        with pytest.raises(RuntimeError), pool.request(SHAPE, Timing()):
            raise RuntimeError
    with pool.request(SHAPE, Timing()):
        pass


class DeviceSession:
    """onnxruntime's session with a provider that has memory of its own: y = x + x, inputs copied when they are bound.

    As onnxruntime does it: core/session/IOBinding.cc, IOBinding::BindInput.
    """

    def __init__(self) -> None:
        self.said: list[str] = []

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {"CUDAExecutionProvider": {"device_id": "1"}, "CPUExecutionProvider": {}}

    def io_binding(self) -> DeviceBinding:
        return DeviceBinding()

    def run_with_iobinding(self, io: DeviceBinding, options: Any) -> None:
        if options is not None:
            self.said.append(options.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
        io.bound["y"][...] = 2 * io.copied["x"]


class DeviceBinding:
    def __init__(self) -> None:
        self.copied: dict[str, Any] = {}
        self.bound: dict[str, Any] = {}

    def bind_input(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        self.copied[name] = seen(kind, shape, address).copy()

    def bind_output(self, name: str, device: str, number: int, kind: Any, shape: Any, address: int) -> None:
        self.bound[name] = seen(kind, shape, address)


def seen(kind: Any, shape: Any, address: int) -> Any:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=kind).reshape(shape)


def on_device(session: DeviceSession) -> OnnxSlot:
    return OnnxSlot(
        Served(session, (TensorSpec("x", "FP32", (-1,), ("n",)),), (TensorSpec("y", "FP32", (-1,), ("n",)),))
    )


def test_a_provider_with_memory_of_its_own_gets_the_inputs_of_each_run() -> None:
    binding = on_device(DeviceSession()).bind({"x": (4,)})
    for value in (1, 2, 3):
        binding.inputs["x"][...] = value
        binding.submit()
        assert binding.outputs["y"].tolist() == [2 * value] * 4


def test_what_a_large_request_needed_of_a_gpus_arena_is_given_back_too() -> None:
    session = DeviceSession()
    slot = on_device(session)
    for count in (1 << 20, *[4] * 100):
        slot.bind({"x": (count,)}).submit()
    assert session.said == ["cpu:0;gpu:1"]
