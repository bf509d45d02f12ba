"""Charts of a model before and after its optimisation, each an `<svg>` element to put into a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .optimize_words import amount, comparable
from .svg import BLUE, GREEN, GREY, INK, MUTED, NARROW_PX, ORANGE, PANEL_PX, WIDE_PX, draw, elide, legend, signed
from .text import byte_size, milliseconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["before_after", "pareto", "robustness"]

Json = Mapping[str, Any]


_ROBUSTNESS_NAMES = {
    "noise": "Noise",
    "blur": "Blur",
    "contrast": "Contrast",
    "jpeg": "JPEG",
    "fgsm": "FGSM attack",
    "pgd": "PGD attack",
}


def pareto(search: Json, budget: float | None) -> str:
    """Every trial's cost and accuracy drop, the front joined, the chosen one marked, and the budget's line.

    Args:
        search: {objective, trials, front, chosen}.
        budget: the largest drop allowed, as a share, or None.
    """
    trials = search["trials"]
    front = sorted((t for t in trials if t["number"] in set(search["front"])), key=lambda t: (t["cost"], -t["drop"]))
    chosen = [t for t in trials if t["number"] == search["chosen"]]
    drops = [100 * t["drop"] for t in trials]
    # Cheap plans lose everything; on a linear axis they would press those of interest into one line.
    linear_to = max(1.0, 200 * (budget or 0.0))
    symlog = max([0.0, *drops]) > 8 * linear_to

    def paint(figure: Figure) -> None:
        from matplotlib.ticker import SymmetricalLogLocator

        axes = figure.add_subplot()
        if symlog:
            axes.set_yscale("symlog", linthresh=linear_to)
            axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear_to, subs=(1, 2, 5)))
        if budget is not None:
            axes.axhline(100 * budget, color=ORANGE, linewidth=1.4, linestyle=(0, (4, 2)), label="budget")
        for feasible, marker, fill, label in ((False, "x", MUTED, "over budget"), (True, "o", GREY, "within budget")):
            some = [t for t in trials if bool(t["feasible"]) is feasible]
            if some:
                costs, points = [t["cost"] for t in some], [100 * t["drop"] for t in some]
                axes.scatter(costs, points, s=22, marker=marker, color=fill, alpha=0.75, linewidth=1.2, label=label)
        costs, points = [t["cost"] for t in front], [100 * t["drop"] for t in front]
        axes.plot(costs, points, color=BLUE, linewidth=1.6, marker="o", markersize=5, label="front")
        for trial in chosen:
            axes.plot(
                [trial["cost"]],
                [100 * trial["drop"]],
                linestyle="",
                marker="*",
                markersize=17,
                markerfacecolor=GREEN,
                markeredgecolor=INK,
                markeredgewidth=0.9,
                label="chosen",
            )
        axes.margins(0.06, 0.1)
        axes.xaxis.set_major_formatter(lambda value, _: amount(value))
        axes.yaxis.set_major_formatter(signed)
        axes.set_xlabel(f"cost ({_units(trials)})")
        axes.set_ylabel(f"accuracy drop (points{f'; logarithmic above {linear_to:g}' if symlog else ''})")
        # Named one by one: a label that matplotlib takes for hidden would be left out.
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5)

    title = f"Cost against accuracy drop of {len(trials)} trials, {len(front)} of them on the front"
    return draw("pareto", title, (WIDE_PX, 350), paint)


def robustness(points: Sequence[Json]) -> list[str]:
    """Accuracy against strength, before and after, with 95 % bands; one drawing a kind of disturbance."""
    kinds = list(dict.fromkeys(point["kind"] for point in points))
    return [
        _robustness(kind, sorted((p for p in points if p["kind"] == kind), key=lambda p: float(p["strength"])))
        for kind in kinds
    ]


def _robustness(kind: str, points: Sequence[Json]) -> str:
    name = _ROBUSTNESS_NAMES.get(kind, kind)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for side, colour, marker, dash in (("before", GREY, "s", (0, (4, 2))), ("after", BLUE, "o", "solid")):
            known = [point for point in points if point[side] is not None]
            if not known:
                continue
            where = [point["strength"] for point in known]
            low, high = zip(*(point[side]["interval_95"] for point in known), strict=True)
            share = [100 * point[side]["share"] for point in known]
            axes.fill_between(where, [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.2, lw=0)
            axes.plot(
                where, share, color=colour, linewidth=1.8, linestyle=dash, marker=marker, markersize=4.5, label=side
            )
        axes.set_ylim(0, 102)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes.margins(x=0.05)
        axes.set_title(elide(name, 30), color=INK)
        axes.set_xlabel(f"strength ({elide(', '.join(dict.fromkeys(p['unit'] for p in points)), 30)})")
        axes.legend(loc="best")

    title = f"{name}: accuracy at {len(points)} strengths, before and after"
    return draw(f"robustness-{''.join(c for c in kind if c.isascii() and c.isalnum())}", title, (PANEL_PX, 210), paint)


def before_after(before: Json, after: Json) -> str:
    """Size, parameters, MACs and latency of the result, each as a share of what it was."""
    figures: list[tuple[str, float, float, Callable[[Any], str]]] = []
    measures: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
        ("Size", "bytes", byte_size),
        ("Parameters", "parameters", amount),
        ("MACs", "macs", amount),
    )
    for label, key, text in measures:
        if before[key] and after[key] is not None:
            figures.append((label, before[key], after[key], text))
    if comparable(before["latency"], after["latency"]):
        figures.append(("Latency p50", before["latency"]["p50_ms"], after["latency"]["p50_ms"], milliseconds))
    largest = max([1.0, *(now / was for _, was, now, _ in figures)])

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (_, was, now, text) in enumerate(figures):
            for value, offset, colour in ((was, -0.19, GREY), (now, 0.19, BLUE)):
                axes.barh(index + offset, value / was, height=0.34, color=colour)
                axes.annotate(
                    text(value),
                    (value / was, index + offset),
                    xytext=(5, 0),
                    textcoords="offset points",
                    verticalalignment="center",
                    fontsize=11,
                    color=INK,
                )
        axes.set_yticks(range(len(figures)), [label for label, *_ in figures], color=INK)
        axes.set_ylim(len(figures) - 0.45, -0.55)
        axes.set_xlim(0, largest * 1.25)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        legend(figure, [("before", GREY), ("after", BLUE)])

    told = "; ".join(f"{label} {text(was)} before, {text(now)} after" for label, was, now, text in figures)
    return draw("before-after", f"Before and after. {told}", (NARROW_PX, 60 + 42 * len(figures)), paint)


def _units(trials: Sequence[Json]) -> str:
    return elide(", ".join(dict.fromkeys(trial["cost_unit"] for trial in trials)), 40)
