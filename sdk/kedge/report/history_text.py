"""A device's journal on the terminal: one line a deploy or rollback."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

__all__ = ["deploys_of", "history_rows", "outcome_words"]

# The table says already which release, and what became of it.
_REPEATED = re.compile(r"^release [0-9a-f]{12} was (refused|taken back): ")
_REPLACED = "replaced"
_SWITCHED = ("switched", "committed", "reverted", "rolled-back")
_ENDS = {"committed": "live", "refused": "refused", "reverted": "taken back", "rolled-back": "rolled back"}
_UNDER_WAY = {
    "begun": "being staged",
    "gated": "being switched to",
    "switching": "being switched to",
    "switched": "on probation",
    "reverting": "being taken back",
}


def outcome_words(step: Any, reason: Any = None) -> str:
    """How a deploy ended, or where it is, from its last step in the journal."""
    known = {**_ENDS, **_UNDER_WAY, _REPLACED: "replaced before its probation had ended"}
    words = known.get(str(step), str(step))
    return f"{words}: {_REPEATED.sub('', reason)}" if isinstance(reason, str) and reason else words


def deploys_of(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The journal's entries, one a deploy or rollback: its first time, what is known of it, and its last step.

    Of a deploy whose first records the journal has dropped, the first that is left begins it.
    """
    out: list[dict[str, Any]] = []
    running: dict[tuple[Any, Any], dict[str, Any]] = {}
    for entry in entries:
        key, step = (entry.get("model"), entry.get("release")), entry.get("step")
        known = running.get(key)
        if known is None or step == "begun":
            known = running[key] = {"model": key[0], "release": key[1], "at_s": entry.get("at_s")}
            out.append(known)
        known |= {name: entry[name] for name in ("version", "reason", "to") if name in entry}
        known["step"] = step
        if step in _ENDS:
            running.pop(key)
    for index, each in enumerate(out):
        later = [other for other in out[index + 1 :] if other["model"] == each["model"]]
        if each["step"] in _UNDER_WAY and any(other["step"] in _SWITCHED for other in later):
            each["step"] = _REPLACED
    return out


def history_rows(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of the table: when, model, version, release, how it ended."""
    return [
        [
            _time(each["at_s"]),
            str(each["model"]),
            str(each.get("version", "–")),
            str(each["release"])[:12],
            outcome_words(each["step"], each.get("reason")) + _target(each.get("to")),
        ]
        for each in deploys_of(entries)
    ]


def _target(release: Any) -> str:
    return f" to {release[:12]}" if isinstance(release, str) else ""


def _time(at_s: Any) -> str:
    try:
        return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return "–"
