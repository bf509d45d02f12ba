"""What preflight finds, where it says it is, and who it says judged: on made graphs and on real models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.build.cache import EngineCache
from kedge.build.preflight.findings import Finding, PreflightReport, agreed, ordered
from kedge.build.preflight.rules import suggestion
from kedge.build.preflight.run import preflight
from kedge.build.shapes import parse_shapes
from kedge.cli import main
from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.report.preflight_html import grouped, preflight_html
from kedge.targets import load_target
from kedge_agent.engine.library import Library
from tests.support import models
from tests.support.environment import shared_model, tensorrt_rtx
from tests.support.pages import self_contained
from tests.support.qdq import Net
from tests.support.schemas import validate

RTX, ORIN, CPU = "rtx-ada-2000", "orin-nano-8gb", "cpu-generic-x86_64"
HOSTILE = "</code><script>alert(1)</script>\"'><img src=http://x onerror=alert(2)>{{7*7}}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without TensorRT for RTX."""
    monkeypatch.setattr(Library, "version", lambda self: None)


def saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    *,
    constants: dict[str, Any] | None = None,
    kinds: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    shape: tuple[Any, ...] = (1, 4),
    opset: int = 17,
    ir: int = 8,
) -> Path:
    """A model from x to y."""
    body = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kinds[0], shape)],
        [helper.make_tensor_value_info("y", kinds[1], [None] * len(shape))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    made = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    path = folder / "model.onnx"
    onnx.save(made, path)
    return path


def node(op: str, inputs: str, output: str, **given: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{op.lower()}_{output}", **given)


def written(folder: Path, graph: Graph) -> Path:
    path = folder / "model.onnx"
    for _ in range(4):
        graph.proto.graph.output[0].type.tensor_type.shape.dim.add()
    onnx.save(graph.proto, path)
    return path


def look(model: Path, target: str, **options: Any) -> PreflightReport:
    found = preflight(model, load_target(target), **options)
    document = {"model": model.name, **found.to_json()}
    validate(document, "preflight")
    judges = {judge for finding in found.findings for judge in finding.judge.split("; ")}
    assert judges <= set(found.judges)
    return found


def of_rule(report: PreflightReport, rule: str, severity: str | None = None) -> list[Finding]:
    return [each for each in report.findings if each.rule == rule and severity in (None, each.severity)]


def judged(report: PreflightReport) -> list[Finding]:
    """Findings of the model; not that a parser is not installed here, which is one too."""
    return [each for each in report.findings if each.rule != "not-asked"]


# Real models


def test_resnet20_passes_for_rtx_and_its_engine_is_kept_for_the_build(tmp_path: Path) -> None:
    tensorrt_rtx()
    cache = EngineCache(tmp_path / "engines")
    found = look(shared_model("resnet20_cifar10.onnx"), RTX, cache=cache)
    assert not found.errors
    assert [each.rule for each in found.findings] == ["free-batch"]
    assert any(judge.startswith("the compiler of TensorRT for RTX") for judge in found.judges)
    assert len(cache.entries()) == 1
    assert found.profiles == {"input": ((1, 3, 32, 32),) * 3}


def test_resnet20_passes_for_orin_by_the_tables_of_its_jetpacks() -> None:
    found = look(shared_model("resnet20_cifar10.onnx"), ORIN)
    assert not found.errors
    assert [judge for judge in found.judges if "table" in judge] == [
        "operator table of TensorRT 10.16 (that of 10.15)",
        "operator table of TensorRT 10.3 (that of 10.6)",
    ]
    assert not any("compiler" in judge for judge in found.judges)


def test_candy_is_refused_at_each_of_its_legacy_nodes(tmp_path: Path) -> None:
    tensorrt_rtx()
    model = shared_model("fns_candy.onnx")
    found = look(model, RTX)
    nodes = Graph.read(model).nodes
    refused = [
        (place, each.op_type, each.name) for place, each in enumerate(nodes) if each.op_type in ("Crop", "Affine")
    ]
    assert [(each.place, each.op, each.node) for each in found.errors] == refused
    assert len(refused) == 8
    for each in found.errors:
        assert each.judge.startswith("the parser of TensorRT for RTX 1.")
        assert "export again" in each.suggestion
        assert each.message == "TensorRT has no such operator, and no plugin of its name"


def test_candy_is_refused_for_orin_by_its_tables_and_the_other_parser_only_warns() -> None:
    found = look(shared_model("fns_candy.onnx"), ORIN)
    assert {each.op for each in found.errors} == {"Crop", "Affine"}
    assert {each.judge for each in found.errors} == {
        "operator table of TensorRT 10.16 (that of 10.15); operator table of TensorRT 10.3 (that of 10.6)"
    }
    assert {each.severity for each in of_rule(found, "parser")} <= {"warning"}


def test_silero_is_refused_at_its_conditions_once_its_shapes_are_known() -> None:
    tensorrt_rtx()
    model = shared_model("silero_vad_16k_op15.onnx")
    found = look(model, RTX, shapes=parse_shapes(["input=1x576", "state=2x1x128"]))
    nodes = Graph.read(model).nodes
    assert [(each.place, each.node) for each in found.errors] == [
        (place, each.name) for place, each in enumerate(nodes) if each.op_type == "If"
    ]
    assert len(found.errors) == 3
    for each in found.errors:
        assert "names no node" in each.message
        assert "export the branch" in each.suggestion


def test_silero_without_shapes_is_refused_for_their_want_and_the_compiler_is_not_asked() -> None:
    tensorrt_rtx()
    found = look(shared_model("silero_vad_16k_op15.onnx"), RTX)
    assert [each.rule for each in found.errors] == ["free-dimensions"] * 2
    assert [each.message for each in of_rule(found, "not-asked")] == [
        f"the compiler of TensorRT for RTX {_version()} was not asked: it needs the shapes first"
    ]


def _version() -> str:
    from kedge_agent.engine.library import RUNTIMES

    return str(RUNTIMES["tensorrt-rtx"].version())


def test_asymmetric_shufflenet_is_refused_for_its_zero_point() -> None:
    tensorrt_rtx()
    found = look(shared_model("shufflenet_v2_12_int8_qop.onnx"), RTX)
    first = of_rule(found, "zero-point")[0]
    assert (first.severity, first.op, first.place) == ("error", "QuantizeLinear", 0)
    assert first.message == "zero point 114, TensorRT takes only 0"
    parser = of_rule(found, "parser")[0]
    assert "zero point" in parser.message.lower()
    assert "symmetrically" in parser.suggestion
    assert found.coverage is None or found.coverage["quantized_layers"] == 0


@pytest.mark.parametrize("name", ["kws_dscnn.onnx", "mobilenetv2_imagenet.onnx", "yolox_nano.onnx"])
@pytest.mark.parametrize("target", [ORIN, "agx-thor-t5000", "l4", CPU])
def test_ordinary_models_pass_everywhere(name: str, target: str) -> None:
    assert not look(shared_model(name), target).errors


# Types and precisions


def fp8(folder: Path) -> Path:
    net = Net()
    return written(folder, net.graph(net.conv(net.pair("x", kind="fp8"), kind="fp8")))


def test_fp8_is_an_error_on_orin_and_none_on_ada(tmp_path: Path) -> None:
    model = fp8(tmp_path)
    found = look(model, ORIN)
    first = of_rule(found, "precision", "error")[0]
    assert first.message == "the model is fp8, orin-nano-8gb runs fp32, fp16, bf16, int8, int4"
    assert first.judge == "profile orin-nano-8gb"
    assert first.suggestion == "kedge optimize --target orin-nano-8gb --quantize int8"
    assert not of_rule(look(model, RTX), "precision")


def test_a_tensor_of_a_type_that_the_target_lacks_is_named(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "h", to=TensorProto.BFLOAT16), node("Cast", "h", "y", to=TensorProto.FLOAT)]
    found = look(saved(tmp_path, nodes), "t4")
    first = of_rule(found, "precision")[0]
    assert (first.severity, first.node, first.op, first.place) == ("error", "cast_h", "Cast", 0)
    assert first.message == "tensor h is bf16, which t4 does not have"


@pytest.mark.parametrize("target", [RTX, ORIN])
def test_fp64_inputs_and_outputs_are_an_error(tmp_path: Path, target: str) -> None:
    model = saved(tmp_path, [node("Add", "x x", "y")], kinds=(TensorProto.DOUBLE, TensorProto.DOUBLE))
    first = of_rule(look(model, target), "fp64", "error")[0]
    assert first.message == "x, y would be FP32 in the engine, and is FP64 in the model"


def test_fp64_inside_is_narrowed_and_a_warning_at_its_node(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Cast", "d", "y", to=TensorProto.FLOAT)]
    found = look(saved(tmp_path, nodes), RTX)
    assert not found.errors
    assert [(each.severity, each.node, each.place) for each in of_rule(found, "fp64")] == [("warning", "cast_d", 0)]


def test_inputs_of_64_bits_are_worth_knowing(tmp_path: Path) -> None:
    model = saved(tmp_path, [node("Cast", "x", "y", to=TensorProto.FLOAT)], kinds=(TensorProto.INT64, 1))
    assert [each.severity for each in of_rule(look(model, ORIN), "int64")] == ["info"]
    assert not of_rule(look(model, CPU), "int64")


# Shapes


def test_free_dimensions_are_an_error_once_an_input_and_bounds_mend_it(tmp_path: Path) -> None:
    tensorrt_rtx()
    model = saved(tmp_path, [node("Relu", "x", "y")], shape=("n", "length"))
    found = look(model, RTX)
    assert [(each.rule, each.suggestion) for each in found.errors] == [
        ("free-dimensions", "--shapes x=LEAST:USUAL:GREATEST, each as 1x3x224x224")
    ]
    assert not look(model, RTX, shapes=parse_shapes(["x=1x4:2x8:4x16"])).findings


def test_shapes_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    model = saved(tmp_path, [node("Relu", "x", "y")], shape=("n", 4))
    for texts in (["x=1x5"], ["z=1x4"]):
        found = look(model, ORIN, shapes=parse_shapes(texts))
        assert [each.rule for each in found.errors] == ["shapes"]


def test_a_free_batch_is_a_note_and_no_matter_to_onnxruntime(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    assert [each.rule for each in judged(look(model, ORIN))] == ["free-batch"]
    assert not look(model, CPU).findings


def test_what_cannot_fit_is_an_error(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    found = look(model, "orin-nano-4gb", shapes=parse_shapes(["image=1x1x8x8:1x1x8x8:2000000x1x8x8"]))
    assert [each.rule for each in found.errors] == ["memory"]
    assert found.memory is not None
    assert found.memory["fits"] is False


# Quantised


def asymmetric(net: Net) -> str:
    return net.conv(net.pair("x", zero=5))


def quantised_bias(net: Net) -> str:
    values = net.typed(np.arange(16), "int32")
    return net.conv(net.pair("x"), bias=net.add("DequantizeLinear", values, net.constant(0.01)))


@pytest.mark.parametrize("target", [RTX, ORIN])
@pytest.mark.parametrize(
    ("made", "op", "code"),
    [(asymmetric, "QuantizeLinear", "zero-point"), (quantised_bias, "Conv", "bias-quantized")],
)
def test_qdq_that_tensorrt_does_not_take_is_found(
    tmp_path: Path, target: str, made: Callable[[Net], str], op: str, code: str
) -> None:
    net = Net()
    found = look(written(tmp_path, net.graph(made(net))), target)
    errors = [each for each in found.errors if each.judge == "kedge's Q/DQ checker"]
    assert code in {each.rule for each in errors}
    named = next(each for each in errors if each.rule == code)
    assert named.place is not None
    assert named.suggestion
    assert not named.message.startswith(f"{named.op} {named.node}")
    assert op in {each.op for each in errors}


def test_a_well_quantised_model_has_no_findings_for_tensorrt(tmp_path: Path) -> None:
    net = Net()
    found = look(written(tmp_path, net.graph(net.conv(net.pair("x")), opset=19)), ORIN)
    assert not judged(found)
    assert found.coverage is not None
    assert found.coverage["quantized_layers"] == 1


def test_int8_for_tensorrt_is_refused_for_onnxruntime_as_the_build_refuses_it(tmp_path: Path) -> None:
    net = Net()
    model = written(tmp_path, net.graph(net.conv(net.pair("x")), opset=19))
    assert [each.rule for each in look(model, ORIN, runtime="onnxruntime").errors] == ["plan"]


# Tables


def test_an_operator_that_came_later_is_refused_for_the_versions_without_it(tmp_path: Path) -> None:
    ones = np.ones(4, np.float32)
    model = saved(tmp_path, [node("RMSNormalization", "x w", "y")], constants={"w": ones}, opset=23, ir=11)
    found = look(model, ORIN)
    refused = of_rule(found, "operator", "error")
    assert [(each.node, each.op, each.place) for each in refused] == [("rmsnormalization_y", "RMSNormalization", 0)]
    assert refused[0].judge == "operator table of TensorRT 10.3 (that of 10.6)"
    assert "10.16" in " ".join(found.judges)
    thor = look(model, "agx-thor-t5000")
    assert not [each for each in of_rule(thor, "operator") if "10.16" in each.judge]


def test_a_target_without_software_is_judged_by_the_oldest_version_that_kedge_serves(tmp_path: Path) -> None:
    found = look(saved(tmp_path, [node("Relu", "x", "y")]), "l4")
    assert [judge for judge in found.judges if "table" in judge] == ["operator table of TensorRT 10.3 (that of 10.6)"]


def test_an_opset_beyond_the_table_is_a_warning(tmp_path: Path) -> None:
    found = look(saved(tmp_path, [node("Relu", "x", "y")], opset=22, ir=10), ORIN)
    assert [(each.severity, each.judge) for each in of_rule(found, "opset")] == [
        ("warning", "operator table of TensorRT 10.3 (that of 10.6)")
    ]


def test_comparisons_and_quantised_nodes_are_no_odd_types(tmp_path: Path) -> None:
    nodes = [node("Greater", "x zero", "b"), node("Where", "b x zero", "y")]
    assert not judged(look(saved(tmp_path, nodes, constants={"zero": np.float32(0)}), ORIN))


def test_an_odd_type_is_a_warning_at_its_node(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "b", to=TensorProto.BOOL), node("Equal", "b b", "e"), node("Cast", "e", "y", to=1)]
    odd = of_rule(look(saved(tmp_path, nodes), ORIN), "operator-type")
    assert [(each.severity, each.node, each.place) for each in odd] == [("warning", "equal_e", 1)]
    assert odd[0].message.startswith("Equal with BOOL; its row names FP32")


def test_xavier_is_judged_and_refused_for_its_software(tmp_path: Path) -> None:
    found = look(saved(tmp_path, [node("Relu", "x", "y")]), "agx-xavier")
    assert [(each.rule, each.judge) for each in found.errors] == [("software", "profile agx-xavier")]
    assert "carries TensorRT 8.5.2; kedge builds with 10.3 and newer" in found.errors[0].message
    assert "operator table of TensorRT 8.5" in found.judges


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearAdd", "QLinearMatMul"])
def test_quantised_operators_have_the_suggestion_to_begin_with_the_fp32_model(op: str) -> None:
    assert "start from the FP32 model" in suggestion(op)
    assert suggestion("Frobnicate").startswith("express it by other operators")


# Without TensorRT for RTX, and for onnxruntime


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("target", [RTX, ORIN])
def test_without_tensorrt_for_rtx_the_report_says_who_was_not_asked(tmp_path: Path, target: str) -> None:
    found = look(models.classifier(tmp_path / "m.onnx"), target)
    asked = of_rule(found, "not-asked")
    assert [(each.severity, each.suggestion) for each in asked] == [("info", "pip install 'kedge[tensorrt]'")]
    assert "the parser of TensorRT for RTX is not installed here" in asked[0].message
    assert not any("TensorRT for RTX" in judge for judge in found.judges)
    assert not found.errors


def test_onnxruntime_is_asked_itself_and_no_word_is_said_of_tensorrt(tmp_path: Path) -> None:
    found = look(models.classifier(tmp_path / "m.onnx"), CPU)
    assert any(re.fullmatch(r"onnxruntime [\d.]+ on this host", judge) for judge in found.judges)
    assert not any("TensorRT" in judge for judge in found.judges)


def test_an_operator_that_onnxruntime_does_not_have_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], "f", domain="example.test")]
    model = saved(tmp_path, nodes)
    proto = onnx.load(model)
    proto.opset_import.append(helper.make_opsetid("example.test", 1))
    onnx.save(proto, model)
    errors = look(model, CPU).errors
    assert [each.rule for each in errors] == ["runtime"]
    assert "Frobnicate" in errors[0].message or "example.test" in errors[0].message


def test_the_limits_of_the_targets_onnxruntime_are_held(tmp_path: Path) -> None:
    strict = replace(load_target(ORIN), onnx_opset_max=16, onnx_ir_max=7)
    found = preflight(saved(tmp_path, [node("Relu", "x", "y")]), strict, runtime="onnxruntime")
    assert [each.message for each in of_rule(found, "version", "error")] == [
        f"the model has opset 17; the onnxruntime of {ORIN} reads up to 16",
        f"the model has IR version 8; the onnxruntime of {ORIN} reads up to 7",
    ]
    assert not of_rule(preflight(saved(tmp_path, [node("Relu", "x", "y")]), strict), "version")


def test_a_runtime_that_the_target_lacks_and_a_file_that_is_no_model_are_refused(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    with pytest.raises(IncompatibleError, match="rtx-ada-2000 runs tensorrt-rtx, not onnxruntime"):
        preflight(model, load_target(RTX), runtime="onnxruntime")
    model.write_bytes(b"no model")
    with pytest.raises(BadInputError):
        preflight(model, load_target(RTX))


def test_shapes_that_contradict_each_other_are_a_warning_of_onnx(tmp_path: Path) -> None:
    model = saved(tmp_path, [node("MatMul", "x w", "y")], constants={"w": np.ones((5, 2), np.float32)})
    assert [each.judge for each in of_rule(preflight(model, load_target(CPU)), "shape-inference")] == [
        f"onnx {onnx.__version__}"
    ]


# Findings


def finding(severity: str = "error", place: int | None = None, rule: str = "r", judge: str = "j") -> Finding:
    return Finding(severity, rule, "what", judge, place=place)


def test_errors_come_first_then_the_place_in_the_graph_and_nothing_twice() -> None:
    given = [finding("info"), finding("error", 7), finding("warning", 1), finding("error"), finding("error", 7)]
    assert ordered(given) == (finding("error"), finding("error", 7), finding("warning", 1), finding("info"))
    with pytest.raises(ValueError, match="unknown severity"):
        finding("fatal")


def test_judges_that_agree_are_one_finding() -> None:
    given = [finding(judge="a"), finding(judge="b", place=1), finding(judge="c"), finding(judge="a")]
    assert list(agreed(given)) == [finding(judge="a; c"), finding(judge="b", place=1)]


def test_a_report_holds_a_thousand_findings_and_counts_them_all(tmp_path: Path) -> None:
    found = look(models.classifier(tmp_path / "m.onnx"), CPU)
    many = replace(found, findings=tuple(finding(place=place) for place in range(1500)))
    document = many.to_json()
    assert (len(document["findings"]), document["counts"]["error"], document["passed"]) == (1000, 1500, False)
    assert "500 more were found" in preflight_html({"model": "m.onnx", **document})


# The command and its page


def affine(folder: Path, name: str = "affine_y") -> Path:
    """A model with an operator that ONNX took back, about which its C++ prints to standard output."""
    made = helper.make_node("Affine", ["x"], ["y"], name=name, alpha=2.0, beta=1.0)
    return saved(folder, [made], shape=(1, 3, 4, 4), opset=7, ir=3)


def test_the_command_exits_7_and_keeps_standard_output_to_one_document(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kedge", "preflight", str(affine(tmp_path)), "--target", ORIN]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    document = json.loads(done.stdout)
    validate(document, "preflight")
    assert document["passed"] is False
    assert document["findings"][0]["node"] == "affine_y"
    assert "experimental ops: Affine" in done.stderr
    assert "will not run on orin-nano-8gb: Affine affine_y: not supported" in done.stderr
    events = subprocess.run([*command, "--events"], capture_output=True, text=True, check=False)
    assert events.returncode == 7
    lines = [json.loads(line) for line in events.stdout.splitlines()]
    assert lines[-1]["event"] == "result"
    assert lines[-1]["result"] == document


def test_the_text_fits_a_terminal_and_names_all_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [node("Affine", a, b, alpha=1.0) for a, b in ("xa", "ab", "by")]
    model = saved(tmp_path, nodes, shape=(1, 3, 4, 4), opset=7, ir=3)
    assert main(["preflight", str(model), "--target", ORIN]) == 7
    shown = capsys.readouterr().out
    assert "Affine: affine_a (node 0), affine_b (node 1), affine_y (node 2)" in shown
    assert "to do  export again with a newer opset" in shown
    assert main(["preflight", str(model), "--target", ORIN, "--quiet"]) == 7
    assert capsys.readouterr().out == ""


def test_a_model_that_passes_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    assert main(["preflight", str(model), "--target", CPU, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["passed"], document["findings"], document["model"]) == (True, [], "m.onnx")


def test_the_page_is_complete_in_itself_and_hostile_names_are_only_names(tmp_path: Path) -> None:
    model, report = affine(tmp_path, HOSTILE), tmp_path / "r.html"
    assert main(["preflight", str(model), "--target", ORIN, "--report", str(report), "--quiet"]) == 7
    text = report.read_text()
    page = self_contained(text)
    assert HOSTILE in page.text
    assert "49" not in page.text.split("img src")[1][:40]
    assert "It will not run there" in page.text
    document = json.loads((tmp_path / "r.json").read_text())
    validate(document, "preflight")
    assert preflight_html(document) == text
    assert grouped(document["findings"])[0]["nodes"] == [{"node": HOSTILE, "place": 0}]


def test_a_page_of_nothing_found_says_so(tmp_path: Path) -> None:
    report = tmp_path / "r.html"
    model = models.classifier(tmp_path / "m.onnx")
    assert main(["preflight", str(model), "--target", CPU, "--report", str(report), "--quiet"]) == 0
    page = self_contained(report.read_text())
    assert "Nothing stands against it" in page.text
    assert "no findings" in page.text


def test_a_report_has_to_be_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    assert main(["preflight", str(model), "--target", CPU, "--report", str(tmp_path / "r.pdf")]) == 3
    assert "end it in .html" in capsys.readouterr().err


def test_a_parser_that_crashes_is_a_finding_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt_rtx()
    from kedge.build.preflight import native
    from kedge_agent.engine.report import EngineError

    def crash(*_: Any, **__: Any) -> Any:
        raise EngineError("TensorRT for RTX crashed", kind="crashed", hint="look")

    monkeypatch.setattr(native, "parse_apart", crash)
    found = look(models.classifier(tmp_path / "m.onnx"), RTX)
    assert [(each.rule, each.message) for each in found.errors] == [("parser", "TensorRT for RTX crashed")]
