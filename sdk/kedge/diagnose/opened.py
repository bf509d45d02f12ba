"""Read a snapshot's file, whoever made it: nothing is unpacked to the disk, and everything is bounded.

Of a file that was cut, or damaged, what stands before the damage is read, and `problems` tells the rest.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from kedge_agent.formats.snapshots import (
    BEGUN,
    FACTS,
    GZIP_MAGIC,
    MANIFEST,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MAX_WHOLE_BYTES,
    RECORDER,
    SNAPSHOT,
    ZSTD_MAGIC,
    is_member_name,
    zstd_module,
)
from kedge_agent.wire import WireError, parse_json

from ..errors import BadInputError, IncompatibleError, first_line
from .evidence import Evidence, evidence_of

__all__ = ["Opened", "open_snapshot"]

_PIECE_BYTES = 1 << 16
_MAX_JSON_BYTES = 8 << 20
_MOST_PROBLEMS = 100
_CUT = "it stops in the middle"
# As `diagnose.snapshot` names files: DEVICE-20261126T041200Z.kedge-snapshot.tar.zst
_NAMED = re.compile(r"(?P<device>[a-z0-9][a-z0-9_-]{0,63})-\d{8}T\d{6}Z\.kedge-snapshot\.")
_HINT = "kedge snapshot --on DEVICE makes one"


@dataclass(frozen=True)
class Opened:
    """A snapshot that was read.

    members: bytes by name, in the file's order.
    problems: what is wrong with the file, a line each; none where it is whole.
    """

    path: Path
    members: Mapping[str, bytes]
    problems: tuple[str, ...] = field(default=())

    @property
    def device(self) -> str:
        """The device's name on the host that took it, by the name of the file; DEVICE, where it has another."""
        named = _NAMED.match(self.path.name)
        return named["device"] if named else "DEVICE"

    def member(self, name: str) -> bytes | None:
        """A member's bytes; None where there is none of this name."""
        return self.members.get(name)

    def document(self, name: str) -> dict[str, Any] | None:
        """A member that is a JSON object; None where there is none, or it is something else."""
        data = self.members.get(name)
        if data is None:
            return None
        try:
            body = parse_json(data, floats=True, limit=_MAX_JSON_BYTES)
        except WireError:
            return None
        return body if isinstance(body, dict) else None

    @property
    def manifest(self) -> dict[str, Any] | None:
        """How it went, as the device told at the end; None where the file was cut before that."""
        return self.document(MANIFEST)

    def facts(self) -> dict[str, Any]:
        """The facts document (docs/diagnose.md) that `kedge doctor` judges, as far as it was collected."""
        told: dict[str, Any] = {"at_s": None, "agent_version": None, "state": None, "seconds": None}
        for found in (self.document(BEGUN), self.manifest):
            told |= {key: found[key] for key in told if key in found} if found is not None else {}
        collectors = {}
        for name in self.members:
            if name.startswith(FACTS) and name.endswith(".json"):
                outcome = self.document(name)
                if outcome is not None:
                    collectors[name.removeprefix(FACTS).removesuffix(".json")] = outcome
        return {"kedge_facts": 1, **told, "collectors": collectors}

    def evidence(self) -> Evidence:
        """The facts for the doctor, with what is wrong with the file."""
        known = evidence_of(self.device, self.facts())
        return replace(known, problems=self.problems, cut=self.manifest is None)

    def recording(self, ring: str = "seconds") -> bytes:
        """A ring of the flight recorder (`seconds` or `minutes`): its files one after another, as `diagnose recording`
        tells them."""
        return b"".join(self.members[name] for name in sorted(self.members) if name.startswith(f"{RECORDER}{ring}/"))


def open_snapshot(path: Path) -> Opened:
    """Read a snapshot.

    Raises:
        BadInputError: this is no snapshot, or cannot be read, or is of a version that this kedge does not know.
        IncompatibleError: this Python cannot unpack it.
    """
    members: dict[str, bytes] = {}
    problems: list[str] = []
    try:
        with path.open("rb") as source:
            stream = _Unpacked(path, source)
            try:
                members.update(_members(stream, problems))
            except _errors() as error:
                problems.append(f"the file is cut or damaged after {len(members)} members: {first_line(error)}")
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT) from error
    if not members:
        why = problems[0] if problems else "there is nothing in it"
        raise BadInputError(f"{path} is no snapshot of kedge: {why}", hint=_HINT)
    opened = Opened(path, members, tuple(problems))
    _check_version(opened)
    if opened.manifest is None and not problems:
        return Opened(path, members, ("the file has no manifest: it was cut while it was written",))
    return opened


def _check_version(opened: Opened) -> None:
    head = opened.document(BEGUN) or opened.manifest or {}
    version = head.get("kedge_snapshot")
    if version != SNAPSHOT:
        said = f"has version {version}" if type(version) is int else "names no version"
        raise BadInputError(
            f"{opened.path} is no snapshot that this kedge reads: it {said}", hint="another version of kedge made it"
        )


def _members(stream: _Unpacked, problems: list[str]) -> Iterator[tuple[str, bytes]]:
    """Plain files of the tar stream; of its extensions none is acted on."""
    seen: set[str] = set()
    while any(header := stream.exactly(tarfile.BLOCKSIZE)):
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        if info.size < 0 or len(seen) >= MAX_MEMBERS:
            raise _TooLongError(f"there are more than {MAX_MEMBERS} members" if info.size >= 0 else "a negative size")
        shown = repr(info.name[:80])
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            problems.append(f"{shown} is no plain file: left out")
        elif not is_member_name(info.name) or info.name in seen:
            problems.append(f"{shown} is no name of a member, or there twice: left out")
        elif info.size > MAX_MEMBER_BYTES:
            problems.append(f"{shown} has more than {MAX_MEMBER_BYTES >> 20} MiB: left out")
        else:
            seen.add(info.name)
            yield info.name, stream.exactly(info.size)
            stream.skip(-info.size % tarfile.BLOCKSIZE)
            continue
        stream.skip(info.size + -info.size % tarfile.BLOCKSIZE)
        if len(problems) > _MOST_PROBLEMS:
            raise _TooLongError("there is too much in it that no snapshot has")
    stream.end()


class _Unpacked:
    """The tar stream out of a packed file, in pieces; at any time it may tell that more comes out than may."""

    def __init__(self, path: Path, source: BinaryIO) -> None:
        self._source = source
        self._left = MAX_WHOLE_BYTES + MAX_MEMBERS * 2 * tarfile.BLOCKSIZE
        self._ready = bytearray()
        magic = source.read(4)
        source.seek(0)
        self._engine: Any
        if magic == ZSTD_MAGIC:
            zstd = zstd_module()
            if zstd is None:
                raise IncompatibleError(f"{path} is packed with zstd", hint="pip install backports.zstd")
            # A window of 8 MiB, which is the most that a writer of ours takes: a file cannot ask for gigabytes.
            self._engine = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23})
        elif magic[:2] == GZIP_MAGIC:
            self._engine = zlib.decompressobj(wbits=31)
        else:
            raise BadInputError(f"{path} is no snapshot of kedge: it is neither zstd nor gzip", hint=_HINT)

    def exactly(self, size: int) -> bytes:
        """So many bytes. Raises EOFError: there are fewer."""
        while len(self._ready) < size:
            more = self._more()
            if not more:
                raise EOFError(_CUT)
            self._ready += more
        out = bytes(self._ready[:size])
        del self._ready[:size]
        return out

    def skip(self, size: int) -> None:
        """Drop so many bytes, in bounded memory."""
        while size > 0:
            size -= len(self.exactly(min(size, _PIECE_BYTES)))

    def end(self) -> None:
        """Read to the end, where a checksum stands. Raises EOFError: it is cut before that."""
        while self._more():
            pass

    def _more(self) -> bytes:
        """The next bytes that come out, a piece at most; none at the end."""
        while not self._engine.eof:
            pending = getattr(self._engine, "unconsumed_tail", b"")
            waits = bool(pending) or not getattr(self._engine, "needs_input", True)
            packed = pending if waits else self._source.read(_PIECE_BYTES)
            if not packed and not waits:
                raise EOFError(_CUT)
            out: bytes = self._engine.decompress(packed, _PIECE_BYTES)
            self._left -= len(out)
            if self._left < 0:
                raise _TooLongError(f"more than {MAX_WHOLE_BYTES >> 20} MiB come out of it")
            if out:
                return out
        return b""


class _TooLongError(Exception):
    """A snapshot has not so many bytes."""


def _errors() -> tuple[type[Exception], ...]:
    zstd = zstd_module()
    more = () if zstd is None else (zstd.ZstdError,)
    return (_TooLongError, tarfile.TarError, EOFError, zlib.error, ValueError, OverflowError, *more)
