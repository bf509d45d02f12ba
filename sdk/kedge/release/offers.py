"""Two offers of one release as one: what several people signed, in several places, is not taken from one another."""

from __future__ import annotations

from dataclasses import replace

from kedge_agent.formats.manifest import ManifestError
from kedge_agent.formats.offer import MAX_SIGNATURES_BYTES, Offer, Signed
from kedge_agent.formats.sshsig import MAX_SIGNATURES, SignatureError, split_signatures
from kedge_agent.formats.statements import parse_downgrade

__all__ = ["holds", "merged"]


def merged(there: Offer, came: Offer) -> Offer:
    """What lies there and what came. No signature that lies there is lost; those that came follow, as many as an offer
    may have. Of a statement that says something else now, the one that came stays, and of two downgrades the later.
    """
    return replace(
        there,
        signatures=_both(there.signatures, came.signatures),
        base=_statement(there.base, came.base),
        attestation=_statement(there.attestation, came.attestation),
        downgrade=_statement(*sorted((there.downgrade, came.downgrade), key=_serial)),
    )


def holds(offer: Offer, other: Offer) -> bool:
    """Whether every signature of the other's release is in it: there may have been too many already."""
    return set(_blocks(other.signatures) or ()) <= set(_blocks(offer.signatures) or ())


def _both(there: bytes, came: bytes) -> bytes:
    first, second = _blocks(there), _blocks(came)
    # What cannot be read is no signature, and makes those beside it unreadable.
    if first is None or second is None:
        return (came if first is None and second else there) or came
    out = list(first)
    for each in second:
        if each not in out and len(out) < MAX_SIGNATURES and len(b"".join(out)) + len(each) <= MAX_SIGNATURES_BYTES:
            out.append(each)
    return there if len(out) == len(first) else b"".join(out)


def _blocks(signatures: bytes) -> tuple[bytes, ...] | None:
    try:
        return tuple(each.armour for each in split_signatures(signatures))
    except SignatureError:
        return None


def _statement(there: Signed | None, came: Signed | None) -> Signed | None:
    if there is None or came is None or there.document != came.document:
        return came or there
    return Signed(there.document, _both(there.signatures, came.signatures))


def _serial(statement: Signed | None) -> int:
    if statement is None:
        return -1
    try:
        return parse_downgrade(statement.document).serial
    except ManifestError:
        return -1
