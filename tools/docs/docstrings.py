"""Docstrings of this project as reStructuredText: what reads well in the source is made what docutils reads.

They are plain text with Google's sections. Before the sections, two shapes have a meaning of their own: a paragraph of
`name: what it is` lines is a list, and an indented paragraph is shown as it stands.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

__all__ = ["setup", "to_rst"]

_SECTION = re.compile(r"^(Args|Attributes|Example|Examples|Note|Raises|Returns|Yields):$")
_ITEM = re.compile(r"^(\*{0,2}[a-z_]\w*(?:(?:, | and )\*{0,2}[a-z_]\w*)*): (.*)$")
#: Short items may share a line: "name: what. version: what".
_NEXT_ITEM = re.compile(rf"(?<=[.;]) (?={_ITEM.pattern[1:-1]})")
_CODE = re.compile(r"(`+[^`]+`+)")
_MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
_NAPOLEON = Config(napoleon_use_rtype=False, napoleon_use_ivar=True)


def to_rst(lines: Sequence[str], what: str) -> list[str]:
    """A docstring as autodoc hands it over, by what it belongs to ("class", "attribute", …)."""
    first = next((at for at, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    body: list[str] = []
    for paragraph in _paragraphs(lines[:first]):
        body += [*_paragraph(paragraph), ""]
    if first == len(lines):
        return body
    sections = _escaped("\n".join(lines[first:])).split("\n")
    return [*body, *GoogleDocstring(sections, _NAPOLEON, what=what).lines()]


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's way in."""
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _signature)
    app.connect("missing-reference", _elsewhere)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [each for each in found if each]


def _paragraph(lines: list[str]) -> list[str]:
    if all(line.startswith("    ") for line in lines):
        return ["::", "", *lines]
    if _ITEM.match(lines[0]) and all(_ITEM.match(line) or line.startswith("    ") for line in lines):
        joined = "".join(f"\n{line}" if _ITEM.match(line) else f" {line.strip()}" for line in lines)
        items = [_ITEM.match(line) for line in _NEXT_ITEM.sub("\n", joined).split("\n")]
        return [f"* `{item[1]}`: {_escaped(item[2])}" for item in items if item]
    return _escaped("\n".join(lines)).split("\n")


def _escaped(text: str) -> str:
    """What would be markup of reStructuredText by chance, as text; what stands between backticks is left."""
    return "".join(part if at % 2 else _MARKUP.sub(r"\\\g<0>", part) for at, part in enumerate(_CODE.split(text)))


def _process(_app: Sphinx, what: str, _name: str, _of: object, _options: object, lines: list[str]) -> None:
    lines[:] = to_rst(lines, what)


def _signature(
    _app: Sphinx, _what: str, _name: str, _of: object, _options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """What a dataclass makes anew has no text that is Python; without one, nothing of the signature would be read."""
    return signature and signature.replace("<factory>", "..."), returned


def _elsewhere(_app: Sphinx, _env: BuildEnvironment, node: Any, shown: nodes.TextElement) -> nodes.TextElement | None:
    """A name of Python that exists and has no page here is shown without a link; one that does not exist is a fault."""
    if node.get("refdomain") != "py":
        return None
    # autodoc splits a generic alias at its comma.
    target = node["reftarget"].partition("[")[0]
    owner, _, name = target.rpartition(".")
    for module in (owner or "builtins", node.get("py:module")):
        try:
            getattr(importlib.import_module(module), name or target)
        except (ImportError, AttributeError, TypeError, ValueError):
            continue
        return shown
    return None
