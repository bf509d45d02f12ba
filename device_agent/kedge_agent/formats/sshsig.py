"""SSH signatures (SSHSIG) as they travel: armoured blocks, one after another; none is verified here.

The format is OpenSSH's PROTOCOL.sshsig. What it says of itself, the key and the namespace, is read so that a refusal
can name them; whether a signature holds, `formats.sshkeygen` asks OpenSSH.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from .digests import sha256
from .offer import MAX_SIGNATURES_BYTES

__all__ = [
    "AGENT_NAMESPACE",
    "DOWNGRADE_NAMESPACE",
    "ENGINE_NAMESPACE",
    "MAX_SIGNATURES",
    "RELEASE_NAMESPACE",
    "Signature",
    "SignatureError",
    "fingerprint",
    "split_signatures",
]

RELEASE_NAMESPACE = "kedge-release"
ENGINE_NAMESPACE = "kedge-engine"
DOWNGRADE_NAMESPACE = "kedge-downgrade"
AGENT_NAMESPACE = "kedge-agent"
"""What a signature is for: one made for one purpose is worth nothing for another."""

MAX_SIGNATURES = 16

_BLOCK = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\r?\n([A-Za-z0-9+/=\r\n]{1,16384})-----END SSH SIGNATURE-----(?:\r?\n|\Z)"
)
_MAGIC = b"SSHSIG"
_VERSION = 1
_HASHES = (b"sha256", b"sha512")
_CERTIFICATE = "-cert-v01@openssh.com"
_SECURITY_KEY = "sk-"
_TOUCHED = 1
_NAME = re.compile(r"[\x21-\x7e]{1,255}")


class SignatureError(Exception):
    """This is no SSH signature, or one that is not taken; the message says why."""


@dataclass(frozen=True)
class Signature:
    """One signature. armour: its very text. key: the public key's blob. key_type: as "ssh-ed25519".

    touched: whether somebody was there, as a FIDO token says of itself; true of all other keys.
    """

    armour: bytes
    key: bytes
    key_type: str
    namespace: str
    touched: bool = True

    @property
    def fingerprint(self) -> str:
        """Of the key that it says it was made with."""
        return fingerprint(self.key)


def fingerprint(key: bytes) -> str:
    """The fingerprint of a public key's blob, as OpenSSH shows it: "SHA256:…"."""
    return "SHA256:" + base64.b64encode(sha256(key).digest()).decode().rstrip("=")


def split_signatures(data: bytes) -> tuple[Signature, ...]:
    """The signatures in a text of armoured blocks; nothing but white space may stand between them.

    Raises:
        SignatureError: it is something else, too long, or holds a signature that is not taken.
    """
    if len(data) > MAX_SIGNATURES_BYTES:
        raise SignatureError(f"signatures of {len(data)} bytes exceed the limit of {MAX_SIGNATURES_BYTES}")
    out: list[Signature] = []
    rest = data.strip()
    while rest:
        block = _BLOCK.match(rest)
        if block is None:
            raise SignatureError("there is something that is no armoured SSH signature")
        if len(out) == MAX_SIGNATURES:
            raise SignatureError(f"there are more than {MAX_SIGNATURES} signatures")
        out.append(_parsed(block.group(0).rstrip() + b"\n", block.group(1)))
        rest = rest[block.end() :].lstrip()
    return tuple(out)


def _parsed(armour: bytes, text: bytes) -> Signature:
    try:
        data = base64.b64decode(text.translate(None, b"\r\n"), validate=True)
    except binascii.Error as error:
        raise SignatureError("a signature is not valid base64") from error
    if data[:6] != _MAGIC:
        raise SignatureError("a signature is not SSHSIG")
    version = int.from_bytes(data[6:10], "big")
    if version != _VERSION:
        raise SignatureError(f"a signature has version {version}, not {_VERSION}")
    key, rest = _string(data[10:])
    namespace, rest = _string(rest)
    _reserved, rest = _string(rest)
    algorithm, rest = _string(rest)
    signature, rest = _string(rest)
    if rest or not signature:
        raise SignatureError("a signature is not as long as it says")
    if algorithm not in _HASHES:
        raise SignatureError("a signature uses a hash that is neither sha256 nor sha512")
    key_type = _name(_string(key)[0])
    if key_type.endswith(_CERTIFICATE):
        raise SignatureError("a signature was made with a certificate; sign with the plain key")
    return Signature(
        armour, key, key_type, _name(namespace), not key_type.startswith(_SECURITY_KEY) or _touched(signature)
    )


def _touched(signature: bytes) -> bool:
    """The flag "user present" of a token's signature: PROTOCOL.u2f, "SSH U2F Signatures"."""
    _, rest = _string(signature)
    _, rest = _string(rest)
    return bool(rest[:1]) and bool(rest[0] & _TOUCHED)


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A string of the SSH protocol (RFC 4251, 5), and what follows it."""
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < 4 or len(data) < end:
        raise SignatureError("a signature is truncated")
    return data[4:end], data[end:]


def _name(data: bytes) -> str:
    text = data.decode("ascii", "replace")
    if _NAME.fullmatch(text) is None:
        raise SignatureError("a signature names its key or namespace unreadably")
    return text
