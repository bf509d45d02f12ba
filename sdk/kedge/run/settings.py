"""What a recipe states of its way to devices: its table `[run]`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError
from ..optimize.recipe_keys import read_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RunSettings", "read_run_settings"]


@dataclass(frozen=True)
class RunSettings:
    """to: devices as `--to` takes them; empty: none are stated. version: of the model."""

    to: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        if self.version < 1:
            raise BadInputError(f"[run] version is {self.version}", hint="a whole number from 1")

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> RunSettings:
        """From a recipe's `[run]`.

        Raises:
            BadInputError: it states something that is not known.
        """
        return cls(**read_table("run", table))


def read_run_settings(path: Path) -> RunSettings:
    """Of a recipe that `optimize.recipe.read_recipe` has read: its size and form are known to be right."""
    return RunSettings.from_mapping(tomllib.loads(path.read_text(encoding="utf-8")).get("run", {}))
