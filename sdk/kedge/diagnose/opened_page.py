"""A snapshot that was opened, as one page: judged by the doctor, its recording drawn."""

from __future__ import annotations

from typing import Any

from ..errors import BadInputError
from ..report.snapshot_html import snapshot_html
from .doctor import diagnose
from .evidence import evidence_of
from .opened import Opened

__all__ = ["snapshot_page"]

_LOGS = "logs/"
_MOST_LOG_BYTES = 256 << 10


def snapshot_page(opened: Opened) -> str:
    """The page, complete in itself; the same snapshot gives the same text.

    Raises:
        IncompatibleError: jinja2 or matplotlib is not installed.
    """
    facts = opened.facts()
    document = {
        "name": opened.device,
        "file": opened.path.name,
        "problems": opened.problems,
        "manifest": opened.manifest,
        "facts": facts,
        "members": {name: len(data) for name, data in opened.members.items()},
        "logs": {name: _lines(data) for name, data in opened.members.items() if name.startswith(_LOGS)},
    }
    return snapshot_html(document, _judged(opened.device, facts), [])


def _judged(device: str, facts: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return diagnose(evidence_of(device, facts)).to_json()
    except BadInputError:
        return None


def _lines(data: bytes) -> list[str]:
    return data[-_MOST_LOG_BYTES:].decode("utf-8", "replace").splitlines()
