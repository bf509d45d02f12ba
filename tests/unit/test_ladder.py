from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from kedge_agent.engine.apart import Limits, compile_apart
from kedge_agent.engine.ladder import MIB, Attempt, classify, climb, first_order
from kedge_agent.engine.order import Order, parse_order
from kedge_agent.engine.report import CompileReport, EngineError
from tests.support.environment import shared_model, tensorrt_rtx
from tests.support.models import IR_VERSION, OPSET
from tests.support.qdq import Net

ADA = Order(compute_capabilities=("8.9",))


def when_marked(pid: int, then: Callable[[], object]) -> None:
    """Do something once a builder has offered itself to the kernel, which it does before it loads the compiler."""

    def wait() -> None:
        mark = Path(f"/proc/{pid}/oom_score_adj")
        with contextlib.suppress(OSError):
            while mark.read_text(encoding="ascii").strip() != "1000":
                time.sleep(0.002)
            then()

    threading.Thread(target=wait, daemon=True).start()


def refused(*log: str, kind: str = "refused") -> EngineError:
    return EngineError("it cannot be compiled", kind=kind, log=log)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (refused(kind="killed"), "less"),
        (refused(kind="memory"), "less"),
        (refused("ERROR: Tactic Device request: 4500MB Available: 3000MB. Device memory is insufficient"), "less"),
        (refused("WARNING: insufficient workspace", "ERROR: Could not find any implementation for node conv1"), "more"),
        (refused("WARNING: std::bad_alloc", "ERROR: Could not find any implementation for node conv1"), "less"),
        (refused("ERROR: Could not find any implementation for node conv1"), "other"),
        (refused("ERROR: no tactics to implement the operation within workspace limit"), "more"),
        (refused("ERROR: the types do not fit"), "other"),
        (refused(kind="cancelled"), "other"),
        (refused(kind="timeout"), "other"),
    ],
)
def test_a_failure_is_classified_before_anything_is_changed(error: EngineError, outcome: str) -> None:
    assert classify(error) == outcome


def test_a_request_that_would_have_fitted_asks_for_more_workspace_and_one_that_would_not_for_less() -> None:
    error = refused("ERROR: Error Code 2: OutOfMemory (Requested size was 9464744 bytes.)", kind="memory")
    assert classify(error, 8 * MIB, 1 << 30) == "more"
    assert classify(error, 8 * MIB, 9 * MIB) == "less"
    assert classify(error) == "less"


def test_the_first_limits_follow_from_what_is_available_and_keep_what_was_asked_for() -> None:
    assert first_order(ADA, None) == ADA
    assert first_order(ADA, 8 << 30).workspace_bytes == 1 << 30
    assert first_order(ADA, 400 * MIB).tactic_dram_bytes is None
    small = first_order(Order("tensorrt"), 400 * MIB)
    assert (small.workspace_bytes, small.tactic_dram_bytes) == (100 * MIB, 200 * MIB)
    assert first_order(Order(workspace_bytes=5), 8 << 30).workspace_bytes == 5


def test_memory_goes_down_after_a_kill_and_ends_with_what_was_tried() -> None:
    told: list[Attempt] = []

    def build(order: Order) -> CompileReport:
        raise refused(kind="killed")

    with pytest.raises(EngineError) as caught:
        climb(ADA, build, lambda: 1 << 30, told.append)
    sizes = [attempt.workspace_bytes for attempt in told]
    assert sizes == [256 * MIB, 64 * MIB, 16 * MIB]
    assert "256, 64, 16 MiB" in caught.value.hint


def test_where_kernels_are_tried_the_memory_for_that_goes_down_too_and_no_limit_ever_up() -> None:
    told: list[Attempt] = []

    def build(order: Order) -> CompileReport:
        raise refused(kind="killed")

    with pytest.raises(EngineError):
        climb(Order("tensorrt", workspace_bytes=8 * MIB), build, lambda: 1 << 30, told.append)
    assert [attempt.tactic_dram_bytes for attempt in told] == [512 * MIB, 128 * MIB, 32 * MIB, 16 * MIB]
    assert {attempt.workspace_bytes for attempt in told} == {8 * MIB}


def test_what_memory_does_not_mend_is_not_tried_again() -> None:
    told: list[Attempt] = []

    def build(order: Order) -> CompileReport:
        raise refused("ERROR: the types do not fit")

    with pytest.raises(EngineError):
        climb(ADA, build, lambda: 1 << 30, told.append)
    assert len(told) == 1


def test_a_workspace_that_is_too_small_is_raised_until_the_real_compiler_is_content() -> None:
    tensorrt_rtx()
    model = shared_model("resnet20_cifar10.onnx").read_bytes()
    told: list[Attempt] = []
    greatest = ((1, 3, 32, 32), (64, 3, 32, 32), (64, 3, 32, 32))
    order = Order(compute_capabilities=("8.9",), profiles={"input": greatest}, workspace_bytes=8 * MIB)
    report, attempts = climb(order, lambda step: compile_apart(model, step), lambda: 4 << 30, told.append)
    assert report.engine[:4] == b"vtrt"
    assert attempts == tuple(told)
    *failed, built = attempts
    assert failed
    assert {attempt.outcome for attempt in failed} == {"more"}
    assert built.outcome == "built"
    sizes = [attempt.workspace_bytes for attempt in attempts]
    assert sizes == [8 * MIB * 4**step for step in range(len(sizes))]


def test_a_workspace_within_which_no_kernel_fits_is_raised_too() -> None:
    tensorrt_rtx()
    model = shared_model("resnet20_cifar10.onnx").read_bytes()
    order = Order(compute_capabilities=("8.9",), workspace_bytes=2 * MIB)
    _, attempts = climb(order, lambda step: compile_apart(model, step), lambda: 4 << 30, lambda _: None)
    assert [attempt.outcome for attempt in attempts] == ["more", "built"]
    assert "within workspace limit" in attempts[0].reason


def weighing(weights_bytes: int) -> bytes:
    """An ONNX file of one product with so many bytes of weights."""
    rows = 1024
    columns = weights_bytes // 4 // rows
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns], raw_data=bytes(weights_bytes))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def test_a_builder_that_runs_out_of_memory_is_given_less_the_next_time() -> None:
    tensorrt_rtx()
    # The file and the compiler fit, and never a second copy of the weights: where it fails does not depend on threads.
    heavy, limit = weighing(512 * MIB), Limits(60, address_space_bytes=1024 * MIB)
    light = shared_model("resnet20_cifar10.onnx").read_bytes()
    tried: list[Order] = []

    def build(order: Order) -> CompileReport:
        tried.append(order)
        # What took the memory the first time has gone the second.
        return compile_apart(heavy, order, limits=limit) if len(tried) == 1 else compile_apart(light, order)

    report, attempts = climb(ADA, build, lambda: 1 << 30, lambda _: None)
    assert report.engine
    assert [attempt.outcome for attempt in attempts] == ["less", "built"]
    assert [attempt.workspace_bytes for attempt in attempts] == [256 * MIB, 64 * MIB]


def test_a_builder_that_is_killed_says_so_and_the_parent_lives() -> None:
    tensorrt_rtx()
    model = shared_model("mobilenetv2_imagenet.onnx").read_bytes()

    def kill(pid: int) -> None:
        when_marked(pid, lambda: os.kill(pid, signal.SIGKILL))

    order = Order(compute_capabilities=("8.0", "8.6", "8.9", "12.0", "12.1"))
    with pytest.raises(EngineError, match="was killed") as caught:
        compile_apart(model, order, limits=Limits(started=kill))
    assert caught.value.kind == "killed"
    assert classify(caught.value) == "less"


def test_a_builder_offers_itself_to_the_kernel_first() -> None:
    tensorrt_rtx()
    seen: list[str] = []

    def look(pid: int) -> None:
        when_marked(pid, lambda: seen.append(os.getpriority(os.PRIO_PROCESS, pid)))

    net = Net()
    model = net.graph(net.conv(net.pair("x")), (1, 16, 8, 8)).proto.SerializeToString()
    compile_apart(model, ADA, limits=Limits(started=look, nice=5))
    assert seen == [os.getpriority(os.PRIO_PROCESS, 0) + 5]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_peak_memory_is_the_compiler_s_own_and_not_that_of_whoever_started_it() -> None:
    tensorrt_rtx()
    ballast = bytearray(700 * MIB)
    ballast[::4096] = b"x" * len(ballast[::4096])
    net = Net()
    model = net.graph(net.conv(net.pair("x")), (1, 16, 8, 8)).proto.SerializeToString()
    report = compile_apart(model, ADA)
    assert report.peak_rss_bytes is not None
    assert 50 * MIB < report.peak_rss_bytes < 600 * MIB
    assert ballast


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"runtime": 5},
        {"runtime": "tensorrt", "other": 1},
        {"runtime": "tensorrt", "compute_capabilities": "8.9"},
        {"runtime": "tensorrt", "workspace_bytes": -1},
        {"runtime": "tensorrt", "workspace_bytes": True},
        {"runtime": "tensorrt", "optimization_level": 9},
        {"runtime": "tensorrt", "sparse_weights": 1},
        {"runtime": "tensorrt", "profiles": {"x": [[1], [1]]}},
        {"runtime": "tensorrt", "profiles": {"x": [[1], [1], [0]]}},
        {"runtime": "tensorrt", "profiles": {"x": [[1], [1], [1.5]]}},
    ],
)
def test_an_order_that_was_received_is_checked(body: object) -> None:
    with pytest.raises(EngineError) as caught:
        parse_order(body)
    assert caught.value.kind == "bad_input"


def test_an_order_comes_back_as_it_was_sent() -> None:
    order = Order(
        "tensorrt", (), {"x": ((1, 3), (2, 3), (8, 3))}, 5 * MIB, 6 * MIB, sparse_weights=True, optimization_level=0
    )
    assert parse_order(order.to_json()) == order
    assert order.plan()["workspace_bytes"] == 5 * MIB
    assert "compute_capabilities" not in Order(compute_capabilities=("8.9",)).plan()
    assert order.plan()["optimization_level"] == 0
