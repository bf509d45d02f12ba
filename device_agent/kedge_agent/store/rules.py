"""What the device's owner decided about releases. It comes from the agent's settings, never from who sends one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["OFF", "REQUIRED", "SYSTEM_REVOKED", "SYSTEM_SIGNERS", "ReleaseRules"]

REQUIRED = "required"
OFF = "off"

SYSTEM_SIGNERS = Path("/etc/kedge/allowed_signers")
SYSTEM_REVOKED = Path("/etc/kedge/revoked_keys")


@dataclass(frozen=True)
class ReleaseRules:
    """Rules of acceptance, probation and removal.

    signatures: REQUIRED, OFF, or None: required where the file of allowed signers exists.
    allowed_signers: in the format of ssh-keygen(1), "ALLOWED SIGNERS"; principals are patterns of model names.
    revoked_keys: a key revocation list, or a file of public keys; passed over where it does not exist.
    threshold: how many distinct keys must have signed. thresholds: of models that have their own.
    keep: accepted releases of a model that stay beside its current and previous ones, the latest.
    probation_s: for how long a release is watched after the switch, where it does not say; 0: not at all.
    settings: the file that says all this, whether it is there or not; None: nobody named one.
    """

    signatures: str | None = None
    allowed_signers: Path = SYSTEM_SIGNERS
    revoked_keys: Path = SYSTEM_REVOKED
    threshold: int = 1
    thresholds: Mapping[str, int] = field(default_factory=dict)
    keep: int = 2
    probation_s: int = 10
    settings: Path | None = field(default=None, compare=False)

    @property
    def required(self) -> bool:
        """Whether a release without good signatures is refused."""
        if self.signatures is None:
            # One that cannot even be looked for is not one that is not there, and neither is a link that leads nowhere.
            try:
                self.allowed_signers.lstat()
            except FileNotFoundError:
                return False
            except OSError:
                return True
            return True
        return self.signatures == REQUIRED

    def needed(self, name: str) -> int:
        """How many distinct keys must have signed a release of this model."""
        return self.thresholds.get(name, self.threshold)
