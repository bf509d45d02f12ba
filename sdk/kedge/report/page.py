"""What every HTML report shares: one self-contained page, nothing fetched, one script of its own, every name escaped.

`templates/page.html.j2` is the look, `templates/macros.html.j2` what goes into a page; `report.svg` and `report.series`
draw. The page reads without its script, which sorts tables, lets the keyboard scroll what does not fit, and opens
everything for the printer. The page's policy (CSP) names that script by its hash, so that no other runs, whatever a
name in a report holds.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..errors import IncompatibleError
from .svg import COLOURS
from .text import byte_size, milliseconds, per_cent, printable

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["STATES", "cell", "markup", "render_page"]

#: State → (sign, word). What is told by a colour is told by both of them too.
STATES: dict[str, tuple[str, str]] = {
    "none": ("", ""),
    "ok": ("✓", "ok"),
    "passed": ("✓", "passed"),
    "info": ("i", "note"),
    "warning": ("!", "warning"),
    "fault": ("✗", "fault"),
    "failed": ("✗", "failed"),
    "unavailable": ("–", "unavailable"),
}


def cell(text: object, value: float | None = None, *, code: bool = False, state: str = "") -> dict[str, Any]:
    """A cell of a table.

    Args:
        text: what is shown.
        value: what the column is sorted by; None where there is no figure, which comes last.
        code: in the fonts of code.
        state: of STATES: shown with its sign, the text in place of its word.
    """
    return {"text": text, "value": value, "code": code, "state": state}


def markup(drawing: str) -> Markup:
    """What `report.svg` or `report.series` drew, as markup for a page."""
    from markupsafe import Markup

    return Markup(drawing)  # noqa: S704  (serialised by an XML library, which escapes every name)


def render_page(template: str, view: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """A page from a template of `report/templates`; the same view gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    return _environment(dict(filters or {})).get_template(template).render(**view)


def _environment(filters: dict[str, Callable[..., Any]]) -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise IncompatibleError("the report needs jinja2", hint="pip install jinja2") from error

    environment = Environment(
        loader=PackageLoader("kedge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    script, digest = _script()
    environment.globals.update(colours=COLOURS, states=STATES, script=markup(script), script_hash=markup(digest))
    environment.filters.update(
        as_cell=_as_cell, byte_size=byte_size, milliseconds=milliseconds, per_cent=per_cent, **filters
    )
    return environment


@cache
def _script() -> tuple[str, str]:
    """The page's script, and its hash as a policy names it (W3C, Content Security Policy Level 3, 2.3.1)."""
    text = resources.files("kedge.report").joinpath("templates/page.js").read_text(encoding="utf-8")
    return text, f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _as_cell(given: Any) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    figure = given if isinstance(given, (int, float)) and not isinstance(given, bool) else None
    return cell(given, figure)


def _finalize(value: Any) -> Any:
    """What is not markup of our own loses its control characters; markup is a string too, and keeps its lines."""
    return printable(value) if type(value) is str else value
