"""What secrets, addresses and names look like in text: the shapes that a snapshot's redactor looks for.

Shapes of issued tokens are those that secret scanners such as gitleaks look for (AWS, Google, GitHub, GitLab, Hugging
Face, NVIDIA NGC, Slack, npm, PyPI …); JWT: RFC 7519; credentials in URLs: RFC 3986, 3.2.1; `Authorization`: RFC 9110,
11.6.2; private keys: RFC 7468, and PROTOCOL.key of OpenSSH. Every expression is bounded or begins at a fixed word, so
that a hostile log takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .plausible import (
    Found,
    is_address,
    is_authorization,
    is_host,
    is_key_value,
    is_mail,
    is_phrase,
    is_reached,
    looks_random,
    named_value,
    unlike_a_word,
)

__all__ = ["MASK", "PRIVATE_KEY", "SHAPES", "Shape"]

MASK = re.compile(r"<[a-z]+-\d+>")
"""What stands in the place of a value."""


@dataclass(frozen=True)
class Shape:
    """What is looked for in a line.

    find: its groups are named; the one that matched is the value, where `holds` says so.
    hints: one of them stands, in lower case, in every line that has the shape; none: only trying tells.
    learn: the value is looked for everywhere, in its encoded forms too.
    """

    kind: str
    find: re.Pattern[str]
    hints: tuple[str, ...] = ()
    holds: Callable[[Found], bool] = lambda found: True
    learn: bool = True

    def may_be_in(self, lower: str) -> bool:
        """Whether it is worth trying on a line, given in lower case."""
        return not self.hints or any(hint in lower for hint in self.hints)

    def found(self, text: str) -> Iterator[Found]:
        """Every value."""
        for match in self.find.finditer(text):
            name = match.lastgroup
            assert name is not None
            found = Found(match[name], match.group(), text, match.start(name))
            if self.holds(found):
                yield found


def _shape(
    kind: str,
    find: str,
    hints: str = "",
    holds: Callable[[Found], bool] = lambda found: True,
    *,
    case: bool = False,
    learn: bool = True,
) -> Shape:
    return Shape(kind, re.compile(find, 0 if case else re.IGNORECASE), tuple(hints.split()), holds, learn)


_NAMES = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|secret|token|credential|psk|apikey"
    r"|(?:api|access|private|auth|signing|encryption|master|shared|client|session|account|license|hmac)[_. -]?key"
    r"|(?:(?<![a-z0-9])|(?<![a-z0-9])(?:ssh|pg|db|smtp))pass(?:key)?|(?-i:(?<=[a-z])Pass(?:[kK]ey)?)"
    r"|(?<=[_-])(?:auth|pat))s?"
)
_IS = r"\\{0,3}[\"']?\s{0,8}(?:=>|:=|[:=])\s{0,8}"
_VALUE = (
    r"(?:\\{1,3}\"(?P<escaped>[^\"\\\r\n]{1,4096})|\"(?P<quoted>(?:[^\"\\\r\n]|\\[^\r\n]){1,4096})"
    r"|'(?P<single>(?:[^'\\\r\n]|\\[^\r\n]){1,4096})'|(?P<bare>[^\s\"'\\]{1,4096}))"
)
# Words behind a password's name and a colon, until one that names something else.
_PHRASE = (
    r"(?:pass(?:word|wd|phrase|code)|pwd|(?<=_)pass)s?:[ \t]{1,8}(?P<v>[^\s\"'\\]{1,256}"
    r"(?:(?<![,;)}\]])[ \t]{1,4}(?![\w.-]{1,32}[:=])[^\s\"'\\]{1,256}){1,15})"
)

_PRIVATE_KEY = (
    r"(?P<v>-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?!-----END)[\s\S]){0,20000}(?:-----END [A-Z0-9 ]{0,32}-----)?)"
)
_TOKENS = (
    r"eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{0,4096}"
    r"|(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA|ANPA|ANVA)[A-Z0-9]{16}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,2048}|GOCSPX-[A-Za-z0-9_-]{20,64}"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{40,255}|glpat-[A-Za-z0-9_-]{20,64}"
    r"|hf_[A-Za-z0-9]{30,64}|api_org_[A-Za-z0-9]{30,64}|nvapi-[A-Za-z0-9_-]{30,128}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|xapp-[A-Za-z0-9-]{10,255}|sk-[A-Za-z0-9_-]{20,255}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}|npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{50,1024}"
    r"|dckr_pat_[A-Za-z0-9_-]{20,64}|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"
)
_AUTHORIZATION = (
    r"\bauthorization\\{0,3}[\"']?\s{0,8}[:=]\s{0,8}\\{0,3}[\"']?"
    r"(?:(?:digest|aws4-hmac-sha256)\s+(?P<digest>[^\r\n]{4,4096})"
    r"|(?:[a-z][a-z0-9-]{1,15} +)?(?P<v>[^\r\n\"'\\]{4,4096}))"
)
_COOKIE = r"\bcookie\\{0,3}[\"']?\s{0,8}[:=]\s{0,8}[\"']?(?P<v>[^\r\n\"'\\]{4,4096})"
_TOLD = rf"\b{_NAMES}(?: for [^\s]{{1,64}})? (?:is|was) [\"']?(?P<v>[^\s\"']{{4,256}})"
_QUERY = r"[?&](?:sig|signature|x-amz-[a-z-]{4,24}|auth|code|key|access_token)=(?P<v>[^\s&\"'<>#]{4,4096})"
# crypt(5), with the lengths of its shortest method and its longest.
_CRYPTED = r"(?P<v>\$(?:[1567y]|2[abxy]|gy|sha1)\$[./A-Za-z0-9$=,]{8,256})"
_CURL = r"\bcurl\b[^\r\n]{0,256}?\s(?:-u ?|--user[ =])[\"']?[^\s:\"']{1,64}:(?P<v>[^\s\"']{1,256})"
_PUBLIC_KEY = (
    r"(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-nistp\d{3}|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r" AAAA[A-Za-z0-9+/]{20,4096}={0,2}[ \t]+(?P<v>[^\x00-\x1f\"'\\\x7f\ud800-\udfff]{1,256})"
)
_MAIL = r"(?<![a-z0-9._%+-])(?P<v>[a-z0-9._%+-]{1,64}@[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){0,8})(?<![.-])(?![a-z0-9])"
_MAC = (
    r"(?<![0-9A-Fa-f:-])(?P<v>(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}|(?:[0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2}"
    r"|(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})(?![0-9A-Fa-f:-])"
)
_IPV6 = r"(?<![\w:.])(?P<v>(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)"
_IPV4 = r"(?<![0-9.vV])(?P<v>(?:\d{1,3}\.){3}\d{1,3})(?!\d|\.\d{1,3}(?!\d))"
_ENDS = "com|org|net|edu|gov|mil|local|lan|internal|corp|localdomain|intranet|arpa|de|fr|uk|nl|eu|jp|cn|ch|se"
# These end dotted names of programs too: they want one name more before them.
_RARE_ENDS = "io|ai|dev|app|cloud|tech|info|biz|co|at|it|es|pl|ca|au|kr|tw|br|ru|dk|fi|cz|be"
_END_HINTS = " ".join(f".{end}" for end in f"{_ENDS}|{_RARE_ENDS}".split("|"))
_LABELS = r"(?:[a-z0-9][a-z0-9-]{0,62}\.)"
_DOMAIN = (
    rf"(?<![a-z0-9._@/-])(?P<v>{_LABELS}{{1,8}}(?:{_ENDS})|{_LABELS}{{2,8}}(?:{_RARE_ENDS}))(?![a-z0-9_(-]|\.[a-z0-9])"
)
_REACHED = (
    r"\b(?:resolv(?:e|ing)|connect(?:ing|ed)? to|host|lookup|reach|dial(?:ing)?(?: tcp)?) "
    rf"(?P<after>{_LABELS}{{1,8}}[a-z]{{2,24}})(?![a-z0-9_(-]|\.[a-z0-9])"
    rf"|(?<![a-z0-9._@/-])(?P<before>{_LABELS}{{2,8}}[a-z]{{2,24}})(?=:\d{{2,5}}(?![\d.:]))"
)
_USER = (
    r"\b(?:for(?: invalid)? user|publickey for|password for|user(?:name)?\s?[=:]|logname=|ruser=)\s?[\"']?"
    r"(?P<v>[a-z_][a-z0-9_.-]{1,31})"
)

# The beginnings of all of _TOKENS.
_ISSUED = (
    "eyj akia asia abia acca agpa aida aroa aipa anpa anva aiza ya29. gocspx- ghp_ gho_ ghu_ ghs_ ghr_ github_pat_"
    " glpat- hf_ api_org_ nvapi- xox xapp- sk- sk_ rk_ npm_ pypi- dckr_pat_ sg."
)
_NAME_HINTS = "pass pwd secret token credential psk key _auth -auth _pat -pat"

PRIVATE_KEY = _shape("secret", _PRIVATE_KEY, "private", case=True)
"""The one that has many lines."""

SHAPES: tuple[Shape, ...] = (
    _shape("secret", rf"(?<![A-Za-z0-9])(?P<v>{_TOKENS})", _ISSUED, case=True),
    _shape("secret", _AUTHORIZATION, "authorization", is_authorization),
    _shape("secret", _COOKIE, "cookie"),
    _shape("secret", r"\b(?:bearer|basic) +(?P<v>[a-z0-9._~+/=-]{8,4096})", "bearer basic", unlike_a_word),
    _shape("secret", _PHRASE, "pass pwd", is_phrase),
    _shape("secret", _NAMES + _IS + _VALUE, _NAME_HINTS, named_value),
    _shape("secret", rf"--(?:[a-z]{{1,16}}-){{0,3}}{_NAMES} +{_VALUE}", "--", named_value),
    _shape("secret", rf"\bsshpass -p ?{_VALUE}", "sshpass"),
    _shape("secret", _TOLD, _NAME_HINTS, unlike_a_word),
    _shape("secret", rf"(?:\b|_|-)key{_IS}{_VALUE}", "key", is_key_value),
    _shape("secret", _QUERY, "="),
    _shape("secret", r"://[^\s/:@\"'<>]{0,256}:(?P<v>[^\s/\"'<>]{1,256})@", "://"),
    _shape("secret", r"\bhooks\.slack\.com/services/(?P<v>[\w/-]{16,256})", "hooks.slack.com"),
    _shape("secret", r"/bot(?P<v>\d{4,12}:[\w-]{30,64})", "/bot"),
    _shape("secret", _CRYPTED, "$", case=True),
    _shape("secret", _CURL, "curl"),
    _shape("secret", r"://(?P<v>[^\s/:@\"'<>]{16,256})@", "://"),
    _shape("user", r"://(?P<v>[^\s/:@\"'<>]{1,256})(?::[^\s/@\"']{0,256})?@", "://", learn=False),
    _shape("comment", _PUBLIC_KEY, "aaaa"),
    _shape("email", _MAIL, "@", is_mail),
    _shape("mac", _MAC, holds=is_address, case=True),
    _shape("ip", _IPV6, ":", is_address, case=True),
    _shape("ip", _IPV4, ".", is_address, case=True),
    _shape("host", r"://(?:[^\s/@\"']{0,512}@)?(?P<v>[a-z0-9][a-z0-9.-]{0,252})", "://", is_host),
    _shape("host", _DOMAIN, _END_HINTS, is_host),
    _shape("host", _REACHED, ".", is_reached),
    _shape("host", rf"\b(?:hostname{_IS}|host(?:\\{{0,3}}[\"']\s?[:=]|=)\s?){_VALUE}", "host", is_host, learn=False),
    _shape("ssid", rf"\bssid{_IS}{_VALUE}", "ssid"),
    _shape("user", r"/(?:home|users)/(?P<v>(?![.])[^/\s:\"'<>,;)(\\\0]{1,64})", "/home/ /users/"),
    _shape("user", _USER, "user publickey password logname", learn=False),
    _shape("id", r"(?P<v>GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", "gpu-"),
    _shape(
        "secret",
        r"(?<![A-Za-z0-9+/=_-])(?P<v>[A-Za-z0-9+/_-]{32,8192}={0,2})",
        holds=looks_random,
        case=True,
    ),
)
"""In the order in which they are tried: what is found is masked, and no more looked into."""
