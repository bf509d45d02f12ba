"""What every HTML report shares: one self-contained page, no script, nothing fetched, every name escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import IncompatibleError
from .svg import COLOURS
from .text import byte_size, milliseconds, per_cent, printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render_page"]


def render_page(template: str, view: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None) -> str:
    """A page from a template of `report/templates`; the same view gives the same text.

    Raises:
        IncompatibleError: jinja2 is not installed.
    """
    return _environment(dict(filters or {})).get_template(template).render(colours=COLOURS, **view)


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
    environment.filters.update(byte_size=byte_size, milliseconds=milliseconds, per_cent=per_cent, **filters)
    return environment


def _finalize(value: Any) -> Any:
    """What is not markup of our own loses its control characters; markup is a string too, and keeps its lines."""
    return printable(value) if type(value) is str else value
