"""Drawings of the page: bars of kedge beside its peers, as an SVG file that light and dark pages can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.bench.page_panels import Panel, shown

from kedge.report.svg import BLUE, COLOURS, GREY, INK, MUTED, draw, elide

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]

_COLOURS = {"kedge": BLUE, "peer": GREY, "reference": MUTED}
_WIDTH_PX, _BAR_PX, _PANEL_PX = 720, 22, 40
_LABEL, _TITLE, _MARGIN = 34, 66, 0.01
# Beyond this ratio the shorter bars would be a line each.
_LOGARITHMIC = 30
_PAGES = ("#ffffff", "#14181f")


def plot(path: Path, name: str, title: str, panels: Sequence[Panel]) -> None:
    """Draw the panels one below the other, and write the file."""
    heights = [_PANEL_PX + _BAR_PX * len(panel.bars) for panel in panels]

    from matplotlib.transforms import blended_transform_factory

    def paint(figure: Figure) -> None:
        rows = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for (axes,), panel in zip(rows, panels, strict=True):
            bars = panel.bars[::-1]
            values = [bar.value for bar in bars]
            drawn = axes.barh(
                range(len(bars)),
                values,
                color=[_COLOURS[bar.role] if panel.base else BLUE for bar in bars],
                height=0.62,
            )
            positive = [value for value in values if value > 0]
            if len(positive) == len(values) and max(values) > _LOGARITHMIC * min(values):
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_yticks(range(len(bars)), [elide(bar.label, _LABEL) for bar in bars])
            texts = [f" {shown(value)}" for value in values]
            axes.bar_label(drawn, texts, color=INK, fontsize=10, padding=2)
            axes.margins(x=0.12)
            better = "lower" if panel.lower else "higher"
            # From the drawing's left edge: above the bars alone a long one would end beyond the right one.
            axes.text(
                _MARGIN,
                1.0,
                f"{elide(panel.title, _TITLE)} ({panel.unit}; {better} is better)",
                fontsize=11,
                fontweight="bold",
                color=INK,
                va="bottom",
                transform=blended_transform_factory(figure.transFigure, axes.transAxes),
            )
            axes.grid(visible=False, axis="y")

    svg = draw(f"plot-{name}", title, (_WIDTH_PX, sum(heights)), paint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_alone(svg) + "\n", encoding="utf-8")


def _alone(svg: str) -> str:
    """The drawing as a file of its own: no page around it gives it colours, so it brings both pages' itself."""
    light, dark = (
        ";".join([f"background:{page}", *(f"--{role}:{pair[number]}" for role, pair in COLOURS.items())])
        for number, page in enumerate(_PAGES)
    )
    style = f"<style>svg{{{light};font-family:sans-serif}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    head, end, rest = svg.partition(">")
    return head + end + style + rest
