"""A folder somewhere, by its URL: files, S3, Google Storage, SSH and what else fsspec reaches; it alone knows fsspec.

What lies there is not trusted, and neither is who else writes there: a file comes to its name whole, where the store
can do that, and whoever reads one says how many bytes it may have.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from ..errors import BadInputError, UnreachableError
from ..transport.base import Deadline
from .store_errors import translated

__all__ = ["RemoteFolder", "is_url", "open_folder", "require_plain"]

_SSH = ("sftp", "ssh")
# Where a file that is being written can be seen half, and a rename is one step. Object stores show whole objects only.
_RENAMING = frozenset(("file", "local", "ftp", "smb", *_SSH))
_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
# Nobody writes a file for a day without a byte.
_LEFT_S = 86400.0
_CONNECT_S = 15.0
_SILENT_S = 60.0
_KEEPALIVE_S = 15
_SCHEME = re.compile(r"[a-z0-9+.-]+")
# Where what stands before @ is no secret: who logs in, or which container is meant.
_USERS = frozenset((*_SSH, "ftp", "smb", "hdfs", "webhdfs", "abfs", "abfss"))


def is_url(text: str) -> bool:
    """Whether it names a folder by URL, and not a device or a path."""
    return "://" in text


@contextlib.contextmanager
def open_folder(url: str, deadline: Deadline | None = None) -> Iterator[RemoteFolder]:
    """The folder at a URL; it need not exist yet.

    Args:
        deadline: what waits for an SSH server then gives up; other stores have their own patience.

    Raises:
        BadInputError: fsspec knows no such URL, or it holds a secret.
        IncompatibleError: what fsspec needs for this kind of URL is not installed.
        UnreachableError: nothing answers there. UnknownHostKeyError, HostKeyChangedError: an SSH server
            that is not in ~/.ssh/known_hosts, or with another key. AuthenticationRefusedError: it takes no key of ours.
    """
    require_plain(url)
    try:
        with translated(url):
            files, root = _file_system(url, _SILENT_S if deadline is None else min(_SILENT_S, deadline.remaining()))
        with contextlib.ExitStack() as stack:
            if _scheme(url) in _SSH:
                stack.callback(files.client.close)
                if deadline is not None:
                    stack.enter_context(_closed_after(deadline.remaining(), files.client))
            yield RemoteFolder(url, files, root)
    except UnreachableError:
        if deadline is not None:
            deadline.remaining()  # says that it took too long
        raise


@contextlib.contextmanager
def _closed_after(seconds: float, client: Any) -> Iterator[None]:
    """Whoever waits for a server that does not answer ends when the connection does."""
    timer = threading.Timer(seconds, client.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class RemoteFolder:
    """Files of one folder, by their names relative to it. Every method raises as `open_folder`."""

    def __init__(self, url: str, files: Any, root: str) -> None:
        self.url = url
        self._files = files
        self._root = root.rstrip("/")
        self._renames = _scheme(url) in _RENAMING
        self._swept: set[str] = set()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        with translated(self.url):
            try:
                size = self._files.info(self._path(name))["size"]
            except FileNotFoundError:
                return None
        return size if isinstance(size, int) else None

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            BadInputError: it has more than `limit` bytes.
        """
        with translated(self.url):
            try:
                with self._files.open(self._path(name), "rb") as file:
                    data = bytes(file.read(limit + 1))
            except FileNotFoundError:
                return None
        if len(data) > limit:
            raise BadInputError(f"{self.url}/{name} has more than {limit} bytes", hint="it is not what its name says")
        return data

    def blocks(self, name: str, offset: int, size: int) -> Generator[bytes, None, None]:
        """A file's bytes from `offset` on, in blocks of `size` and what is left; none where there is no such file."""
        with translated(self.url):
            try:
                file = cast("BinaryIO", self._files.open(self._path(name), "rb", block_size=size))
            except FileNotFoundError:
                return
            with file:
                if _scheme(self.url) in _SSH:
                    yield from _pipelined(file, offset, size)
                    return
                file.seek(offset)
                while block := _read_full(file, size):
                    yield block

    def put(self, name: str, path: Path, progress: Callable[[int], None]) -> None:
        """Send a file.

        Args:
            progress: told how many bytes of it are sent, where the store tells.
        """
        from fsspec.callbacks import Callback

        told = Callback(hooks={"told": lambda size, value, **_: progress(value)})
        self._arrive(name, lambda there: self._files.put_file(str(path), there, callback=told))

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        self._arrive(name, lambda there: self._files.pipe_file(there, data))

    def _arrive(self, name: str, send: Callable[[str], None]) -> None:
        path = self._path(name)
        with translated(self.url):
            if not self._renames:
                send(path)
                return
            self._make_folder(posixpath.dirname(path))
            partial = f"{path}.{uuid.uuid4().hex}.partial"
            try:
                send(partial)
                self._files.mv(partial, path)
            except BaseException:
                with contextlib.suppress(Exception):  # whatever went wrong before is what is told
                    self._files.rm_file(partial)
                raise
        self._sweep(path)

    def _sweep(self, path: str) -> None:
        """Remove what pushes that were killed left beside a file that has just arrived; the store's clock says when."""
        folder = posixpath.dirname(path)
        if folder in self._swept:
            return
        self._swept.add(folder)
        with contextlib.suppress(Exception):  # somebody else sweeps too, or the store tells no times: it may stay
            now = _written_s(self._files.info(path))
            for each in self._files.ls(folder, detail=True):
                if _PARTIAL.fullmatch(posixpath.basename(each["name"])) and now - _written_s(each) > _LEFT_S:
                    self._files.rm_file(each["name"])

    def _make_folder(self, path: str) -> None:
        try:
            self._files.makedirs(path, exist_ok=True)
        except OSError:
            # Somebody else made it, or one above it, at the same time.
            self._files.makedirs(path, exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _written_s(info: Mapping[str, Any]) -> float:
    """When a file was written to last, in seconds since 1970."""
    when = info["mtime"]
    return float(when.timestamp() if isinstance(when, datetime) else when)


def _pipelined(file: Any, offset: int, size: int) -> Iterator[bytes]:
    """As `RemoteFolder.blocks`; paramiko otherwise waits for each 32 KiB before it asks on.

    A block at a time, because what asks ahead is a thread, which may not outlast the file.
    """
    end = int(file.stat().st_size)
    while offset < end:
        wanted = min(size, end - offset)
        block = b"".join(file.readv([(offset, wanted)]))
        offset += len(block)
        yield block
        if len(block) < wanted:
            return


def _read_full(file: BinaryIO, size: int) -> bytes:
    block = file.read(size)
    # Stores may give less than was asked for, and nothing only at the end.
    while len(block) < size and (more := file.read(size - len(block))):
        block += more
    return block


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def require_plain(url: str) -> None:
    """Make sure that a URL may be shown: it is seen in lists of processes, logs and the ledger of a rollout.

    Raises:
        BadInputError: it may not, or is no URL of one folder; it is not repeated.
    """
    scheme = _scheme(url)
    # With "::" fsspec puts one file system over another, which is asked neither for secrets nor for its host key; in an
    # SSH server's address it takes no part.
    if is_url(url) and not (_SCHEME.fullmatch(scheme) and (scheme in _SSH or "::" not in url)):
        raise BadInputError(
            "not a URL of one folder: a scheme in small letters, and no ::",
            hint="as file:///srv/releases, s3://bucket/releases or sftp://user@host/srv/releases",
        )
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError as error:
        raise BadInputError("not a URL of a folder", hint="as file:///srv/releases or s3://bucket/releases") from error
    if password is not None or parts.query or parts.fragment:
        raise BadInputError(
            f"the URL of {parts.scheme}://{parts.hostname or ''} holds a password or a query",
            hint="a URL is seen by others: leave secrets to ssh-agent, the environment or ~/.config/fsspec",
        )
    if parts.username is not None and scheme not in _USERS:
        raise BadInputError(
            f"the URL of {parts.scheme}://{parts.hostname or ''} holds a name before @, which may be a secret",
            hint="a URL is seen by others: leave keys and tokens to the environment or ~/.config/fsspec",
        )


def _file_system(url: str, patience_s: float) -> tuple[Any, str]:
    import fsspec

    if _scheme(url) in _SSH:
        kind = _ssh_file_system(patience_s)
        # A connection of its own: fsspec's are kept for the life of the process, also when they have broken.
        return kind(**kind._get_kwargs_from_urls(url), skip_instance_cache=True), kind._strip_protocol(url)  # noqa: SLF001
    files, root = fsspec.core.url_to_fs(url)
    # What was listed before may have changed since.
    files.invalidate_cache()
    return files, root


def _ssh_file_system(patience_s: float) -> Any:
    """fsspec's, but for the host key: it takes any that it has not seen."""
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    from ..transport.hostkeys import disabled_algorithms, quiet_paramiko
    from ..transport.known_hosts import known_key

    class KnownHostsOnly(SFTPFileSystem):  # type: ignore[misc]  # fsspec has no annotations
        def _connect(self) -> None:
            quiet_paramiko()
            self.client = paramiko.SSHClient()
            # paramiko reads known_hosts itself, and gives up at the first line of an authority.
            port = int(self.ssh_kwargs.get("port") or 22)
            key = known_key(self.host, port)
            if key is not None:
                entry = self.host if port == 22 else f"[{self.host}]:{port}"
                pinned = paramiko.PKey.from_type_string(key.algorithm, key.raw)
                self.client.get_host_keys().add(entry, key.algorithm, pinned)
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            try:
                with _closed_after(patience_s, self.client):
                    self.client.connect(
                        self.host,
                        **self.ssh_kwargs,
                        timeout=_CONNECT_S,
                        banner_timeout=_CONNECT_S,
                        auth_timeout=_CONNECT_S,
                        disabled_algorithms=disabled_algorithms(),
                    )
                    cast("paramiko.Transport", self.client.get_transport()).set_keepalive(_KEEPALIVE_S)
                    self.ftp = self.client.open_sftp()
                cast("paramiko.Channel", self.ftp.get_channel()).settimeout(_SILENT_S)
            except BaseException:
                self.client.close()
                raise

    return KnownHostsOnly
