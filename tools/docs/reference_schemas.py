"""Pages that show the JSON schemas of docs/schemas as tables: where a value lies, what it may be, what it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["schema_pages"]

_ROOT = Path(__file__).parents[2]
_FOLDER = _ROOT / "docs" / "schemas"
_INDEX = """# JSON documents

What kedge writes for other programs, and the recipe that it reads, each by its JSON schema (2020-12). A name with `[]`
is that of every item of a list, one with `{}` that of every key that is not named. **Required** keys are always there.

```{toctree}
:hidden:
:glob:

schemas/*
```

| document | file | what |
|---|---|---|"""


def schema_pages() -> dict[str, str]:
    """Pages by path below docs/generated: schemas.md, and one a schema."""
    rows, pages = [], {}
    for path in sorted(_FOLDER.rglob("*.schema.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        name = "-".join(path.relative_to(_FOLDER).with_suffix("").with_suffix("").parts)
        rows.append(
            f"| [{schema['title']}](schemas/{name}.md) | `{path.relative_to(_ROOT)}` | "
            f"{_linked(schema.get('description', ''), '../')} |"
        )
        pages[f"schemas/{name}.md"] = _page(schema, path)
    return {"schemas.md": "\n".join([_INDEX, *rows]), **pages}


def _page(schema: Mapping[str, Any], path: Path) -> str:
    lines = [
        f"# {schema['title']}",
        "",
        _linked(schema.get("description", ""), "../../"),
        "",
        f"`{path.relative_to(_ROOT)}`",
        "",
    ]
    lines += ["| key | is | what |", "|---|---|---|", *_rows("", schema)]
    for name, part in schema.get("$defs", {}).items():
        lines += ["", f"## `{name}`", ""]
        if what := part.get("description"):
            lines += [_cell(what), ""]
        rows = list(_rows("", part))
        lines += ["| key | is | what |", "|---|---|---|", *rows] if rows else [_type(part)]
    return "\n".join(lines)


def _rows(where: str, schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        yield from _row(f"{where}{name}", part, required=name in required)
    rest = schema.get("additionalProperties")
    if isinstance(rest, dict) and rest:
        yield from _row(f"{where}{{}}", rest, required=False)


def _row(where: str, part: Mapping[str, Any], *, required: bool) -> Iterator[str]:
    is_what = _type(part) + (", **required**" if required else "")
    yield f"| `{where}` | {is_what} | {_cell(part.get('description', ''))} |"
    yield from _rows(f"{where}.", part)
    items = part.get("items")
    if isinstance(items, dict):
        yield from _rows(f"{where}[].", items)


def _type(part: Mapping[str, Any]) -> str:
    """In a few words, what a value may be."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{_cell(name)}](#{_slug(name)})" if part["$ref"].startswith("#/$defs/") else f"`{part['$ref']}`"
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return " or ".join(f"`{json.dumps(value, ensure_ascii=False)}`" for value in part["enum"])
    for word in ("anyOf", "oneOf"):
        if word in part:
            return " or ".join(_type(each) for each in part[word])
    kinds = part.get("type", "anything")
    words = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    items = part.get("items")
    if isinstance(items, dict) and "properties" not in items:
        words += f" of {_type(items)}"
    return words + _bounds(part)


def _bounds(part: Mapping[str, Any]) -> str:
    bounds = [f"{sign} {part[key]}" for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")) if key in part]
    bounds += [f"{sign} {part[key]}" for key, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")) if key in part]
    if "pattern" in part:
        bounds.append("`" + part["pattern"].replace("|", "\\|") + "`")
    return f", {', '.join(bounds)}" if bounds else ""


def _slug(name: str) -> str:
    """GitHub's anchor of a heading."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in "-_")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("[", "\\[")


def _linked(text: str, up: str) -> str:
    """A description, whose documents under docs/ are links."""
    return re.sub(r"docs/([\w-]+\.md)", rf"[\1]({up}\1)", _cell(text))
