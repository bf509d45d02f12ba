"""A snapshot as one HTML page, for which no device and no network is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from .doctor_html import doctor_view
from .page import cell, markup, render_page
from .snapshot_text import plain
from .text import NOT_MEASURED, byte_size

__all__ = ["snapshot_html"]

_MOST_ROWS = 500
_MOST_LINES = 400
_LINE = 600
_STATES = {"ok": "ok", "unavailable": "unavailable", "failed": "fault", "timeout": "fault"}


def snapshot_html(
    document: Mapping[str, Any], diagnosis: Mapping[str, Any] | None, figures: Sequence[tuple[str, str]]
) -> str:
    """The page of one snapshot, complete in itself; the same snapshot gives the same text.

    Whoever made the snapshot may have put anything into it: nothing of it is believed.

    Args:
        document: `name`; `file`; `problems`; `manifest` and `facts` (docs/snapshot.md); `members`: sizes by name;
            `logs`: lines by name, oldest first.
        diagnosis: the document of `kedge doctor --json`; None where the facts cannot be judged.
        figures: title and drawing of the recorder's figures over time (`report.history_html.recording_figures`).

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    data = {
        name: _dict(_dict(each).get("data")) for name, each in _dict(_dict(document["facts"]).get("collectors")).items()
    }
    sections = [each for each in _sections(data) if each["rows"]]
    logs = [(name, [plain(line, _LINE) for line in lines[-_MOST_LINES:]]) for name, lines in _logs(document, data)]
    nav = [("findings", "Findings"), ("charts", "Over time"), *((each["id"], each["title"]) for each in sections)]
    nav += [("logs", "Logs"), ("collectors", "Collectors"), ("files", "Files")]
    absent = {"findings": diagnosis is None, "charts": not figures, "logs": not logs}
    view = {
        "d": document,
        "nav": [(identifier, title) for identifier, title in nav if not absent.get(identifier)],
        "lead": f"taken {_time(document['facts'].get('at_s'))}; file {document['file']}",
        "diagnosis": None if diagnosis is None else doctor_view(diagnosis),
        "tiles": _tiles(data, document["facts"]),
        "figures": [(title, markup(drawing)) for title, drawing in figures],
        "sections": sections,
        "logs": logs,
        "collectors": _collectors(document),
        "members": [(cell(name, code=True), cell(byte_size(size), size)) for name, size in document["members"].items()],
        "left_out": _left_out(document["manifest"]),
        "masked": [
            (plain(kind, 20), count)
            for kind, count in _dict(_dict(document["manifest"]).get("redacted")).items()
            if isinstance(count, int)
        ],
    }
    return render_page("snapshot.html.j2", view)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)][-_MOST_ROWS:] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18 else None


def _bytes(value: Any) -> dict[str, Any]:
    number = _number(value)
    return cell("–") if number is None else cell(byte_size(int(number)), number)


def _figure(value: Any) -> dict[str, Any]:
    number = _number(value)
    return cell(plain(value, 40) if number is None else f"{number:,.6g}", number)


def _cores(value: Any) -> dict[str, Any]:
    number = _number(value)
    return cell("–" if number is None else f"{number:.3g}", number)


def _short(value: Any) -> dict[str, Any]:
    return cell(
        plain(value, 12).rstrip("…") if isinstance(value, str) and len(value) == 64 else plain(value, 80), code=True
    )


def _truth(value: Any, good: bool = True) -> dict[str, Any]:
    if not isinstance(value, bool):
        return cell("not known", state="unavailable")
    return cell("yes" if value else "no", state="ok" if value is good else "fault")


def _time(value: Any) -> str:
    number = _number(value)
    try:
        told = None if number is None else datetime.fromtimestamp(number, timezone.utc)
    except (ValueError, OverflowError, OSError):
        told = None
    return "at a time that is not known" if told is None else told.strftime("%Y-%m-%d %H:%M:%S UTC")


def _moment(value: Any) -> dict[str, Any]:
    return cell(_time(value) if _number(value) is not None else "–", _number(value))


def _tiles(data: Mapping[str, dict[str, Any]], facts: Mapping[str, Any]) -> list[dict[str, str]]:
    system, memory, agent = (data.get(name, {}) for name in ("system", "memory", "agent"))
    disks = _list(data.get("disk", {}).get("file_systems"))
    disk = next((each for each in disks if each.get("what") == "state"), {})
    up = _number(system.get("uptime_s"))
    running = _either(agent.get("running"), "runs", "does not run", "not known")
    answers = _either(agent.get("responds"), "answers", "does not answer", "")
    return [
        _tile("device", plain(system.get("module") or system.get("arch"), 60), plain(system.get("arch"), 30)),
        _tile("system", plain(system.get("l4t") or system.get("os"), 60), f"kernel {plain(system.get('kernel'), 60)}"),
        _tile("agent", running, ", ".join(each for each in (plain(facts.get("agent_version"), 30), answers) if each)),
        _tile("up for", "–" if up is None else f"{up / 3600:,.1f} h", f"{plain(system.get('cores'), 6)} cores"),
        _tile(
            "memory",
            _bytes(memory.get("available_bytes"))["text"],
            f"of {_bytes(memory.get('total_bytes'))['text']} free",
        ),
        _tile("disk", _bytes(disk.get("free_bytes"))["text"], f"of {_bytes(disk.get('total_bytes'))['text']} free"),
    ]


def _either(value: Any, yes: str, no: str, otherwise: str) -> str:
    return {True: yes, False: no}[value] if isinstance(value, bool) else otherwise


def _tile(name: str, value: str, detail: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail}


def _section(
    identifier: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()
) -> dict[str, Any]:
    return {
        "id": identifier,
        "title": title,
        "columns": columns,
        "rows": rows,
        "right": right,
        "wide": len(columns) > 4,
    }


def _yes(value: Any) -> str:
    return _either(value, "yes", "no", "–")


def _reading(each: Mapping[str, Any]) -> tuple[Any, ...]:
    kind, unit = plain(each.get("kind"), 20), plain(each.get("unit"), 20)
    value = _bytes(each.get("value")) if unit == "bytes" else _figure(each.get("value"))
    return kind, plain(each.get("name"), 60).removeprefix(f"{kind}."), value, "" if unit == "bytes" else unit


def _sections(data: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    get = {name: data.get(name, {}) for name in ("releases", "engines", "journal", "sensors", "processes", "installs")}
    facts = _dict(get["sensors"].get("facts"))
    mode = _dict(facts.get("power_mode"))
    throttles = list(_dict(get["sensors"].get("throttles")).items())[:_MOST_ROWS]
    switches = [
        ("power mode", plain(mode.get("name"), 60)),
        ("jetson_clocks", _yes(facts.get("jetson_clocks"))),
        *((f"throttled by {plain(name, 60)}", _figure(count)) for name, count in throttles),
    ]
    known = mode or throttles or facts.get("jetson_clocks") is not None
    return [
        _section(
            "releases",
            "Releases",
            ("Model", "Release", "Version", "Role", "Whole", "Signed", "Damage"),
            [
                (
                    plain(model.get("model"), 80),
                    _short(each.get("release")),
                    _figure(each.get("version")),
                    plain(each.get("role"), 20),
                    _truth(each.get("whole")),
                    _yes(each.get("signed")),
                    "; ".join(
                        f"{plain(bad.get('file'), 80)}: {plain(bad.get('why'))}" for bad in _list(each.get("bad"))
                    ),
                )
                for model in _list(get["releases"].get("models"))
                for each in _list(model.get("releases"))
            ],
            (2,),
        ),
        _section(
            "engines",
            "Engines",
            ("Model", "Release", "Runtime", "Version", "Fits this device", "Why not"),
            [
                (
                    plain(each.get("model"), 80),
                    _short(each.get("release")),
                    plain(each.get("runtime"), 40),
                    plain(each.get("version"), 40),
                    _truth(each.get("fits")),
                    plain("; ".join(map(str, each["refusals"])) if isinstance(each.get("refusals"), list) else "", 400),
                )
                for each in _list(get["engines"].get("engines"))
            ],
        ),
        _section(
            "journal",
            "What was deployed",
            ("When", "Model", "Release", "Step", "Reason"),
            [
                (
                    _moment(each.get("at_s")),
                    plain(each.get("model"), 80),
                    _short(each.get("release")),
                    plain(each.get("step"), 20),
                    "" if each.get("reason") is None else plain(each["reason"], 400),
                )
                for each in reversed(_list(get["journal"].get("entries")))
            ],
        ),
        _section(
            "sensors",
            "Sensors",
            ("Kind", "Name", "Value", "Unit"),
            [_reading(each) for each in _list(get["sensors"].get("readings"))],
            (2,),
        ),
        _section("switches", "Power mode and throttling", ("What", "Value"), switches if known else [], (1,)),
        _section(
            "processes",
            "Who computed meanwhile",
            ("Process", "Number", "Cores", "Memory", "Ours"),
            [
                (
                    plain(each.get("name"), 60),
                    cell(plain(each.get("pid"), 12), _number(each.get("pid"))),
                    _cores(each.get("cores")),
                    # A process that has ended meanwhile holds none, whatever it held.
                    _bytes(each.get("rss_bytes")) if each.get("rss_bytes") else cell(NOT_MEASURED),
                    _yes(each.get("ours")),
                )
                for each in _list(get["processes"].get("top"))
            ],
            (1, 2, 3),
        ),
        _section(
            "installs",
            "Agents on this device",
            ("What", "Where", "Version", "State folder", "Runs"),
            [
                (
                    plain(each.get("what"), 20),
                    cell(plain(each.get("path")), code=True),
                    plain(each.get("version"), 30),
                    cell(plain(each.get("state")), code=True),
                    _yes(each.get("running")),
                )
                for each in _list(get["installs"].get("agents"))
            ],
        ),
    ]


def _logs(document: Mapping[str, Any], data: Mapping[str, dict[str, Any]]) -> list[tuple[str, Sequence[str]]]:
    errors = [
        f"{plain(each.get('at'), 40)} {plain(each.get('line'), _LINE)}"
        for each in _list(data.get("logs", {}).get("errors"))
    ]
    kernel = data.get("kernel", {}).get("lines")
    out: list[tuple[str, Sequence[str]]] = [("Errors of the agent", errors)]
    out.append(
        ("Kernel: memory, GPU, heat and storage", [str(line) for line in kernel] if isinstance(kernel, list) else [])
    )
    out += list(document["logs"].items())
    return [(name, lines) for name, lines in out if lines]


def _collectors(document: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    collectors = _dict(_dict(document["facts"]).get("collectors"))
    for name, each in (_dict(_dict(document["manifest"]).get("collectors")) or collectors).items():
        told = _dict(each)
        status = plain(told.get("status"), 20)
        ms = _number(told.get("ms"))
        files = told.get("members")
        rows.append(
            (
                plain(name, 40),
                cell(status, state=_STATES.get(status, "unavailable")),
                cell("–" if ms is None else f"{ms:,.0f}", ms),
                cell(len(files), len(files)) if isinstance(files, list) else "–",
                "" if told.get("reason") is None else plain(told["reason"], 400),
            )
        )
    return rows[:_MOST_ROWS]


def _left_out(manifest: Any) -> list[str]:
    rows = [_dict(each) for each in _dict(_dict(manifest).get("collectors")).values()]
    return [
        f"{plain(each.get('name'), 120)}: {plain(each.get('why'))}"
        for row in rows
        for each in _list(row.get("left_out"))
    ][:_MOST_ROWS]
