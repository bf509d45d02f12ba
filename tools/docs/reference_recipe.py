"""The reference of recipes, and docs/schemas/recipe.schema.json, both from the tables that the parser reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kedge.optimize.passes import PASSES
from kedge.optimize.recipe_keys import TABLES, Key

from .reference_passes import pass_keys, pass_sentence

__all__ = ["recipe_page", "recipe_schema"]

_JSON: Mapping[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "a whole number": {"type": "integer"},
    "a number": {"type": "number"},
    "true or false": {"type": "boolean"},
    "a list": {"type": "array"},
    "a list of texts": {"type": "array", "items": {"type": "string"}},
    "a list of numbers": {"type": "array", "items": {"type": "number"}},
    "a table": {"type": "object"},
    "a table of numbers": {"type": "object", "additionalProperties": {"type": "number"}},
    "a list of tables": {"type": "array", "items": {"type": "object"}},
}
_INTRODUCTION = """# Keys of a recipe

Made from the tables that the parser reads; how they work together is in [recipes](../recipe.md). An editor that knows
JSON Schema completes and checks recipes by `docs/schemas/recipe.schema.json`.

An unknown key is an error that names the nearest known one. A key without a default may be absent, and then nothing is
stated; **required** ones may not.
"""


def recipe_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a recipe, as what TOML says is written in JSON."""
    top = _table(TABLES[""])
    tables = {name: _table(keys) for name, keys in TABLES.items() if name}
    for name in tables:
        outer, _, inner = name.rpartition(".")
        if outer:
            tables[outer]["properties"][inner]["additionalProperties"] = {"$ref": f"#/$defs/{name}"}
        else:
            top["properties"][name] = {"description": TABLES[""][name].what, "$ref": f"#/$defs/{name}"}
    passes = [f"pass-{kind}" for kind in PASSES]
    top["properties"]["pass"]["items"] = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in passes]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kedge recipe",
        "description": "What docs/recipe.md explains. Made by `python -m tools.docs.reference schema`.",
        **top,
        "$defs": tables | {f"pass-{kind}": _pass(kind) for kind in PASSES},
    }


def recipe_page() -> str:
    """Every table and key of a recipe, and every pass with its keys, as one page."""
    lines = [_INTRODUCTION]
    for name, keys in TABLES.items():
        outer, _, inner = name.rpartition(".")
        title = f"`[{name}.NAME]`" if outer else f"`[{name}]`" if name else "Above the tables"
        what = TABLES[outer][inner].what if name else ""
        lines += _section(f"recipe-{name.replace('.', '-') or 'top'}", f"## {title}", what, keys.items())
    lines += ["## `[[pass]]`", "", TABLES[""]["pass"].what + " Each has a `kind`, and the keys of that kind.", ""]
    for kind in PASSES:
        label = f"recipe-pass-{kind.replace(':', '-')}"
        lines += _section(label, f'### `kind = "{kind}"`', pass_sentence(kind), pass_keys(kind).items())
    return "\n".join(lines)


def _section(label: str, heading: str, what: str, keys: Iterable[tuple[str, Key]]) -> list[str]:
    rows = [f"| `{name}` | {_types(key)} | {_default(key)} | {_cell(key.what)} |" for name, key in keys]
    table = ["| key | takes | default | what |", "|---|---|---|---|", *rows] if rows else ["It has no keys of its own."]
    return [f"({label})=", heading, "", *([_cell(what), ""] if what else []), *table, ""]


def _types(key: Key) -> str:
    taken = " or ".join(f'`"{choice}"`' for choice in key.choices) or " or ".join(key.types)
    return _cell(f"{taken}, {key.unit}" if key.unit else taken)


def _default(key: Key) -> str:
    if key.required:
        return "**required**"
    return "" if key.default is None else f"`{json.dumps(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(keys: Mapping[str, Key]) -> dict[str, Any]:
    body = {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, key in keys.items() if key.required],
        "properties": {name: _property(key) for name, key in keys.items()},
    }
    return body if body["required"] else {key: value for key, value in body.items() if key != "required"}


def _property(key: Key) -> dict[str, Any]:
    kinds = [_JSON[name] for name in key.types]
    body: dict[str, Any] = {"description": f"{key.what} Unit: {key.unit}." if key.unit else key.what}
    if key.choices:
        body["enum"] = list(key.choices)
    else:
        body |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if key.default is not None:
        body["default"] = key.default
    return body


def _pass(kind: str) -> dict[str, Any]:
    body = _table(pass_keys(kind))
    properties = {"kind": {"const": kind}, **body["properties"]}
    return {"description": pass_sentence(kind), **body, "required": ["kind"], "properties": properties}
