"""Wheels that this host built, because no index has them, go along with those that pip resolves."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kedge.deploy import wheelhouse
from kedge.deploy.wheelhouse import DevicePython, Wheel, built_wheels, resolve

ORIN = DevicePython((3, 10), "aarch64", (2, 35))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A wheel of pycuda for JetPack 6; the other libraries are there already."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = wheelhouse._kept

    def only_pycuda(device: DevicePython, requirements: list[str], *rest: object) -> list[Wheel]:
        return kept(device, requirements, *rest) if requirements == [wheelhouse.PYCUDA] else []  # type: ignore[arg-type]

    monkeypatch.setattr(wheelhouse, "_kept", only_pycuda)
    name = "pycuda-2026.1-cp310-cp310-manylinux_2_34_aarch64.whl"
    built_wheels().mkdir(parents=True)
    with zipfile.ZipFile(built_wheels() / name, "w") as out:
        out.writestr("pycuda-2026.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: pycuda\nVersion: 2026.1\n")
        out.writestr("pycuda-2026.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: cp310-cp310-manylinux_2_34_aarch64\n")
    return name


def names(device: DevicePython, *, has_gpu: bool) -> list[str]:
    return [wheel.name for wheel in resolve(device, needs_onnxruntime=False, has_gpu=has_gpu)]


def test_a_device_with_a_gpu_gets_the_wheel_that_fits_its_python_processor_and_glibc(built: str) -> None:
    assert built in names(ORIN, has_gpu=True)
    assert built not in names(ORIN, has_gpu=False)


@pytest.mark.parametrize(
    "other",
    [
        DevicePython((3, 12), "aarch64", (2, 39)),
        DevicePython((3, 10), "x86_64", (2, 35)),
        DevicePython((3, 10), "aarch64", (2, 31)),
    ],
    ids=["python", "processor", "glibc"],
)
def test_one_that_it_does_not_fit_is_provisioned_as_if_there_were_none(built: str, other: DevicePython) -> None:
    assert built not in names(other, has_gpu=True)


def test_a_host_without_pip_provisions_without_the_built_wheel_and_says_so(
    built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    notes: list[str] = []
    wheels = resolve(ORIN, needs_onnxruntime=False, has_gpu=True, note=notes.append)
    assert [wheel.name for wheel in wheels if wheel.name == built] == []
    assert len(wheels) == 1
    (said,) = notes
    assert "pycuda" in said
    assert "no pip" in said
