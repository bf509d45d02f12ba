"""`kedge build`: releases with an engine, with a build plan, or with the model itself; and the report beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.build import release as build_release_module
from kedge.build.cache import EngineCache
from kedge.build.plan import Host
from kedge.build.release import BuildOptions, Built, build_release
from kedge.build.shapes import parse_shapes
from kedge.cli import main
from kedge.errors import BadInputError, IncompatibleError, NoSpaceError
from kedge.release.bundle import open_release
from kedge.report.build_html import build_html
from kedge.report.memory import activation_rows, memory_sentence
from kedge.targets import load_target
from kedge_agent.engine.order import parse_order
from kedge_agent.formats.plan_header import read_plan_header
from tests.support import models
from tests.support.environment import shared_model, tensorrt_rtx
from tests.support.pages import self_contained
from tests.support.schemas import validate

RTX, ORIN, CPU = "rtx-ada-2000", "orin-nano-8gb", "cpu-generic-x86_64"
ONE_TO_FOUR = "image=1x1x8x8:2x1x8x8:4x1x8x8"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return EngineCache()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.classifier(tmp_path / "digits.onnx")


@pytest.fixture
def kedge(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """The command's JSON; it has to succeed."""

    def run(*arguments: object) -> dict[str, Any]:
        assert main([*map(str, arguments), "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run


def built(model: Path, target: str, out: str = "out.release", **options: Any) -> Built:
    arguments = {name: options.pop(name) for name in ("golden", "reference", "cache") if name in options}
    return build_release(model, load_target(target), Path(out), BuildOptions("digits", **options), **arguments)


def test_a_release_for_an_rtx_gpu_holds_an_engine_and_its_passport(
    model: Path, kedge: Callable[..., dict[str, Any]]
) -> None:
    tensorrt_rtx()
    report = kedge("build", model, "--target", RTX)
    validate(report, "build")
    release = open_release(Path(report["folder"]))
    release.verify()
    artefact = release.manifest.artefacts[0]
    engine = (release.folder / artefact.file).read_bytes()
    assert engine[:4] == b"vtrt"
    assert artefact.passport is not None
    header = read_plan_header(engine, file_bytes=len(engine))
    assert header.compute_capabilities == artefact.passport.compute_capabilities == ("8.9",)
    assert (artefact.runtime, artefact.build, artefact.file) == ("tensorrt-rtx", None, "model.engine")
    assert {entry.name for entry, _ in release.files()} == {"model.engine", "golden-in-0.bin", "golden-out-0.bin"}
    assert report["engine"]["from_cache"] is False
    assert report["engine"]["bytes"] == len(engine) == report["stored_model_bytes"]
    assert report["engine"]["report"]["network"]
    assert report["plan"]["where"] == "host"


def test_the_same_build_again_is_the_same_release_from_the_cache(
    model: Path, kedge: Callable[..., dict[str, Any]], own_cache: EngineCache
) -> None:
    tensorrt_rtx()
    first = kedge("build", model, "--target", RTX, "-o", "a.release")
    second = kedge("build", model, "--target", RTX, "-o", "b.release")
    assert first["release"] == second["release"]
    assert (first["engine"]["from_cache"], second["engine"]["from_cache"]) == (False, True)
    assert first["engine"]["sha256"] == second["engine"]["sha256"]
    assert len(own_cache.entries()) == 1


def test_what_preflight_compiled_is_not_compiled_again(model: Path, kedge: Callable[..., dict[str, Any]]) -> None:
    tensorrt_rtx()
    kedge("preflight", model, "--target", RTX)
    assert kedge("build", model, "--target", RTX)["engine"]["from_cache"] is True


def test_one_engine_may_serve_several_gpus(model: Path, kedge: Callable[..., dict[str, Any]]) -> None:
    tensorrt_rtx()
    report = kedge("build", model, "--target", RTX, "--also-for", "12.0")
    assert report["engine"]["passport"]["compute_capabilities"] == ["8.9", "12.0"]
    header = read_plan_header(Path(report["folder"], "model.engine").read_bytes())
    assert header.compute_capabilities == ("8.9", "12.0")


@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "yolox_nano.onnx", "kwt1_speechcommands.onnx"])
def test_real_models_become_engines(name: str, kedge: Callable[..., dict[str, Any]]) -> None:
    tensorrt_rtx()
    report = kedge("build", shared_model(name), "--target", RTX)
    validate(report, "build")
    assert Path(report["folder"], "model.engine").read_bytes()[:4] == b"vtrt"


def test_a_release_for_orin_holds_the_model_and_a_plan_to_build_it(
    model: Path, kedge: Callable[..., dict[str, Any]]
) -> None:
    report = kedge("build", model, "--target", ORIN, "--shapes", ONE_TO_FOUR, "--workspace-mib", 64, "--sparse")
    validate(report, "build")
    release = open_release(Path(report["folder"]))
    artefact = release.manifest.artefacts[0]
    assert (artefact.runtime, artefact.passport, artefact.file) == ("tensorrt", None, "model.onnx")
    assert (release.folder / "model.onnx").read_bytes() == model.read_bytes()
    order = parse_order(dict(artefact.build or {}))
    assert order.runtime == "tensorrt"
    assert order.compute_capabilities == ()
    assert order.profiles == parse_shapes([ONE_TO_FOUR])
    assert (order.workspace_bytes, order.sparse_weights) == (64 << 20, True)
    assert report["engine"] is None
    assert report["plan"]["where"] == "device"


def test_it_says_when_the_engine_will_be_built(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(model), "--target", ORIN]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "engine none yet: the first device that this is deployed to builds it" in shown
    assert "built on a GPU of its compute capability, by the version that will run it" in shown


def test_an_engine_that_is_required_and_cannot_be_built_here_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(model), "--target", ORIN, "--require-engine"]) == 7
    said = capsys.readouterr().err
    assert "no engine for orin-nano-8gb can be built here" in said
    assert "--on DEVICE" in said
    assert not list(Path().glob("*.release*"))


def test_an_engine_that_is_required_and_can_be_built_is(model: Path, kedge: Callable[..., dict[str, Any]]) -> None:
    tensorrt_rtx()
    assert kedge("build", model, "--target", RTX, "--require-engine")["engine"] is not None


@pytest.mark.parametrize("target", [RTX, ORIN, CPU, "dgx-spark", "l4"])
def test_the_plan_is_printed_and_nothing_is_written(
    model: Path, target: str, kedge: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    document = kedge("build", model, "--target", target, "--plan")
    assert document["target"] == target
    assert document["memory"]["activations_bytes"] == dict.fromkeys(("least", "usual", "greatest"), 4096)
    assert main(["build", str(model), "--target", target, "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert document["reason"] in shown
    assert "activations about 4.1 kB" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_that_cannot_fit_exits_8(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = "image=1x1x8x8:1x1x8x8:9000000x1x8x8"
    assert main(["build", str(model), "--target", ORIN, "--plan", "--shapes", shapes]) == 8
    assert "orin-nano-8gb has 6.00 GiB to give" in capsys.readouterr().err


def test_shapes_reach_the_engine_and_golden_inputs_lie_within_them(
    model: Path, kedge: Callable[..., dict[str, Any]]
) -> None:
    tensorrt_rtx()
    report = kedge("build", model, "--target", RTX, "--shapes", ONE_TO_FOUR)
    assert report["plan"]["profiles"] == {"image": [[1, 1, 8, 8], [2, 1, 8, 8], [4, 1, 8, 8]]}
    assert report["engine"]["plan"]["profiles"] == report["plan"]["profiles"]
    assert report["engine"]["report"]["inputs"][0]["shape"] == [-1, 1, 8, 8]
    golden = open_release(Path(report["folder"])).manifest.golden
    assert [tuple(tensor.shape) for tensor in (*golden.inputs, *golden.outputs)] == [(2, 1, 8, 8), (2, 4)]


def test_given_golden_inputs_are_cut_to_the_profile(model: Path) -> None:
    made = built(model, ORIN, golden={"image": models.images(16)}, shapes=parse_shapes([ONE_TO_FOUR]))
    golden = made.release.manifest.golden
    assert tuple(golden.inputs[0].shape) == (2, 1, 8, 8)
    stored = (made.release.folder / golden.inputs[0].file).read_bytes()
    assert stored == models.images(16)[:2].tobytes()
    assert not made.golden_made_up
    one = built(model, ORIN, "one.release", golden={"image": models.images(16)})
    assert tuple(one.release.manifest.golden.inputs[0].shape) == (1, 1, 8, 8)


def test_too_few_golden_inputs_for_the_profile_are_refused(model: Path) -> None:
    with pytest.raises(BadInputError, match="has 1 samples, a batch of 2 is needed"):
        built(model, ORIN, golden={"image": models.images(1)}, shapes=parse_shapes([ONE_TO_FOUR]))


def with_foreign_operator(folder: Path) -> Path:
    """The classifier, with an operator that onnxruntime does not have between two layers."""
    proto = onnx.load(models.classifier(folder / "known.onnx"))
    for each in proto.graph.node:
        if each.op_type == "Relu":
            each.op_type, each.domain = "Frobnicate", "example.test"
    proto.opset_import.append(helper.make_opsetid("example.test", 1))
    path = folder / "foreign.onnx"
    onnx.save(proto, path)
    return path


def in_bfloat16(folder: Path) -> Path:
    """The classifier with its matrix product in BF16, which onnxruntime's CPU has no kernel for and TensorRT does."""
    proto = onnx.load(models.classifier(folder / "known.onnx"))
    product = proto.graph.node[-1]
    half = TensorProto.BFLOAT16
    casts = [
        helper.make_node("Cast", [name], [f"{name}_bf16"], name=f"cast_{index}", to=half)
        for index, name in enumerate(product.input)
    ]
    product.input[:] = [cast.output[0] for cast in casts]
    back = helper.make_node("Cast", ["logits_bf16"], ["logits"], name="cast_back", to=TensorProto.FLOAT)
    product.output[0] = "logits_bf16"
    nodes = [*proto.graph.node[:-1], *casts, product, back]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    path = folder / "bfloat.onnx"
    onnx.save(proto, path)
    return path


def test_a_model_that_this_host_cannot_run_needs_a_reference(tmp_path: Path) -> None:
    foreign, known = in_bfloat16(tmp_path), tmp_path / "known.onnx"
    with pytest.raises(IncompatibleError, match=r"cannot run bfloat\.onnx to record golden outputs") as caught:
        built(foreign, ORIN)
    assert "--reference MODEL" in caught.value.hint
    made = built(foreign, ORIN, reference=known, golden={"image": models.images()})
    release = made.release
    plain = built(known, ORIN, "plain.release", golden={"image": models.images()}).release
    outputs = [(each.folder / each.manifest.golden.outputs[0].file).read_bytes() for each in (release, plain)]
    assert outputs[0] == outputs[1]
    body = json.loads(release.manifest_bytes)
    assert re.fullmatch("[0-9a-f]{64}", body["provenance"]["reference_sha256"])
    with pytest.raises(BadInputError):
        built(foreign, ORIN, reference=foreign)


def test_a_model_that_no_tensorrt_of_the_target_takes_becomes_no_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shared_model("fns_candy.onnx")
    assert main(["build", str(model), "--target", "orin-nano-8gb"]) == 7
    said = capsys.readouterr().err
    assert "orin-nano-8gb will not run fns_candy.onnx: Crop crop: not supported" in said
    assert "kedge preflight lists all of it" in said
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_the_compiler_refuses_leaves_no_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_cache: EngineCache
) -> None:
    tensorrt_rtx()
    foreign = with_foreign_operator(tmp_path)
    arguments = ["build", str(foreign), "--target", RTX, "--reference", str(tmp_path / "known.onnx")]
    assert main(arguments) == 7
    said = capsys.readouterr().err
    assert "TensorRT for RTX refuses Frobnicate" in said
    assert "kedge preflight" in said
    assert not list(tmp_path.glob("*.release*"))
    assert own_cache.entries() == []


def test_without_the_compiler_an_rtx_build_is_refused_with_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kedge.build import engines

    monkeypatch.setattr(build_release_module, "host_builders", lambda *_: Host())
    monkeypatch.setattr(engines, "passport_here", lambda *_: None)
    with pytest.raises(IncompatibleError, match="TensorRT for RTX is not installed here"):
        built(model, RTX)


def test_a_model_for_onnxruntime_is_released_as_it_is(model: Path, kedge: Callable[..., dict[str, Any]]) -> None:
    report = kedge("build", model, "--target", CPU, "--no-pack")
    validate(report, "build")
    assert (report["engine"], report["plan"]["where"]) == (None, "nowhere")
    assert Path(report["folder"], "model.onnx").read_bytes() == model.read_bytes()


def test_what_is_asked_of_onnxruntime_on_orin_is_given(model: Path, kedge: Callable[..., dict[str, Any]]) -> None:
    report = kedge("build", model, "--target", ORIN, "--runtime", "onnxruntime")
    assert (report["runtime"], report["plan"]["where"]) == ("onnxruntime", "nowhere")


def large(folder: Path) -> Path:
    """A model whose constant is 3 GiB as the graph tells, and a few bytes on disk."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    body = helper.make_graph(
        [
            helper.make_node("Expand", ["x", "wide"], ["h"], "expand"),
            helper.make_node("ReduceMax", ["h"], ["y"], "max", keepdims=0),
        ],
        "large",
        [shape],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [one, numpy_helper.from_array(np.array([5 << 30], np.int64), "wide")],
    )
    path = folder / "large.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_what_cannot_fit_is_refused_before_the_model_is_run(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match=r"needs about 20\.\d\d GiB"):
        built(large(tmp_path), ORIN)


# The report beside the release


@pytest.mark.parametrize("target", [RTX, ORIN, CPU])
def test_beside_the_release_lie_its_report_and_its_page(
    model: Path, target: str, kedge: Callable[..., dict[str, Any]]
) -> None:
    if target == RTX:
        tensorrt_rtx()
    report = kedge("build", model, "--target", target, "-o", "x.release")
    assert report.pop("report") == "x.release.build.html"
    document = json.loads(Path("x.release.build.json").read_text())
    validate(document, "build")
    assert document == report
    text = Path("x.release.build.html").read_text()
    page = self_contained(text)
    assert build_html(document) == text
    assert "digits, version 1, fp32" in page.text
    assert report["release"] in page.text
    assert ("vtrt" in page.text, "Passport" in page.text) == (False, target == RTX)
    assert ("An engine, built now" in page.text) == (target == RTX)
    assert ("no engine yet" in page.text) == (target == ORIN)


def test_a_page_holds_what_the_compiler_said_and_hostile_names_are_only_names(
    model: Path, kedge: Callable[..., dict[str, Any]]
) -> None:
    tensorrt_rtx()
    document = kedge("build", model, "--target", RTX)
    hostile = "</pre><script>alert(1)</script><img src=http://x>\x1b[31m"
    report = document["engine"]["report"]
    report["log"] = [f"WARNING: {hostile}"]
    report["network"][0]["name"] = hostile
    report["engine_layers"] = hostile
    report["attempts"] = [
        {
            "workspace_bytes": 8 << 20,
            "tactic_dram_bytes": 1,
            "available_bytes": None,
            "outcome": "refused",
            "reason": hostile,
        },
        {
            "workspace_bytes": None,
            "tactic_dram_bytes": None,
            "available_bytes": 1 << 30,
            "outcome": "built",
            "reason": "",
        },
    ]
    validate(document, "build")
    page = self_contained(build_html(document))
    assert page.text.count("<script>alert(1)</script>") == 4
    assert "\x1b" not in page.text
    assert "Attempts" in page.text


def test_a_figure_that_was_not_measured_is_not_zero(model: Path, kedge: Callable[..., dict[str, Any]]) -> None:
    tensorrt_rtx()
    document = kedge("build", model, "--target", RTX)
    document["engine"]["report"]["peak_rss_bytes"] = None
    document["engine"]["from_cache"] = True
    page = self_contained(build_html(document))
    assert "not measured" in page.text
    assert "An engine from the cache" in page.text


def memory(**sizes: int | None) -> dict[str, Any]:
    return {"activations_bytes": sizes, "needed_bytes": 2_000_000, "usable_bytes": 6_000_000_000}


def test_memory_is_put_in_words() -> None:
    assert memory_sentence(None) == "not estimated"
    assert memory_sentence(memory(least=1, greatest=2)) == "about 2 MB needed (estimate); 6 GB are there for models"
    unknown = memory(greatest=None) | {"usable_bytes": None}
    assert memory_sentence(unknown) == (
        "about 2 MB needed besides activations, which are not known (estimate); the target's memory is not stated"
    )
    assert activation_rows(memory(least=1, usual=1, greatest=1)) == [("activations", 1)]
    assert activation_rows(memory(least=1, greatest=2)) == [("activations, least", 1), ("activations, greatest", 2)]
    assert activation_rows(memory()) == [("activations", None)]
