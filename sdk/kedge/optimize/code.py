"""What this version of the passes is: part of every key under which a result is kept."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__all__ = ["code_digest"]

_PARTS = ("optimize", "model")


@cache
def code_digest() -> str:
    """sha256 of the source of kedge.optimize and kedge.model: another code may give another result."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for part in _PARTS:
        for path in sorted((root / part).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}:{path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
