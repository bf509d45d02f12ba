"""How many channels each group gives up, so that a share of the multiply-accumulates is reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .surgery import Channels

__all__ = ["Allocation", "allocate"]


@dataclass(frozen=True)
class Allocation:
    """The rule. macs: share of the MACs to get down to, or ratio: share of the channels to take, when above 0.

    scope: "global" takes the least important steps anywhere, "layer" the same ratio everywhere. round_to: widths are
    multiples of it. max_ratio: no group loses more than this share of its channels.
    """

    macs: float
    ratio: float
    scope: str
    round_to: int
    max_ratio: float


def allocate(groups: Sequence[Channels], macs: Mapping[str, int], rule: Allocation) -> dict[str, list[int]]:
    """Channels to take out of each group, the least important first; groups that keep all are left out.

    Args:
        macs: of each layer by name; those of no group count in the whole.
    """
    widths = {group.name: _widths(group, rule) for group in groups}
    kept = {group.name: group.count for group in groups}
    if rule.scope == "layer":
        kept = _uniform(groups, macs, rule, widths)
    else:
        _cheapest(groups, macs, rule, widths, kept)
    order = {group.name: np.argsort(group.scores, kind="stable") for group in groups}
    return {
        group.name: sorted(int(index) for index in order[group.name][: group.count - kept[group.name]])
        for group in groups
        if kept[group.name] < group.count
    }


def _widths(group: Channels, rule: Allocation) -> list[int]:
    """Widths a group may have besides its own, falling."""
    least = max(group.count * (1 - rule.max_ratio), rule.round_to)
    top = (group.count - 1) // rule.round_to * rule.round_to
    return [width for width in range(top, 0, -rule.round_to) if width >= least - 1e-9]


def _total(groups: Sequence[Channels], macs: Mapping[str, int], kept: Mapping[str, int]) -> float:
    """MACs at these widths: a layer's fall with the share of its output channels times that of its input channels.

    A depthwise convolution's channels are one and the same, and counted as output channels only.
    """
    outward: dict[str, float] = {}
    inward: dict[str, float] = {}
    for group in groups:
        gone = group.count - kept[group.name]
        for shares, lost in ((group.outward, outward), (group.inward, inward)):
            for name, share in shares.items():
                lost[name] = lost.get(name, 0.0) + gone * share
    return sum(value * (1 - outward.get(name, 0.0)) * (1 - inward.get(name, 0.0)) for name, value in macs.items())


def _met(groups: Sequence[Channels], macs: Mapping[str, int], rule: Allocation, kept: Mapping[str, int]) -> bool:
    if rule.ratio > 0:
        return sum(kept.values()) <= (1 - rule.ratio) * sum(group.count for group in groups) + 1e-9
    return _total(groups, macs, kept) <= rule.macs * sum(macs.values()) + 0.5


def _uniform(
    groups: Sequence[Channels], macs: Mapping[str, int], rule: Allocation, widths: Mapping[str, list[int]]
) -> dict[str, int]:
    """The same ratio for all groups: the one given, or the least that meets the MACs."""
    kept: dict[str, int] = {}
    for ratio in [rule.ratio] if rule.ratio > 0 else np.linspace(0, rule.max_ratio, 129):
        kept = {
            group.name: min(
                [group.count, *widths[group.name]], key=lambda width: abs(width - group.count * (1 - ratio))
            )
            for group in groups
        }
        if rule.ratio <= 0 and _met(groups, macs, rule, kept):
            break
    return kept


def _cheapest(
    groups: Sequence[Channels],
    macs: Mapping[str, int],
    rule: Allocation,
    widths: Mapping[str, list[int]],
    kept: dict[str, int],
) -> None:
    """Step by step the channels of least mean importance, one width of one group at a time. Fills `kept`."""
    ranked = {group.name: np.sort(np.asarray(group.scores)) for group in groups}
    while not _met(groups, macs, rule, kept):
        steps = []
        for group in groups:
            lower = [width for width in widths[group.name] if width < kept[group.name]]
            if lower:
                gone = group.count - kept[group.name]
                cost = float(ranked[group.name][gone : group.count - lower[0]].mean())
                steps.append((cost, group.name, lower[0]))
        if not steps:
            return
        _, name, width = min(steps)
        kept[name] = width
