"""A packed release on the device named `local`: fewer bytes travel, the same model answers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kedge.bench.batches import infer_batches
from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy, rollback
from kedge.errors import IntegrityError
from kedge.model.graph import Graph
from kedge.model.session import ReferenceModel
from kedge.optimize.cluster import Cluster
from kedge.optimize.work import Work
from kedge.release.bundle import Release, write_release
from kedge.targets import host_target
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.support import models
from tests.support.environment import shared_model


def clustered(path: Path, folder: Path, bits: int) -> Path:
    graph = Graph.read(path)
    out = folder / f"{path.stem}-{bits}.onnx"
    Cluster(bits).apply(graph, Work(host_target(), graph, None, None, folder, folder)).graph.write(out)
    return out


def small(folder: Path, bits: int) -> Path:
    return clustered(models.classifier(folder / "wide.onnx", classes=4000), folder, bits)


def test_a_packed_release_is_smaller_answers_the_same_and_is_rolled_back_to(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    model = small(tmp_path, 4)
    golden = {"image": models.images()}
    target = host_target()
    raw = build_release(model, target, tmp_path / "raw", BuildOptions("wide", 1, pack=False), golden).release
    packed = build_release(model, target, tmp_path / "packed", BuildOptions("wide", 2), golden).release
    deploy(local_agent, raw)
    done = deploy(local_agent, packed)
    # The golden tensors are on the device already.
    assert done.sent_bytes == packed.manifest.file("model.onnx.kpk").size_bytes < 0.17 * model.stat().st_size
    assert done.parity[0]["cosine"] > 0.9999
    client = AgentClient(local_agent)
    images = models.images(5)
    expected = ReferenceModel(model).run({"image": images})["logits"]
    for version in (2, 1, 2):
        assert client.get("/kedge/v1/status")["models"][0]["version"] == version
        outputs, _ = infer_batches(client, "wide", {"image": images})
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
        rollback(local_agent, "wide")
    client.close()
    # Unpacking leaves nothing behind, neither in the store nor open.
    stored = set(os.listdir(local_agent.state / "releases" / packed.digest))
    assert stored == {*os.listdir(packed.folder), "accepted.json", "offer.json"}
    opened = Path(f"/proc/{local_agent.pid}/fd")
    assert not [fd for fd in opened.iterdir() if "kedge-model" in os.readlink(fd)]


def test_a_packed_release_that_lies_is_refused_and_the_live_one_serves_on(
    local_agent: LocalAgent, tmp_path: Path
) -> None:
    import json

    model = small(tmp_path, 4)
    good = build_release(model, host_target(), tmp_path / "good", BuildOptions("wide", 1)).release
    deploy(local_agent, good)
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in good.files()}
    packed = bytearray((good.folder / "model.onnx.kpk").read_bytes())
    packed[-20] ^= 1
    sources["model.onnx.kpk"] = bytes(packed)
    body = json.loads(good.manifest_bytes) | {"version": 2}
    del body["files"]
    bad: Release = write_release(tmp_path / "bad", sources, body)
    with pytest.raises(IntegrityError, match=r"model\.onnx\.kpk cannot be unpacked"):
        deploy(local_agent, bad)
    client = AgentClient(local_agent)
    assert client.get("/kedge/v1/status")["models"][0]["release"] == good.digest
    client.close()


def test_a_real_network_of_five_bits_travels_in_a_quarter_of_its_bytes(local_agent: LocalAgent, tmp_path: Path) -> None:
    original = shared_model("resnet20_cifar10.onnx")
    release = build_release(
        clustered(original, tmp_path, 5), host_target(), tmp_path / "r", BuildOptions("resnet20")
    ).release
    done = deploy(local_agent, release)
    assert done.sent_bytes == release.manifest.total_bytes
    assert done.sent_bytes <= 0.25 * original.stat().st_size
    assert release.manifest.file("model.onnx.kpk").size_bytes <= 0.16 * original.stat().st_size
