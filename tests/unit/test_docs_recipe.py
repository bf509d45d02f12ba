"""docs/schemas/recipe.schema.json and the reference of recipes say what the parser takes, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tools.docs.reference import SCHEMA, schema_text
from tools.docs.reference_passes import pass_keys

from kedge.errors import BadInputError
from kedge.model.gates import GateOptions
from kedge.model.preprocess import Preprocess
from kedge.optimize.passes import PASSES, make_pass
from kedge.optimize.recipe import Data, RobustnessSettings, read_recipe, tomllib
from kedge.optimize.recipe_keys import TABLES, Key, read_table
from tests.support.schemas import validate

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "examples").rglob("*.toml") if "[[pass]]" in path.read_text())
SAMPLES: dict[str, Any] = {
    "text": "word",
    "a whole number": 3,
    "a number": 0.5,
    "true or false": True,
    "a list": [1, 2],
    "a list of texts": ["word"],
    "a list of numbers": [0.5],
    "a table": {},
    "a list of tables": [{}],
}


def test_the_schema_is_the_one_that_the_tables_make() -> None:
    assert SCHEMA.read_text() == schema_text(), "run: python -m tools.docs.reference schema"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_of_the_examples_is_one_for_parser_and_schema(path: Path) -> None:
    read_recipe(path)
    validate(tomllib.loads(path.read_text()), "recipe")


@pytest.mark.parametrize("name", TABLES)
def test_the_parser_takes_every_key_of_the_tables_and_no_other(name: str) -> None:
    required = {key: SAMPLES[row.types[0]] for key, row in TABLES[name].items() if row.required}
    for key, row in TABLES[name].items():
        for kind in row.types:
            assert read_table(name, required | {key: SAMPLES[kind]})[key] == SAMPLES[kind]
        if row.types != ("a table",):
            with pytest.raises(BadInputError, match=key):
                read_table(name, required | {key: object()})
        if row.required:
            with pytest.raises(BadInputError, match=f"lacks .*{key}"):
                read_table(name, {other: value for other, value in required.items() if other != key})
    with pytest.raises(BadInputError, match="no key 'sense'"):
        read_table(name, required | {"sense": 1})


def _tables_of_the_schema() -> Iterator[tuple[str, set[str]]]:
    schema = json.loads(schema_text())
    yield "", set(schema["properties"])
    for name, part in schema["$defs"].items():
        yield name, set(part["properties"])


def test_the_schema_has_the_keys_that_the_parser_takes() -> None:
    expected = {name: set(keys) for name, keys in TABLES.items()}
    expected |= {f"pass-{kind}": {"kind", *pass_keys(kind)} for kind in PASSES}
    assert dict(_tables_of_the_schema()) == expected


@pytest.mark.parametrize(
    ("name", "found"),
    [("data", Data), ("preprocess", Preprocess), ("gates", GateOptions), ("robustness", RobustnessSettings)],
)
def test_the_tables_have_the_fields_and_the_defaults_of_what_is_made_of_them(name: str, found: type) -> None:
    fields = {field.name: field for field in dataclasses.fields(found)}
    assert set(TABLES[name]) == set(fields)
    stated = {key: row.default for key, row in TABLES[name].items() if row.default is not None}
    if found is not GateOptions:  # whose defaults are those of the manifest
        assert stated == {key: fields[key].default for key in stated}


@pytest.mark.parametrize("kind", PASSES)
def test_a_pass_takes_its_keys_with_their_defaults_and_its_choices_alone(kind: str) -> None:
    keys = pass_keys(kind)
    make_pass(kind, {key: _plain(row) for key, row in keys.items() if row.default is not None})
    for key, row in keys.items():
        assert row.what.endswith("."), f"{key}: {row.what}"
        for choice in row.choices:
            make_pass(kind, {key: choice, **({"precision": "int4"} if choice == "awq" else {})})
        if row.choices:
            with pytest.raises(BadInputError):
                make_pass(kind, {key: "sense"})


def test_a_recipe_that_the_parser_refuses_the_schema_refuses_too() -> None:
    whole = {"target": "t", "model": {"source": "m.onnx"}, "pass": [{"kind": "quantize"}]}
    check = Draft202012Validator(json.loads(schema_text()))
    assert check.is_valid(whole)
    for wrong in (
        {"targets": "t"},
        {"data": {"trian": "x"}},
        {"pass": [{"kind": "quantise"}]},
        {"pass": [{"kind": "quantize", "bits": 8}]},
        {"preprocess": {"layout": "CHW"}},
        {"gate": {"max_drop": "0.1"}},
        {"gates": {"outputs": {"logits": {"p99_ms": 3}}}},
    ):
        assert not check.is_valid(whole | wrong), wrong


def _plain(row: Key) -> Any:
    return list(row.default) if isinstance(row.default, tuple) else row.default
