"""What a snapshot's file is: a tar stream in zstd, or in gzip where a device has no zstd, and which names are in it.

begun.json             when it was begun, by which agent, of which state folder
facts/COLLECTOR.json   what each collector found: the values of `collectors` in docs/diagnose.md
…                      the files that collectors add
manifest.json          the last: how it went; without it the snapshot was cut
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

__all__ = [
    "BEGUN",
    "FACTS",
    "GZIP_MAGIC",
    "MANIFEST",
    "MAX_FILE_BYTES",
    "MAX_MEMBERS",
    "MAX_MEMBER_BYTES",
    "MAX_WHOLE_BYTES",
    "RECORDER",
    "SNAPSHOT",
    "ZSTD_MAGIC",
    "is_member_name",
    "zstd_module",
]

SNAPSHOT = 1
"""The version of this format: `kedge_snapshot` in `begun.json` and `manifest.json`."""

BEGUN, MANIFEST = "begun.json", "manifest.json"
FACTS, RECORDER = "facts/", "recorder/"

ZSTD_MAGIC, GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"

MAX_MEMBER_BYTES = 64 << 20
MAX_MEMBERS = 4096
MAX_WHOLE_BYTES = 256 << 20
"""Of all members together, unpacked."""
MAX_FILE_BYTES = 256 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+@-]*){0,7}")


@cache
def zstd_module() -> Any:
    """The standard library's zstd, or `backports.zstd`; None where this Python has neither."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def is_member_name(name: str) -> bool:
    """Whether a member may have this name: a relative path of plain words, none of which begins with a dot."""
    return len(name) <= 200 and _NAME.fullmatch(name) is not None
