"""BYTES tensors: their encoding, their JSON, and how requests, responses, releases and files carry them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.build.golden import made_up_inputs
from kedge.build.release import BuildOptions, build_release
from kedge.errors import BadInputError
from kedge.model.inputs import load_tensors
from kedge.model.onnx_io import read_model
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge_agent.errors import AgentError
from kedge_agent.formats.manifest import ManifestError, parse_manifest
from kedge_agent.formats.oip import decode_response, encode_request
from kedge_agent.formats.strings import as_text, decode_strings, encode_strings, strings_from_json
from kedge_agent.formats.tensors import TensorSpec
from kedge_agent.serving.golden import golden_batch, read_golden
from kedge_agent.store.layout import Layout
from kedge_agent.wire import WireError, parse_json
from tests.support import models


def objects(*elements: Any) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def test_each_element_is_its_length_and_its_bytes_as_the_binary_extension_has_it() -> None:
    assert encode_strings(objects("né", b"", b"\xff")) == b"\3\0\0\0n\xc3\xa9" + b"\0\0\0\0" + b"\1\0\0\0\xff"


@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 2), (2, 0, 3)])
def test_what_was_encoded_is_decoded_in_its_shape(shape: tuple[int, ...]) -> None:
    count = int(np.prod(shape))
    given = objects(*[b"x" * index + b"\0" for index in range(count)]).reshape(shape)
    got = decode_strings(encode_strings(given), shape)
    assert got.shape == shape
    assert got.tolist() == given.tolist()


@pytest.mark.parametrize("dtype", ["U", "S"])
def test_fixed_width_text_is_encoded_without_its_padding(dtype: str) -> None:
    assert encode_strings(np.array(["a", "longer"], dtype=dtype)) == encode_strings(objects(b"a", b"longer"))


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (b"", (1,)),
        (b"\1\0\0", (1,)),
        (b"\2\0\0\0a", (1,)),
        (b"\xff\xff\xff\xffa", (1,)),
        (b"\1\0\0\0ab", (1,)),
        (b"\1\0\0\0a", (2,)),
        (b"\5\0\0\0aaaaa\0\0", (2,)),
        (b"\0", (0,)),
        (b"\0\0\0\0" * 4, (1 << 39,)),
    ],
)
def test_an_encoding_that_does_not_fill_its_shape_exactly_is_refused(data: bytes, shape: tuple[int, ...]) -> None:
    with pytest.raises(WireError):
        decode_strings(data, shape)


@pytest.mark.parametrize("element", [None, 7, ["a"], "\ud800"])
def test_what_is_no_string_is_not_encoded(element: Any) -> None:
    with pytest.raises(WireError):
        encode_strings(objects("a", element))


def test_text_is_utf_8_or_it_is_none() -> None:
    got = as_text(objects("é", "é".encode(), b"a\0").reshape(3, 1))
    assert got.tolist() == [["é"], ["é"], ["a\0"]]
    with pytest.raises(WireError, match="string 1 is not UTF-8"):
        as_text(objects("a", b"\xc3"))


@pytest.mark.parametrize(
    ("data", "shape"), [(["a", "b"], (2,)), (["a", "b"], (2, 1)), ([["a"], ["b"]], (2, 1)), ([], (0,)), (["a"], ())]
)
def test_json_carries_strings_flat_or_nested(data: Any, shape: tuple[int, ...]) -> None:
    got = strings_from_json(data, shape)
    assert (got.shape, got.ravel().tolist()) == (shape, [text for item in data for text in item])


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        ("ab", (2,)),
        (["a", 1], (2,)),
        (["a"], (2,)),
        ([["a"], "b"], (2, 1)),
        ([["a"], ["b"]], (2,)),
        ([["a", "b"], ["c"]], (2, 2)),
        ([[["a"]]], (1, 1)),
        (None, (1,)),
        (["a"], (1 << 39,)),
    ],
)
def test_json_that_is_no_tensor_of_strings_is_refused(data: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(WireError):
        strings_from_json(data, shape)


def test_a_request_states_the_length_of_the_encoding_of_its_strings() -> None:
    header, buffers = encode_request({"text": objects("a", b"bc"), "n": np.array([1, 2], dtype=np.int64)})
    text, numbers = parse_json(header)["inputs"]
    assert text == {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}}
    assert numbers["parameters"] == {"binary_data_size": 16}
    assert bytes(buffers[0]) == b"\1\0\0\0a\2\0\0\0bc"


def response(*tensors: tuple[dict[str, Any], bytes]) -> tuple[memoryview, int]:
    header = json.dumps({"outputs": [entry for entry, _ in tensors]}).encode()
    return memoryview(header + b"".join(data for _, data in tensors)), len(header)


def entry(name: str, shape: list[int], size: int | None = None, **more: Any) -> dict[str, Any]:
    parameters = {} if size is None else {"parameters": {"binary_data_size": size}}
    return {"name": name, "datatype": "BYTES", "shape": shape, **parameters, **more}


def test_a_response_has_strings_beside_numbers_binary_or_json() -> None:
    text = encode_strings(objects("a", b"\xff"))
    numbers = np.array([1, 2], dtype=np.int64)
    body, header = response(
        (entry("text", [2], len(text)), text),
        ({**entry("n", [2], 16), "datatype": "INT64"}, numbers.tobytes()),
        (entry("json", [1, 1], data=["é"]), b""),
    )
    outputs = decode_response(body, header)
    assert outputs["text"].tolist() == [b"a", b"\xff"]
    assert outputs["n"].tolist() == [1, 2]
    assert outputs["json"].tolist() == [["é"]]


@pytest.mark.parametrize("size", [-1, 4, 6, 1 << 60, 5.0, True, "5"])
def test_a_response_that_lies_about_the_bytes_of_its_strings_is_refused(size: Any) -> None:
    body, header = response((entry("text", [1], size), b"\1\0\0\0a"))
    with pytest.raises(WireError):
        decode_response(body, header)


@pytest.mark.parametrize("shape", [[-1], [-1, -1], [1 << 40], [1, None]])
def test_a_response_of_strings_in_a_shape_that_cannot_be_is_refused(shape: list[Any]) -> None:
    body, header = response((entry("text", shape, 5), b"\1\0\0\0a"))
    with pytest.raises(WireError):
        decode_response(body, header)


TEXT = (TensorSpec("text", "BYTES", (-1,)),)


@pytest.mark.parametrize("given", [np.array(["a", "é"]), np.array([b"a", "é".encode()])])
def test_text_of_a_file_comes_as_str_whatever_its_width(tmp_path: Path, given: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", given)
    got = load_tensors(tmp_path / "x.npy", TEXT)["text"]
    assert (got.dtype, got.tolist()) == (np.dtype(object), ["a", "é"])


def test_bytes_of_a_file_that_are_no_text_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([b"\xff"]))
    with pytest.raises(BadInputError, match="'text': string 0 is not UTF-8"):
        load_tensors(tmp_path / "x.npy", TEXT)


def test_text_that_was_pickled_is_refused_and_the_hint_says_how_to_save_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", objects("a"))
    with pytest.raises(BadInputError) as caught:
        load_tensors(tmp_path / "x.npy", TEXT)
    assert "astype" in caught.value.hint


def test_inputs_that_are_made_up_are_text_where_the_model_takes_text(tmp_path: Path) -> None:
    made = made_up_inputs(read_model(models.words(tmp_path / "m.onnx")))
    assert made["text"].tolist() == ["kedge"]
    assert made["weight"].dtype == np.float32


def words_release(folder: Path) -> Release:
    golden = {"text": objects("yes", "é", ""), "weight": np.arange(3, dtype=np.float32)}
    model = models.words(folder / "words.onnx")
    return build_release(model, host_target(), folder / "words.release", BuildOptions("words"), golden).release


def stored(folder: Path) -> tuple[Layout, Release]:
    release, layout = words_release(folder), Layout(folder / "state")
    shutil.copytree(release.folder, layout.release(release.digest))
    return layout, release


def test_a_release_records_text_in_the_encoding_of_the_protocol(tmp_path: Path) -> None:
    layout, release = stored(tmp_path)
    manifest = release.manifest
    assert [tensor.datatype for tensor in manifest.golden.inputs] == ["BYTES", "FP32"]
    assert (release.folder / manifest.golden.inputs[0].file).read_bytes() == encode_strings(objects("yes", "é", ""))
    outputs = read_golden(layout, manifest, manifest.golden.outputs)
    assert outputs["twice"].tolist() == [b"yesyes", "éé".encode(), b""]
    batch, count = golden_batch(layout, manifest, manifest.artefacts[0].inputs, 5)
    assert (batch["text"].tolist(), count) == ([b"yes", "é".encode(), b"", b"yes", "é".encode()], 5)


def test_recorded_text_that_does_not_fill_its_shape_is_found_when_it_is_read(tmp_path: Path) -> None:
    layout, release = stored(tmp_path)
    path = layout.release(release.digest) / release.manifest.golden.inputs[0].file
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AgentError, match="cannot be read") as caught:
        read_golden(layout, release.manifest, release.manifest.golden.inputs)
    assert caught.value.kind == "integrity"


def test_the_manifest_holds_numbers_to_their_size_and_leaves_text_to_its_reader(tmp_path: Path) -> None:
    body = json.loads((words_release(tmp_path).folder / "manifest.json").read_text(encoding="utf-8"))
    text, weight = body["golden"]["inputs"]
    text["shape"] = [300]
    assert parse_manifest(json.dumps(body).encode()).golden.inputs[0].shape == (300,)
    weight["shape"] = [300]
    with pytest.raises(ManifestError, match="its shape needs 1200"):
        parse_manifest(json.dumps(body).encode())
