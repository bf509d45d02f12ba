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
    "has_domain",
    "in_place_only",
    "is_address",
    "is_authorization",
    "is_host",
    "is_key_value",
    "is_mail",
    "is_phrase",
    "is_public",
    "is_reached",
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

_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMON = re.compile(
    r"[A-Z]?[a-z]{0,20}|[A-Z]{1,11}|\d{1,9}|[/~.][^\s]*|v?\d{1,5}(?:\.\d{1,9}){1,4}(?:[-+.][a-z0-9.+]{1,16})?|[0-9a-f]{64}"
)
TRAILING = ",;)}]"
"""What ends a value that nothing encloses, and is none of it."""
_MERE_NAME = re.compile(r"(?:^|[_-])(?:pass|auth|pat)s?[\\\"']*\s*(?:[:=]|\s)")
_FIGURE = re.compile(r"[-+]?\d{1,3}(?:\.\d{1,9})?[a-zµ%]{0,3}|\d{1,3}/\d{1,5}")
# Of HTTP's registry of schemes, and two that are in use besides.
_SCHEMES = frozenset(
    {"basic", "bearer", "digest", "dpop", "hoba", "mutual", "negotiate", "ntlm", "vapid", "token", "apikey"}
)
_IDENTIFIER = re.compile(r"[a-z]+(?:_[a-z]+)*_\d{1,4}")
_NOTHING = frozenset({"", "none", "null", "nil", "true", "false", "yes", "no", "{", "[", "{}", "[]", "..."})


def is_public(value: str) -> bool:
    """Whether it is a digest, or a public key or its fingerprint."""
    return bool(_DIGEST.fullmatch(value)) or value.startswith(
        ("SHA256:", "sha256:", "ssh-", "ecdsa-", "sk-ssh", "AAAA")
    )


def in_place_only(value: str) -> bool:
    """Whether a value is too common to be looked for elsewhere: a word, a number, a path, a version, a digest."""
    return len(value) < 6 or _COMMON.fullmatch(value) is not None


def named_value(found: Found) -> bool:
    """Whether what a secret's name stands before is a value: `tokens=128` counts, and PWD is a folder."""
    name, value = _name_of(found), found.value.rstrip(TRAILING)
    if value.lower() in _NOTHING or (name.startswith("pwd") and value.startswith("/")):
        return False
    if name.startswith("token") and value.isdigit() and (len(value) < 8 or name.startswith("tokens")):
        return False
    # What others let pass: a word of a sentence.
    if re.match(r"pass: +$", name) and in_place_only(value):
        return False
    if _MERE_NAME.search(name):
        # `client_auth: required`, `low_pass=0.5`
        return not in_place_only(value) if "pass" not in name else _FIGURE.fullmatch(value) is None
    return True


def is_phrase(found: Found) -> bool:
    """Whether words behind a password's name are one."""
    first = found.value.partition(" ")[0]
    return named_value(Found(first, _name_of(found) + first, found.text, found.start))


def is_authorization(found: Found) -> bool:
    """Whether what `Authorization` names are credentials (a scheme is named, or a word is none) and no sentence."""
    words = re.split(r"[:=]", found.whole, maxsplit=1)[1].strip(" \t\\\"'").split()[:2]
    return any(word.lower() in _SCHEMES or not in_place_only(word.rstrip(TRAILING)) for word in words)


def _name_of(found: Found) -> str:
    return found.whole.rpartition(found.value)[0].lower()


def is_key_value(found: Found) -> bool:
    """Whether a mere `key` names a secret, and not a hash, a public key, a word, a place or a piece of a program."""
    value = found.value
    program = not any(map(str.isdigit, value)) or not value.isascii() or re.search(r"[({\[]", value) is not None
    return not (program or is_public(value) or in_place_only(value) or _IDENTIFIER.fullmatch(value.rstrip(TRAILING)))


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
    r"(?<![a-z])ver(?:sion)?|tensorrt(?:[ _-]?rtx| for rtx)?|\btrt|\bcuda|\bcudnn|\bl4t|\bjetpack|nvinfer[\w-]{0,16}"
    r"|\bbuilt(?: with| by)?"
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
# Dotted names of Python, and of the kernel's settings.
_MODULES = re.compile(r"(?:torch|numpy|np|tf|tensorflow|jax|scipy|onnx|os|sys|self|kedge|kedge_agent|net\.core)\.")
_SOURCES = re.compile(
    r"\.(?:pyx?|so|c|cc|cpp|cxx|cu|h|hpp|rs|go|js|ts|sh|log|txt|json|ya?ml|toml|conf|cfg|ini|onnx|engine|plan|rec|service)$"
)


def is_mail(found: Found) -> bool:
    """Whether `a@b` may name somebody."""
    return _NO_MAIL.search(found.value.lower()) is None


def has_domain(mail: str) -> bool:
    """Whether what stands after its @ is where mail goes by itself; in `resnet@12` and `u8:2@x` it is not."""
    domain = mail.lower().rpartition("@")[2]
    return re.search(r"\.[a-z][a-z0-9-]+$|^(?:\d{1,3}\.){3}\d{1,3}$", domain) is not None


def is_host(found: Found) -> bool:
    """Whether a host's name says where this device is: not this machine itself, nor who makes what runs on it."""
    named = found.value.rstrip(".").lower()
    if _MODULES.match(named):
        return False
    return named not in _LOCAL_HOSTS and _MAKERS.search(named) is None and re.search("[a-z]", named) is not None


def is_reached(found: Found) -> bool:
    """Whether dotted words beside a port, or after `resolve`, are a host: a line of a source file is none."""
    return is_host(found) and _SOURCES.search(found.value.lower()) is None
