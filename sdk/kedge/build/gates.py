"""Which conditions a release states: those the user gave, else those its model carries from the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadInputError
from ..model.gates import GateOptions

__all__ = ["GateOptions", "gates_of"]


def gates_of(notes: Mapping[str, Any], asked: GateOptions) -> GateOptions:
    """The gates of a release of a model with these notes (kedge.model.notes); what was asked for goes before.

    Raises:
        BadInputError: what the model notes cannot be used: it is refused rather than passed over.
    """
    noted = notes.get("gates")
    if noted is None:
        return asked
    try:
        return asked.or_else(GateOptions.from_mapping(noted))
    except BadInputError as error:
        raise BadInputError(
            f"the gates that the model notes cannot be used: {error.message}",
            hint="run kedge optimize again, or remove kedge.gates from the model's metadata",
        ) from error
