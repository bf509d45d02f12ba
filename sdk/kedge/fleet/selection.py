"""The grammar of `--to`: which devices somebody means.

    selection = term *("," term)
    term      = part *("&" part)            both
    part      = ["!"] what                  "!" takes away
    what      = NAME / GLOB / "@" GROUP / "@all" / "label:" KEY "=" VALUE

Terms add up, in their order. One that is only `!what` takes away from all of them, wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase

from ..errors import BadInputError
from ..transport.base import LOCAL
from .entries import Entries

__all__ = ["choose"]

_GLOB = re.compile(r"[*?\[]")
_LABEL = "label:"
_MOST_LISTED = 20
_EXAMPLES = "as in cam-1,@berlin  or  @all,!cam-3  or  '@berlin&label:floor=2'"


def choose(text: str, entries: Entries) -> list[str]:
    """Names of devices, each once, in the order of the terms; `local` among them where it is named.

    Raises:
        BadInputError: it is no selection, or a part of it names what is not there, or nothing is left.
    """
    chosen: dict[str, None] = {}
    taken_away: set[str] = set()
    for term in text.split(","):
        parts = [part.strip() for part in term.split("&")]
        if not all(part.removeprefix("!").strip() for part in parts):
            raise BadInputError(f"not a selection of devices: {text!r}", hint=_EXAMPLES)
        wanted = [_find(part, entries) for part in parts if not part.startswith("!")]
        unwanted = [_find(part[1:].strip(), entries) for part in parts if part.startswith("!")]
        if wanted:
            first, *others = wanted
            inside = [set(other) for other in others]
            outside = set().union(*unwanted)
            chosen.update(
                dict.fromkeys(name for name in first if name not in outside and all(name in one for one in inside))
            )
        elif len(unwanted) == 1:
            taken_away.update(unwanted[0])
        else:
            raise BadInputError(
                f"{term.strip()!r} takes away, but says not from what", hint="a comma between them takes away each"
            )
    left = [name for name in chosen if name not in taken_away]
    if not left:
        raise BadInputError(
            f"no device is meant by {text!r}",
            hint=_there_is("devices", entries.devices) if chosen or not taken_away else "as in @all,!cam-3",
        )
    return left


def _find(what: str, entries: Entries) -> list[str]:
    """The devices that one part names; never none, but for a group that is empty."""
    if what.startswith("@"):
        group = what[1:]
        if group not in entries.members:
            raise BadInputError(
                f"no group named {what!r}", hint=_there_is("groups", [f"@{name}" for name in entries.members])
            )
        return entries.members[group]
    if what.startswith(_LABEL):
        return _labelled(what, entries)
    if _GLOB.search(what):
        found = [name for name in entries.devices if fnmatchcase(name, what)]
        if not found:
            raise BadInputError(f"no device's name is like {what!r}", hint=_there_is("devices", entries.devices))
        return found
    if what == LOCAL:
        return [LOCAL]
    if what not in entries:
        raise BadInputError(
            f"no device named {what!r}",
            hint=f"{_there_is('devices', [LOCAL, *entries.devices])}; add one with kedge device add",
        )
    if entries.is_jump_host(what):
        raise BadInputError(f"{what} is a jump host: nothing is deployed to it", hint="name a device behind it")
    return [what]


def _labelled(what: str, entries: Entries) -> list[str]:
    key, equals, value = what.removeprefix(_LABEL).partition("=")
    if not equals:
        raise BadInputError(f"not a label: {what!r}", hint="it looks like label:site=berlin")
    labels: dict[str, dict[str, str]] = {}
    for name in entries.devices:
        # One whose labels cannot be read is told of when it is asked for.
        with suppress(BadInputError):
            labels[name] = entries.labels_of(name)
    values = {one[key]: None for one in labels.values() if key in one}
    if not values:
        keys = dict.fromkeys(known for one in labels.values() for known in one)
        raise BadInputError(f"no device has a label named {key!r}", hint=_there_is("labels", keys))
    if value not in values:
        raise BadInputError(
            f"no device has the label {key}={value}", hint=_there_is(f"values of {key}", sorted(values))
        )
    return [name for name, one in labels.items() if one.get(key) == value]


def _there_is(what: str, names: Iterable[str]) -> str:
    listed = list(names)
    if not listed:
        return f"there are no {what}"
    more = f", and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return f"{what}: {', '.join(listed[:_MOST_LISTED])}{more}"
