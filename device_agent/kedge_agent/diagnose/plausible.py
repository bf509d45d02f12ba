"""Whether what has the shape of a secret, an address or a name is one, by itself and by what stands around it.

Four numbers are an address or a version (TensorRT 10.3.0.30), and a long word is a key or a hash of ours: a redactor
must not take evidence away.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

__all__ = [
    "TRAILING",
    "USER_KEY",
    "VERSION_KEY",
    "Found",
    "in_place_only",
    "is_address",
    "is_host",
    "is_key_value",
    "is_mail",
    "is_secret_key",
    "is_version_here",
    "looks_random",
    "named_value",
    "unlike_a_word",
]


class Found(NamedTuple):
    """What a shape matched. whole: with what names the value. start: of the value in the text."""

    value: str
    whole: str
    text: str
    start: int


VERSION_KEY = re.compile(
    r"version|^(?:tensorrt(?:[_-]rtx)?|cuda(?:_bindings)?|cudnn|driver|l4t|numpy|onnxruntime|pycuda|zstd|nvml|python|libc)$",
    re.IGNORECASE,
)
"""Keys of JSON documents whose values are versions, and those of what lies under them."""

USER_KEY = re.compile(r"^(?:user|username|user_name|login|owner)$", re.IGNORECASE)

_SECRET_KEY = re.compile(
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credential|psk|apikey|cookie|authorization)s?$|(?:^|[_. -])key$"
    r"|(?:api|access|private|auth|signing|encryption|master|shared|client|session|account|license|hmac)[_. -]?keys?$",
    re.IGNORECASE,
)
_MERE_KEY = re.compile(r"(?:^|[_. -])key$", re.IGNORECASE)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMON = re.compile(r"[A-Z]?[a-z]{0,20}|[A-Z]{1,11}|\d{1,5}|[/~.][^\s]*")
TRAILING = ",;)}]"
"""What ends a value that nothing encloses, and is none of it."""
_NOTHING = frozenset({"", "none", "null", "nil", "true", "false", "yes", "no", "{", "[", "{}", "[]", "..."})


def is_secret_key(key: str, value: object) -> bool:
    """Whether a value of a JSON document is secret by its key. Digests and public keys under a mere `key` are not."""
    if _SECRET_KEY.search(key) is None or value is None or isinstance(value, bool) or value == "":
        return False
    if isinstance(value, (int, float)):
        return re.search("pass|pwd|secret", key, re.IGNORECASE) is not None
    return not (_MERE_KEY.search(key) and _is_public(str(value)))


def _is_public(value: str) -> bool:
    return bool(_DIGEST.fullmatch(value)) or value.startswith(
        ("SHA256:", "sha256:", "ssh-", "ecdsa-", "sk-ssh", "AAAA")
    )


def in_place_only(value: str) -> bool:
    """Whether a value is too common to be looked for elsewhere (a word, a small number, a path)."""
    return len(value) < 6 or _COMMON.fullmatch(value) is not None


def named_value(found: Found) -> bool:
    """Whether what a secret's name stands before is a value: `tokens=128` counts, and PWD is a folder."""
    name, value = found.whole.lower(), found.value.rstrip(TRAILING)
    if name.startswith("token") and value.isdigit() and len(value) < 8:
        return False
    return value.lower() not in _NOTHING and not (name.startswith("pwd") and value.startswith("/"))


def is_key_value(found: Found) -> bool:
    """Whether a mere `key` names a secret, and not a hash, a public key, a word, a place or a piece of a program."""
    value = found.value
    program = not any(map(str.isdigit, value)) or not value.isascii() or re.search(r"[({\[]", value) is not None
    return not (program or _is_public(value) or in_place_only(value))


def unlike_a_word(found: Found) -> bool:
    """Whether it cannot be a word of a sentence."""
    return not in_place_only(found.value)


def looks_random(found: Found) -> bool:
    """Whether a long word is random in the alphabet of base64, and nothing of ours: no hash, no public key.

    Names of layers and symbols have lower-case letters in runs (`BatchNormalization`); in random base64 such a run has
    1.7 letters on average, and in base64 of text about 2.
    """
    before = found.text[max(0, found.start - 8) : found.start].lower()
    if before.endswith(("sha256:", "sha256-", "sha512-", "sha384-")) or found.value.startswith(
        ("AAAA", "U1NIU0lH", "_Z")
    ):
        return False
    if _DIGEST.search(found.value):
        return False
    runs = re.findall(r"[a-z]+", found.value)
    upper, digits = sum(map(str.isupper, found.value)), sum(map(str.isdigit, found.value))
    if not runs or upper < 0.15 * len(found.value) or not 1 <= digits <= 0.5 * len(found.value):
        return False
    return sum(map(len, runs)) / len(runs) <= 2.2


_NOBODYS = ("127.", "0.", "255.")
_PRODUCT = (
    r"(?<![a-z])ver(?:sion)?|tensorrt(?:[ _-]?rtx| for rtx)?|\btrt|\bcuda|\bcudnn|\bl4t|\bjetpack|libnvinfer[\w-]{0,16}"
)
_VERSION_BEFORE = re.compile(rf"(?:{_PRODUCT}|onnxruntime)[\s:=/_\"'(v-]{{0,4}}$|[\w\]]\s?[=<>~]=\s?$", re.IGNORECASE)
_VERSION_AFTER = re.compile(r"[-+](?:\d{1,3}\+?)?(?:cuda|cp3|py3)|\.(?:dist-info|whl|deb)\b")
_ADDRESS_BEFORE = re.compile(
    r"(?:\b(?:host|hostname|addr|address|ip|inet6?|gateway|server|peer|via|src|dst|client|nameserver|ssh)[\s:=\"']{1,4}"
    r"|//|@)$",
    re.IGNORECASE,
)
_ADDRESS_AFTER = re.compile(r":\d{2,5}\b|/\d{1,2}\b")


def is_address(found: Found) -> bool:
    """Whether it may be the address of a host or an interface; loopback, netmasks and zeros are nobody's."""
    if found.value.count(":") == 5 or found.value.count("-") == 5 or found.value.count(".") == 2:
        return len(set(re.sub(r"[:.-]", "", found.value.lower()))) > 1
    if ":" not in found.value:
        return all(int(part) <= 255 for part in found.value.split(".")) and not found.value.startswith(_NOBODYS)
    try:
        address = ipaddress.IPv6Address(found.value)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def is_version_here(text: str, start: int, end: int) -> bool | None:
    """Whether four numbers are a version by what stands around them: True, False (an address), None (open)."""
    before, after = text[max(0, start - 40) : start], text[end : end + 12]
    if _VERSION_BEFORE.search(before) or _VERSION_AFTER.match(after):
        return True
    return False if _ADDRESS_BEFORE.search(before) or _ADDRESS_AFTER.match(after) else None


# Names of algorithms and units have an @ too.
_NO_MAIL = re.compile(r"@(?:openssh\.com|libssh\.org)$|\.(?:service|socket|timer|target|mount|scope|slice|path)$")
_LOCAL_HOSTS = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
# Who makes what runs here; that somebody uses it says nothing of them.
_MAKERS = re.compile(
    r"(?:^|\.)(?:nvidia\.com|github\.com|pypi\.org|pythonhosted\.org|python\.org|microsoft\.com|aka\.ms|onnx\.ai"
    r"|onnxruntime\.ai|debian\.org|ubuntu\.com|kernel\.org|openssh\.com|json-schema\.org|w3\.org|systemd\.io)$"
)


def is_mail(found: Found) -> bool:
    """Whether `a@b` names somebody."""
    return _NO_MAIL.search(found.value.lower()) is None


def is_host(found: Found) -> bool:
    """Whether a host's name says where this device is: not this machine itself, nor who makes what runs on it."""
    named = found.value.rstrip(".").lower()
    return named not in _LOCAL_HOSTS and _MAKERS.search(named) is None and re.search("[a-z]", named) is not None
