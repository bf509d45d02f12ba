"""Which keys of JSON documents, variables and options say that their value is secret."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from .plausible import in_place_only, is_public

__all__ = ["hands_on", "is_secret_key", "named"]

# Of `pass`, `auth` and `pat` as parts of a word (compass, author, path) nothing is secret.
_SECRET_KEY = re.compile(
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credential|psk|apikey|cookie|authorization)s?$|(?:^|[_. -])key$"
    r"|(?:api|access|private|auth|signing|encryption|master|shared|client|session|account|license|hmac)[_. -]?keys?$"
    r"|(?:^|[_. -]|^ssh|^pg|^db|^smtp)pass(?:key)?$|(?-i:[a-z]Pass(?:[kK]ey)?$)|[_. -](?:auth|pat)$",
    re.IGNORECASE,
)
_MERE_KEY = re.compile(r"(?:^|[_. -])key$", re.IGNORECASE)
_MERE_WORD = re.compile(r"(?:pass|auth|pat)$", re.IGNORECASE)
_OPTION = re.compile(r"--?([A-Za-z][\w.-]{2,60})")


def is_secret_key(key: str, value: object) -> bool:
    """Whether a value of a JSON document is secret by its key. Digests and public keys under a mere `key` are not."""
    if _SECRET_KEY.search(key) is None or value is None or isinstance(value, bool) or value == "":
        return False
    if isinstance(value, (int, float)):
        # `low_pass: 0.5`
        return re.search("pass(?!$)|pwd|secret", key, re.IGNORECASE) is not None or (
            key.lower().endswith("pass") and isinstance(value, int) and value >= 1000
        )
    if _MERE_WORD.search(key) and in_place_only(str(value)):
        return False
    return not (_MERE_KEY.search(key) and is_public(str(value)))


def hands_on(key: str) -> bool:
    """Whether what is secret under a key is so however deep it lies: `{"password": {"value": "…"}}`."""
    return _SECRET_KEY.search(key) is not None and _MERE_KEY.search(key) is None


def named(items: Sequence[Any], key: str) -> Iterator[tuple[str, Any]]:
    """Items of a list with what names them: the key of the list, or the option before, as in `["--password", "…"]`."""
    name = key
    for each in items:
        yield name, each
        option = _OPTION.fullmatch(each) if isinstance(each, str) else None
        name = option[1] if option is not None and hands_on(option[1]) else key
