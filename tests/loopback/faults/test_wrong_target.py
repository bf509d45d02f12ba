"""Releases for another machine: platform, runtime, GPU, version of the runtime; engines that are not what they say."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release, variant
from tests.support.deploys import clients, configure, deploy, history, must_deploy

PASSPORT = {
    "runtime": "tensorrt",
    "runtime_version": "10.3.0.30",
    "os": "linux",
    "arch": "x86_64",
    "compute_capabilities": ["8.7"],
}
RTX = {**PASSPORT, "runtime": "tensorrt-rtx", "runtime_version": "1.7.1.116", "compute_capabilities": ["8.9"]}


def engine(magic: bytes = b"ftrt", version: tuple[int, ...] = (10, 3, 0, 30), gpus: int = 0, size: int = 4096) -> bytes:
    """A file that begins as an engine does, and holds nothing that could run."""
    head = struct.pack("<4sIIIQ4B", magic, 0, 2, 0, size, *version)
    return (head.ljust(32, b"\0") + struct.pack("<I", gpus)).ljust(4096, b"\0")


def with_engine(release: Release, folder: Path, passport: dict[str, Any], content: bytes) -> Release:
    """The release as one whose only artefact is an engine."""

    def change(body: dict[str, Any]) -> None:
        artefact = body["artefacts"][0]
        artefact.pop("encoding", None)
        artefact.pop("serving", None)
        artefact |= {"runtime": passport["runtime"], "file": "model.engine", "passport": passport}

    return variant(release, folder, change, {"model.engine": content})


def elsewhere(body: dict[str, Any], **platform: str) -> None:
    body["platform"] |= platform


CASES: dict[str, tuple[Any, str, str]] = {
    "another processor": (
        lambda release, folder: variant(release, folder, lambda body: elsewhere(body, arch="riscv64")),
        "incompatible",
        "the release is for linux/riscv64",
    ),
    "another system": (
        lambda release, folder: variant(release, folder, lambda body: elsewhere(body, os="qnx")),
        "incompatible",
        "the release is for qnx/",
    ),
    "a runtime that nobody has": (
        lambda release, folder: variant(release, folder, lambda body: body["artefacts"][0].update(runtime="npu-7")),
        "incompatible",
        "needs a runtime among: npu-7",
    ),
    "an engine where TensorRT is not installed": (
        lambda release, folder: with_engine(release, folder, PASSPORT, engine()),
        "incompatible",
        "needs a runtime among|CC 8.7",
    ),
    "an engine of another version than its passport says": (
        lambda release, folder: with_engine(release, folder, PASSPORT, engine(version=(10, 13, 3, 9))),
        "integrity",
        "10.13.3.9",
    ),
    "an engine of another runtime than its passport says": (
        lambda release, folder: with_engine(release, folder, PASSPORT, engine(b"vtrt", (1, 7, 1, 116), gpus=8)),
        "integrity",
        "TensorRT for RTX",
    ),
    "an engine for another GPU than its passport says": (
        lambda release, folder: with_engine(release, folder, RTX, engine(b"vtrt", (1, 7, 1, 116), gpus=16)),
        "integrity",
        "CC 12.0",
    ),
    "an engine that was cut": (
        lambda release, folder: with_engine(release, folder, PASSPORT, engine(size=8192)),
        "integrity",
        "8192",
    ),
    "an engine that is none": (
        lambda release, folder: with_engine(release, folder, PASSPORT, b"\x7fELF" + bytes(4092)),
        "integrity",
        "model.engine",
    ),
    "a model of which onnxruntime can read nothing": (
        lambda release, folder: variant(release, folder, files={"model.onnx": b"\x08\x07" * 500}),
        "incompatible",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_release_for_another_machine_is_refused_before_it_is_loaded_and_the_live_one_serves_on(
    device: Device, tmp_path: Path, case: str
) -> None:
    make, kind, why = CASES[case]
    # An engine that a device built is for its builder, where signatures are asked for; this is about the engine.
    configure(device.state, releases={"signatures": "off"})
    first = obedient_release(tmp_path, version=1)
    device.start()
    must_deploy(device, first)
    wrong = make(obedient_release(tmp_path, version=2), tmp_path / "wrong")
    device.push(wrong)
    with clients(device) as asking:
        ended = deploy(device, wrong)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", kind), ended
    assert any(part in ended["error"]["error"] for part in why.split("|")), ended["error"]
    assert ended["error"]["hint"]
    assert asking.answered
    assert not asking.failed
    assert [entry["step"] for entry in history(device)][-1] == "refused"
    assert_invariant(device.state, device.agent, {first.digest})
    device.restart()
    assert_invariant(device.state, device.agent, {first.digest})
