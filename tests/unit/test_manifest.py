from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kedge_agent.formats.artefact import CALIBRATION_DATA, CalibratedRange, Serving
from kedge_agent.formats.manifest import ManifestError, manifest_bytes, parse_manifest
from kedge_agent.wire import FRAME_BYTES

SHA = hashlib.sha256(b"").hexdigest()


def body() -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    return {
        "kedge": 1,
        "model": "digits",
        "version": 3,
        "target": "cpu-generic-x86_64",
        "platform": {"os": "linux", "arch": "x86_64"},
        "files": [
            {"name": "model.onnx", "bytes": FRAME_BYTES + 1, "sha256": "a" * 64, "frames": [SHA, SHA]},
            {"name": "in.bin", "bytes": 8, "sha256": SHA, "frames": [SHA]},
            {"name": "out.bin", "bytes": 8, "sha256": SHA, "frames": [SHA]},
        ],
        "artefacts": [
            {
                "runtime": "onnxruntime",
                "file": "model.onnx",
                "precision": "int8",
                "inputs": [tensor],
                "outputs": [dict(tensor)],
            }
        ],
        "golden": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "file": "in.bin"}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "file": "out.bin"}],
        },
        "gates": {"parity": {"cosine_min": "0.999", "relative_error_max": "0.02"}},
        "provenance": {"kedge": "0.1.0"},
    }


def test_a_release_is_named_by_the_hash_of_its_manifest_s_bytes() -> None:
    data = manifest_bytes(body())
    manifest = parse_manifest(data)
    assert manifest.digest == hashlib.sha256(data).hexdigest()
    assert (manifest.model, manifest.version, manifest.total_bytes) == ("digits", 3, FRAME_BYTES + 17)
    assert manifest.gates.parity.limits.cosine_min == 0.999
    assert parse_manifest(data.replace(b"\n ", b"\n  ")).digest != manifest.digest


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(root: dict[str, Any]) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        for parent in parents:
            root = root[parent]
        root[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kedge", 2),
        ("model", "../etc"),
        ("model", "Digits"),
        ("model", ""),
        ("version", 0),
        ("version", True),
        ("version", "1"),
        ("surprise", 1),
        ("files", []),
        ("files.0.name", "../../bin/sh"),
        ("files.0.name", "sub/model.onnx"),
        ("files.0.name", "manifest.json"),
        ("files.0.name", "manifest.json.sig"),
        ("files.0.name", "accepted.json"),
        ("files.0.name", ".hidden"),
        ("files.0.name", "in.bin"),
        ("files.1.frames", ["b" * 64]),
        ("files.0.bytes", -1),
        ("files.0.bytes", 1 << 50),
        ("files.0.sha256", SHA.upper().replace("E", "G")),
        ("files.0.frames", [SHA]),
        ("files.0.frames", [SHA, "x"]),
        ("files.0.frames", [SHA, SHA, SHA]),
        ("artefacts", []),
        ("artefacts.0.file", "absent.onnx"),
        ("artefacts.0.inputs.0.datatype", "STRING"),
        ("artefacts.0.inputs.0.calibrated", "0 to 1"),
        ("artefacts.0.inputs.0.calibrated", {"max": "1", "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "0", "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "1"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "1", "source": "hearsay"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "1", "source": "quantizer", "mean": "0"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "1", "max": "0.5", "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "NaN", "max": "1", "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "Infinity", "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "1e309", "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": 0, "max": 1, "source": "quantizer"}),
        ("artefacts.0.inputs.0.calibrated", {"min": 0.5, "max": 1.5, "source": "quantizer"}),
        ("artefacts.0.outputs.0.calibrated", {"min": "0", "max": "1", "source": "quantizer"}),
        ("artefacts.0.serving", {}),
        ("artefacts.0.serving", {"threads": 0}),
        ("artefacts.0.serving", {"threads": 1025}),
        ("artefacts.0.serving", {"threads": "4"}),
        ("artefacts.0.serving", {"threads": 4, "nice": 1}),
        ("artefacts.0.serving", {"providers": []}),
        ("artefacts.0.serving", {"providers": ["CPUExecutionProvider"]}),
        ("artefacts.0.serving", {"providers": [{"name": "CPU ExecutionProvider"}]}),
        ("artefacts.0.serving", {"providers": [{"name": "CPUExecutionProvider"}] * 2}),
        ("artefacts.0.serving", {"providers": [{"name": f"P{index}"} for index in range(9)]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {"k": 1}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {"a b": "1"}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {"k": "v" * 257}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {"k": ""}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {"k": "a\nb"}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {"library": "/tmp/evil.so"}}]}),
        ("artefacts.0.serving", {"providers": [{"name": "P", "options": {f"k{index}": "" for index in range(33)}}]}),
        ("artefacts.0.inputs.0.shape", [-2]),
        ("artefacts.0.inputs.0.shape", [1] * 17),
        ("artefacts.0.encoding", "zip"),
        ("artefacts.0.encoding", "raw"),
        ("artefacts.0.encoding", 1),
        ("golden.inputs", []),
        ("golden.inputs.0.file", "absent.bin"),
        ("golden.inputs.0.shape", [1, 3]),
        ("golden.inputs.0.shape", [-1, 2]),
        ("gates.parity.cosine_min", 0.9),
        ("gates.parity.cosine_min", "high"),
        ("gates.parity.cosine_min", "NaN"),
        ("gates.parity.cosine_min", "1.1"),
        ("gates.parity.relative_error_max", "1e400"),
        ("gates.parity.relative_error_max", "-1"),
        ("golden.outputs", [{"name": "y", "datatype": "FP32", "shape": [1, 2], "file": "out.bin"}] * 2),
        ("artefacts.0.inputs", [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}] * 2),
        ("platform.os", 1),
        ("provenance", []),
    ],
)
def test_anything_that_is_not_as_documented_is_refused(path: str, value: Any) -> None:
    changed = copy.deepcopy(body())
    change(path, value)(changed)
    with pytest.raises(ManifestError):
        parse_manifest(json.dumps(changed).encode())


def test_an_artefact_is_raw_unless_it_says_that_it_is_packed() -> None:
    assert parse_manifest(manifest_bytes(body())).artefacts[0].encoding == "raw"
    changed = body()
    changed["artefacts"][0]["encoding"] = "packed"
    assert parse_manifest(manifest_bytes(changed)).artefacts[0].encoding == "packed"


def test_an_input_may_say_which_range_it_was_calibrated_for() -> None:
    assert parse_manifest(manifest_bytes(body())).artefacts[0].calibrated == {}
    changed = body()
    stated = {"min": "-0.10000000149011612", "max": "1e-05", "source": "calibration data"}
    changed["artefacts"][0]["inputs"][0] = changed["artefacts"][0]["inputs"][0] | {"calibrated": stated}
    artefact = parse_manifest(manifest_bytes(changed)).artefacts[0]
    assert artefact.calibrated == {"x": CalibratedRange(-0.10000000149011612, 1e-5, CALIBRATION_DATA)}
    assert np.float32(artefact.calibrated["x"].min) == np.float32(-0.1)
    assert artefact.inputs == parse_manifest(manifest_bytes(body())).artefacts[0].inputs


def test_one_value_is_a_range_too() -> None:
    changed = body()
    change("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "0", "source": "quantizer"})(changed)
    assert parse_manifest(json.dumps(changed).encode()).artefacts[0].calibrated["x"] == CalibratedRange(
        0, 0, "quantizer"
    )


def test_an_input_of_text_is_served_and_has_no_range() -> None:
    changed = body()
    changed["artefacts"][0]["inputs"] = [{"name": "words", "datatype": "BYTES", "shape": [-1]}]
    assert parse_manifest(manifest_bytes(changed)).artefacts[0].inputs[0].datatype == "BYTES"
    change("artefacts.0.inputs.0.calibrated", {"min": "0", "max": "1", "source": "quantizer"})(changed)
    with pytest.raises(ManifestError, match="BYTES"):
        parse_manifest(json.dumps(changed).encode())


def test_a_range_may_not_be_written_as_floats() -> None:
    changed = body()
    change("artefacts.0.inputs.0.calibrated", {"min": 0.0, "max": 1.5, "source": "quantizer"})(changed)
    with pytest.raises(ManifestError, match="not an integer"):
        parse_manifest(json.dumps(changed).encode())


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"threads": 4}, Serving(threads=4)),
        ({"providers": [{"name": "CPUExecutionProvider"}]}, Serving(providers=(("CPUExecutionProvider", ()),))),
        (
            {
                "threads": 1,
                "providers": [
                    {"name": "CUDAExecutionProvider", "options": {"device_id": "0", "arena": "k"}},
                    {"name": "P"},
                ],
            },
            Serving(1, (("CUDAExecutionProvider", (("arena", "k"), ("device_id", "0"))), ("P", ()))),
        ),
    ],
)
def test_an_artefact_may_say_how_it_is_served(stated: dict[str, Any], expected: Serving) -> None:
    assert parse_manifest(manifest_bytes(body())).artefacts[0].serving is None
    changed = body()
    changed["artefacts"][0]["serving"] = stated
    assert parse_manifest(manifest_bytes(changed)).artefacts[0].serving == expected
    assert expected.to_json() == stated


def test_an_engine_takes_no_threads_or_providers() -> None:
    changed = body()
    changed["artefacts"][0] |= {"runtime": "tensorrt", "build": {"runtime": "tensorrt"}}
    parse_manifest(manifest_bytes(changed))
    changed["artefacts"][0]["serving"] = {"threads": 4}
    with pytest.raises(ManifestError, match="tensorrt takes no serving"):
        parse_manifest(json.dumps(changed).encode())


@pytest.mark.parametrize("key", list(body()))
def test_no_key_may_be_missing(key: str) -> None:
    changed = body()
    del changed[key]
    with pytest.raises(ManifestError, match=f"manifest.{key} is missing"):
        parse_manifest(json.dumps(changed).encode())


def test_floats_are_refused_wherever_they_stand() -> None:
    changed = body()
    changed["provenance"]["accuracy"] = 0.5
    with pytest.raises(ManifestError, match="not an integer"):
        parse_manifest(json.dumps(changed).encode())


def test_duplicate_keys_are_refused() -> None:
    data = json.dumps(body()).replace('"version": 3', '"version": 3, "version": 4').encode()
    with pytest.raises(ManifestError, match="duplicate key"):
        parse_manifest(data)
