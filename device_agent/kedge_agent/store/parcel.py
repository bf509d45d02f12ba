"""What can be pushed to a device: files by their hashes, and rules by which they are accepted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ..formats.bundle import AgentBundle
from ..formats.manifest import FileEntry, Manifest
from ..formats.offer import Offer
from .layout import Layout
from .rules import ReleaseRules

__all__ = ["Parcel"]


class Parcel(ABC):
    """A manifest that has arrived, and what is to become of the files that it names: a release, or an agent.

    All methods raise AgentError where they refuse.

    digest: the sha256 of the manifest's bytes; names the folder in which the files gather.
    label: what it is, in messages: "release 1a2b…".
    files: in the order in which messages count them.

    Args:
        kind: what it is, in one word.
        data: the very bytes of the manifest.
        offer: what came before it; `Offer()` where nothing did.
    """

    def __init__(
        self,
        kind: str,
        layout: Layout,
        rules: ReleaseRules,
        manifest: Manifest | AgentBundle,
        data: bytes,
        offer: Offer,
    ) -> None:
        self._layout = layout
        self._rules = rules
        self._data = data
        self._offer = offer
        self.digest = manifest.digest
        self.label = f"{kind} {self.digest[:12]}"
        self.files: tuple[FileEntry, ...] = manifest.files

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Held for all of the push; refuses where somebody else is at it (busy)."""

    @abstractmethod
    def judge(self) -> None:
        """Refuse what may not be accepted, by what came with it; called before any frame is asked for."""

    @abstractmethod
    def relatives(self) -> Sequence[tuple[FileEntry, ...]]:
        """File lists of what was accepted of the same kind, the likest first: bases of deltas."""

    @abstractmethod
    def accept(self, staging: Path, proven: Collection[str] = frozenset()) -> None:
        """Judge it once more, and make it a part of the store; renew what is recorded of it where it is one already.

        Args:
            staging: files that were not in the store lie there under their sha256. The folder is gone afterwards.
            proven: `objects.store_files` has it; for files alone that are hashed again before they are used.
        """
