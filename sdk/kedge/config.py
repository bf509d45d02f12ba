"""Where kedge keeps things on this machine: the XDG base directories, nothing else."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir", "config_dir", "state_dir"]


def _base(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    # The XDG specification says to ignore a relative path.
    base = Path(value) if value.startswith("/") else Path(os.path.expanduser(fallback))
    return base / "kedge"


def config_dir() -> Path:
    """Inventory and settings."""
    return _base("XDG_CONFIG_HOME", "~/.config")


def cache_dir() -> Path:
    """What can be fetched or built again."""
    return _base("XDG_CACHE_HOME", "~/.cache")


def state_dir() -> Path:
    """The store of the device named `local`."""
    return _base("XDG_STATE_HOME", "~/.local/state")
