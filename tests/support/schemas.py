"""Validate documents against the schemas in docs/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"


def validate(document: Any, name: str) -> None:
    contents = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (file, Resource.from_contents(schema)) for file, schema in contents.items()
    )
    schema = contents[f"{name}.schema.json"]
    Draft202012Validator.check_schema(schema)
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in Draft202012Validator(schema, registry=registry).iter_errors(document)
    ]
    assert not errors, errors
