"""Trees of sensors, one file each, that tests unfold into a folder; README.md says where each is from.

A line that begins with `@ ` names a file, and those after it are what is in it; `@ PATH -> TARGET` is a symbolic link.
`\\0` stands for a zero byte. A file without lines is one that is there and cannot be read: its driver would answer
with an error, and an empty file is as good as that.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["TREES", "unfold"]

TREES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.tree")))


def unfold(name: str, folder: Path) -> Path:
    """Write a tree into a folder, which becomes its root."""
    files: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / f"{name}.tree").read_text(encoding="utf-8").splitlines():
        if line.startswith("@ "):
            files[line[2:]] = lines = []
        else:
            lines.append(line + "\n")
    for header, lines in files.items():
        path, _, target = header.partition(" -> ")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (folder / path).symlink_to(target)
        else:
            (folder / path).write_bytes("".join(lines).replace("\\0\n", "\0").encode())
    return folder
