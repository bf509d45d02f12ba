from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from importlib import resources

import pytest

from kedge.build.preflight.operators import OperatorTable, known_versions, table_for
from kedge.errors import BadInputError, IncompatibleError

TYPES = {"FP32", "FP16", "BF16", "FP8", "FP4", "INT64", "INT32", "INT8", "INT4", "UINT8", "BOOL"}

every_version = pytest.mark.parametrize("version", known_versions())


@every_version
@pytest.mark.parametrize("op_type", ["Conv", "MatMul", "Gemm", "Relu", "Add", "Reshape", "Softmax", "Resize"])
def test_what_every_network_is_made_of_is_in_every_version(version: str, op_type: str) -> None:
    support = table_for(version).supports(op_type)
    assert support.supported
    assert {"FP32", "FP16"} <= set(support.types)


@every_version
def test_each_table_is_whole_and_says_which_release_it_is_of(version: str) -> None:
    table = table_for(version)
    assert table.version == version
    assert table.table == version or table.remark
    assert 7 <= table.opset_min < table.opset_max
    assert set(table.types) <= TYPES
    assert set(table.quantized_types) <= set(table.types)
    assert set(table.io_types) <= set(table.types)
    assert set(table.casts.values()) <= set(table.types)
    assert set(table.casts).isdisjoint(table.types)
    assert sum(support.supported for support in table.operators.values()) > 140


@every_version
def test_each_row_has_known_types_and_a_note_of_one_short_line(version: str) -> None:
    table = table_for(version)
    for op_type, support in table.operators.items():
        assert op_type.isidentifier()
        assert set(support.types) <= set(table.types), op_type
        assert len(set(support.types)) == len(support.types), op_type
        assert len(support.note) <= 120, op_type
        assert "\n" not in support.note, op_type
        assert support.supported or (support.note and not support.types), op_type


def test_an_operator_that_came_later_is_told_apart() -> None:
    assert not table_for("10.3").supports("STFT").supported
    assert table_for("10.13").supports("STFT").supported
    assert not table_for("8.5").supports("LayerNormalization").supported
    assert table_for("8.6").supports("LayerNormalization").supported
    assert not table_for("10.13").supports("Attention").supported
    assert table_for("10.16").supports("Attention").supported
    assert not table_for("10.16").supports("Swish").supported
    assert table_for("11.0").supports("Swish").supported


def test_a_restriction_that_was_lifted_later_is_told_apart() -> None:
    assert "axes" in table_for("10.2").supports("Slice").note
    assert not table_for("10.3").supports("Slice").note
    assert table_for("10.3").supports("GridSample").note == "4D input only"
    assert "5D" in table_for("11.4").supports("GridSample").note


def test_types_that_came_later_are_told_apart() -> None:
    assert "BF16" not in table_for("8.6").supports("Conv").types
    assert "BF16" in table_for("10.3").supports("Conv").types
    assert "FP4" not in table_for("10.3").quantized_types
    assert "FP4" in table_for("10.13").quantized_types
    assert table_for("8.5").casts["INT64"] == "INT32"
    assert "INT64" in table_for("10.3").types


def test_int8_is_a_type_of_a_row_in_8_and_comes_through_pairs_in_10() -> None:
    old, new = table_for("8.5"), table_for("10.3")
    assert "INT8" in old.supports("Conv").types
    assert "INT8" not in old.quantized_types
    assert "INT8" not in new.supports("Conv").types
    assert "INT8" in new.quantized_types


def test_the_range_of_opsets_grows() -> None:
    tops = [table_for(version).opset_max for version in ("8.5", "10.3", "10.13", "10.16", "11.5")]
    assert tops == [17, 20, 23, 24, 25]


@every_version
def test_an_operator_that_no_table_lists_is_not_supported(version: str) -> None:
    support = table_for(version).supports("NoSuchOperator")
    assert (support.supported, support.types) == (False, ())
    assert support.note == "the table does not list it"


@every_version
def test_what_onnx_quantises_in_operators_of_its_own_is_not_supported_and_a_way_is_named(version: str) -> None:
    support = table_for(version).supports("QLinearConv")
    assert not support.supported
    assert "QuantizeLinear" in support.note


@every_version
def test_an_operator_of_a_custom_domain_is_not_supported_whatever_its_name(version: str) -> None:
    table = table_for(version)
    assert table.supports("Conv", "ai.onnx") == table.supports("Conv")
    support = table.supports("Conv", "com.microsoft")
    assert not support.supported
    assert "com.microsoft" in support.note


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("8.5.2", "8.5"),
        ("8.6.2.3", "8.6"),
        ("10.3.0.30", "10.3"),
        ("10.5", "10.3"),
        ("10.13.3.9", "10.13"),
        ("10.14.1", "10.13"),
        ("10.16.2", "10.16"),
        ("11.4.1", "11.2"),
        ("12.0", "11.5"),
    ],
)
def test_the_newest_table_that_is_not_newer_is_taken(asked: str, taken: str) -> None:
    assert table_for(asked).version == taken


@pytest.mark.parametrize("version", ["8.4", "8.4.3", "7.1.3"])
def test_a_version_older_than_the_oldest_table_is_refused_and_the_known_ones_are_named(version: str) -> None:
    with pytest.raises(IncompatibleError, match=version) as refused:
        table_for(version)
    assert ", ".join(known_versions()) in refused.value.hint


@pytest.mark.parametrize("version", ["", "10", "ten", "10.x", "10.3-GA", "v10.3", "10.3.0.30.1", "1" * 30 + ".1"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(BadInputError, match="no version"):
        table_for(version)


def test_versions_are_compared_as_numbers() -> None:
    versions = known_versions()
    assert versions[0] == "8.5"
    assert versions.index("10.3") < versions.index("10.13") < versions.index("11.0")


def test_tables_are_read_once_and_cannot_be_changed() -> None:
    table = table_for("10.3")
    assert table_for("10.3.0") is table
    with pytest.raises(FrozenInstanceError):
        table.table = "9"  # type: ignore[misc]
    with pytest.raises(TypeError):
        table.operators["Conv"] = table.supports("Conv")  # type: ignore[index]
    assert isinstance(table, OperatorTable)


def test_the_data_has_one_line_an_operator_in_the_order_of_names() -> None:
    text = resources.files("kedge.build.preflight").joinpath("operators.json").read_text(encoding="utf-8")
    for version, stated in json.loads(text)["versions"].items():
        names = list(stated["operators"])
        assert names == sorted(names), version
        for name in names:
            row = json.dumps(stated["operators"][name], ensure_ascii=False)
            assert f'        "{name}": {row}' in text, (version, name)
