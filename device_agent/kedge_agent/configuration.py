"""How the daemon was told to run, and the settings that are in force meanwhile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import AgentError
from .settings import Settings, read_settings, settings_path
from .store.rules import REQUIRED, ReleaseRules

__all__ = ["Configuration", "Options"]


@dataclass(frozen=True)
class Options:
    """How the daemon runs.

    state: the state folder.
    threads: intra-operator threads of each model; 0: as the settings have it.
    parent_pipe: stop when standard input ends, which it does when the parent dies.
    ephemeral: remove the state folder on the way out.
    config: the file of settings; None: where `settings_path` finds it.
    standby: a file descriptor of the socket to the agent whose place this one is to take; None: it takes nobody's.
    """

    state: Path
    threads: int = 0
    parent_pipe: bool = False
    ephemeral: bool = False
    config: Path | None = None
    standby: int | None = None

    def successor(self) -> list[str]:
        """Options of `serve` for the agent that takes this one's place."""
        config = ["--config", str(self.config)] if self.config is not None else []
        return ["--threads", str(self.threads), *config]

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise AgentError(f"threads are 0 to 1024, not {self.threads}")


class Configuration:
    """The settings in force, and why the file on disk is not, where it is not.

    Raises:
        AgentError: as `read_settings`.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.parent_pipe = options.parent_pipe
        self.path = settings_path(options.state, options.config)
        self.settings = self.read()
        self.problem: str | None = None
        self._releases = self.settings.releases
        self._unreadable: str | None = None

    def read(self) -> Settings:
        """The settings on disk.

        Raises:
            AgentError: as `read_settings`.
        """
        return read_settings(self.path, must_exist=self._options.config is not None)

    def releases(self) -> ReleaseRules:
        """What the file on disk says of releases, as whoever receives them reads it.

        While it cannot be read, what it said last; and then nothing goes live without signatures.
        """
        try:
            self._releases = self.read().releases
        except AgentError as error:
            self._unreadable = error.message
            return replace(self._releases, signatures=REQUIRED)
        self._unreadable = None
        return self._releases

    def threads(self) -> int:
        """Intra-operator threads of each model."""
        return self._options.threads or self.settings.threads or len(os.sched_getaffinity(0))

    def to_json(self) -> Mapping[str, Any]:
        """As the agent's information has it: the file, and what keeps its present content from being in force."""
        # As the file is now, not as it was when somebody last deployed.
        self.releases()
        return {"file": str(self.path), "problem": self.problem or self._unreadable}
