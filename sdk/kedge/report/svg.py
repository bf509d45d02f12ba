"""Drawings as SVG text for a page: matplotlib's output, its colours made variables of the page and its ids its own."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import IncompatibleError
from .text import printable

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "GRID",
    "INK",
    "MUTED",
    "NARROW_PX",
    "ORANGE",
    "PANEL_PX",
    "PURPLE",
    "RED",
    "WIDE_PX",
    "draw",
    "elide",
    "legend",
    "power_of_ten",
    "signed",
]

#: Widths that drawings are designed for: across the page, across a telephone, and side by side.
WIDE_PX, NARROW_PX, PANEL_PX = 580, 440, 320

# Drawn with these, and found again by them in the SVG; so no two are alike.
INK, MUTED, GRID = "#1c2430", "#5b6472", "#d9dee6"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0068a8", "#b84800", "#00805e", "#b0609a", "#808894"
RED = "#b8202c"

#: Role → (on a light page, on a dark page). Hues after Okabe and Ito (2008), told apart in every common kind of
#: colour blindness; lightness changed so that each has a contrast of 3:1 at least against its page, and those that
#: colour words too (ink, muted, blue, orange, green, red) 4.5:1 (WCAG 2.2, 1.4.3 and 1.4.11).
COLOURS: dict[str, tuple[str, str]] = {
    "ink": (INK, "#e8ebf0"),
    "muted": (MUTED, "#a7b0bd"),
    "grid": (GRID, "#39414e"),
    "blue": (BLUE, "#5ab4f0"),
    "orange": (ORANGE, "#ff9d5c"),
    "green": (GREEN, "#37c796"),
    "purple": (PURPLE, "#e3a1d2"),
    "grey": (GREY, "#959eab"),
    "red": (RED, "#ff8a8a"),
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kedge",
    # Names come from models: a $ in one is no formula.
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": INK,
    "font.size": 12,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.minor.visible": False,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.2,
    "path.snap": False,
}

_ROLE = {light: f"var(--{role}, {light})" for role, (light, _) in COLOURS.items()}
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_URL = re.compile(r"url\(#([^)]+)\)")
_LONG = re.compile(r"(\d+\.\d\d)\d+")


def elide(text: str, length: int) -> str:
    """At most `length` characters, all printable. The middle goes: layers differ at both ends of their names."""
    text = printable(text)
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def power_of_ten(value: float, _position: object = None) -> str:
    """`10⁻³` for a tick of a logarithmic axis, in characters, not in matplotlib's formula language."""
    exponent = f"{value:e}".split("e")[1]
    return "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def draw(name: str, title: str, size_px: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    """What `paint` draws on a new figure, as an `<svg>` element for a page.

    The same drawing gives the same text. The background is transparent, text stays text in the page's font, and
    colours follow the page's variables (`--blue` and so on, see COLOURS), with those of a light page without them.

    Args:
        name: begins every id in the drawing; unique on the page, of letters, digits and hyphens.
        title: what the drawing shows, for those who cannot see it.
        size_px: width and height it is designed for; it scales.

    Raises:
        IncompatibleError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context, style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise IncompatibleError("the report needs matplotlib", hint="pip install 'kedge[optimize]'") from error

    buffer = io.BytesIO()
    # The user's matplotlibrc does not count: style "default" first.
    with warnings.catch_warnings(), style.context("default"), rc_context(_STYLE):
        # The page's fonts draw the text; which characters matplotlib's own font has does not matter.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        figure = Figure(figsize=(size_px[0] / 72, size_px[1] / 72), layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), name, printable(title))


def _for_page(svg: bytes, name: str, title: str) -> str:
    from xml.etree import ElementTree as ET

    root = ET.fromstring(svg)  # noqa: S314  (matplotlib wrote it just now)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg.decode()))
    kept = {identifier for pair in used for identifier in pair if identifier}
    for element in list(root.iter()):
        _localise(element, name, kept)
        for child in list(element):
            # Its style sheet would hold for the whole page.
            if child.tag.endswith(("metadata", "style")):
                element.remove(child)
    width, height = (root.attrib.pop(key).removesuffix("pt") for key in ("width", "height"))
    view = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update(
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "chart",
            "role": "img",
            "aria-labelledby": f"{name}-title",
            "viewBox": view,
            "width": width,
            "height": height,
            "style": "stroke-linejoin: round; stroke-linecap: butt",
        }
    )
    text = ET.Element("title", {"id": f"{name}-title"})
    text.text = title
    root.insert(0, text)
    return ET.tostring(root, encoding="unicode")


def _localise(element: Element, name: str, kept: set[str]) -> None:
    element.tag = element.tag.rpartition("}")[2]
    attributes = {key.rpartition("}")[2]: " ".join(value.split()) for key, value in element.attrib.items()}
    identifier = attributes.pop("id", "")
    if identifier in kept:
        attributes["id"] = f"{name}-{identifier}"
    if "href" in attributes:
        attributes["href"] = f"#{name}-{attributes['href'].removeprefix('#')}"
    for key in ("clip-path", "style", "d", "x", "y", "transform"):
        if key in attributes:
            value = _URL.sub(rf"url(#{name}-\1)", attributes[key])
            attributes[key] = value if key == "style" else _LONG.sub(r"\1", value)
    if "style" in attributes:
        # The page's font, not matplotlib's list of its own.
        style = re.sub(r"font-family: [^;]*;?\s*", "", attributes["style"])
        attributes["style"] = _HEX.sub(lambda match: _ROLE.get(match.group(), match.group()), style)
    element.attrib.clear()
    element.attrib.update(attributes)
    if not (element.text or "").strip():
        element.text = None
    element.tail = None


def legend(figure: Figure, entries: Sequence[tuple[str, str]]) -> None:
    """A row of coloured patches with names above the drawing."""
    from matplotlib.patches import Patch

    if entries:
        handles = [Patch(color=colour) for _, colour in entries]
        # matplotlib hides labels that begin with an underscore.
        labels = [label.lstrip("_") or "other" for label, _ in entries]
        figure.legend(handles, labels, loc="outside upper left", ncols=6)


def signed(value: float, _position: object = None) -> str:
    """A tick's figure with a minus sign instead of a hyphen."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")
