"""Take secrets, addresses and names out of what is written, and remember what stood there, for the one who asked.

The same value has the same mask everywhere (`<ip-1>`), so that what was the same can still be seen. First everything is
shown to `learn`, then everything is written: a value that only one line gives away is masked in every other, and in its
encoded forms too.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .encoded import NO_FORMS, encoded_forms
from .needles import Needles
from .plausible import TRAILING, USER_KEY, VERSION_KEY, Found, has_domain, in_place_only, is_version_here
from .secret_keys import hands_on, is_secret_key, named
from .shapes import MASK, PRIVATE_KEY, SHAPES, Shape

__all__ = ["COMMON_NAMES", "LateError", "Redactor"]

# Names that say nothing of anybody, and words of our own documents, which would lose their meaning.
_COMMON = """
root nobody daemon kedge kedge-agent nvidia ubuntu jetson debian orin thor tegra pi admin user users host
hostname device local localhost linux home public shared tmp test ci runner system systemd service kernel agent
agents model models release releases engine engines runtime runtimes disk memory sensors processes process
journal recorder logs log data state store status current previous other path name kind version gpu cpu python
docker swap files file none null true false installs slot running ready error errors lines line at secret
comment email mac ssid id ip reason key keys value values time build work
"""
COMMON_NAMES = frozenset(_COMMON.split())

_QUAD = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}")
_MOST_KNOWN, _MOST_ENCODED, _MOST_MAPPED = 2000, 500, 10_000
_MOST_SEEN = 50_000
_DEEPEST = 60
# What signs a release is public, and evidence.
_SIGNATURE = re.compile(r"(-----BEGIN SSH SIGNATURE-----[A-Za-z0-9+/=\s]{0,8192}-----END SSH SIGNATURE-----)")


class LateError(Exception):
    """A redactor's time was over in the middle of a text."""


class Redactor:
    """One snapshot's. counts: how often a mask was put in, by kind."""

    def __init__(self, known: Mapping[str, list[str]] | None = None) -> None:
        """known: values that are this device's own, by kind, wherever they stand."""
        self.counts: Counter[str] = Counter()
        self._masks: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self._due = math.inf
        self._known: dict[str, str] = {}
        self._needles = Needles()
        self._multiline: list[str] = []
        self._own: set[str] = set()
        self._versions: set[str] = set()
        self._used: dict[str, dict[str, Any]] = {}
        self._seen: set[tuple[str, bool]] = set()
        self._clean: set[tuple[str, bool]] = set()
        self._where = ""
        for kind, values in (known or {}).items():
            for value in values:
                self._own.add(value)
                self._learn(kind, value)

    @contextlib.contextmanager
    def until(self, due: float) -> Iterator[None]:
        """What is asked of it in here ends in LateError at that time (CLOCK_MONOTONIC), whatever a text holds."""
        self._due = due
        try:
            yield
        finally:
            self._due = math.inf

    def private_map(self) -> dict[str, Any]:
        """What each mask that was put in stands for, at most 10,000 of them.

        Of secrets: what length they have, and where they were first.
        """
        out = {}
        in_order = sorted(self._used, key=lambda mask: (mask.partition("-")[0], len(mask), mask))
        for mask in in_order[:_MOST_MAPPED]:
            told = self._used[mask]
            value = told.get("value", "")
            inside = self._without_known(value, only="secret")
            out[mask] = told if inside == value else {**told, "value": inside}
        return out

    def learn(self, value: Any, key: str = "", *, secret: str = "", version: bool = False) -> None:
        """Look for what is to be masked in a text, or in a JSON document's keys and texts.

        Args:
            key: that it stands under. secret: the key above it that says so.
        """
        version = version or VERSION_KEY.search(key) is not None
        if isinstance(value, str):
            self._learn_text(value, key, secret, version=version)
        elif isinstance(value, dict):
            secret = key if hands_on(key) else secret
            for name, each in value.items():
                self.learn(name)
                self.learn(each, name, secret=secret, version=version)
        elif isinstance(value, list):
            for name, each in named(value, key):
                self.learn(each, name, secret=secret, version=version)

    def document(self, value: Any, where: str) -> Any:
        """A JSON document with masks in its keys and texts.

        Args:
            where: the member that it is.
        """
        self._where = where
        return self._walk(value, "", "", 0, version=False)

    def text(self, text: str, where: str) -> str:
        """A text with masks in it.

        Args:
            where: the member that it stands in.
        """
        self._where = where
        return self._without_known(self._without_shapes(text))

    def _learn_text(self, text: str, key: str, secret: str, *, version: bool) -> None:
        if version and _QUAD.fullmatch(text):
            self._versions.add(text)
        if is_secret_key(key, text) or is_secret_key(secret, text):
            self._learn_secret(text)
            return
        if USER_KEY.search(key) and text:
            self._learn("user", text)
        for found in PRIVATE_KEY.found(text):
            self._learn_secret(found.value)
        for line in _SIGNATURE.sub("", text).split("\n"):
            if (line, version) not in self._seen:
                self._learn_line(line, version=version)

    def _learn_line(self, line: str, *, version: bool) -> None:
        self._be_in_time()
        if len(line) < 200 and len(self._seen) < _MOST_SEEN:
            self._seen.add((line, version))
        lower = line.lower()
        for shape in SHAPES:
            if not shape.learn or not shape.may_be_in(lower):
                continue
            for found in shape.found(line):
                if shape.kind == "secret":
                    self._learn_secret(found.value)
                elif not self._stays(shape, found, version=version):
                    self._learn(shape.kind, found.value)

    def _learn_secret(self, value: str) -> None:
        value = value.rstrip(TRAILING)
        lines = [
            line for line in value.replace("\\n", "\n").splitlines() if len(line) >= 20 and not line.startswith("-----")
        ]
        parts = re.split("[&;,]", value)
        first = value.partition(" ")[0]
        for each in dict.fromkeys([value, *lines, parts[0], first, *_of_basic(value)]):
            if not in_place_only(each) and MASK.search(each) is None:
                self._learn("secret", each)

    def _learn(self, kind: str, value: str) -> None:
        if kind in ("user", "host") and (value.lower().rstrip(".") in COMMON_NAMES or len(value) < 3):
            return
        if kind in ("comment", "ssid") and in_place_only(value):
            return
        if value not in self._known and MASK.search(value) is None and len(self._known) < _MOST_KNOWN:
            forms = encoded_forms(value) if len(self._known) < _MOST_ENCODED else NO_FORMS
            self._known[value] = kind
            if "\n" in value:
                self._multiline.append(value)
            self._needles.add(value, kind, forms)
            self._clean.clear()

    def _masked(self, shape: Shape, text: str, *, version: bool = False) -> str:
        pieces, done = [], 0
        for found in shape.found(text):
            if MASK.search(found.value) or self._stays(shape, found, version=version):
                continue
            value = found.value.rstrip(TRAILING) if shape.kind == "secret" else found.value
            if not value or (shape.kind == "user" and value.lower() in COMMON_NAMES):
                continue
            pieces += [text[done : found.start], self._put(shape.kind, value)]
            done = found.start + len(value)
        return "".join(pieces) + text[done:] if pieces else text

    def _stays(self, shape: Shape, found: Found, *, version: bool) -> bool:
        """Whether it only looks like an address."""
        if shape.kind == "email":
            return not has_domain(found.value) and self._known.get(found.value.rpartition("@")[2]) != "host"
        return shape.kind == "ip" and (version or self._is_version(found))

    def _is_version(self, found: Found) -> bool:
        if _QUAD.fullmatch(found.value) is None:
            return False
        judged = is_version_here(found.text, found.start, found.start + len(found.value))
        if judged is None:
            return found.value in self._versions and found.value not in self._own
        return judged

    def _walk(self, value: Any, key: str, secret: str, depth: int, *, version: bool) -> Any:
        """secret: the key above it that says so."""
        if depth > _DEEPEST:
            return "<left out: nested too deep>"
        version = version or VERSION_KEY.search(key) is not None
        if isinstance(value, dict):
            secret = key if hands_on(key) else secret
            return {
                self._string(name): self._walk(each, name, secret, depth + 1, version=version)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._walk(each, name, secret, depth + 1, version=version) for name, each in named(value, key)]
        if is_secret_key(key, value) or is_secret_key(secret, value):
            return self._put("secret", str(value))
        if not isinstance(value, str):
            return value
        if USER_KEY.search(key) and value and value.lower() not in COMMON_NAMES:
            return self._put("user", value)
        return self._string(value, version=version)

    def _string(self, text: str, *, version: bool = False) -> str:
        if (text, version) in self._clean:
            return text
        masked = self._without_known(self._without_shapes(text, version=version))
        if masked == text and len(text) < 200 and len(self._clean) < _MOST_SEEN:
            self._clean.add((text, version))
        return masked

    def _without_shapes(self, text: str, *, version: bool = False) -> str:
        if "PRIVATE KEY" in text:
            text = self._masked(PRIVATE_KEY, text)
        pieces = _SIGNATURE.split(text)
        for place in range(0, len(pieces), 2):
            lines = pieces[place].split("\n")
            pieces[place] = "\n".join(self._without_line(line, version=version) for line in lines)
        return "".join(pieces)

    def _without_line(self, line: str, *, version: bool = False) -> str:
        self._be_in_time()
        lower = line.lower()
        for shape in SHAPES:
            if shape.may_be_in(lower):
                line = self._masked(shape, line, version=version)
        return line

    def _without_known(self, text: str, only: str | None = None) -> str:
        """only: of this kind."""
        for value in self._multiline:
            text = self._replaced(text, self._known[value], value)
        return "\n".join(self._without_known_in(line, only) for line in text.split("\n"))

    def _without_known_in(self, line: str, only: str | None) -> str:
        self._be_in_time()
        for value, kind, forms in self._needles.found(line):
            if only not in (None, kind):
                continue
            line = self._replaced(line, kind, value)
            for form in forms:
                if form in line:
                    parts = line.split(form)
                    line = "".join([parts[0], *(self._put(kind, value) + part for part in parts[1:])])
        return line

    def _be_in_time(self) -> None:
        if time.monotonic() > self._due:
            raise LateError("the time for it is over")

    def _replaced(self, text: str, kind: str, value: str) -> str:
        if value.lower() not in text.lower():
            return text
        if kind in ("secret", "comment"):
            pattern = re.escape(value)
        elif kind in ("ip", "mac"):
            pattern = rf"(?<![0-9A-Fa-f.:]){re.escape(value)}(?![0-9A-Fa-f:]|\.\d)"
        else:
            pattern = rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])"

        def masked(match: re.Match[str]) -> str:
            found = Found(match.group(), match.group(), match.string, match.start())
            return match.group() if kind == "ip" and self._is_version(found) else self._put(kind, value)

        return re.sub(pattern, masked, text, flags=re.IGNORECASE if kind in ("host", "mac") else 0)

    def _put(self, kind: str, value: str) -> str:
        kind = self._known.get(value, kind)
        normal = _normal(kind, value)
        mask = self._masks.get((kind, normal))
        if mask is None:
            self._numbers[kind] += 1
            mask = self._masks[kind, normal] = f"<{kind}-{self._numbers[kind]}>"
        self.counts[kind] += 1
        if mask not in self._used:
            told = {"characters": len(value)} if kind == "secret" else {"value": normal}
            self._used[mask] = told | {"first_in": self._where}
        return mask


def _of_basic(value: str) -> Iterator[str]:
    """The password in the credentials of RFC 7617: user and password in base64."""
    with contextlib.suppress(ValueError):
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
        if colon and user.isprintable() and password.isprintable():
            yield password


def _normal(kind: str, value: str) -> str:
    if kind == "mac":
        digits = re.sub("[:.-]", "", value.lower())
        return ":".join(digits[at : at + 2] for at in range(0, 12, 2))
    if kind == "ip":
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            return value
    return value.lower().rstrip(".") if kind in ("host", "email") else value
