"""What `kedge optimize` leaves beside the model, what it may not write over, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadInputError, GateRefusedError
from ..report.optimize_gate import refusal as missed
from ..report.optimize_html import optimize_html
from .recipe import Recipe

__all__ = ["refusal", "refuse_overwriting", "write_report"]

_NAME = 48


def refuse_overwriting(result: Path, recipe: Recipe, given: str) -> None:
    """Nothing that was given is written over.

    Args:
        result: the model that will be written; its report lies beside it.
        given: the recipe, or the model without one, as on the command line.

    Raises:
        BadInputError: it would be.
    """
    data = (recipe.data.calibration, recipe.data.train, recipe.data.evaluation)
    paths = [Path(given), *((recipe.base or Path()) / each for each in (recipe.source, *data) if each)]
    for written in (result, result.with_suffix(".json"), result.with_suffix(".html")):
        if written.exists() and any(path.exists() and path.samefile(written) for path in paths):
            raise BadInputError(f"{written} was given, and may not be overwritten", hint="give another path with -o")


def write_report(model: Path, document: dict[str, Any]) -> Path:
    """Write the report beside the model, as JSON and as a page; returns the page.

    Raises:
        OSError: they cannot be written.
    """
    model.with_suffix(".json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    page = model.with_suffix(".html")
    page.write_text(optimize_html(document), encoding="utf-8")
    return page


def refusal(document: dict[str, Any]) -> GateRefusedError:
    """The error of a report whose gate does not hold: what is missed, where most error arises, what to try next."""
    gate = document["gate"]
    names = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in gate["blame"][:3]]
    blamed = f"; most error arises in {', '.join(names)}" if names else ""
    return GateRefusedError(f"the accuracy gate does not hold: {missed(gate)}{blamed}", hint=gate["next"], told=True)
