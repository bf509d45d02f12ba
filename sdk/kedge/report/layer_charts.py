"""Charts of a model's layers: what quantising each costs, where its activations lie, how far it is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .svg import BLUE, GREEN, GREY, INK, ORANGE, PANEL_PX, PURPLE, WIDE_PX, draw, elide, legend, power_of_ten, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SENSITIVITY_BARS", "error_profile", "histogram", "precision_colour", "sensitivity"]

Json = Mapping[str, Any]

#: More bars than this are no longer read; the table beside the chart has all.
SENSITIVITY_BARS = 40

_BINS = 64


def precision_colour(precision: str) -> str:
    """One colour for all that is float32, one for 16 bits, for 8-bit floats, for 8-bit integers, for less."""
    name = precision.lower()
    for colour, signs in (
        (ORANGE, ("int4", "w4", "int2", "int3", "w2", "w3", "fp4")),
        (GREEN, ("fp8", "float8")),
        (PURPLE, ("16",)),
        (BLUE, ("int8", "w8", "i8", "u8")),
    ):
        if any(sign in name for sign in signs):
            return colour
    return GREY


def sensitivity(rows: Sequence[Json], chosen: Mapping[str, str]) -> str:
    """The error each layer causes alone, worst first, on a logarithmic axis; at most SENSITIVITY_BARS layers.

    Args:
        rows: {layer, op, precision, error}; a layer may come at several precisions.
        chosen: layer → the precision it has in the result; its other bars are pale.
    """
    worst: dict[str, float] = {}
    for row in rows:
        worst[row["layer"]] = max(worst.get(row["layer"], 0.0), row["error"])
    layers = sorted(worst, key=lambda layer: (-worst[layer], layer))[:SENSITIVITY_BARS]
    place = {layer: index for index, layer in enumerate(layers)}
    precisions = sorted({row["precision"] for row in rows})
    thickness = 0.8 / max(1, len(precisions))
    positive = [row["error"] for row in rows if row["error"] > 0 and row["layer"] in place]
    floor = min(positive) / 3 if positive else 1e-6

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for precision in precisions:
            offset = (precisions.index(precision) - (len(precisions) - 1) / 2) * thickness
            for kept, alpha in ((True, 1.0), (False, 0.35)):
                some = [
                    row
                    for row in rows
                    if row["layer"] in place
                    and row["precision"] == precision
                    and (chosen.get(row["layer"]) in (None, precision)) is kept
                ]
                axes.barh(
                    [place[row["layer"]] + offset for row in some],
                    [max(row["error"], floor) - floor for row in some],
                    height=thickness * 0.9,
                    left=floor,
                    color=precision_colour(precision),
                    alpha=alpha,
                )
        axes.set_yticks(range(len(layers)), [elide(layer, 34) for layer in layers], color=INK)
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set_xlim(floor, max([*positive, floor * 10]) * 1.2)
        _decades(axes)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("error of the output when this layer alone is changed")
        _precision_legend(figure, precisions)

    title = f"Sensitivity of {len(layers)} layers, worst first: {', '.join(elide(layer, 60) for layer in layers[:3])}"
    bars = len(layers) * max(18, 10 * len(precisions))
    return draw("sensitivity", title, (WIDE_PX, 90 + bars), paint)


def histogram(item: Json, index: int) -> str:
    """Activations of one tensor, counts on a logarithmic axis, what the chosen range cuts off shaded.

    Args:
        item: {tensor, layer, low, high, counts, range, precision}.
        index: distinguishes the drawings of a page.
    """
    low, high = item["low"], item["high"]
    bottom, top = item["range"]
    counts, edges = _rebin(item["counts"], low, high)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        most = max([*counts, 1])
        axes.stairs(counts, edges, baseline=0.5, fill=True, color=precision_colour(item["precision"]), alpha=0.85)
        left, right = min(low, bottom), max(high, top)
        margin = (right - left or 1.0) * 0.03
        left, right = left - margin, right + margin
        for begin, end in ((left, bottom), (top, right)):
            axes.axvspan(begin, end, color=GREY, alpha=0.22, linewidth=0)
        for edge in (bottom, top):
            axes.axvline(edge, color=ORANGE, linewidth=1.6, linestyle=(0, (4, 2)))
        axes.set_xlim(left, right)
        axes.set_ylim(0.5, most * 2)
        axes.yaxis.set_major_formatter(power_of_ten)
        axes.set_title(elide(item["layer"], 38), color=INK)
        axes.set_xlabel(f"{elide(item['precision'], 20)}: {bottom:.3g} to {top:.3g}".replace("-", "\N{MINUS SIGN}"))

    title = (
        f"Activations of {elide(item['layer'], 80)}, tensor {elide(item['tensor'], 80)}:"
        f" values from {low:.4g} to {high:.4g}, chosen range {bottom:.4g} to {top:.4g}"
    )
    return draw(f"histogram-{index}", title, (PANEL_PX, 190), paint)


def error_profile(layers: Sequence[Json]) -> str:
    """Signal-to-noise ratio of every layer's output in graph order; the three worst are numbered.

    Args:
        layers: {name, op, precision, snr_db, cosine} in graph order.
    """
    known = [
        (place, layer["snr_db"], layer) for place, layer in enumerate(layers, start=1) if layer["snr_db"] is not None
    ]

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        snr = [float("nan") if layer["snr_db"] is None else layer["snr_db"] for layer in layers]
        axes.plot(range(1, len(layers) + 1), snr, color=GREY, linewidth=1.0)
        for precision in sorted({layer["precision"] for layer in layers}):
            some = [(place, snr) for place, snr, layer in known if layer["precision"] == precision]
            if some:
                where, heights = zip(*some, strict=True)
                axes.scatter(where, heights, s=22, color=precision_colour(precision), zorder=3)
        for rank, (place, height, _) in enumerate(sorted(known, key=lambda one: (one[1], one[0]))[:3], start=1):
            axes.annotate(
                str(rank),
                (place, height),
                xytext=(0, -6),
                textcoords="offset points",
                horizontalalignment="center",
                verticalalignment="top",
                fontweight="bold",
                color=INK,
            )
        lowest, highest = (f(snr for _, snr, _ in known) for f in (min, max)) if known else (0.0, 1.0)
        room = max(highest - lowest, 5.0)
        axes.set_ylim(lowest - 0.12 * room, highest + 0.08 * room)
        axes.set_xlim(0.2, len(layers) + 0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(signed)
        axes.set_xlabel("layer, in the order of the graph")
        axes.set_ylabel("signal to error (dB), higher is better")
        _precision_legend(figure, sorted({layer["precision"] for layer in layers}))

    title = f"Signal-to-noise ratio after each of {len(layers)} layers, in decibels"
    return draw("profile", title, (WIDE_PX, 290), paint)


def _precision_legend(figure: Figure, precisions: Sequence[str]) -> None:
    legend(figure, [(elide(precision, 20), precision_colour(precision)) for precision in precisions])


def _decades(axes: Axes) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.xaxis.set_major_formatter(power_of_ten)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def _rebin(counts: Sequence[int], low: float, high: float) -> tuple[list[int], list[float]]:
    """Neighbouring bins added up so that at most _BINS are left, and the edges of those."""
    step = -(-len(counts) // _BINS) or 1
    begins = range(0, len(counts), step)
    width = (high - low) / max(1, len(counts))
    return [sum(counts[begin : begin + step]) for begin in begins], [*(low + width * begin for begin in begins), high]
