"""Evaluation data must be data that nothing was tuned on."""

from __future__ import annotations

from ...errors import BadInputError
from ...model.samples import Samples

__all__ = ["refuse_overlap"]


def refuse_overlap(evaluation: Samples, **others: Samples | None) -> None:
    """Refuse evaluation samples that are also in other data, by the hash of what the model is fed.

    Args:
        others: data by their role: calibration, train. None is left out.

    Raises:
        BadInputError: there are such samples; it says how many, and where.
    """
    held = evaluation.digests()
    for role, samples in others.items():
        if samples is None:
            continue
        seen = set(samples.digests())
        shared = sum(digest in seen for digest in held)
        if shared:
            raise BadInputError(
                f"{shared} of the {evaluation.count} evaluation samples are also in the {role} data",
                hint=f"take them out of {evaluation.name} or of {samples.name}: seen samples prove nothing",
            )
