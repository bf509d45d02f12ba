"""A live release whose engine was built by another TensorRT than the one that the device has now."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, write_state
from tests.conftest import make_release
from tests.loopback.doctor.conftest import Bench
from tests.loopback.faults.test_wrong_target import PASSPORT, engine, with_engine
from tests.support.doctors import finding, told
from tests.support.stores import parts_of, put

pytestmark = pytest.mark.slow


def install_tensorrt(bench: Bench, version: str) -> None:
    """Its package is there, as far as its version is told: as after an update of JetPack."""
    folder = bench.state / f"agent/current/site/tensorrt-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")


def test_an_engine_of_another_tensorrt_is_the_first_cause_and_is_to_be_built_again(
    bench: Bench, tmp_path: Path
) -> None:
    """It was live when JetPack was updated: it is put there without a deploy, which would have refused it."""
    release = with_engine(make_release(tmp_path, version=1), tmp_path / "engine", PASSPORT, engine())
    layout = Layout(bench.state)
    bench.run(f"{bench.program} stop")
    digest = put(layout, parts_of(release, tmp_path))
    layout.model("digits").mkdir(parents=True)
    write_state(layout, "digits", ModelState(digest, None, 1))
    install_tensorrt(bench, "10.7.0.23")
    bench.own()
    # Nothing is ready there but the agent itself.
    bench.run(f"{bench.program} start")
    document = bench.nano.names("engines")
    first = document["first_cause"]
    assert "TensorRT 10.3.0.30, CC 8.7; device: TensorRT 10.7.0.23" in first["evidence"]
    assert first["cure"] == ("kedge build RECIPE --target orin-nano-8gb --on nano && kedge deploy RELEASE --to nano")
    assert finding(document, "models")["result"] == "fault", told(document)
    # An engine is built by TensorRT, which is not here; a release without one is as good for this.
    bench.deploy(make_release(tmp_path, version=2))
    document = bench.doctor.finds_no_fault()
    # A rollback would serve the other one still.
    assert finding(document, "engines")["result"] == "warning", told(document)
