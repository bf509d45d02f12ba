"""sha256, by which everything in a store is named.

`hashlib` loads OpenSSL's libcrypto, 3.5 MB of memory: an agent that has nothing to hash yet does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["sha256", "sha256_hex"]


def sha256(data: bytes | bytearray | memoryview = b"") -> _Hash:
    """A hash that has taken in `data`, and can take more."""
    import hashlib

    return hashlib.sha256(data)


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """The hash of `data` in hexadecimal."""
    return sha256(data).hexdigest()
