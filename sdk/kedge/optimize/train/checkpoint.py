"""Checkpoints of training that resume exactly: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_checkpoint", "save_checkpoint"]

_MAX_BYTES = 2**33


def save_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write plain values and tensors. key: what they belong to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save({"key": key, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """What was saved under this key; None when there is nothing, it is damaged, or it belongs to something else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    return state if isinstance(state, dict) and state.get("key") == key else None
