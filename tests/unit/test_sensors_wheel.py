from __future__ import annotations

from pathlib import Path

import pytest

from kedge.deploy import wheelhouse
from kedge.deploy.wheelhouse import DevicePython, Wheel
from kedge.errors import IncompatibleError

THOR = DevicePython((3, 12), "aarch64", (2, 39))


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sets of wheels that are asked for; the one of NVIDIA's binding cannot be had."""
    told: list[str] = []

    def kept(device: DevicePython, requirements: list[str], *_: object) -> list[Wheel]:
        told.extend(requirements)
        if requirements == [wheelhouse.NVML]:
            raise IncompatibleError("no network")
        return [Wheel("numpy-2-py3-none-any.whl", "", tmp_path)]

    monkeypatch.setattr(wheelhouse, "_kept", kept)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return told


def test_a_device_with_a_gpu_gets_nvidia_s_binding_and_does_without_where_it_cannot_be_had(asked: list[str]) -> None:
    notes: list[str] = []
    wheels = wheelhouse.resolve(THOR, has_gpu=True, note=notes.append)
    assert wheelhouse.NVML in asked
    assert len(wheels) == 3
    assert notes == [
        f"without {wheelhouse.NVML}: this device does not tell what NVIDIA's driver knows of its GPU (no network)"
    ]


def test_a_device_without_a_gpu_is_not_kept_waiting_for_it(asked: list[str]) -> None:
    notes: list[str] = []
    wheelhouse.resolve(THOR, note=notes.append)
    assert wheelhouse.NVML not in asked
    assert notes == []
