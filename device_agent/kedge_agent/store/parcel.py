"""What can be pushed to a device: files by their hashes, and rules by which they are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..formats.manifest import FileEntry

__all__ = ["Parcel"]


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
