"""Pages that are made from the code: recipes, command line, exit codes, errors, schemas.

`python -m tools.docs.reference schema` writes docs/schemas/recipe.schema.json; `make docs` writes the pages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .reference_cli import cli_pages
from .reference_errors import error_pages
from .reference_recipe import recipe_page, recipe_schema
from .reference_schemas import schema_pages

__all__ = ["SCHEMA", "main", "pages", "schema_text", "write_all"]

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "docs" / "schemas" / "recipe.schema.json"


def write_all(folder: Path) -> None:
    """Write every generated page below the folder; what it held of them before is overwritten."""
    for name, text in pages().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def pages() -> dict[str, str]:
    """Every generated page's Markdown, by its path below docs/generated."""
    return {"recipe.md": recipe_page(), **cli_pages(), **error_pages(), **schema_pages()}


def schema_text() -> str:
    """docs/schemas/recipe.schema.json, as it should be."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def main(words: list[str]) -> int:
    """`schema`: write the schema of recipes; `FOLDER`: write the pages below it."""
    if words == ["schema"]:
        SCHEMA.write_text(schema_text(), encoding="utf-8")
    elif len(words) == 1:
        write_all(Path(words[0]))
    else:
        print("usage: python -m tools.docs.reference schema|FOLDER", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
