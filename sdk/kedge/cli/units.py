"""Sizes, rates and times as people write them on a command line; each function is a `type` of click's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

import click

__all__ = ["parse_duration", "parse_rate", "parse_size"]

_SIZES: Mapping[str, Decimal] = {
    **{f"{prefix}B": Decimal(factor) for prefix, factor in (("k", 10**3), ("M", 10**6), ("G", 10**9))},
    **{f"{prefix}iB": Decimal(factor) for prefix, factor in (("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30))},
}
_RATES: Mapping[str, Decimal] = {
    f"{prefix}bit": Decimal(factor) / 8 for prefix, factor in (("k", 10**3), ("M", 10**6), ("G", 10**9))
}
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_LONGEST_S = 400 * 86_400
_QUANTITY = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]+)")


def parse_size(text: str) -> int:
    """Bytes in a size such as `512MiB`; a usage error where it is none."""
    return _whole(text, _SIZES, "a size is written as 512MiB")


def parse_rate(text: str) -> int:
    """Bytes a second in a rate such as `50Mbit`; a usage error where it is none."""
    return _whole(text.removesuffix("/s"), _RATES, "a rate is written as 50Mbit")


def parse_duration(text: str) -> int:
    """Seconds in a time such as `90s`, `30m`, `2h`, `3d`; a usage error where it is none, or more than 400 days."""
    found = _QUANTITY.fullmatch(text)
    factor = None if found is None else _SECONDS.get(found[2])
    if found is None or factor is None:
        raise click.BadParameter(f"{text!r}: a time is written as 30m; units: s, m, h, d")
    seconds = int(Decimal(found[1]) * factor)
    if not 1 <= seconds <= _LONGEST_S:
        raise click.BadParameter(f"{text!r} is not between a second and 400 days")
    return seconds


def _whole(text: str, units: Mapping[str, Decimal], example: str) -> int:
    found = _QUANTITY.fullmatch(text)
    factor = None if found is None else units.get(found[2])
    if found is None or factor is None:
        raise click.BadParameter(f"{text!r}: {example}; units: {', '.join(units)}")
    count = int(Decimal(found[1]) * factor)
    if count < 1:
        raise click.BadParameter(f"{text!r} is less than a byte")
    return count
