"""What can be pushed to a device: files by their hashes, and rules by which they are accepted."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..errors import AgentError
from ..formats.manifest import FileEntry, parse_manifest
from ..formats.offer import Offer
from .accept import accept
from .layout import Layout
from .locks import deploying
from .models import read_state
from .releases import read_release, releases_of
from .rules import ReleaseRules
from .signers import judge

__all__ = ["Parcel", "ReleaseParcel"]

_MAX_RELATIVES = 8


class Parcel(Protocol):
    """A manifest that has arrived, and what is to become of the files that it names: a release, or an agent.

    All methods raise AgentError where they refuse.
    """

    @property
    def digest(self) -> str:
        """The sha256 of the manifest's bytes; names the folder in which the files gather."""
        ...

    @property
    def label(self) -> str:
        """What it is, in messages: "release 1a2b…"."""
        ...

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Its files, in the order in which messages count them."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Held for all of the push; refuses where somebody else is at it (busy)."""
        ...

    def judge(self) -> None:
        """Refuse what may not be accepted, by what came with it; called before any frame is asked for."""
        ...

    def relatives(self) -> Sequence[tuple[FileEntry, ...]]:
        """File lists of what was accepted of the same kind, the likest first: bases of deltas."""
        ...

    def accept(self, staging: Path) -> None:
        """Judge it once more, and make it a part of the store; renew what is recorded of it where it is one already.

        Args:
            staging: files that were not in the store lie there under their sha256. The folder is gone afterwards.
        """
        ...


class ReleaseParcel:
    """A release of a model: see `Parcel`.

    Args:
        data: the manifest's very bytes.
        offer: what came with them.

    Raises:
        ManifestError: it is no manifest.
    """

    def __init__(self, layout: Layout, rules: ReleaseRules, data: bytes, offer: Offer) -> None:
        self._layout = layout
        self._rules = rules
        self._data = data
        self._offer = offer
        self._manifest = parse_manifest(data)
        self.digest = self._manifest.digest
        self.label = f"release {self.digest[:12]}"
        self.files = self._manifest.files

    def lock(self) -> AbstractContextManager[None]:
        """One push, activation or rollback of a model at a time."""
        return deploying(self._layout, self._manifest.model)

    def judge(self) -> None:
        """By signatures, the floor of versions, and attestations."""
        judge(self._layout, self._rules, self._data, self._offer)

    def relatives(self) -> Sequence[tuple[FileEntry, ...]]:
        """Of the same model's releases: the live one, the one before it, then those that were accepted last."""
        model = self._manifest.model
        state = None
        with contextlib.suppress(AgentError):
            state = read_state(self._layout, model)
        first = [state.current, state.previous] if state is not None else []
        digests = dict.fromkeys([each for each in first if each is not None] + releases_of(self._layout, model))
        found = []
        for digest in list(digests)[:_MAX_RELATIVES]:
            with contextlib.suppress(AgentError):
                found.append(read_release(self._layout, digest).files)
        return found

    def accept(self, staging: Path) -> None:
        """Its files become objects, and its folder appears by one rename."""
        verdict = judge(self._layout, self._rules, self._data, self._offer)
        accept(self._layout, self._manifest, self._data, self._offer, verdict, staging)
