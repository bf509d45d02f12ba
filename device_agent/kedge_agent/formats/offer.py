"""What comes with a release and is not part of it: signatures, and statements that are signed by themselves.

A push sends it before the manifest; an archive begins with it. It is JSON, and every part of it that is signed is in it
as text, so that the very bytes that were signed are verified and parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..wire import ENCODING_RAW, MAX_JSON_BYTES, WireError, parse_json
from .reader import ManifestError, Reader

__all__ = ["AGENT", "MAX_SIGNATURES_BYTES", "RELEASE", "Offer", "Signed", "offer_bytes", "parse_offer"]

RELEASE = "release"
AGENT = "agent"
"""What is offered: a release of a model, or an agent in the place of the one that runs."""

MAX_SIGNATURES_BYTES = 64 * 1024
_MAX_ENCODINGS = 16


@dataclass(frozen=True)
class Signed:
    """A document's very bytes, and armoured SSH signatures of them, one after another; none: empty."""

    document: bytes
    signatures: bytes = b""


@dataclass(frozen=True)
class Offer:
    """What the sender offers.

    signatures: of the manifest, armoured, one after another. encodings: of frames, that the sender can send.
    base: the manifest, signed, of the release that this one completes with an engine. attestation: a statement on that
    engine. downgrade: a statement that a lower version than the device has had is wanted. join: another channel leads
    this push, and this one brings frames to it.
    """

    kind: str = RELEASE
    signatures: bytes = b""
    encodings: tuple[int, ...] = (ENCODING_RAW,)
    base: Signed | None = None
    attestation: Signed | None = None
    downgrade: Signed | None = None
    join: bool = False


def offer_bytes(offer: Offer) -> bytes:
    """As `parse_offer` reads it. What is absent is left out."""
    body: dict[str, Any] = {
        "kind": offer.kind,
        "encodings": list(offer.encodings),
        "signatures": offer.signatures.decode("ascii"),
    }
    for name in ("base", "attestation", "downgrade"):
        signed: Signed | None = getattr(offer, name)
        if signed is not None:
            body[name] = {"document": signed.document.decode(), "signatures": signed.signatures.decode("ascii")}
    if offer.join:
        body["join"] = True
    return json.dumps(body).encode()


def parse_offer(data: bytes | bytearray | memoryview) -> Offer:
    """Parse and check an offer; no signature is verified here. Keys of later versions are passed over.

    Raises:
        ManifestError: it is none.
    """
    try:
        body = parse_json(data, limit=MAX_JSON_BYTES)
    except WireError as error:
        raise ManifestError(f"offer: {error}") from error
    reader = Reader(body, "offer")
    encodings = reader.items("encodings", _MAX_ENCODINGS, least=1)
    if not all(type(encoding) is int for encoding in encodings):
        raise ManifestError("offer.encodings are not numbers")
    return Offer(
        kind=reader.text("kind", (RELEASE, AGENT).__contains__),
        signatures=_signatures(reader),
        encodings=tuple(encodings),
        base=_signed(body, "base"),
        attestation=_signed(body, "attestation"),
        downgrade=_signed(body, "downgrade"),
        join=body.get("join") is True,
    )


def _signatures(reader: Reader) -> bytes:
    return reader.text("signatures", str.isascii, MAX_SIGNATURES_BYTES).encode()


def _signed(body: Mapping[str, Any], key: str) -> Signed | None:
    if key not in body:
        return None
    reader = Reader(body[key], f"offer.{key}")
    try:
        document = reader.text("document", limit=MAX_JSON_BYTES).encode()
    except UnicodeEncodeError as error:
        # Half of a surrogate pair, which JSON can escape and nothing can encode.
        raise ManifestError(f"offer.{key}.document is no text") from error
    return Signed(document, _signatures(reader))
