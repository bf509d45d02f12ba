from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from kedge.errors import BadInputError
from kedge.targets import Int8Scheme, list_targets, load_target

_SPEC = importlib.util.spec_from_file_location(
    "check_targets", Path(__file__).resolve().parents[2] / "tools" / "check_targets.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
check_targets = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(check_targets)


@pytest.mark.parametrize("name", list_targets())
def test_what_a_profile_shows_is_what_it_states(name: str) -> None:
    target = load_target(name)
    shown = target.to_json()
    assert shown["int8"] == {key: value for key, value in target.int8.to_json().items() if value is not None}
    assert shown["channel_multiple"] == target.channel_multiple
    assert target.channel_multiple >= 1
    assert "fp32" in target.precisions


def test_the_two_schemes_differ_where_their_runtimes_do() -> None:
    cpu, rtx = load_target("cpu-generic-x86_64"), load_target("rtx-ada-2000")
    assert (cpu.int8.activations, cpu.int8.symmetric, cpu.int8.bias) == ("uint8", False, "int32")
    assert (rtx.int8.activations, rtx.int8.symmetric, rtx.int8.bias) == ("int8", True, "float")
    assert (cpu.int8.placement, rtx.int8.placement) == ("tensor", "tensorrt")
    assert (cpu.compute_capability, rtx.compute_capability) == (None, "8.9")


def test_a_scheme_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadInputError, match="placement"):
        Int8Scheme("int8", "int8", symmetric=True, bias="float", placement="everywhere")


def test_every_profile_is_as_the_schema_says_and_no_two_claim_a_module() -> None:
    assert check_targets.faults() == []


def test_the_check_of_profiles_names_what_is_wrong(tmp_path: Path) -> None:
    good = (check_targets.PROFILES / "orin-nano-8gb.toml").read_text(encoding="utf-8")
    for name, text in {
        "orin-nano-8gb": good,
        "other": good,
        "odd": good.replace('"jetson"', '"toaster"').replace("p3767-000", "p9999-000"),
        "key": good.replace("channel_multiple", "chanel_multiple"),
        "broken": "name = ",
        "tops": good.replace("int8_tops_dense = 33", "int8_tops_dense = 0").replace("p3767-000", "p9998-000"),
    }.items():
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    found = "\n".join(check_targets.faults(tmp_path))
    for expected in (
        "other.toml: the profile is named orin-nano-8gb",
        "is claimed by orin-nano-8gb.toml too",
        "odd.toml: family is 'toaster'",
        "key.toml: the profile has unknown keys: chanel_multiple",
        "broken.toml: the profile is not TOML",
        "tops.toml: gpu.int8_tops_dense: 0 is less than or equal to the minimum of 0",
    ):
        assert expected in found


def test_what_a_profile_does_not_know_is_absent_and_not_zero() -> None:
    shown = load_target("cpu-generic-x86_64").to_json()
    assert "gpu" not in shown
    assert "memory" not in shown
    for name in list_targets():
        assert "null" not in json.dumps(load_target(name).to_json())
