"""A deploy on the terminal: what the device says meanwhile, in words, and the table before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tables import key_values, print_table
from .text import NOT_MEASURED, byte_size, milliseconds

__all__ = ["deploy_tables", "event_words", "probation_words"]

_SHORT = 12
_NAMES = ("version", "runtime", "precision")


def event_words(event: Mapping[str, Any]) -> str:
    """What a device tells of its gates and of the probation, as one line; empty: nothing for people."""
    kind = event.get("event")
    if kind == "probation":
        return probation_words(event)
    if kind == "gate":
        word = "passed" if event.get("passed") is True else "refused"
        return f"{event.get('gate')} {word}: {'; '.join(_gate_words(event)) or NOT_MEASURED}"
    if kind == "drained":
        return f"the live release is taken out for a moment: {event.get('reason')}"
    if kind == "restored":
        return "the live release serves again"
    return ""


def probation_words(found: Mapping[str, Any]) -> str:
    """`1,204 requests, 0 failed, p99 3.21 ms`; what was not measured is left out."""
    parts = []
    requests, errors, p99 = (found.get(key) for key in ("requests", "errors", "p99_ms"))
    if isinstance(requests, int):
        parts.append(f"{requests:,} request{'' if requests == 1 else 's'}")
        if isinstance(errors, int) and requests:
            parts.append(f"{errors:,} failed")
    if isinstance(p99, (int, float)):
        parts.append(f"p99 {milliseconds(p99)}")
    return ", ".join(parts)


def deploy_tables(document: Mapping[str, Any]) -> None:
    """A deploy's document as tables: before and after, parity of each output, and how it went."""
    before, after, previous = document["before"], document["after"] or {}, document["previous"]
    gates = {gate.get("gate"): gate for gate in document["gates"] if isinstance(gate, Mapping)}
    latency, memory = (_figures(gates.get(name)) for name in ("latency", "memory"))
    after = {
        **after,
        "release": document["release"],
        "version": document["version"],
        "size_bytes": document["size_bytes"],
        "p99_ms": latency.get("p99_ms", after.get("p99_ms")),
        "peak_bytes": memory.get("peak_bytes", after.get("peak_bytes")),
    }
    release = _row("release", before, after, lambda side: str(side["release"])[:_SHORT])
    if before is None:
        # Where there is something to go back to, something was there.
        release[1] = "nothing" if previous is None else "not known"
    rows = [release]
    rows += [_row(name, before, after, lambda side, key=name: str(side.get(key) or "–")) for name in _NAMES]
    rows.append(_row("size", before, after, lambda side: _size(side.get("size_bytes"), "–")))
    rows.append(_row("compute p99, golden inputs", before, after, lambda side: milliseconds(side.get("p99_ms"))))
    rows.append(_row("own memory at its peak", before, after, lambda side: _size(side.get("peak_bytes"))))
    print_table(f"{document['model']} on {document['device']}", ["", "before", "after"], rows)
    key_values([*_parity_rows(document["parity"], document["limits"]), *_ending_rows(document)])


def _row(name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any], cell: Any) -> list[str]:
    return [name, "" if before is None else cell(before), cell(after)]


def _size(value: Any, absent: str = NOT_MEASURED) -> str:
    return byte_size(value) if isinstance(value, int) else absent


def _figures(gate: Any) -> Mapping[str, Any]:
    figures = gate.get("figures") if isinstance(gate, Mapping) else None
    return figures if isinstance(figures, Mapping) else {}


def _parity_rows(parity: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    common = {key: value for key, value in limits["parity"].items() if key != "outputs"}
    own = {each["name"]: each for each in limits["parity"].get("outputs", [])}
    rows = []
    for row in parity:
        limit = {**common, **own.get(row.get("output"), {})}
        figures = [
            f"cosine {_cosine(row)} (≥ {limit['cosine_min']})",
            f"relative error {_error(row, 'relative_error')} (≤ {limit['relative_error_max']})",
        ]
        if "max_abs_error_max" in limit:
            figures.append(f"largest error {_error(row, 'max_abs_error')} (≤ {limit['max_abs_error_max']})")
        rows.append((f"parity of {row['output']}", ", ".join(figures)))
    return rows


def _ending_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    previous = document["previous"]
    rows = [
        ("rolls back to", previous[:_SHORT] if previous else "nothing: this is the model's first release"),
        ("sent", _sent(document)),
        ("push / switch", f"{milliseconds(document['push_s'] * 1e3)} / {milliseconds(document['activate_s'] * 1e3)}"),
    ]
    if document["probation"] is not None:
        rows.append(("probation", _probation(document["probation"])))
    if document["signed"] is not None:
        rows.append(("signatures", "verified by the device" if document["signed"] else "none were asked for"))
    return rows


def _probation(found: Mapping[str, Any]) -> str:
    seconds, words = found.get("seconds"), probation_words(found)
    if found.get("cut_by"):
        head = f"ended by another deploy after {found.get('elapsed_s', 0):.0f} of {seconds} s"
    else:
        head = f"passed: {seconds} s" if seconds else "none was asked for"
    return f"{head}, {words}" if words and seconds else head


def _sent(document: Mapping[str, Any]) -> str:
    sent, wire = document["sent_bytes"], document["wire_bytes"]
    parts = []
    if sent:
        speed = f" at {byte_size(int(wire / document['push_s']))}/s" if document["push_s"] else ""
        parts.append(f"{byte_size(wire)} for {byte_size(sent)}{speed}" if wire != sent else f"{byte_size(sent)}{speed}")
    if document["copied_bytes"]:
        parts.append(f"{byte_size(document['copied_bytes'])} made of what was there")
    if document["skipped_bytes"]:
        parts.append(f"{byte_size(document['skipped_bytes'])} there already")
    return "; ".join(parts) or "nothing"


def _gate_words(event: Mapping[str, Any]) -> list[str]:
    figures, limits = _figures(event), event.get("limits")
    stated: Mapping[str, Any] = limits if isinstance(limits, Mapping) else {}
    if event.get("gate") == "parity":
        rows = [row for row in figures.get("outputs", []) if isinstance(row, Mapping)]
        worst = min(rows, key=lambda row: float(row.get("cosine") or 0), default=None)
        if worst is None:
            return []
        return [f"{worst.get('output')} cosine {_cosine(worst)}, relative error {_error(worst, 'relative_error')}"]
    if event.get("gate") == "latency":
        out = []
        if figures.get("p99_ms") is not None:
            out.append(f"p99 {milliseconds(figures['p99_ms'])}{_limit(stated.get('p99_ms'), milliseconds)}")
        if figures.get("p99_ratio") is not None:
            out.append(
                f"{figures['p99_ratio']:.2f} × that of the live release{_limit(stated.get('p99_ratio_max'), str)}"
            )
        return out
    if figures.get("peak_bytes") is not None:
        return [f"own memory {byte_size(figures['peak_bytes'])}{_limit(stated.get('peak_bytes'), byte_size)}"]
    return []


def _cosine(row: Mapping[str, Any]) -> str:
    value = row.get("cosine")
    return NOT_MEASURED if value is None else f"{value:.6f}"


def _error(row: Mapping[str, Any], key: str) -> str:
    # A device tells null where tensors differ in more than their values.
    value = row.get(key)
    return "infinite" if value is None else f"{value:.2g}"


def _limit(value: Any, words: Any) -> str:
    return "" if value is None else f" (≤ {words(value)})"
