"""What this host keeps of what it pushed, while many threads push the same."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kedge.transport.known import KnownObjects
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import FileEntry


def test_many_threads_that_push_one_release_leave_its_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(2 << 20))
    whole = hash_file(path)
    entry = FileEntry("weights.bin", whole.size_bytes, whole.sha256, whole.frames)
    objects = KnownObjects(tmp_path / "objects")

    def push(turn: int) -> int:
        objects.remember([(entry, path)])
        # Others are forgotten as what they made turns out wrong, so that it is kept anew.
        if turn % 3 == 0:
            objects.forget(entry.sha256)
        return path.stat().st_size

    with ThreadPoolExecutor(24) as pool:
        sizes = set(pool.map(push, range(1200)))
    assert sizes == {whole.size_bytes}
    assert hash_file(path).sha256 == whole.sha256
    objects.remember([(entry, path)])
    assert objects.find(entry.sha256, entry.size_bytes) is not None
    assert [name for name in os.listdir(objects.folder) if name.startswith(".")] == []
