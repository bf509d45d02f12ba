"""What must hold of a result's accuracy, class by class, as a recipe's `[gate]` states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import BadInputError

__all__ = ["ClassLimits", "class_number"]


@dataclass(frozen=True)
class ClassLimits:
    """Limits of one class, as shares between 0 and 1; None: not stated.

    Sensitivity (recall) is TP / (TP + FN), specificity TN / (TN + FP), the class against all others (Altman and
    Bland, BMJ 308:1552, 1994). A drop is the model's as it was given less the result's.
    """

    min_sensitivity: float | None = None
    min_specificity: float | None = None
    max_sensitivity_drop: float | None = None
    max_specificity_drop: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not 0 <= value <= 1:
                raise BadInputError(f"{item.name} is {value}", hint="a share between 0 and 1: 0.95 is 95 %")
        if not self.stated:
            raise BadInputError(
                "a class of the gate has no limit", hint=f"state one of {', '.join(item.name for item in fields(self))}"
            )

    @property
    def stated(self) -> dict[str, float]:
        """The limits that are stated, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> ClassLimits:
        """Read a recipe's `[gate.classes.NAME]`, whose keys and types are known to be right.

        Raises:
            BadInputError: a limit is no share, or there is none.
        """
        return cls(**{key: float(value) for key, value in table.items()})


def class_number(name: str, names: tuple[str, ...], count: int | None = None) -> int:
    """The label of a class that is called by one of the names, or by its number.

    Args:
        names: of the labels, from 0. count: how many classes the model has, None: not known.

    Raises:
        BadInputError: there is no such class.
    """
    if name in names:
        return names.index(name)
    limit = count if count is not None else len(names) or None
    if name.isascii() and name.isdigit() and len(name) < 10 and (limit is None or int(name) < limit):
        return int(name)
    known = ", ".join(names[:8]) or "a class's number; name them with [data] classes"
    raise BadInputError(f"the gate limits the class {name!r}, which is not known", hint=f"it takes {known}")
