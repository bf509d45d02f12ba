"""Changes of the inventory's file: one table more, and the whole of it replaced at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomlkit

__all__ = ["as_table", "replace_text"]


def as_table(entry: Mapping[str, Any]) -> Any:
    """An entry as tomlkit writes it; tables within are inline."""
    table = tomlkit.table()
    for key, value in entry.items():
        if isinstance(value, Mapping):
            inline = tomlkit.inline_table()
            inline.update(value)
            table.add(key, inline)
        else:
            table.add(key, value)
    return table


def replace_text(path: Path, text: str) -> None:
    """Write a file anew, or not at all. Who may read it stays as it was; a new one is its owner's alone."""
    handle, partial = tempfile.mkstemp(prefix=".devices.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(text)
        with suppress(FileNotFoundError):
            os.fchmod(handle, path.stat().st_mode & 0o777)
    Path(partial).replace(path)
