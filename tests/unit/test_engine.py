from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from onnx import TensorProto

from kedge.targets import load_target
from kedge_agent.engine.apart import Limits, compile_apart
from kedge_agent.engine.compile import COMPUTE_CAPABILITIES, compile_onnx
from kedge_agent.engine.library import library_of
from kedge_agent.engine.order import Order
from kedge_agent.engine.report import CompileReport, EngineError, EngineTensor
from tests.support import environment
from tests.support.qdq import Net

# The bit of each compute capability in an engine's header.
MASKS = {"8.0": 2, "8.6": 4, "8.9": 8, "12.0": 16, "12.1": 32}

Compile = Callable[..., CompileReport]


@pytest.fixture
def _compiler() -> None:
    environment.tensorrt_rtx()


compiles = pytest.mark.usefixtures("_compiler")


def convolution(batch: str | int = 1) -> bytes:
    net = Net()
    return net.graph(net.conv(net.pair("x")), (batch, 16, 8, 8)).proto.SerializeToString()


@compiles
@pytest.mark.parametrize("compile_model", [compile_onnx, compile_apart])
def test_a_quantised_model_becomes_an_engine(compile_model: Compile) -> None:
    steps: list[tuple[str, int, int]] = []

    def progress(*step: object) -> bool:
        steps.append(step)  # type: ignore[arg-type]
        return True

    report = compile_model(convolution(), Order(compute_capabilities=("8.9", "12.0")), progress=progress)
    assert report.engine[:4] == b"vtrt"
    assert int.from_bytes(report.engine[16:24], "little") == len(report.engine)
    assert int.from_bytes(report.engine[32:36], "little") == MASKS["8.9"] | MASKS["12.0"]
    assert (report.runtime, report.runtime_version) == ("tensorrt-rtx", library_of("tensorrt-rtx").version())
    assert report.compute_capabilities == ("8.9", "12.0")
    assert report.inputs == (EngineTensor("x", "FLOAT", (1, 16, 8, 8)),)
    assert report.seconds > 0
    assert report.log == ()
    assert steps
    counted = [step for step in steps if not step[0].startswith("log: ")]
    assert counted
    assert all(phase and 1 <= step <= steps_in_all for phase, step, steps_in_all in counted)


@compiles
@pytest.mark.parametrize("capability", COMPUTE_CAPABILITIES)
def test_every_compute_capability_that_is_offered_is_compiled_for(capability: str) -> None:
    net = Net()
    model = net.graph(net.add("Relu", "x")).proto.SerializeToString()
    engine = compile_onnx(model, Order(compute_capabilities=(capability,))).engine
    assert int.from_bytes(engine[32:36], "little") == MASKS.get(capability, 1)


def in_precision(precision: str, op: str) -> bytes:
    """A convolution or a matrix product in one of a profile's precisions."""
    net = Net()
    shape, axis = ((32, 16, 3, 3), 0) if op == "Conv" else ((16, 32), 1)
    if precision in ("fp32", "fp16", "bf16"):
        kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
        weight = net.constant(net.random.standard_normal(shape))
        out = net.add(op, net.add("Cast", "x", to=kind), net.add("Cast", weight, to=kind))
        out = net.add("Cast", out, to=TensorProto.FLOAT)
    else:
        source = "x" if precision == "int4" else net.pair("x", kind=precision)
        out = net.add(op, source, net.weights(*shape, axis=axis, kind=precision))
    return net.graph(out, (1, 16, 8, 8) if op == "Conv" else (4, 16), opset=22).proto.SerializeToString()


@compiles
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
@pytest.mark.parametrize("precision", load_target("rtx-ada-2000").precisions)
def test_a_profile_names_the_precisions_that_compile_for_its_compute_capability(precision: str, op: str) -> None:
    capability = load_target("rtx-ada-2000").compute_capability
    assert capability is not None
    assert compile_onnx(in_precision(precision, op), Order(compute_capabilities=(capability,))).engine


@compiles
@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_fp8_is_for_ada_and_later(op: str) -> None:
    with pytest.raises(EngineError, match="fp8"):
        compile_onnx(in_precision("fp8", op), Order(compute_capabilities=("8.6",)))


@compiles
@pytest.mark.parametrize("compile_model", [compile_onnx, compile_apart])
def test_a_refused_model_is_refused_with_node_operator_and_reason(compile_model: Compile) -> None:
    net = Net()
    model = net.graph(net.conv(net.pair("x", zero=3))).proto.SerializeToString()
    with pytest.raises(EngineError, match=r"QuantizeLinear quantizelinear0: .*zero point") as caught:
        compile_model(model, Order(compute_capabilities=("8.9",)))
    assert caught.value.kind == "refused"
    assert [(finding.node, finding.op) for finding in caught.value.findings] == [("quantizelinear0", "QuantizeLinear")]
    assert caught.value.log


@compiles
def test_an_operator_that_does_not_exist_is_named() -> None:
    net = Net()
    model = net.graph(net.add("Det", "x"), (4, 4)).proto.SerializeToString()
    with pytest.raises(EngineError, match=r"refuses Det det0: TensorRT has no such operator"):
        compile_onnx(model, Order(compute_capabilities=("8.9",)))


@compiles
def test_what_the_compiler_refuses_after_the_parser_took_it_is_said_in_its_words() -> None:
    net = Net()
    model = net.graph(net.conv(net.pair("x"), kind="int4")).proto.SerializeToString()
    with pytest.raises(EngineError, match=r"cannot compile the model: .*type") as caught:
        compile_onnx(model, Order(compute_capabilities=("8.9",)))
    assert caught.value.findings == ()


@compiles
def test_a_free_batch_is_compiled_for_one_unless_a_profile_says_otherwise() -> None:
    model = convolution("batch")
    assert compile_onnx(model, Order(compute_capabilities=("8.9",))).inputs[0].shape == (-1, 16, 8, 8)
    profile = ((1, 16, 8, 8), (4, 16, 8, 8), (32, 16, 8, 8))
    for compile_model in (compile_onnx, compile_apart):
        assert compile_model(model, Order(compute_capabilities=("8.9",), profiles={"x": profile})).engine


@compiles
@pytest.mark.parametrize(
    ("profiles", "reason"),
    [
        ({"y": ((1, 16, 8, 8),) * 3}, "no input y"),
        ({"x": ((1, 16, 8, 8),) * 2}, "does not fit"),
        ({"x": ((1, 16, 8),) * 3}, "does not fit"),
        ({"x": ((1, 16, 8, 9),) * 3}, "does not fit"),
        ({"x": ((4, 16, 8, 8), (2, 16, 8, 8), (8, 16, 8, 8))}, "does not fit"),
        ({"x": ((0, 16, 8, 8),) * 3}, "does not fit"),
        ({"x": ((True, 16, 8, 8),) * 3}, "does not fit"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(profiles: dict[str, object], reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as caught:
        compile_onnx(convolution("batch"), Order(compute_capabilities=("8.9",), profiles=profiles))  # type: ignore[arg-type]
    assert caught.value.kind == "bad_input"


@compiles
@pytest.mark.parametrize("compile_model", [compile_onnx, compile_apart])
def test_progress_can_cancel(compile_model: Compile) -> None:
    with pytest.raises(EngineError) as caught:
        compile_model(convolution(), Order(compute_capabilities=("8.9",)), progress=lambda *_: False)
    assert caught.value.kind == "cancelled"
    assert compile_model(convolution(), Order(compute_capabilities=("8.9",))).engine


@compiles
@pytest.mark.parametrize("compile_model", [compile_onnx, compile_apart])
def test_what_progress_raises_comes_out_as_it_was(compile_model: Compile) -> None:
    def stop(*_: object) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_model(convolution(), Order(compute_capabilities=("8.9",)), progress=stop)


@compiles
def test_a_compilation_that_takes_too_long_ends() -> None:
    with pytest.raises(EngineError, match=r"not done after 0\.02 s") as caught:
        compile_apart(convolution(), Order(compute_capabilities=("8.9",)), limits=Limits(timeout_s=0.02))
    assert caught.value.kind == "timeout"


@compiles
def test_one_bad_model_leaves_no_trace_in_the_next_report() -> None:
    with pytest.raises(EngineError):
        compile_onnx(b"not ONNX", Order(compute_capabilities=("8.9",)))
    assert compile_onnx(convolution(), Order(compute_capabilities=("8.9",))).log == ()


@pytest.mark.parametrize("capabilities", [(), ("8.7",), ("8.9", "8.9")])
def test_an_engine_for_no_or_an_unknown_compute_capability_is_refused(capabilities: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match="compute capability") as caught:
        compile_onnx(b"model", Order(compute_capabilities=capabilities))
    assert "8.9" in caught.value.hint


def test_without_tensorrt_the_agent_imports_and_the_error_says_what_to_install() -> None:
    program = """
import sys
sys.modules["tensorrt_rtx_bindings"] = None
from kedge_agent.engine import apart, compile, report
from kedge_agent.engine.order import Order
try:
    compile.compile_onnx(b"model", Order(compute_capabilities=("8.9",)))
except report.EngineError as error:
    print(error.kind, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "missing pip install 'kedge[tensorrt]'"
