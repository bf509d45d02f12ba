"""What a device did, as one HTML page; and the drawings of a recording, for other pages too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .history_events import Event, duration, events_of, marks_of, models_of, moment, notes_of
from .history_panels import COLOURS, Panel, device_panels, model_panels, points
from .history_text import DEPLOY_COLUMNS, history_rows
from .page import cell, markup, render_page
from .svg import GREY, ORANGE, RED
from .text import byte_size, capital, milliseconds, per_cent, sentence

if TYPE_CHECKING:
    from .series import Mark

__all__ = ["history_html", "recording_figures"]

_MOST_MODELS = 6
_MOST_MARKS = 200
# Of the time that was asked for: with more of it empty, little can be seen of the rest on a narrow screen.
_EMPTY_SHARE = 0.25
_MODEL_COLUMNS = ("Model", "Version", "Requests", "Failed", "p50", "p99", "p50, model alone", "p99, model alone")
# They stand beside each figure.
_UNITS = {"bytes": "", "bytes/s": "", "ratio": ""}
_READING_COLUMNS = ("Channel", "Least", "Mean", "Most", "Last", "Unit")


def history_html(document: Mapping[str, Any]) -> str:
    """The page of one history (docs/history.md), complete in itself; the same document gives the same text.

    Raises:
        IncompatibleError: jinja2 or matplotlib is not installed.
    """
    recording = document["recording"]
    heads = [capital(each) for each in DEPLOY_COLUMNS]
    view: dict[str, Any] = {"d": document, "deploy_columns": heads, "deploys": _deploys(document)}
    if recording is not None:
        events = events_of(document)
        view |= {
            "lead": f"{duration(recording['to_s'] - recording['from_s'])} until {moment(recording['to_s'])} UTC; "
            f"a point is {duration(recording['step_s'])}",
            "tiles": _tiles(recording),
            "notes": [sentence(each) for each in notes_of(recording)],
            "figures": [(title, markup(drawing)) for title, drawing in recording_figures(document)],
            "events": [
                (cell(moment(each.at_s), each.at_s), cell("amiss", state="warning") if each.fault else "", each.text)
                for each in events
            ],
            "model_columns": _MODEL_COLUMNS,
            "models": _models(recording),
            "reading_columns": _READING_COLUMNS,
            "readings": _readings(recording),
        }
    return render_page("history.html.j2", view)


def recording_figures(document: Mapping[str, Any], prefix: str = "over-time") -> list[tuple[str, str]]:
    """Title and `<svg>` element of each drawing of a recording; none where there is no recording.

    Args:
        document: `entries` and `recording`, as `kedge history --json` has them.
        prefix: begins every id in the drawings; unique on the page, of letters, digits and hyphens.

    Raises:
        IncompatibleError: matplotlib is not installed.
    """
    recording = document["recording"]
    if recording is None:
        return []
    events = events_of(document)
    throttled = _throttled(recording)
    panels = [panel for name in models_of(recording)[:_MOST_MODELS] for panel in model_panels(recording, name)]
    return [
        (_title(panel), _figure(f"{prefix}-{number}", panel, recording, [*_marks(panel, events), *throttled]))
        for number, panel in enumerate([*panels, *device_panels(recording)])
    ]


def _title(panel: Panel) -> str:
    more = f" ({panel.left_out} more are in the table)" if panel.left_out else ""
    return capital(f"{panel.title}{more}")


def _figure(name: str, panel: Panel, recording: Mapping[str, Any], marks: Sequence[Mark]) -> str:
    from .series import Series, series_svg

    steps = recording["steps"]
    times = [step["at_s"] for step in steps]
    series = []
    for line, colour in zip(panel.lines, COLOURS, strict=False):
        where, known = points(line, times, recording["step_s"], panel.holds_s)
        values, low, high = ([row[index] for row in known] for index in range(3))
        series.append(Series(line.name, where, values, colour, *((low, high) if line.low and line.high else ())))
    span = (_begins_s(recording), recording["to_s"])
    # Where a line breaks off is told already.
    gap_s = span[1] - span[0]
    return series_svg(name, panel.title, series, marks, panel.unit, span_s=span, gap_s=gap_s, from_zero=panel.from_zero)


def _begins_s(recording: Mapping[str, Any]) -> float:
    """Where the axis of time begins: where the recording does, if that is much later than what was asked for."""
    asked_s, steps = float(recording["from_s"]), recording["steps"]
    first_s = float(steps[0]["at_s"]) - recording["step_s"] if steps else asked_s
    much = first_s - asked_s > _EMPTY_SHARE * (recording["to_s"] - asked_s)
    return min(first_s, recording["to_s"] - recording["step_s"]) if much else asked_s


def _marks(panel: Panel, events: Sequence[Event]) -> list[Mark]:
    from .series import Mark

    marked = marks_of(panel, events)[:_MOST_MARKS]
    return [Mark(each.at_s, brief, colour=RED if each.fault else GREY) for each, brief in marked]


def _throttled(recording: Mapping[str, Any]) -> list[Mark]:
    from .series import Mark

    spans: list[tuple[float, float]] = []
    for step in recording["steps"]:
        if step["throttled_share"]:
            begin = step["at_s"] - recording["step_s"]
            if spans and begin - spans[-1][1] < 0.6 * recording["step_s"]:
                begin = spans.pop()[0]
            spans.append((begin, step["at_s"]))
    return [Mark(begin, "throttled", end, ORANGE) for begin, end in spans[:_MOST_MARKS]]


def _tiles(recording: Mapping[str, Any]) -> list[dict[str, str]]:
    summary = recording["summary"]
    tiles = []
    for name in models_of(recording)[:2]:
        each = summary["models"][name]
        p50 = each["total_p50_ms"]
        detail = "no request was answered" if p50 is None else f"p50 {milliseconds(p50)}, {each['requests']:,} answered"
        tiles.append({"name": f"{name}: p99", "value": milliseconds(each["total_p99_ms"]), "detail": detail})
    share = summary["throttled_share"]
    detail = "no counters of it" if share is None else "of the time"
    tiles.append({"name": "throttled", "value": "unavailable" if share is None else per_cent(share), "detail": detail})
    hot = {name: each for name, each in summary["channels"].items() if name.startswith("temperature.")}
    if hot:
        name = max(hot, key=lambda name: hot[name]["max"])
        zone = name.removeprefix("temperature.")
        tiles.append({"name": "hottest", "value": f"{hot[name]['max']:.3g} °C", "detail": zone})
    recorded_s, span_s = summary["seconds"], recording["to_s"] - recording["from_s"]
    tiles.append({"name": "recorded", "value": duration(recorded_s), "detail": f"of {duration(span_s)}"})
    return tiles


def _deploys(document: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (when, model, version, cell(release, code=True), outcome)
        for when, model, version, release, outcome in history_rows(document["entries"])
    ]


def _models(recording: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for name in models_of(recording):
        each = recording["summary"]["models"][name]
        failed = sum(each["failures"].values())
        latencies = (each[key] for key in ("total_p50_ms", "total_p99_ms", "compute_p50_ms", "compute_p99_ms"))
        rows.append(
            (
                name,
                cell(str(each["version"]), each["version"]),
                cell(f"{each['requests']:,}", each["requests"]),
                cell(_failed(failed, each["failures"]), failed, state="warning" if failed else ""),
                *(cell("–" if value is None else milliseconds(value), value) for value in latencies),
            )
        )
    return rows


def _failed(count: int, failures: Mapping[str, int]) -> str:
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in failures.items())
    return f"{count:,} ({kinds})" if count else "0"


def _readings(recording: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for name, each in sorted(recording["summary"]["channels"].items()):
        figures = [None if each["unit"] == "count" else each[key] for key in ("min", "mean", "max")]
        cells = (cell(_reading(value, each["unit"]), value) for value in (*figures, each["last"]))
        rows.append((name, *cells, _UNITS.get(each["unit"], each["unit"])))
    return rows


def _reading(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit in ("bytes", "bytes/s"):
        return byte_size(round(value)) + unit.removeprefix("bytes")
    return f"{value * 100:.3g} %" if unit == "ratio" else f"{value:,.6g}"
