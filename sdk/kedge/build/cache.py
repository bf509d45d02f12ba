"""Engines that were built once, kept by what they were built from and where they run.

A compiler writes other bytes each time it is run, so a key is never built twice: another engine would be another
release. The key is the sha256 of the ONNX file's sha256, the plan (what decides what the engine computes) and the hard
keys of the passport; for an engine that a device built, of that key and the device. An engine may also serve a machine
it was not built for by name: `find` takes any whose passport fits.

    $XDG_CACHE_HOME/kedge/engines/<key>/engine          the engine
    $XDG_CACHE_HOME/kedge/engines/<key>/entry.json      onnx_sha256, plan, passport, builder, sha256 and size, report
    $XDG_CACHE_HOME/kedge/engines/<key>/attestations/   signed statements on it, by the release it was built for
    $XDG_CACHE_HOME/kedge/engines/<key>.lock            held while it is built
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kedge_agent.engine.order import Order, engine_key
from kedge_agent.formats.frames import hash_file
from kedge_agent.formats.manifest import is_digest
from kedge_agent.formats.offer import Signed
from kedge_agent.formats.passport import Fit, Passport, PassportError, contradiction, fit, parse_passport
from kedge_agent.formats.plan_header import PlanHeaderError, read_header_of
from kedge_agent.wire import WireError, parse_json

from ..config import cache_dir
from ..errors import IntegrityError

__all__ = ["Builder", "CachedEngine", "EngineCache", "check_engine"]

_MAX_ENTRY_BYTES = 64 << 20
_LEFT_S = 3600.0


@dataclass(frozen=True)
class Builder:
    """The device that built an engine. host_key: fingerprint of the key that is pinned for it, or None."""

    device: str
    host_key: str | None = None

    def is_same(self, other: Builder | None) -> bool:
        """Whether both are one device, under whatever name it is known."""
        if other is None:
            return False
        if self.host_key is not None and other.host_key is not None:
            return self.host_key == other.host_key
        return self.device == other.device


@dataclass(frozen=True)
class CachedEngine:
    """An engine in the cache. report: what its build came to, plain JSON (docs/build-report.md, `engine`).

    builder: None where it was built on this host.
    """

    key: str
    path: Path
    onnx_sha256: str
    plan: Mapping[str, Any]
    passport: Passport
    sha256: str
    size_bytes: int
    report: Mapping[str, Any]
    built: float
    builder: Builder | None = None

    def attestation(self, release: str) -> Signed | None:
        """The signed statement that this is the engine of a release's build plan, by the release's digest; or None."""
        path = self.path.parent / "attestations" / f"{release}.json"
        try:
            return Signed(path.read_bytes(), path.with_suffix(".json.sig").read_bytes())
        except OSError:
            return None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without the report and the builder."""
        return {
            "key": self.key,
            "onnx_sha256": self.onnx_sha256,
            "plan": dict(self.plan),
            "passport": self.passport.to_json(),
            "sha256": self.sha256,
            "bytes": self.size_bytes,
            "built": self.built,
        }


def check_engine(path: Path, passport: Passport) -> None:
    """Read an engine's header and hold it against its passport.

    Raises:
        IntegrityError: it is no engine, truncated, or of another compiler, version or GPU than its passport says.
    """
    try:
        header = read_header_of(path)
    except (OSError, PlanHeaderError) as error:
        raise IntegrityError(f"{path}: {error}", hint="build it again") from error
    against = contradiction(header, passport)
    if against is not None:
        raise IntegrityError(f"{path} is {against}", hint="build it again")


class EngineCache:
    """The cache in a folder; None: the user's."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "engines"

    def get(self, key: str) -> CachedEngine | None:
        """The engine of a key; None where there is none, or a damaged one, which is then removed.

        One that cannot be read just now is no damaged one, and stays.
        """
        folder = self.folder / key
        try:
            if (folder / "entry.json").stat().st_size > _MAX_ENTRY_BYTES:
                raise WireError("the entry is too long")
            found = _entry(key, folder, parse_json((folder / "entry.json").read_bytes(), floats=True, limit=1 << 26))
            check_engine(found.path, found.passport)
            if hash_file(found.path).sha256 != found.sha256:
                raise WireError("the engine has other bytes than were stored")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            # Half an entry, or none.
            shutil.rmtree(folder, ignore_errors=True)
            return None
        except OSError:
            return None
        except (WireError, PassportError, IntegrityError, KeyError, TypeError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return found

    def find(
        self,
        onnx_sha256: str,
        order: Order,
        here: Passport,
        may: Callable[[CachedEngine], bool] = lambda engine: engine.builder is None,
    ) -> tuple[CachedEngine, Fit] | None:
        """An engine of a model that fits a machine: the one of its own passport, else the newest that does.

        Args:
            may: whether one may be taken there at all; those that this host built, unless told otherwise.
        """
        exact = self.get(engine_key(onnx_sha256, order, here))
        if exact is not None and may(exact):
            return exact, fit(exact.passport, here)
        for entry in self.of_model(onnx_sha256, order):
            fitting = fit(entry.passport, here)
            if fitting.fits and here.compute_capabilities and may(entry) and self.get(entry.key) is not None:
                return entry, fitting
        return None

    def of_model(self, onnx_sha256: str, order: Order) -> list[CachedEngine]:
        """All engines of a model by this plan, the newest first; their own bytes are not read."""
        found = [e for e in self.entries() if e.onnx_sha256 == onnx_sha256 and dict(e.plan) == order.plan()]
        return sorted(found, key=lambda each: -each.built)

    def attest(self, engine: CachedEngine, release: str, statement: Signed) -> None:
        """Keep a signed statement on an engine, in the place of an older one for the same release."""
        folder = engine.path.parent / "attestations"
        folder.mkdir(exist_ok=True)
        for name, data in ((f"{release}.json.sig", statement.signatures), (f"{release}.json", statement.document)):
            partial = folder / f".{name}"
            partial.write_bytes(data)
            partial.replace(folder / name)

    def put(
        self,
        key: str,
        onnx_sha256: str,
        order: Order,
        passport: Passport,
        engine: bytes,
        report: Mapping[str, Any],
        builder: Builder | None = None,
    ) -> CachedEngine:
        """Keep an engine under the key it was asked for by. One that is there already stays, and is returned.

        Args:
            builder: the device that built it. Its engine has a key of its own, for it may not go where another may; one
                that it builds again takes the place of the older one.

        Raises:
            IntegrityError: the engine is not what its passport says.
        """
        if builder is not None:
            key = hashlib.sha256(f"{key} {builder.host_key or builder.device}".encode()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{key[:12]}.", dir=self.folder))
        try:
            path = partial / "engine"
            path.write_bytes(engine)
            check_engine(path, passport)
            body = {
                "onnx_sha256": onnx_sha256,
                "plan": order.plan(),
                "passport": passport.to_json(),
                "sha256": hash_file(path).sha256,
                "bytes": len(engine),
                "built": time.time(),
                "builder": None if builder is None else asdict(builder),
                "report": dict(report),
            }
            (partial / "entry.json").write_text(json.dumps(body | {"entry_sha256": _digest(body)}), encoding="utf-8")
            there = self.get(key)
            if there is not None and builder is not None and there.sha256 != body["sha256"]:
                # The device had to build it again, and knows the new one alone.
                shutil.rmtree(there.path.parent)
                there = None
            if there is not None:
                return there
            partial.chmod(0o755)
            try:
                partial.rename(self.folder / key)
            except OSError as error:
                # Somebody else was faster, without asking for the lock: theirs stays.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        found = self.get(key)
        if found is None:
            raise IntegrityError(f"{self.folder / key} cannot be read back", hint="check the disk")
        return found

    @contextlib.contextmanager
    def building(self, key: str) -> Iterator[None]:
        """Held while an engine is built: whoever wants the same one meanwhile waits, and finds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / f"{key}.lock"
        while True:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                # `remove` may have taken the file away meanwhile: such a lock keeps nobody else out.
                if _is_there(lock, handle):
                    yield
                    return
            finally:
                os.close(handle)

    def entries(self) -> list[CachedEngine]:
        """All engines, by their entries alone: the engines' own bytes are not read."""
        out = []
        for folder in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if is_digest(folder.name):
                with contextlib.suppress(OSError, WireError, PassportError, KeyError, TypeError, ValueError):
                    data = (folder / "entry.json").read_bytes()
                    out.append(_entry(folder.name, folder, parse_json(data, floats=True, limit=_MAX_ENTRY_BYTES)))
        return out

    def remove(self, key: str) -> None:
        """Forget an engine."""
        shutil.rmtree(self.folder / key, ignore_errors=True)
        (self.folder / f"{key}.lock").unlink(missing_ok=True)

    def gc(
        self, *, keep_bytes: int | None = None, older_than_s: float | None = None, needed: Collection[str] = ()
    ) -> list[CachedEngine]:
        """Remove engines, the oldest first: all older than `older_than_s`, and as many as leave `keep_bytes`.

        Args:
            needed: engines that stay, by their sha256; they count as kept.

        Returns:
            What was removed.
        """
        for left in self.folder.glob(".*"):
            # What a `put` that was ended left, unless it is at it now.
            if time.time() - left.stat().st_mtime > _LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
        entries = sorted(self.entries(), key=lambda each: each.built)
        total, now, gone = sum(each.size_bytes for each in entries), time.time(), []
        for entry in entries:
            if entry.sha256 in needed:
                continue
            late = older_than_s is not None and now - entry.built > older_than_s
            if late or (keep_bytes is not None and total > keep_bytes):
                self.remove(entry.key)
                total -= entry.size_bytes
                gone.append(entry)
        return gone


def _entry(key: str, folder: Path, body: Any) -> CachedEngine:
    if not isinstance(body, dict) or not is_digest(body["onnx_sha256"]) or not is_digest(body["sha256"]):
        raise WireError("it is no entry")
    if _digest({name: value for name, value in body.items() if name != "entry_sha256"}) != body["entry_sha256"]:
        raise WireError("the entry is not as it was written")
    return CachedEngine(
        key=key,
        path=folder / "engine",
        onnx_sha256=body["onnx_sha256"],
        plan=dict(body["plan"]),
        passport=parse_passport(body["passport"]),
        sha256=body["sha256"],
        size_bytes=int(body["bytes"]),
        report=dict(body["report"]),
        built=float(body["built"]),
        builder=_builder(body.get("builder", {})),
    )


def _builder(body: Any) -> Builder | None:
    if body is None:
        return None
    # Kept before builders were noted: it may have come from any device.
    return Builder(str(body.get("device", "unknown")), body.get("host_key"))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _is_there(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
