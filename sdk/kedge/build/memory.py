"""Will it fit? Weights, activations and scratch memory of an engine against what a target has. Estimates, all of them.

The rules, so that a reader can disagree:

- Of a unified memory, 75 % is there for models: the rest is the system's, the agent's and the camera's. Of a discrete
  GPU's memory, 90 %: the driver's context takes the rest.
- While an engine is loaded its bytes are in memory twice, as the file and as the weights on the GPU; on unified memory
  both count.
- Scratch memory (the workspace) is 16 MiB at least; more only makes more kernels possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..targets import Target

__all__ = ["MemoryEstimate", "estimate"]

_GIB = 1 << 30
_UNIFIED_SHARE, _DISCRETE_SHARE = 0.75, 0.9
LEAST_WORKSPACE_BYTES = 16 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. activations: by shape profile ("least", "usual", "greatest"); None where shapes are not known.

    needed: weights while they are loaded, the greatest activations known, and the least workspace. usable: of the
    target; None where its profile states no memory.
    """

    weights: int
    activations: Mapping[str, int | None]
    workspace: int
    needed: int
    usable: int | None

    @property
    def fits(self) -> bool | None:
        """None where one side is not known."""
        return None if self.usable is None else self.needed <= self.usable

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "weights_bytes": self.weights,
            "activations_bytes": dict(self.activations),
            "least_workspace_bytes": self.workspace,
            "needed_bytes": self.needed,
            "usable_bytes": self.usable,
            "fits": self.fits,
        }


def estimate(weights: int, activations: Mapping[str, int | None], target: Target) -> MemoryEstimate:
    """What a model needs on a target.

    Args:
        weights: bytes of all constants, as stored. activations: peak bytes by shape profile.
    """
    memory = target.memory
    usable, copies = None, 1
    if memory is not None:
        usable = int(memory.size_gib * _GIB * (_UNIFIED_SHARE if memory.unified else _DISCRETE_SHARE))
        copies = 2 if memory.unified else 1
    most = max((size for size in activations.values() if size is not None), default=0)
    needed = copies * weights + most + LEAST_WORKSPACE_BYTES
    return MemoryEstimate(weights, activations, LEAST_WORKSPACE_BYTES, needed, usable)
