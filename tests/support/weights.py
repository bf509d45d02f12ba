"""Releases that weigh something: a file of several frames and many small ones, beside a model that loads at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kedge.release.bundle import Release, write_release
from kedge_agent.wire import FRAME_BYTES
from tests.conftest import make_release

BULK_BYTES = 2 * FRAME_BYTES + 1_000_003
"""Three frames; the last one's length is no power of two, nor a multiple of a page."""


def weighty_release(
    folder: Path,
    *,
    version: int,
    seed: int = 0,
    bulk_bytes: int = BULK_BYTES,
    small_files: int = 12,
    name: str = "digits",
    bulk: bytes | None = None,
    probation_s: int = 0,
) -> Release:
    """A release of the small classifier, with `bulk.bin` and small files that no runtime reads; by seed, other bytes.

    Args:
        bulk: what `bulk.bin` holds, where two releases are to share it.
    """
    small = make_release(folder, version=version, name=name, seed=seed)
    chance = np.random.default_rng(seed)
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in small.files()}
    sources["bulk.bin"] = bulk if bulk is not None else chance.bytes(bulk_bytes)
    for number in range(small_files):
        sources[f"small-{number:02}.bin"] = chance.bytes(int(chance.integers(1, 60_000)))
    body = json.loads(small.manifest_bytes)
    del body["files"]
    body["gates"]["probation"] = {"seconds": probation_s}
    return write_release(folder / f"{name}-{version}.weighty", sources, body)
