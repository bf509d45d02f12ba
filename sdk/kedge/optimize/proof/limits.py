"""What must hold of a result's accuracy, class by class and metric by metric, as a recipe's `[gate]` states it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ...errors import BadInputError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ClassLimits", "MetricLimits", "class_number", "metric_reference"]


@dataclass(frozen=True)
class _Limits:
    """Limits by name; None: not stated."""

    def __post_init__(self) -> None:
        if not self.stated:
            names = ", ".join(item.name for item in fields(self))
            raise BadInputError("the table has no limit", hint=f"state one of {names}")

    @property
    def stated(self) -> dict[str, float]:
        """The limits that are stated, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> Self:
        """Read a recipe's `[gate.classes.NAME]` or `[gate.metrics.NAME]`, whose keys and types are known to be right.

        Raises:
            BadInputError: a limit is out of its range, or there is none.
        """
        return cls(**{key: float(value) for key, value in table.items()})


@dataclass(frozen=True)
class ClassLimits(_Limits):
    """Limits of one class, as shares between 0 and 1; None: not stated.

    Sensitivity (recall) is TP / (TP + FN), specificity TN / (TN + FP), the class against all others (Altman and
    Bland, BMJ 308:1552, 1994). A drop is the model's as it was given less the result's.
    """

    min_sensitivity: float | None = None
    min_specificity: float | None = None
    max_sensitivity_drop: float | None = None
    max_specificity_drop: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.stated.items():
            if not 0 <= value <= 1:
                raise BadInputError(f"{name} is {value}", hint="a share between 0 and 1: 0.95 is 95 %")


@dataclass(frozen=True)
class MetricLimits(_Limits):
    """Limits of one metric of the user's, in the metric's own unit; None: not stated.

    min, max: of the result. max_drop, max_rise: how far the result may lie below, or above, the model as it was given.
    """

    min: float | None = None
    max: float | None = None
    max_drop: float | None = None
    max_rise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.stated.items():
            change = name in ("max_drop", "max_rise")
            if not math.isfinite(value) or (change and value < 0):
                what = "0 or more" if change else "a finite number"
                raise BadInputError(f"{name} is {value}", hint=f"{what}, in the metric's own unit")


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


def metric_reference(name: str, references: Sequence[str]) -> str:
    """The metric among `[data] metrics` that a gate calls by what follows the colon, or by the whole reference.

    Raises:
        BadInputError: there is none, or more than one.
    """
    found = [each for each in dict.fromkeys(references) if name in (each, each.rpartition(":")[2])]
    if not found:
        known = ", ".join(each.rpartition(":")[2] for each in references)
        raise BadInputError(
            f"the gate limits the metric {name!r}, which [data] metrics does not list",
            hint=f"it takes {known}" if known else f'list it: metrics = ["package.module:{name}"]',
        )
    if len(found) > 1:
        raise BadInputError(
            f"the gate limits the metric {name!r}, which is {' and '.join(found)}",
            hint=f'write the whole reference: [gate.metrics."{found[0]}"]',
        )
    return found[0]
