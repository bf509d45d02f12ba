"""Remove from the store what nobody needs: releases, then the objects that they alone named, and what was cut short.

What is named by a state, by an unfinished deploy or by a manifest that cannot be read stays, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import AgentError
from ..failpoints import reached
from ..formats.manifest import MANIFEST_NAME, Manifest, ManifestError, is_digest, parse_manifest
from ..wire import MAX_MANIFEST_BYTES
from .files import exclusive_lock, fsync_directory, read_bounded
from .journal import read_unfinished
from .layout import Layout
from .locks import collecting
from .models import named_releases
from .releases import Acceptance, read_acceptance, read_release, release_digests
from .rules import ReleaseRules
from .slots import agent_objects, agents_folder, changing_agents, retire_slots

__all__ = ["Collected", "collect"]

_PARTIALS = 4
_ENGINES = 8


@dataclass(frozen=True)
class Collected:
    """What was removed. releases: digests. The others are counts; freed_bytes: of the disk, as far as files tell."""

    releases: tuple[str, ...]
    objects: int
    partials: int
    engines: int
    freed_bytes: int


def collect(
    layout: Layout, rules: ReleaseRules, *, pressed: bool = False, keep: Collection[str] = (), lack_bytes: int = 0
) -> Collected | None:
    """Remove what nobody needs; None, and nothing is removed, where somebody uses the store.

    Of each model stay the releases that its state, the way back and the state to come name, those of unfinished
    deploys, and the `rules.keep` accepted last of the others; one that was accepted after the live one stays always. Of
    pushes that broke off stay the 4 latest and those under way, of engines built here the 8 latest.

    Args:
        pressed: the disk is full. Of releases only those stay that a state or a deploy names, of pushes only those
            under way, of engines the latest, of agents those that run or ran last.
        keep: digests of releases, and sha256 of objects, that stay as well.
        lack_bytes: what is to be freed. Where all that may go is less, no release, object, push or engine goes: what
            can never fit takes nothing from others.

    Raises:
        OSError: a folder of the store cannot be read, or the disk fails. What is named still holds.
    """
    with collecting(layout) as alone:
        if not alone:
            return None
        slots_freed = _remove_slots(layout) if pressed else 0
        releases, named, held = _sort(layout, rules, pressed, frozenset(keep))
        if lack_bytes > slots_freed and lack_bytes > slots_freed + _removable(layout, named | set(keep), releases):
            return Collected((), 0, 0, 0, slots_freed)
        freed = _remove_releases(layout, releases)
        reached("collect.removed")
        partials = _remove_partials(layout, 0 if pressed else _PARTIALS, frozenset(keep))
        named |= agent_objects(layout) | _being_accepted(layout)
        objects = _remove_objects(layout, named | set(keep), held)
        engines = _remove_engines(layout, 1 if pressed else _ENGINES)
        return Collected(
            releases=releases,
            objects=len(objects),
            partials=len(partials),
            engines=len(engines),
            freed_bytes=slots_freed + freed + sum(objects) + sum(partials) + sum(engines),
        )


def _sort(
    layout: Layout, rules: ReleaseRules, pressed: bool, keep: frozenset[str]
) -> tuple[tuple[str, ...], set[str], set[tuple[int, int]]]:
    """Releases that may go; objects that those name which stay; and files of those whose manifests cannot be read."""
    models: dict[str, list[tuple[Acceptance, Manifest]]] = {}
    held: set[tuple[int, int]] = set()
    for digest in release_digests(layout):
        try:
            manifest = read_release(layout, digest)
        except AgentError:
            held |= {(found.st_dev, found.st_ino) for _, found in _files(layout.release(digest))}
            continue
        acceptance = Acceptance(signed=False)
        with contextlib.suppress(AgentError):
            acceptance = read_acceptance(layout, digest)
        models.setdefault(manifest.model, []).append((acceptance, manifest))
    keep |= read_unfinished(layout)
    going: list[str] = []
    named: set[str] = set()
    for model, found in models.items():
        going_here = _going(layout, model, found, 0 if pressed else rules.keep, pressed, keep)
        going += going_here
        for _, manifest in found:
            if manifest.digest not in going_here:
                named |= {entry.sha256 for entry in manifest.files}
    return tuple(going), named, held


def _going(
    layout: Layout,
    model: str,
    found: list[tuple[Acceptance, Manifest]],
    most: int,
    pressed: bool,
    keep: frozenset[str],
) -> list[str]:
    try:
        kept = named_releases(layout, model) | keep
    except AgentError:
        return []
    live = max((acceptance.sequence for acceptance, manifest in found if manifest.digest in kept), default=0)
    others = [each for each in found if each[1].digest not in kept]
    others.sort(key=lambda each: (each[0].sequence, each[1].version), reverse=True)
    # It waits for its deploy.
    if others and not pressed and others[0][0].sequence > live:
        most = max(most, 1)
    return [manifest.digest for _, manifest in others[most:]]


def _removable(layout: Layout, kept: Collection[str], releases: Collection[str]) -> int:
    """At most so many bytes a collection under pressure frees, besides agents.

    Args:
        kept: objects, and folders of pushes, that stay. releases: that go.
    """
    wheels = agent_objects(layout)
    found = [each for path, each in _objects(layout) if path.parent.name + path.name not in {*kept, *wheels}]
    folders = [layout.release(digest) for digest in releases]
    folders += [path for path in _latest_first(layout.incoming) if path.name not in kept]
    folders += _latest_first(layout.root / "engines")[1:]
    # A release's files are links to objects, which are counted above.
    own = [each for folder in folders for _, each in _files(folder) if each.st_nlink == 1]
    return sum(each.st_blocks * 512 for each in (*found, *own))


def _remove_slots(layout: Layout) -> int:
    """Of agents; nothing where somebody is changing them."""
    if agents_folder(layout).is_dir():
        with contextlib.suppress(AgentError), changing_agents(layout):
            return sum(_remove(each) for each in retire_slots(layout))
    return 0


def _remove_releases(layout: Layout, digests: Collection[str]) -> int:
    folder = layout.root / "releases"
    for digest in digests:
        layout.release(digest).rename(folder / f".{digest}.removed")
    reached("collect.marked")
    if digests:
        # Before any of its files goes, a release is none any more, whatever a power cut brings back.
        fsync_directory(folder)
    with contextlib.suppress(FileNotFoundError):
        return sum(_remove(each) for each in sorted(folder.glob(".*")))
    return 0


def _remove_objects(layout: Layout, named: Collection[str], held: Collection[tuple[int, int]]) -> list[int]:
    freed: list[int] = []
    for path, found in _objects(layout):
        sha256 = path.parent.name + path.name
        if is_digest(sha256) and sha256 not in named and (found.st_dev, found.st_ino) not in held:
            path.unlink()
            freed.append(_bytes(found))
    return freed


def _objects(layout: Layout) -> Iterator[tuple[Path, os.stat_result]]:
    return _files(layout.root / "objects" / "sha256")


def _remove_partials(layout: Layout, most: int, keep: Collection[str]) -> list[int]:
    freed: list[int] = []
    for path in _latest_first(layout.incoming)[most:]:
        if path.name in keep:
            continue
        with contextlib.suppress(AgentError), exclusive_lock(path / ".lock", "it is being pushed"):
            freed.append(_remove(path))
    return freed


def _being_accepted(layout: Layout) -> set[str]:
    """Objects of releases whose acceptance was cut short after they had been moved into the store."""
    named: set[str] = set()
    for path in _latest_first(layout.incoming):
        with contextlib.suppress(OSError, AgentError, ManifestError):
            manifest = parse_manifest(read_bounded(path / MANIFEST_NAME, MAX_MANIFEST_BYTES))
            named |= {entry.sha256 for entry in manifest.files}
    return named


def _remove_engines(layout: Layout, most: int) -> list[int]:
    freed: list[int] = []
    for path in _latest_first(layout.root / "engines")[most:]:
        gone = path.with_name(f".{path.name}.removed")
        path.rename(gone)
        freed.append(_remove(gone))
    return freed


def _latest_first(folder: Path) -> list[Path]:
    """Folders in a folder that are named by a hash, by when a file in them was last written."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(each.path) for each in entries if is_digest(each.name) and each.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: max((each.st_mtime for _, each in _files(path)), default=0.0), reverse=True)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat()


def _remove(folder: Path) -> int:
    freed = sum(_bytes(found) for _, found in _files(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def _bytes(found: os.stat_result) -> int:
    return found.st_blocks * 512 if found.st_nlink == 1 else 0
