"""Take secrets, addresses and names out of what is written, and remember what stood there, for the one who asked.

The same value has the same mask everywhere (`<ip-1>`), so that what was the same can still be seen. First everything is
shown to `learn`, then everything is written: a value that only one line gives away is masked in every other, and in its
encoded forms too.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .encoded import NO_FORMS, Forms, encoded_forms, encoded_words
from .plausible import TRAILING, USER_KEY, VERSION_KEY, Found, in_place_only, is_secret_key, is_version_here
from .shapes import MASK, PRIVATE_KEY, SHAPES, Shape

__all__ = ["COMMON_NAMES", "Redactor"]

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
_Present = list[tuple[str, str, list[str]]]


class Redactor:
    """One snapshot's. counts: how often a mask was put in, by kind."""

    def __init__(self, known: Mapping[str, list[str]] | None = None) -> None:
        """known: values that are this device's own, by kind, wherever they stand."""
        self.counts: Counter[str] = Counter()
        self._masks: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()
        self._known: dict[str, tuple[str, Forms]] = {}
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

    def private_map(self) -> dict[str, Any]:
        """What each mask that was put in stands for, at most 10,000 of them.

        Of secrets: what length they have, and where they were first.
        """
        secrets = [value for value, (kind, _) in self._known.items() if kind == "secret"]
        out = {}
        in_order = sorted(self._used, key=lambda mask: (mask.partition("-")[0], len(mask), mask))
        for mask in in_order[:_MOST_MAPPED]:
            told = self._used[mask]
            value = told.get("value", "")
            inside: _Present = [(secret, "secret", []) for secret in secrets if secret in value]
            out[mask] = {**told, "value": self._without_known(value, inside)} if inside else told
        return out

    def learn(self, value: Any, key: str = "", *, version: bool = False) -> None:
        """Look for what is to be masked in a text, or in a JSON document's keys and texts."""
        if isinstance(value, str):
            self._learn_text(value, key, version=version or VERSION_KEY.search(key) is not None)
        elif isinstance(value, dict):
            version = version or VERSION_KEY.search(key) is not None
            for name, each in value.items():
                self.learn(name)
                self.learn(each, name, version=version)
        elif isinstance(value, list):
            for each in value:
                self.learn(each, key, version=version)

    def document(self, value: Any, where: str) -> Any:
        """A JSON document with masks in its keys and texts.

        Args:
            where: the member that it is.
        """
        self._where = where
        whole = json.dumps(value, ensure_ascii=False)
        return self._walk(value, self._present(whole), "", 0, version=False)

    def text(self, text: str, where: str) -> str:
        """A text with masks in it.

        Args:
            where: the member that it stands in.
        """
        self._where = where
        return self._without_known(self._without_shapes(text), self._present(text))

    def _learn_text(self, text: str, key: str, *, version: bool) -> None:
        if version and _QUAD.fullmatch(text):
            self._versions.add(text)
        if is_secret_key(key, text):
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
        if len(line) < 200 and len(self._seen) < _MOST_SEEN:
            self._seen.add((line, version))
        lower = line.lower()
        for shape in SHAPES:
            if not shape.learn or not shape.may_be_in(lower):
                continue
            for found in shape.found(line):
                if shape.kind == "secret":
                    self._learn_secret(found.value)
                elif shape.kind != "ip" or not (version or self._is_version(found)):
                    self._learn(shape.kind, found.value)

    def _learn_secret(self, value: str) -> None:
        value = value.rstrip(TRAILING)
        lines = [
            line for line in value.replace("\\n", "\n").splitlines() if len(line) >= 20 and not line.startswith("-----")
        ]
        parts = re.split("[&;,]", value)
        for each in dict.fromkeys([value, *lines, parts[0], *_of_basic(value)]):
            if not in_place_only(each) and MASK.search(each) is None:
                self._learn("secret", each)

    def _learn(self, kind: str, value: str) -> None:
        if kind in ("user", "host") and (value.lower().rstrip(".") in COMMON_NAMES or len(value) < 3):
            return
        if kind in ("comment", "ssid") and in_place_only(value):
            return
        if value not in self._known and MASK.search(value) is None and len(self._known) < _MOST_KNOWN:
            self._known[value] = (kind, encoded_forms(value) if len(self._known) < _MOST_ENCODED else NO_FORMS)
            self._clean.clear()

    def _masked(self, shape: Shape, text: str, *, version: bool = False) -> str:
        pieces, done = [], 0
        for found in shape.found(text):
            if MASK.search(found.value) or (shape.kind == "ip" and (version or self._is_version(found))):
                continue
            value = found.value.rstrip(TRAILING) if shape.kind == "secret" else found.value
            if not value or (shape.kind == "user" and value.lower() in COMMON_NAMES):
                continue
            pieces += [text[done : found.start], self._put(shape.kind, value)]
            done = found.start + len(value)
        return "".join(pieces) + text[done:] if pieces else text

    def _is_version(self, found: Found) -> bool:
        if _QUAD.fullmatch(found.value) is None:
            return False
        judged = is_version_here(found.text, found.start, found.start + len(found.value))
        if judged is None:
            return found.value in self._versions and found.value not in self._own
        return judged

    def _walk(self, value: Any, present: _Present, key: str, depth: int, *, version: bool) -> Any:
        if depth > _DEEPEST:
            return "<left out: nested too deep>"
        version = version or VERSION_KEY.search(key) is not None
        if isinstance(value, dict):
            return {
                self._string(name, present): self._walk(each, present, name, depth + 1, version=version)
                for name, each in value.items()
            }
        if isinstance(value, list):
            return [self._walk(each, present, key, depth + 1, version=version) for each in value]
        if is_secret_key(key, value):
            return self._put("secret", str(value))
        if not isinstance(value, str):
            return value
        if USER_KEY.search(key) and value and value.lower() not in COMMON_NAMES:
            return self._put("user", value)
        return self._string(value, present, version=version)

    def _string(self, text: str, present: _Present, *, version: bool = False) -> str:
        if (text, version) in self._clean:
            return text
        masked = self._without_known(self._without_shapes(text, version=version), present)
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
        lower = line.lower()
        for shape in SHAPES:
            if shape.may_be_in(lower):
                line = self._masked(shape, line, version=version)
        return line

    def _present(self, text: str) -> _Present:
        """Which known values, in which form, stand in a text; the longest first: one may hold another."""
        lower, words = text.lower(), encoded_words(text)
        out = []
        for value, (kind, forms) in self._known.items():
            found = [form for form in forms.packed if form in words and form in text]
            found += [form for form in forms.escaped if form in text]
            if found or value.lower() in lower:
                out.append((value, kind, found))
        return sorted(out, key=lambda each: -len(each[0]))

    def _without_known(self, text: str, present: _Present) -> str:
        for value, kind, forms in present:
            text = self._replaced(text, kind, value)
            for form in forms:
                if form in text:
                    parts = text.split(form)
                    text = "".join([parts[0], *(self._put(kind, value) + part for part in parts[1:])])
        return text

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
        known = self._known.get(value)
        kind = known[0] if known is not None else kind
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
