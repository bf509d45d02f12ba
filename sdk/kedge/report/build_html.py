"""The report of a build as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .memory import activation_rows, memory_sentence
from .page import cell, render_page
from .text import NOT_MEASURED, byte_size, sentence

__all__ = ["build_html", "share_bars"]

_SHOWN_LAYERS = 500
_SHOWN_CHARACTERS = 200_000
_WORDS = {"nowhere": "Nothing was compiled", "host": "Built on this host", "device": "To be built on the first device"}


def build_html(document: Mapping[str, Any]) -> str:
    """The page of one build (docs/build-report.md), complete in itself; the same document gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    engine = document["engine"]
    report = {} if engine is None else engine["report"]
    view = {
        "d": document,
        "state": "ok" if engine is not None or document["plan"]["where"] == "nowhere" else "none",
        "headline": _headline(document),
        "sentences": _sentences(document),
        "tiles": _tiles(document, report),
        "memory": sentence(memory_sentence(document["plan"]["memory"])),
        "bars": _memory(document["plan"]["memory"]),
        "passport": []
        if engine is None
        else [(key.replace("_", " "), _text(v)) for key, v in engine["passport"].items()],
        "profiles": [
            (cell(name, code=True), *("×".join(map(str, shape)) for shape in shapes))
            for name, shapes in document["plan"]["profiles"].items()
        ],
        "network": _network(report.get("network", [])),
        "engine_layers": report.get("engine_layers", "")[:_SHOWN_CHARACTERS].splitlines(),
        "no_engine_layers": _why_no_layers(document),
        "attempts": [
            (byte_size(each["workspace_bytes"]), byte_size(each["available_bytes"]), each["outcome"], each["reason"])
            for each in report.get("attempts", [])
        ],
        "log": None if engine is None else [line for told in report.get("log", []) for line in told.splitlines()],
    }
    return render_page("build.html.j2", view)


def share_bars(rows: list[tuple[str, int, str, str]]) -> list[dict[str, Any]]:
    """Bars of (name, size, text, role), as shares of the largest."""
    most = max((size for _, size, _, _ in rows), default=0) or 1
    return [
        {"name": name, "percent": f"{100 * size / most:.1f}", "value": text, "role": role}
        for name, size, text, role in rows
    ]


def _headline(document: Mapping[str, Any]) -> str:
    engine, where = document["engine"], document["plan"]["where"]
    if engine is None:
        return {
            "nowhere": "A release of the model itself",
            "device": "A release with a build plan, and no engine yet",
        }.get(where, "A release")
    return "An engine from the cache" if engine["from_cache"] else "An engine, built now"


def _sentences(document: Mapping[str, Any]) -> list[str]:
    out = [sentence(document["reason"])]
    engine = document["engine"]
    if engine is None and document["plan"]["where"] == "device":
        out.append("The engine is built when this release is first deployed to such a device, or with --on DEVICE.")
    if document["golden_made_up"]:
        out.append("Golden inputs are made up: the parity gate compares noise. Give real ones with --golden.")
    if engine is not None and engine["passport"]["runtime"] == "tensorrt-rtx":
        out.append(
            "The device finishes it: TensorRT for RTX compiles the last step for its GPU when it loads the engine."
        )
    return out


def _tiles(document: Mapping[str, Any], report: Mapping[str, Any]) -> list[dict[str, str]]:
    engine, tiles = document["engine"], []
    if engine is not None:
        ratio = engine["bytes"] / document["model_bytes"]
        detail = f"{ratio:.2f} × the ONNX file"
        tiles.append({"name": "engine", "value": byte_size(engine["bytes"]), "detail": detail})
    tiles.append({"name": "ONNX file", "value": byte_size(document["model_bytes"]), "detail": document["precision"]})
    if engine is not None:
        seconds, peak = report.get("seconds"), report.get("peak_rss_bytes")
        when = "when it was built" if engine["from_cache"] else _WORDS[document["plan"]["where"]].lower()
        value = NOT_MEASURED if seconds is None else f"{seconds:.2f} s"
        tiles.append({"name": "build time", "value": value, "detail": when})
        value = NOT_MEASURED if peak is None else byte_size(peak)
        tiles.append({"name": "peak memory", "value": value, "detail": "of the compiler's process"})
    tiles.append({"name": "release", "value": byte_size(document["bytes"]), "detail": "all files"})
    return tiles


def _memory(memory: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if memory is None:
        return []
    rows = [("weights", memory["weights_bytes"], byte_size(memory["weights_bytes"]), "blue")]
    for label, size in activation_rows(memory):
        rows.append((label, size or 0, "not known" if size is None else byte_size(size), "blue"))
    rows.append(("scratch, least", memory["least_workspace_bytes"], byte_size(memory["least_workspace_bytes"]), "grey"))
    rows.append(("needed in all", memory["needed_bytes"], byte_size(memory["needed_bytes"]), "orange"))
    return share_bars(rows)


def _network(layers: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not layers:
        return None
    counts: dict[str, Counter[str]] = {}
    for layer in layers:
        kind = layer["outputs"][0]["datatype"] if layer["outputs"] else "none"
        counts.setdefault(layer["kind"], Counter())[kind] += 1
    types = sorted({kind for row in counts.values() for kind in row})
    rows = [
        (kind, *(cell(row[each] or "–", row[each]) for each in types), sum(row.values()))
        for kind, row in sorted(counts.items(), key=lambda entry: -sum(entry[1].values()))
    ]
    shown = [
        (
            place,
            cell(layer["name"], code=True),
            layer["kind"],
            ", ".join(f"{out['datatype']} {list(out['shape'])}" for out in layer["outputs"]),
        )
        for place, layer in enumerate(layers[:_SHOWN_LAYERS])
    ]
    return {
        "count": len(layers),
        "types": types,
        "rows": rows,
        "layers": shown,
        "left_out": max(0, len(layers) - _SHOWN_LAYERS),
    }


def _why_no_layers(document: Mapping[str, Any]) -> str:
    if document["engine"] is None:
        return "There is no engine yet." if document["plan"]["where"] == "device" else "This runtime compiles nothing."
    return "Unavailable: an engine can be looked into only where a GPU loads it, and the one that built this had none."


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
