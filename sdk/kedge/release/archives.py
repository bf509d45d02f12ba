"""`.kedge` archives: a release, its signatures and statements in one file (`kedge_agent.formats.archive`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kedge_agent.formats.archive import ARCHIVE_MAGIC, ArchiveError, ArchiveReader, write_archive
from kedge_agent.formats.manifest import MANIFEST_NAME, ManifestError
from kedge_agent.formats.offer import Offer

from ..errors import BadInputError, IntegrityError
from .bundle import Release, open_release, write_offer

__all__ = ["archived_head", "export_release", "import_release", "opened"]


def export_release(release: Release, path: Path) -> int:
    """Write a release to an archive, proving every byte; returns the archive's size in bytes.

    Raises:
        IntegrityError: a file is not what the manifest names.
        BadInputError: the archive cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as out:
            size = write_archive(
                out, release.offer(), release.manifest_bytes, lambda entry: release.folder / entry.name
            )
        partial.replace(path)
    except (ArchiveError, ManifestError) as error:
        raise IntegrityError(f"{release.folder}: {error}", hint="build the release again") from error
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}", hint="give another path with -o") from error
    finally:
        partial.unlink(missing_ok=True)
    return size


def import_release(
    archive: Path, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Release:
    """Unpack an archive to a release folder; the folder is there whole, or not at all.

    Nothing is verified but that every byte is what the manifest names: whose release it is, its signatures tell.

    Args:
        folder: must not exist.

    Raises:
        BadInputError: there is no archive, the file is something else, or the folder exists.
        IntegrityError: the archive is damaged, or holds more than it says.
    """
    if folder.exists():
        raise BadInputError(f"{folder} exists", hint="give another path with -o")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with _reading(archive) as reader:
            _unpack(reader, partial, progress)
            partial.chmod(0o755)
            open_release(partial)
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_release(folder)


def archived_head(archive: Path) -> tuple[str, Offer]:
    """The digest of the release that an archive holds, and what comes with it; raises as `import_release`."""
    with _reading(archive) as reader:
        return reader.manifest.digest, reader.offer


@contextlib.contextmanager
def _reading(archive: Path) -> Iterator[ArchiveReader]:
    try:
        with archive.open("rb") as source:
            if source.read(len(ARCHIVE_MAGIC)) != ARCHIVE_MAGIC:
                raise BadInputError(
                    f"{archive} is neither a release folder nor an archive of one", hint="make a release: kedge build"
                )
            source.seek(0)
            yield ArchiveReader(source)
    except ArchiveError as error:
        raise IntegrityError(f"{archive}: {error}", hint="get the archive again") from error
    except OSError as error:
        raise BadInputError(f"{archive} cannot be unpacked: {error.strerror}") from error


def _unpack(archive: ArchiveReader, folder: Path, progress: Callable[[int, int], None]) -> None:
    done = 0
    for entry in archive.files:
        # A name of the manifest is a plain one: the parser takes no other.
        first = folder / entry.name
        with first.open("xb") as out:
            archive.copy(out.write)
        for same in archive.manifest.files:
            if same.sha256 == entry.sha256 and same.name != entry.name:
                shutil.copyfile(first, folder / same.name)
        done += entry.size_bytes
        progress(done, sum(each.size_bytes for each in archive.files))
    archive.end()
    (folder / MANIFEST_NAME).write_bytes(archive.manifest_data)
    write_offer(folder, archive.offer)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Release]:
    """A release from its folder, or from an archive, which is unpacked to a temporary folder meanwhile.

    Raises:
        KedgeError: as `open_release` and `import_release`.
    """
    if not path.is_file():
        yield open_release(path)
        return
    with tempfile.TemporaryDirectory(prefix="kedge-archive-") as folder:
        # A name that says in messages which archive it is.
        yield import_release(path, Path(folder) / os.path.splitext(path.name)[0])
