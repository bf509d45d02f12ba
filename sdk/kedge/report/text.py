"""Numbers as text: three significant figures, a unit, and words where there is no figure."""

from __future__ import annotations

__all__ = [
    "NOT_MEASURED",
    "UNAVAILABLE",
    "byte_size",
    "capital",
    "ended",
    "milliseconds",
    "model_size",
    "one_line",
    "per_cent",
    "printable",
    "rate",
    "sentence",
]

NOT_MEASURED = "not measured"
UNAVAILABLE = "unavailable"


def milliseconds(value: float | None) -> str:
    """`1.23 ms`, or `45.6 µs` below a tenth of a millisecond."""
    if value is None:
        return NOT_MEASURED
    if abs(value) < 0.1:
        return f"{value * 1e3:.3g} µs"
    return f"{value:.3g} ms" if abs(value) < 999.5 else f"{value / 1e3:.3g} s"


def byte_size(value: int | None) -> str:
    """`905 kB`, `41.2 MB`: powers of ten, as storage and links are sold."""
    if value is None:
        return UNAVAILABLE
    size = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        # 999.7 would be written as 1e+03.
        if abs(size) < (1000 if unit == "B" else 999.5):
            return f"{size:.3g} {unit}" if unit != "B" else f"{value} B"
        size /= 1000
    return f"{size:.3g} TB"


def model_size(encoding: str, stored_bytes: int, loaded_bytes: int) -> str:
    """`160 kB, packed: unpacks to 1.09 MB`, or the size alone where nothing is unpacked."""
    if encoding == "raw":
        return byte_size(stored_bytes)
    return f"{byte_size(stored_bytes)}, {encoding}: unpacks to {byte_size(loaded_bytes)}"


def rate(value: float | None) -> str:
    """`2,310 /s`, or `0.4 /s` below a hundred."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3g} /s" if value < 99.95 else f"{value:,.0f} /s"


def printable(text: str) -> str:
    """The text with every character that could steer a terminal replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def one_line(text: str) -> str:
    """The same, on one line."""
    return printable(" ".join(text.split()))


def per_cent(share: float | None) -> str:
    """`97.50 %` of a share between 0 and 1."""
    return NOT_MEASURED if share is None else f"{share * 100:.2f} %"


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop, for a page."""
    return ended(capital(text))


def capital(text: str) -> str:
    """The text with a capital letter; not for one that begins with a name of somebody's."""
    return text[:1].upper() + text[1:]


def ended(text: str) -> str:
    """The text with a full stop, as it is."""
    return text + ("" if text.endswith((".", "?", "!")) else ".")
