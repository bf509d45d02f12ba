"""Releases in a folder at a URL, from which many hosts fetch them: content-addressed, and nothing there is trusted.

objects/sha256/ab/cdef…            every file of every release, by its content
releases/<digest>/offer.json       signatures and statements, as a push to a device sends them
releases/<digest>/manifest.json    last: who sees it finds all that it names
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kedge_agent.formats.digests import sha256
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    ManifestError,
    is_digest,
    parse_manifest,
)
from kedge_agent.formats.offer import Offer, offer_bytes, parse_offer
from kedge_agent.wire import FRAME_BYTES, MAX_JSON_BYTES, MAX_MANIFEST_BYTES

from ..errors import BadInputError, IntegrityError, UnreachableError
from ..transport.base import Deadline
from .bundle import Release, add_offer, open_release, write_offer
from .kept import KeptReleases, claimed
from .offers import holds, merged
from .urls import RemoteFolder, is_url, open_folder

__all__ = ["PushedTo", "fetched", "pull_from", "push_to", "require_readable"]

_OFFER = "offer.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PushedTo:
    """What a push to a URL sent, and what lay there already."""

    sent_bytes: int
    skipped_bytes: int


def _nobody(done: int, total: int) -> None:
    pass


def push_to(release: Release, url: str, progress: Progress = _nobody) -> PushedTo:
    """Put a release where others can fetch it. Again, and by several at once, it does no harm: what lies there under
    its name in its size is not sent again. Signatures are added to those there.

    Raises:
        BadInputError: there are as many signatures there as there may be.
        IntegrityError: a file is not what the manifest names.
        KedgeError: as `urls.open_folder`.
    """
    release.verify()
    total, sent, done = release.manifest.total_bytes, 0, 0
    seen: set[str] = set()
    with open_folder(url) as folder:
        for entry, path in release.files():
            name = _object(entry.sha256)
            if entry.sha256 not in seen and folder.size(name) != entry.size_bytes:
                begun = done
                folder.put(name, path, lambda count, begun=begun: progress(begun + count, total))  # type: ignore[misc]
                sent += entry.size_bytes
            seen.add(entry.sha256)
            done += entry.size_bytes
            progress(done, total)
        _put_offer(folder, release)
        manifest = _beside(release.digest, MANIFEST_NAME)
        if folder.size(manifest) != len(release.manifest_bytes) or (
            folder.read(manifest, MAX_MANIFEST_BYTES) != release.manifest_bytes
        ):
            folder.write(manifest, release.manifest_bytes)
    return PushedTo(sent, total - sent)


def _put_offer(folder: RemoteFolder, release: Release) -> None:
    own = release.offer()
    try:
        there = _offer(folder, release.digest)
    except (BadInputError, IntegrityError):
        there = None
    both = own if there is None else merged(there, own)
    if not holds(both, own):
        raise BadInputError(
            f"{folder.url} has no room for more signatures of the release {release.digest[:12]}",
            hint=f"see who has signed it (kedge release pull), and remove {_beside(release.digest, _OFFER)} there",
        )
    if both != there:
        folder.write(_beside(release.digest, _OFFER), offer_bytes(both))


def pull_from(
    url: str, digest: str, folder: Path, progress: Progress = _nobody, deadline: Deadline | None = None
) -> Release:
    """Fetch a release to a folder, checking every byte; the folder is there whole, or not at all. What an interrupted
    pull has fetched lies beside it, and the next one goes on from there.

    Args:
        folder: must not exist.

    Raises:
        BadInputError: the folder exists; or there is no such release at the URL.
        IntegrityError: what lies there is not what its name says.
        UnreachableError: the URL does not answer, or the deadline has passed.
        KedgeError: as `urls.open_folder`.
    """
    if folder.exists():
        raise BadInputError(f"{folder} exists", hint="give another path with -o")
    with open_folder(url, deadline) as source:
        data, manifest = _manifest(source, digest)
        offer = _offer(source, digest) or Offer()
        with claimed(folder, deadline) as partial, _written(folder):
            if partial is None:
                raise BadInputError(f"{folder} exists", hint="somebody else has just made it")
            _fetch(source, manifest, partial, progress, deadline)
            (partial / MANIFEST_NAME).write_bytes(data)
            write_offer(partial, offer)
            release = open_release(partial)
            release.verify()
            partial.rename(folder)
    return replace(release, folder=folder)


def fetched(source: Mapping[str, str], progress: Progress = _nobody, deadline: Deadline | None = None) -> Release:
    """The release that a task names: {"digest", "source"}.

    A folder is opened. From a URL it is fetched to this host's cache, once for all that ask for it at the same time or
    later, and again where it is damaged; signatures that came since are fetched each time, and none is lost.

    Raises:
        IntegrityError: the folder holds another release. KedgeError: as `open_release` and `pull_from`.
    """
    digest, where = source["digest"], source["source"]
    kept = KeptReleases()
    if not is_url(where):
        folder = Path(where)
        own = kept.use(folder.name) if folder.parent == kept.folder.absolute() and is_digest(folder.name) else None
        return _same(own or open_release(folder), digest)
    _require_digest(digest)
    fresh = False
    while (release := _kept(kept, digest, prove=not fresh)) is None:
        try:
            pull_from(where, digest, kept.folder / digest, progress, deadline)
            fresh = True
        except BadInputError:
            if not (kept.folder / digest).exists():
                raise
    if fresh:
        return _same(release, digest)
    # What is here is whole: a store that does not answer now, or nonsense there, is no reason to give up.
    offer = None
    with (
        contextlib.suppress(UnreachableError),
        open_folder(where, deadline) as there,
        contextlib.suppress(BadInputError, IntegrityError),
    ):
        offer = _offer(there, digest)
    if offer is not None:
        add_offer(release.folder, offer)
    return _same(release, digest)


def _kept(kept: KeptReleases, digest: str, *, prove: bool) -> Release | None:
    with _written(kept.folder):
        return kept.use(digest, prove=prove)


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """What this host's file system refuses is no defect of kedge."""
    try:
        yield
    except OSError as error:
        raise BadInputError(
            f"{folder} cannot be written: {error.strerror}",
            hint="see that there is room and that it may be written; to make room: kedge cache gc",
        ) from error


def require_readable(source: Mapping[str, str]) -> None:
    """Make sure that this host can read a release: its manifest is read, and nothing else.

    Raises:
        KedgeError: it cannot, and why.
    """
    digest, where = source["digest"], source["source"]
    if not is_url(where):
        _same(open_release(Path(where)), digest)
        return
    with open_folder(where) as folder:
        _manifest(folder, digest)


def _object(sha256: str) -> str:
    return f"objects/sha256/{sha256[:2]}/{sha256[2:]}"


def _beside(digest: str, name: str) -> str:
    return f"releases/{digest}/{name}"


def _require_digest(digest: str) -> None:
    if not is_digest(digest):
        raise BadInputError(f"{digest[:80]!r} is no release's digest", hint="64 hexadecimal digits: kedge release show")


def _same(release: Release, digest: str) -> Release:
    if release.digest != digest:
        raise IntegrityError(
            f"{release.folder} holds the release {release.digest[:12]}, not {digest[:12]}",
            hint="it was replaced since; put the former one back, or begin anew",
        )
    return release


def _manifest(folder: RemoteFolder, digest: str) -> tuple[bytes, Manifest]:
    _require_digest(digest)
    data = folder.read(_beside(digest, MANIFEST_NAME), MAX_MANIFEST_BYTES)
    if data is None:
        raise BadInputError(
            f"there is no release {digest[:12]} at {folder.url}", hint="kedge release push RELEASE --to URL"
        )
    try:
        manifest = parse_manifest(data)
    except ManifestError as error:
        raise _damaged(folder, _beside(digest, MANIFEST_NAME)) from error
    if manifest.digest != digest:
        raise _damaged(folder, _beside(digest, MANIFEST_NAME))
    return data, manifest


def _offer(folder: RemoteFolder, digest: str) -> Offer | None:
    name = _beside(digest, _OFFER)
    data = folder.read(name, MAX_JSON_BYTES)
    if data is None:
        return None
    try:
        return parse_offer(data)
    except ManifestError as error:
        raise _damaged(folder, name) from error


def _damaged(folder: RemoteFolder, name: str) -> IntegrityError:
    return IntegrityError(
        f"{folder.url}/{name} is not what its name says", hint="remove it there, and push the release again"
    )


def _fetch(
    source: RemoteFolder, manifest: Manifest, partial: Path, progress: Progress, deadline: Deadline | None
) -> None:
    for name in set(os.listdir(partial)) - {entry.name for entry in manifest.files}:
        # Of another release, to the same place; or of an archive, half unpacked.
        path = partial / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = 0
    first: dict[str, Path] = {}
    for entry in manifest.files:
        path = partial / entry.name
        if entry.sha256 in first:
            shutil.copyfile(first[entry.sha256], path)
        else:
            begun = done
            _fetch_file(
                source,
                entry,
                path,
                lambda count, begun=begun: progress(begun + count, manifest.total_bytes),  # type: ignore[misc]
                deadline,
            )
            first[entry.sha256] = path
        done += entry.size_bytes
        progress(done, manifest.total_bytes)


def _fetch_file(
    source: RemoteFolder, entry: FileEntry, path: Path, progress: Callable[[int], None], deadline: Deadline | None
) -> None:
    """A file, from where an earlier try has got to. Each frame is checked as it comes, and none is asked for that the
    manifest does not name.
    """
    path.touch()
    pairs = itertools.zip_longest(hash_file(path).frames[: len(entry.frames)], entry.frames)
    have = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    name, offset = _object(entry.sha256), min(have * FRAME_BYTES, entry.size_bytes)
    with path.open("r+b") as out, contextlib.closing(source.blocks(name, offset, FRAME_BYTES)) as blocks:
        out.truncate(offset)
        out.seek(offset)
        for frame in entry.frames[have:]:
            block = next(blocks, b"")
            if sha256(block).hexdigest() != frame:
                raise _damaged(source, name)
            out.write(block)
            offset += len(block)
            progress(offset)
            if deadline is not None:
                deadline.remaining()
