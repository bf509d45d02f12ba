"""System shared memory: regions that a client made, read into the slot and written from it, never mapped.

A client that truncates a region we had mapped would kill the daemon with SIGBUS; reading and writing through the
descriptor ends in an error of that one request. Source of the protocol: Triton, "Shared-Memory Extension".
"""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AgentError
from ..store.files import translate_os_error

__all__ = ["Regions", "SharedRegion"]

_FOLDER = Path("/dev/shm")  # noqa: S108  (where POSIX shared memory is; names are checked, links are not followed)
_MAX_REGIONS = 64
_MAX_BYTES = 1 << 40
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_KEY = re.compile(r"/[A-Za-z0-9._-]{1,200}")


@dataclass(frozen=True)
class SharedRegion:
    """A registered part of a shared memory object. offset, byte_size: within it."""

    name: str
    key: str
    offset: int
    byte_size: int
    handle: int

    def require(self, size: int, offset: int) -> None:
        """Make sure that `size` bytes lie from `offset` of the region on.

        Raises:
            AgentError: as `read_into`.
        """
        if os.fstat(self.handle).st_size < self._within(size, offset) + size:
            raise self._shrunk()

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from `offset` of the region on.

        Raises:
            AgentError: the region does not hold so much, or its client has made it shorter.
        """
        at = self._within(len(view), offset)
        done = 0
        while done < len(view):
            got = os.preadv(self.handle, [view[done:]], at + done)
            if not got:
                raise self._shrunk()
            done += got

    def write(self, data: memoryview, offset: int) -> None:
        """Write `data` from `offset` of the region on.

        Raises:
            AgentError: as `read_into`.
        """
        at = self._within(len(data), offset)
        # Writing past the end would make the object longer, at the expense of the machine's memory.
        self.require(len(data), offset)
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.handle, data[done:], at + done)
        except OSError as error:
            # An object may be larger than the memory that is left for it.
            raise translate_os_error(error, f"writing to shared memory region {self.name!r}") from error

    def _shrunk(self) -> AgentError:
        return AgentError(f"shared memory region {self.name!r} has become shorter than it was registered")

    def _within(self, size: int, offset: int) -> int:
        if not 0 <= offset <= self.byte_size - size:
            raise AgentError(
                f"shared memory region {self.name!r} has {self.byte_size} bytes;"
                f" {size} from {offset} on are not within it"
            )
        return self.offset + offset

    def to_json(self) -> dict[str, Any]:
        """As the extension's status has it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.byte_size}


class Regions:
    """What is registered now.

    prefix: keys must begin with it; None: the extension is off. It may be replaced; what is registered stays.
    """

    def __init__(self, prefix: str | None = None, folder: Path = _FOLDER) -> None:
        self.prefix = prefix
        self._folder = folder
        self._guard = threading.Lock()
        self._regions: dict[str, SharedRegion] = {}

    def register(self, name: str, body: Any) -> None:
        """Register a region.

        Args:
            body: the request's: key, byte_size, and offset, which may be left out.

        Raises:
            AgentError: the extension is off or the key is not allowed (forbidden); there is no such object
                (not_found); it is too short, the name is taken, or the request makes no sense (bad_input).
        """
        self._require_on()
        key, offset, size = self._asked(name, body)
        path = self._folder / key[1:]
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise AgentError(f"there is no shared memory object {key!r}", kind="not_found") from None
        except OSError as error:
            raise AgentError(
                f"shared memory object {key!r} cannot be opened: {error.strerror}",
                kind="forbidden",
                hint="let the agent's user read and write it",
            ) from error
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size < offset + size:
                raise AgentError(f"shared memory object {key!r} does not hold {size} bytes from {offset} on")
            with self._guard:
                if name in self._regions:
                    raise AgentError(f"shared memory region {name!r} is registered already", hint="unregister it first")
                if len(self._regions) >= _MAX_REGIONS:
                    raise AgentError(f"{_MAX_REGIONS} shared memory regions are registered already", kind="busy")
                self._regions[name] = SharedRegion(name, key, offset, size, handle)
        except BaseException:
            os.close(handle)
            raise

    def unregister(self, name: str | None) -> None:
        """Forget a region, or all of them. One that is not there is forgotten already."""
        with self._guard:
            names = [name] if name is not None else list(self._regions)
            for each in names:
                region = self._regions.pop(each, None)
                if region is not None:
                    os.close(region.handle)

    def status(self, name: str | None = None) -> list[dict[str, Any]]:
        """One row a region.

        Raises:
            AgentError: the one that is named is not there (not_found).
        """
        self._require_on()
        if name is not None:
            with self._guard:
                region = self._regions.get(name)
            if region is None:
                raise self._unknown(name)
            return [region.to_json()]
        with self._guard:
            return [region.to_json() for region in self._regions.values()]

    def require(self, name: str, size: int, offset: int) -> None:
        """Make sure that a region holds so much, before room is made for it. Raises as `read_into`."""
        region = self._borrow(name)
        try:
            region.require(size, offset)
        finally:
            os.close(region.handle)

    def read_into(self, name: str, view: memoryview, offset: int) -> None:
        """Fill `view` from a region. Raises as `SharedRegion.read_into`; not_found where there is none."""
        region = self._borrow(name)
        try:
            region.read_into(view, offset)
        finally:
            os.close(region.handle)

    def write(self, name: str, data: memoryview, offset: int) -> None:
        """Write into a region. Raises as `SharedRegion.write`; not_found where there is none."""
        region = self._borrow(name)
        try:
            region.write(data, offset)
        finally:
            os.close(region.handle)

    def _borrow(self, name: str) -> SharedRegion:
        # A descriptor of one's own: the region may be unregistered meanwhile, and its number given to another file.
        self._require_on()
        with self._guard:
            region = self._regions.get(name)
            if region is None:
                raise self._unknown(name)
            return SharedRegion(region.name, region.key, region.offset, region.byte_size, os.dup(region.handle))

    def close(self) -> None:
        """Forget all; idempotent."""
        self.unregister(None)

    def _require_on(self) -> None:
        if self.prefix is None:
            raise AgentError(
                "shared memory is off on this device",
                kind="forbidden",
                hint="the device's owner can allow it: shared_memory_prefix in the agent's settings",
            )

    def _asked(self, name: str, body: Any) -> tuple[str, int, int]:
        if _NAME.fullmatch(name) is None:
            raise AgentError("a shared memory region's name is printable text of at most 256 characters")
        if not isinstance(body, dict):
            raise AgentError("a shared memory region is registered by an object of key, offset and byte_size")
        key, offset, size = body.get("key"), body.get("offset", 0), body.get("byte_size")
        if not isinstance(key, str) or _KEY.fullmatch(key) is None:
            raise AgentError(f"not a shared memory object's key: {str(key)[:80]!r}", hint="a slash, then a name")
        if self.prefix is None or not key.startswith(self.prefix):
            raise AgentError(f"keys that begin with {self.prefix} are allowed here, {key!r} is not", kind="forbidden")
        if type(offset) is not int or type(size) is not int or not (0 <= offset < _MAX_BYTES and 0 < size < _MAX_BYTES):
            raise AgentError("offset and byte_size are numbers of bytes")
        return key, offset, size

    def _unknown(self, name: str) -> AgentError:
        return AgentError(f"there is no shared memory region {name[:80]!r}", kind="not_found", hint="register it first")
