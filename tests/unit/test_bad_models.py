from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from kedge.errors import BadInputError, ExitCode
from kedge.model.onnx_io import ModelSpec, model_spec, read_model, read_proto, read_with_files, require_float
from kedge.model.versions import require_runnable
from kedge.optimize.source import load_source
from tests.support import models
from tests.support.environment import shared_model

NEWEST_OPSET = onnx.defs.onnx_opset_version()


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def versioned(*, opset: int = 17, ir_version: int = 8) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = onnx.load(models.classifier(folder / "m.onnx"))
        model.opset_import[0].version, model.ir_version = opset, ir_version
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        return folder / "m.onnx"

    return make


def external(location: str = "weights.bin", *, keep: int | None = None) -> Callable[[Path], Path]:
    """A model whose weights lie in weights.bin, said to lie at `location`; the file has `keep` bytes, -1: removed."""

    def make(folder: Path) -> Path:
        path = folder / "e.onnx"
        whole = onnx.load(models.padded(folder / "m.onnx", 4000))
        onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        (folder / "m.onnx").unlink()
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
        weights = folder / "weights.bin"
        if keep == -1:
            weights.unlink()
        elif keep is not None:
            weights.write_bytes(weights.read_bytes()[:keep])
        return path

    return make


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "m.onnx", "w") as archive:
        archive.writestr("data.pkl", "none")
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("make", "reason", "hint"),
    [
        (lambda folder: folder / "none.onnx", "No such file", "path of an .onnx file"),
        (lambda folder: folder, "Is a directory", "path of an .onnx file"),
        (written("m.onnx", b""), "not a valid ONNX model", "export it again"),
        (written("m.onnx", b"a letter, not a model"), "not a valid ONNX model", "export it again"),
        (written("m.tflite", b"\x1c\0\0\0TFL3" + bytes(50)), "it is a TensorFlow Lite file", "tf2onnx"),
        (written("m.onnx", b"\x89HDF\r\n\x1a\n" + bytes(50)), "it is an HDF5 file", "tf2onnx"),
        (zipped, "it is a zip archive", "package.module:factory"),
        (versioned(opset=NEWEST_OPSET + 1), f"opset {NEWEST_OPSET + 1}; onnx .* up to {NEWEST_OPSET}", "update onnx"),
        (
            versioned(ir_version=onnx.IR_VERSION + 1),
            f"IR version {onnx.IR_VERSION + 1}; onnx .* up to {int(onnx.IR_VERSION)}",
            "update onnx",
        ),
        (external(keep=-1), "weights.bin, which is missing", "put it in"),
        (external(keep=100), "shorter than", "copy both"),
        (external("../weights.bin"), "outside of its folder", "one file"),
        (external("/etc/hostname"), "outside of its folder", "one file"),
        (external(""), "outside of its folder", "one file"),
        (external("sub/none.bin"), "none.bin, which is missing", "put it in"),
    ],
)
def test_a_model_that_cannot_be_read_is_answered_in_one_line_with_a_hint(
    tmp_path: Path, make: Callable[[Path], Path], reason: str, hint: str
) -> None:
    path = make(tmp_path)
    before = {each: hashlib.sha256(each.read_bytes()).digest() for each in tmp_path.iterdir()}
    for read in (read_model, read_with_files, lambda given: load_source(str(given), tmp_path)):
        with pytest.raises(BadInputError, match=reason) as caught:
            read(path)
        assert caught.value.exit_code == ExitCode.BAD_INPUT
        assert "\n" not in caught.value.message
        assert hint in caught.value.hint
    assert {each: hashlib.sha256(each.read_bytes()).digest() for each in tmp_path.iterdir()} == before


def test_a_link_to_weights_elsewhere_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external()(folder)
    (folder / "weights.bin").rename(tmp_path / "private.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "private.bin")
    with pytest.raises(BadInputError, match="outside of its folder"):
        read_with_files(path)


def test_a_release_wants_one_file_and_the_hint_makes_it(tmp_path: Path) -> None:
    path = external()(tmp_path)
    with pytest.raises(BadInputError, match="weights in another file") as caught:
        read_proto(path)
    assert "onnx.save(onnx.load(" in caught.value.hint
    model, files = read_with_files(path)
    assert files == (tmp_path / "weights.bin",)
    onnx.save(onnx.load(path), tmp_path / "one.onnx")
    assert read_proto(tmp_path / "one.onnx").graph.initializer[0].raw_data == model.graph.initializer[0].raw_data


def test_weights_in_other_files_are_found_in_subgraphs_too(tmp_path: Path) -> None:
    blob = onnx.numpy_helper.from_array(np.ones(3, np.float32), "blob")
    blob.data_location = onnx.TensorProto.EXTERNAL
    blob.ClearField("raw_data")
    blob.external_data.add(key="location", value="../private.bin")
    out = onnx.helper.make_tensor_value_info("o", 1, [3])
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["o"], value=blob)], "b", [], [out])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    values = [onnx.helper.make_tensor_value_info("c", 9, []), onnx.helper.make_tensor_value_info("y", 1, [3])]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    (tmp_path / "model").mkdir()
    (tmp_path / "private.bin").write_bytes(bytes(12))
    path = tmp_path / "model" / "m.onnx"
    path.write_bytes(onnx.helper.make_model(graph, ir_version=8).SerializeToString())
    with pytest.raises(BadInputError, match="outside of its folder"):
        read_with_files(path)


@pytest.mark.parametrize(("opset", "ir_version", "what"), [(99, 8, "opset 99"), (17, 99, "IR version 99")])
def test_a_model_newer_than_onnxruntime_is_refused_with_both_numbers(opset: int, ir_version: int, what: str) -> None:
    with pytest.raises(BadInputError, match=rf"m\.onnx has {what}; the installed onnxruntime runs up to \d+") as caught:
        require_runnable(ModelSpec((), (), opset, ir_version, is_quantized=False), "m.onnx")
    newest = int(caught.value.message.rsplit(" ", 1)[1])
    require_runnable(
        ModelSpec((), (), min(opset, newest), min(ir_version, newest), is_quantized=False), "one it can run"
    )


def with_nodes(folder: Path, *nodes: tuple[str, str]) -> ModelSpec:
    model = onnx.load(models.classifier(folder / "m.onnx"))
    for op_type, domain in nodes:
        model.graph.node.add(op_type=op_type, domain=domain, output=[op_type])
    return model_spec(model)


@pytest.mark.parametrize(
    "op_type", ["QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger", "DynamicQuantizeMatMul"]
)
def test_a_model_that_is_quantised_already_is_refused(tmp_path: Path, op_type: str) -> None:
    spec = with_nodes(tmp_path, (op_type, ""))
    assert spec.precision == "int8"
    with pytest.raises(BadInputError, match=r"m\.onnx is quantised already") as caught:
        require_float(spec, "m.onnx")
    assert "FP32" in caught.value.hint


def test_weights_stored_in_eight_bits_alone_are_no_quantised_model(tmp_path: Path) -> None:
    require_float(with_nodes(tmp_path, ("DequantizeLinear", "")), "m.onnx")


def test_real_quantised_and_hybrid_models_are_told_apart() -> None:
    with pytest.raises(BadInputError, match="quantised already"):
        require_float(read_model(shared_model("shufflenet_v2_12_int8_qop.onnx")), "shufflenet")
    require_float(read_model(shared_model("kws_dscnn.onnx")), "kws")
