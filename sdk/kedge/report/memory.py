"""An estimate of memory (kedge.build.memory) in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .text import byte_size

__all__ = ["activation_rows", "memory_sentence"]


def activation_rows(memory: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """Activations by shape profile, each with its label; one row where the profiles do not differ."""
    sizes: Mapping[str, int | None] = memory["activations_bytes"]
    if len(set(sizes.values())) <= 1:
        return [("activations", next(iter(sizes.values()), None))]
    return [(f"activations, {name}", size) for name, size in sizes.items()]


def memory_sentence(memory: Mapping[str, Any] | None) -> str:
    """What is needed, and what is there."""
    if memory is None:
        return "not estimated"
    usable = memory["usable_bytes"]
    there = "the target's memory is not stated" if usable is None else f"{byte_size(usable)} are there for models"
    needed = byte_size(memory["needed_bytes"])
    if all(size is None for size in memory["activations_bytes"].values()):
        return f"about {needed} needed besides activations, which are not known (estimate); {there}"
    return f"about {needed} needed (estimate); {there}"
