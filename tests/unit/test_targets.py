from __future__ import annotations

from pathlib import Path

import pytest

from kedge.build.plan import plan
from kedge.errors import BadInputError, IncompatibleError
from kedge.model.onnx_io import read_model
from kedge.targets import Int8Scheme, list_targets, load_target
from tests.support import models


@pytest.mark.parametrize("name", list_targets())
def test_what_a_profile_shows_is_what_it_states(name: str) -> None:
    target = load_target(name)
    shown = target.to_json()
    assert shown["int8"] == target.int8.to_json()
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


def test_a_target_for_which_nothing_is_built_yet_says_so(tmp_path: Path) -> None:
    spec = read_model(models.classifier(tmp_path / "m.onnx"))
    with pytest.raises(IncompatibleError, match="tensorrt-rtx, for which this version builds nothing"):
        plan(spec, load_target("rtx-ada-2000"))
