"""Small files of /proc and /sys: bounded, and None where they cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["KeptFile", "number", "parse_number", "text", "there"]

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
    return None if said is None else parse_number(said)


def parse_number(said: str, *, signed: bool = False) -> int | None:
    """The one decimal number that is all of a text; None where there is none, or a sign that is not asked for."""
    digits = said[1:] if signed and said.startswith("-") else said
    return int(said) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else None


def there(path: Path) -> bool:
    """Whether there is such a file, as far as this user may know; never raises."""
    # Path.exists raises where a folder may not be searched.
    return os.path.exists(path)


class KeptFile:
    """A file that is read again and again through one descriptor, from its beginning each time.

    The kernel makes a file of /proc or /sys anew for each read at offset 0. One that cannot be read is opened anew by
    the next read: what it tells of may have come back. problem: why the last read failed, None where it did not.
    """

    def __init__(self, path: Path) -> None:
        self.problem: str | None = None
        self._path = os.fspath(path)
        self._descriptor: int | None = None

    def text(self) -> str | None:
        """What the file says, without white space around it; None where it does not."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            said = os.pread(self._descriptor, _MAX_BYTES, 0)
        except OSError as error:
            self.problem = error.strerror
            self.close()
            return None
        self.problem = None
        return said.decode("ascii", "replace").strip()

    def close(self) -> None:
        """Give the descriptor back; a later read opens the file again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
