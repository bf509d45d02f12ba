"""Where everything lies under the state folder, and how long the socket paths may be."""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..errors import AgentError
from ..formats.manifest import is_digest, is_model_name

__all__ = ["SYSTEM_SOCKETS", "SYSTEM_STATE", "Layout", "socket_directory"]

SYSTEM_STATE = Path("/var/lib/kedge")
"""The state folder of the agent that root runs; its sockets and settings lie where a system's do."""

SYSTEM_SOCKETS = Path("/run/kedge")


@dataclass(frozen=True)
class Layout:
    """Paths of the store. Digests and model names are checked before they become paths."""

    root: Path

    @property
    def incoming(self) -> Path:
        """Partly received files, a folder a release."""
        return self.root / "incoming"

    @property
    def log(self) -> Path:
        """The daemon's log."""
        return self.root / "agent.log"

    @property
    def lock(self) -> Path:
        """Held by the running daemon; holds its process id."""
        return self.root / "agent.lock"

    def object(self, sha256: str) -> Path:
        """A file by its content."""
        _require(is_digest(sha256), "sha256", sha256)
        return self.root / "objects" / "sha256" / sha256[:2] / sha256[2:]

    def release(self, digest: str) -> Path:
        """A release's folder: hard links into the objects, and manifest.json."""
        _require(is_digest(digest), "release", digest)
        return self.root / "releases" / digest

    def staging(self, digest: str) -> Path:
        """Where a release's files gather until all of them are here."""
        _require(is_digest(digest), "release", digest)
        return self.incoming / digest

    def model(self, name: str) -> Path:
        """A model's folder: state.json and the link `current`."""
        _require(is_model_name(name), "model name", name)
        return self.root / "models" / name


def _require(valid: bool, what: str, value: str) -> None:
    if not valid:
        raise AgentError(f"not a {what}: {value[:80]!r}", kind="bad_input")


def socket_directory(state: Path) -> Path:
    """The folder of the daemon's sockets: a short path, because a Unix socket's may have 107 bytes.

    Derived from the state folder alone, so that every process of the agent finds the same one.

    Raises:
        AgentError: the folder exists and is not ours alone (kind forbidden).
    """
    state = state.resolve()
    if state == SYSTEM_STATE:
        return SYSTEM_SOCKETS
    mine = Path(f"/tmp/kedge-{os.geteuid()}")  # noqa: S108  (its owner and mode are checked below)
    try:
        mine.mkdir(mode=0o700)
    except FileExistsError:
        found = mine.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise AgentError(
                f"{mine} is not a private folder of this user",
                kind="forbidden",
                hint=f"find out who made {mine}, then remove it",
            ) from None
    return mine / f"{zlib.crc32(os.fsencode(state)):08x}"
