"""What was found about something that was pushed: `signers` finds it, `releases` keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """What was found about something that may be taken, to be recorded with it.

    signed: it has the signatures that this device asks for, of its own or of the release that it completes.
    keys: fingerprints of the distinct keys; empty where none were asked for, for none are then verified. threshold: how
    many were asked for; 0: none. downgrade_floor, downgrade_serial: what is to stand in the model's state once the
    release has proven itself, where the floor is downgrade_from at most until then; None and 0: nothing changes.
    attested: who vouches for an engine that a device built: "builder" (this device built it), "attestation" (a signer),
    None (it has no such engine, or nobody was asked). downgrade_keys, attestation_keys: as keys, of these statements.
    """

    signed: bool
    keys: tuple[str, ...] = ()
    threshold: int = 0
    downgrade_floor: int | None = None
    downgrade_serial: int = 0
    attested: str | None = None
    downgrade_from: int = 0
    downgrade_keys: tuple[str, ...] = ()
    attestation_keys: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}
