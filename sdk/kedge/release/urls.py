"""A folder somewhere, by its URL: files, S3, Google Storage, SSH and what else fsspec reaches; it alone knows fsspec.

What lies there is not trusted, and neither is who else writes there: a file comes to its name whole, where the store
can do that, and whoever reads one says how many bytes it may have.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from ..errors import (
    AuthenticationRefusedError,
    BadInputError,
    HostKeyChangedError,
    IncompatibleError,
    KedgeError,
    UnknownHostKeyError,
    UnreachableError,
    first_line,
)

__all__ = ["RemoteFolder", "is_url", "open_folder"]

_SSH = ("sftp", "ssh")
# Where a file that is being written can be seen half, and a rename is one step. Object stores show whole objects only.
_RENAMING = frozenset(("file", "local", "ftp", "smb", *_SSH))
_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
# Nobody writes a file for a day without a byte.
_LEFT_S = 86400.0
_CONNECT_S = 15.0


def is_url(text: str) -> bool:
    """Whether it names a folder by URL, and not a device or a path."""
    return "://" in text


@contextlib.contextmanager
def open_folder(url: str) -> Iterator[RemoteFolder]:
    """The folder at a URL; it need not exist yet.

    Raises:
        BadInputError: fsspec knows no such URL, or it holds a secret.
        IncompatibleError: what fsspec needs for this kind of URL is not installed.
        UnreachableError: nothing answers there. UnknownHostKeyError, HostKeyChangedError: an SSH server
            that is not in ~/.ssh/known_hosts, or with another key. AuthenticationRefusedError: it takes no key of ours.
    """
    _refuse_secrets(url)
    with _translated(url):
        files, root = _file_system(url)
    folder = RemoteFolder(url, files, root)
    try:
        yield folder
    finally:
        if _scheme(url) in _SSH:
            files.client.close()


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
        with _translated(self.url):
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
        with _translated(self.url):
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
        with _translated(self.url):
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
        with _translated(self.url):
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


def _refuse_secrets(url: str) -> None:
    """A URL is seen in lists of processes, logs and the ledger of a rollout."""
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


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    if _scheme(url) in _SSH:
        kind = _ssh_file_system()
        # A connection of its own: fsspec's are kept for the life of the process, also when they have broken.
        return kind(**kind._get_kwargs_from_urls(url), skip_instance_cache=True), kind._strip_protocol(url)  # noqa: SLF001
    files, root = fsspec.core.url_to_fs(url)
    # What was listed before may have changed since.
    files.invalidate_cache()
    return files, root


def _ssh_file_system() -> Any:
    """fsspec's, but for the host key: it takes any that it has not seen."""
    import paramiko
    from fsspec.implementations.sftp import SFTPFileSystem

    from ..transport.hostkeys import disabled_algorithms, quiet_paramiko

    class KnownHostsOnly(SFTPFileSystem):  # type: ignore[misc]  # fsspec has no annotations
        def _connect(self) -> None:
            quiet_paramiko()
            self.client = paramiko.SSHClient()
            self.client.load_system_host_keys()
            self.client.set_missing_host_key_policy(paramiko.RejectPolicy())
            try:
                self.client.connect(
                    self.host,
                    **self.ssh_kwargs,
                    timeout=_CONNECT_S,
                    banner_timeout=_CONNECT_S,
                    auth_timeout=_CONNECT_S,
                    disabled_algorithms=disabled_algorithms(),
                )
                self.ftp = self.client.open_sftp()
            except BaseException:
                self.client.close()
                raise

    return KnownHostsOnly


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Any store may raise its own library's errors: what is not known better is a store that does not answer."""
    try:
        yield
    except KedgeError:
        raise
    except ImportError as error:
        raise IncompatibleError(
            f"{url} needs a library that is not installed: {_said(error)}",
            hint="fsspec names it: s3fs for s3://, gcsfs for gs://, adlfs for abfs://; pip install it beside kedge",
        ) from error
    except FileNotFoundError as error:
        raise BadInputError(
            f"{url}: there is no such folder: {_said(error)}", hint="make it, or name another"
        ) from error
    except PermissionError as error:
        raise AuthenticationRefusedError(
            f"{url}: not allowed: {_said(error)}", hint="check the credentials of this process and what they may do"
        ) from error
    except (NotImplementedError, ValueError) as error:
        raise BadInputError(f"{url} cannot be used: {_said(error)}", hint="s3://, gs://, sftp://, file:// …") from error
    except Exception as error:  # each store's library has its own classes
        raise _by_name(url, error) from error


def _by_name(url: str, error: Exception) -> KedgeError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = _said(error)
    if "BadHostKeyException" in kinds:
        return HostKeyChangedError(
            f"{url}: its host key is not the one in ~/.ssh/known_hosts",
            hint="somebody may be listening; if the server was set up anew: ssh-keygen -R HOST, then log in with ssh",
        )
    if "not found in known_hosts" in said:
        return UnknownHostKeyError(
            f"{url}: its host key is not in ~/.ssh/known_hosts",
            hint="log in once with ssh, and compare the fingerprint that it shows",
        )
    refused = {"AuthenticationException", "NoCredentialsError", "ClientAuthenticationError"}
    if kinds & refused or "No authentication methods" in said:
        return AuthenticationRefusedError(f"{url}: {said}", hint="check the keys or credentials of this process")
    return UnreachableError(f"{url} does not answer: {said}", hint="check the URL and the way there, then try again")


def _said(error: Exception) -> str:
    """What a foreign exception says, without what may be a secret in a URL that it names."""
    text = re.sub(r"://[^/\s@]+@", "://…@", first_line(error))
    return re.sub(r"\?[^\s'\"]+", "?…", text)
