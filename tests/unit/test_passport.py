from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kedge.deploy.identity import match_modules, require_target
from kedge.errors import IncompatibleError
from kedge.targets import list_targets, load_target
from kedge_agent.engine import here
from kedge_agent.engine.library import RUNTIMES
from kedge_agent.formats.passport import Passport, PassportError, fit, parse_passport

ORIN = Passport(
    "tensorrt",
    "10.3.0.30",
    "linux",
    "aarch64",
    ("8.7",),
    module="nvidia,p3767-0005",
    l4t="36.4.3",
    cuda="12.6",
    power_mode="2",
)
RTX = Passport("tensorrt-rtx", "1.7.1.116", "linux", "x86_64", ("8.6", "8.9"))


def test_an_engine_fits_the_machine_it_was_built_on() -> None:
    found = fit(ORIN, ORIN)
    assert found.fits
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("engine", "machine", "refusal"),
    [
        (
            ORIN,
            replace(ORIN, runtime_version="10.16.2.10"),
            "engine: TensorRT 10.3.0.30, CC 8.7; device: TensorRT 10.16.2.10, CC 8.7",
        ),
        (ORIN, replace(ORIN, compute_capabilities=("11.0",)), "device: TensorRT 10.3.0.30, CC 11.0"),
        (ORIN, replace(ORIN, arch="x86_64"), "engine: linux/aarch64; device: linux/x86_64"),
        (ORIN, replace(ORIN, runtime="tensorrt-rtx"), "device: TensorRT for RTX 10.3.0.30"),
        (RTX, replace(RTX, compute_capabilities=("12.0",)), "CC 8.6, 8.9; device: TensorRT for RTX 1.7.1.116, CC 12.0"),
    ],
)
def test_a_hard_key_that_differs_refuses_and_names_both_sides(
    engine: Passport, machine: Passport, refusal: str
) -> None:
    found = fit(engine, machine)
    assert not found.fits
    assert refusal in found.refusals[0]


def test_a_soft_key_that_differs_warns() -> None:
    other = replace(ORIN, module="nvidia,p3767-0003", l4t="36.4.4", power_mode="0")
    found = fit(ORIN, other)
    assert found.fits
    assert found.warnings == (
        "module: built on nvidia,p3767-0005, this is nvidia,p3767-0003",
        "Jetson Linux: built on 36.4.3, this is 36.4.4",
        "power mode: built on 2, this is 0",
    )


def test_an_engine_for_several_gpus_serves_each_of_them() -> None:
    assert fit(RTX, replace(RTX, compute_capabilities=("8.9",))).fits
    assert not fit(replace(RTX, compute_capabilities=("8.9",)), RTX).fits


def test_a_machine_that_does_not_know_its_gpu_is_warned_and_not_refused() -> None:
    found = fit(RTX, replace(RTX, compute_capabilities=()))
    assert found.fits
    assert "is not known" in found.warnings[0]


def test_three_parts_of_a_version_are_held_against_the_first_three_of_four() -> None:
    assert fit(ORIN, replace(ORIN, runtime_version="10.3.0")).fits
    assert not fit(ORIN, replace(ORIN, runtime_version="10.3.1")).fits


def test_a_passport_comes_back_as_it_was_sent() -> None:
    for passport in (ORIN, RTX):
        assert parse_passport(passport.to_json()) == passport
    assert "driver" not in ORIN.to_json()


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        ORIN.to_json() | {"runtime": "onnxruntime"},
        ORIN.to_json() | {"runtime_version": "10"},
        ORIN.to_json() | {"runtime_version": 10},
        ORIN.to_json() | {"compute_capabilities": "8.7"},
        ORIN.to_json() | {"compute_capabilities": ["8.7"] * 40},
        ORIN.to_json() | {"compute_capabilities": ["sm_87"]},
        ORIN.to_json() | {"module": "\x1b[31m"},
        ORIN.to_json() | {"module": 3},
        ORIN.to_json() | {"l4t": "x" * 500},
        ORIN.to_json() | {"surprise": "1"},
        {key: value for key, value in ORIN.to_json().items() if key != "arch"},
    ],
)
def test_a_passport_that_was_received_is_checked(body: object) -> None:
    with pytest.raises(PassportError):
        parse_passport(body)


def tree(root: Path) -> Path:
    """Files as they lie on a Jetson Orin Nano."""
    for name, text in {
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "var/lib/nvpmodel/status": "pmode:0002",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="ascii")
    return root


def test_what_a_jetson_says_of_itself_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    assert here.jetson_linux(root) == "36.4.3"
    assert here.power_mode(root) == "2"
    assert here.compatible_modules(root)[1] == "nvidia,p3767-0005"
    monkeypatch.setattr(here, "gpu_here", lambda: here.Gpu("8.7", "12.6"))
    monkeypatch.setattr(type(RUNTIMES["tensorrt"]), "version", lambda self: "10.3.0.30")
    found = here.passport_here("tensorrt", root=root)
    assert found is not None
    assert (found.l4t, found.power_mode, found.driver, found.cuda) == ("36.4.3", "2", "540.4.0", "12.6")
    assert found.compute_capabilities == ("8.7",)


def test_a_machine_that_is_no_jetson_says_nothing_rather_than_something(tmp_path: Path) -> None:
    assert here.jetson_linux(tmp_path) is None
    assert here.power_mode(tmp_path) is None
    assert here.compatible_modules(tmp_path) == ()
    assert here.passport_here("no-such-runtime", root=tmp_path) is None


@pytest.mark.parametrize("name", [name for name in list_targets() if load_target(name).compatible])
def test_a_device_is_matched_to_its_profile_by_its_device_tree(name: str) -> None:
    target = load_target(name)
    for module in target.compatible:
        found = match_modules(["vendor,some-carrier-board", module, "nvidia,tegra234"])
        assert found is not None
        assert found.name == name
    facts = {
        "os": target.os,
        "arch": target.arch,
        "compatible": [target.compatible[0]],
        "gpu": target.compute_capability,
    }
    require_target("edge1", facts, target)


def test_a_device_that_is_another_module_is_refused_with_both_sides_named() -> None:
    nano, agx = load_target("orin-nano-8gb"), load_target("agx-orin-64gb")
    facts = {"os": "linux", "arch": "aarch64", "compatible": list(nano.compatible)}
    with pytest.raises(IncompatibleError, match=r"edge1 is orin-nano-8gb \(nvidia,p3767-0003\), its target agx-orin"):
        require_target("edge1", facts, agx)
    with pytest.raises(IncompatibleError, match=r"edge1 is acme,board, its target agx-orin-64gb is nvidia,p3701-0005"):
        require_target("edge1", {**facts, "compatible": ["acme,board"]}, agx)
    with pytest.raises(IncompatibleError, match=r"compute capability 8\.6, its target rtx-ada-2000 one of 8\.9"):
        require_target("edge1", {"os": "linux", "arch": "x86_64", "gpu": "8.6"}, load_target("rtx-ada-2000"))
    with pytest.raises(IncompatibleError, match="is linux/x86_64, its target"):
        require_target("edge1", {"os": "linux", "arch": "x86_64"}, agx)


def test_a_jetson_s_cpu_is_a_machine_of_the_generic_profile_too() -> None:
    facts = {"os": "linux", "arch": "aarch64", "compatible": ["nvidia,p3767-0003"], "gpu": "8.7"}
    require_target("edge1", facts, load_target("cpu-generic-aarch64"))
