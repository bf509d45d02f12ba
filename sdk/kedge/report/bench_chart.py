"""The waterfall of a bench as a drawing: a bar a step, each beginning where the one before it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .svg import COLOURS
from .text import milliseconds, printable

__all__ = ["waterfall_svg"]

# The page's own width; text is sized for it, and the drawing scales.
_WIDTH, _LEFT, _RIGHT = 760, 90, 96
_ROW, _BAR, _TOP, _BOTTOM = 34, 18, 8, 30
_ROLES = ("green", "blue", "purple", "orange", "grey")


def waterfall_svg(steps: Sequence[Mapping[str, Any]], whole_ms: float) -> str:
    """An `<svg>` element for a page: medians in ms on a linear axis.

    Drawn by hand: matplotlib is not where engineers in the field run their bench.
    """
    total = max(whole_ms, 1e-9)
    width = _WIDTH - _LEFT - _RIGHT
    height = _TOP + _ROW * len(steps) + _BOTTOM

    def at(ms: float) -> float:
        return _LEFT + width * min(max(ms / total, 0.0), 1.0)

    parts: list[str] = []
    bottom = _TOP + _ROW * len(steps)
    for tick in _ticks(total):
        x = at(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}" stroke="{_colour("grid")}"/>')
        parts.append(_text(x, bottom + 18, milliseconds(tick) if tick else "0", "muted", "middle"))
    end = 0.0
    for index, step in enumerate(steps):
        start, end = end, end + step["p50_ms"]
        low, high = sorted((at(start), at(end)))
        middle = _TOP + _ROW * index + _ROW / 2
        role = _ROLES[index % len(_ROLES)]
        parts.append(_text(_LEFT - 10, middle + 4, step["name"], "ink", "end"))
        parts.append(
            f'<rect x="{low:.1f}" y="{middle - _BAR / 2:.1f}" width="{max(high - low, 1.5):.1f}" height="{_BAR}"'
            f' rx="2" fill="{_colour(role)}"/>'
        )
        parts.append(_text(high + 8, middle + 4, milliseconds(step["p50_ms"]), "ink", "start"))
        if index + 1 < len(steps):
            x = at(end)
            top = middle + _BAR / 2
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{top + _ROW - _BAR:.1f}"'
                f' stroke="{_colour("muted")}" stroke-dasharray="2 2"/>'
            )
    told = "; ".join(f"{step['name']} {milliseconds(step['p50_ms'])}" for step in steps)
    title = escape(printable(f"Where a request's time goes, medians: {told}"))
    return (
        f'<svg class="chart" role="img" aria-labelledby="waterfall-title"'
        f' viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" font-size="13">'
        f'<title id="waterfall-title">{title}</title>{"".join(parts)}</svg>'
    )


def _colour(role: str) -> str:
    return f"var(--{role}, {COLOURS[role][0]})"


def _text(x: float, y: float, text: str, role: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_colour(role)}" text-anchor="{anchor}">{escape(printable(text))}</text>'
    )


def _ticks(whole: float) -> list[float]:
    """Round figures from 0 up to the whole, three to eight steps apart."""
    step = 10.0 ** math.floor(math.log10(whole / 3))
    step *= max(factor for factor in (1, 2, 5) if whole / (step * factor) >= 3 - 1e-9)
    return [step * index for index in range(int(whole / step + 1e-9) + 1)]
