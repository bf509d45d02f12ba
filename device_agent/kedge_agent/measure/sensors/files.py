"""Small files of /proc and /sys: bounded, and None where they cannot be read."""

from __future__ import annotations

from pathlib import Path

__all__ = ["number", "text"]

_MAX_BYTES = 1 << 16


def text(path: Path) -> str | None:
    """What the file says, without white space around it; None where it does not."""
    try:
        # Unbuffered: one call of the kernel, which makes such a file anew for each.
        with path.open("rb", buffering=0) as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The one decimal number in the file, never negative; None where there is none."""
    said = text(path)
    return int(said) if said is not None and said.isascii() and said.isdigit() and len(said) <= 20 else None
