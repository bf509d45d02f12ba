"""A model of text on a device: built, deployed through the parity gate, asked in both encodings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kedge.bench.batches import infer_batches, model_specs
from kedge.build.release import BuildOptions, build_release
from kedge.cli.infer import _save
from kedge.deploy.push import deploy
from kedge.errors import BadInputError, GateRefusedError
from kedge.model.inputs import load_tensors
from kedge.release.bundle import Release
from kedge.targets import host_target
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.support import models

TEXTS = ["yes", "größer", "no", ""]


def words_release(folder: Path) -> Release:
    golden = {"text": np.array(TEXTS, dtype=object), "weight": np.arange(4, dtype=np.float32)}
    model = models.words(folder / "words.onnx")
    return build_release(model, host_target(), folder / "words.release", BuildOptions("words"), golden).release


def test_text_goes_from_a_file_through_the_device_and_back(local_agent: LocalAgent, tmp_path: Path) -> None:
    done = deploy(local_agent, words_release(tmp_path))
    assert {entry["output"]: entry["cosine"] for entry in done.parity} == {"twice": 1.0, "score": 1.0}
    np.savez(tmp_path / "in.npz", text=np.array(TEXTS), weight=np.full(4, 2, dtype=np.float32))
    client = AgentClient(local_agent)
    inputs = load_tensors(tmp_path / "in.npz", model_specs(client, "words"))
    outputs, _ = infer_batches(client, "words", inputs)
    assert [text.decode() for text in outputs["twice"]] == [text * 2 for text in TEXTS]
    np.testing.assert_array_equal(outputs["score"], [2, 0, -2, 0])
    body = {
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["no"]},
            {"name": "weight", "datatype": "FP32", "shape": [1], "data": [3]},
        ]
    }
    header = json.dumps(body).encode()
    outputs = client.infer_raw("words", [header], len(header)).outputs
    assert (outputs["twice"].tolist(), outputs["score"].tolist()) == (["nono"], [-3.0])
    client.close()


def test_bytes_that_are_no_text_are_refused_and_the_device_serves_on(local_agent: LocalAgent, tmp_path: Path) -> None:
    deploy(local_agent, words_release(tmp_path))
    client = AgentClient(local_agent)
    weight = np.ones(1, dtype=np.float32)
    with pytest.raises(BadInputError, match="input 'text': string 0 is not UTF-8"):
        client.infer("words", {"text": np.array([b"\xff"], dtype=object), "weight": weight})
    outputs = client.infer("words", {"text": np.array(["yes"]), "weight": weight}).outputs
    assert outputs["twice"].tolist() == [b"yesyes"]
    client.close()


def test_a_device_that_gives_other_text_than_was_recorded_is_refused_by_the_gate(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    golden = {"text": np.array(["yes"], dtype=object), "weight": np.ones(1, dtype=np.float32)}
    built = build_release(
        models.words(tmp_path / "words.onnx"),
        host_target(),
        tmp_path / "words.release",
        BuildOptions("words"),
        golden,
        reference=models.words(tmp_path / "thrice.onnx", times=3),
    )
    with pytest.raises(GateRefusedError, match="twice"):
        deploy(local_agent, built.release)


def test_text_outputs_are_written_as_text_that_needs_no_pickle_to_read(local_agent: LocalAgent, tmp_path: Path) -> None:
    deploy(local_agent, words_release(tmp_path))
    client = AgentClient(local_agent)
    inputs = {"text": np.array(TEXTS, dtype=object), "weight": np.ones(4, "f4")}
    _save(tmp_path / "out.npz", client.infer("words", inputs).outputs)
    client.close()
    with np.load(tmp_path / "out.npz", allow_pickle=False) as written:
        assert written["twice"].tolist() == [text * 2 for text in TEXTS]
