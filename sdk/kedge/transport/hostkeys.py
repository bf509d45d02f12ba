"""Host keys: read the one a device shows, compare it with the one pinned, never trust on first use."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import logging
import socket
from dataclasses import dataclass
from typing import Any

from ..errors import BadInputError, UnreachableError
from .base import Deadline

__all__ = ["HostKey", "disabled_algorithms", "fetch_host_key", "quiet_paramiko"]

_MAX_KEY_BYTES = 16 * 1024


@dataclass(frozen=True)
class HostKey:
    """A public host key as OpenSSH writes it: algorithm and base64 of the key blob."""

    algorithm: str
    blob: str

    @classmethod
    def parse(cls, text: str) -> HostKey:
        """From `ssh-ed25519 AAAA… [comment]`.

        Raises:
            BadInputError: it is no public key.
        """
        fields = text.split()
        if len(fields) < 2 or len(fields[1]) > _MAX_KEY_BYTES:
            raise BadInputError("not an SSH public key", hint="it looks like: ssh-ed25519 AAAAC3Nz…")
        key = cls(fields[0], fields[1])
        try:
            blob = key.raw
        except binascii.Error as error:
            raise BadInputError("not an SSH public key: its base64 is damaged") from error
        # The blob begins with its own algorithm name (RFC 4253, section 6.6).
        name = key.algorithm.encode()
        if not blob.startswith(len(name).to_bytes(4, "big") + name):
            raise BadInputError(f"not an SSH public key of the algorithm {key.algorithm!r}")
        return key

    @property
    def raw(self) -> bytes:
        """The key blob."""
        return base64.b64decode(self.blob, validate=True)

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: `SHA256:` and unpadded base64 of the blob's sha256."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.raw).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.algorithm} {self.blob}"


def disabled_algorithms() -> dict[str, list[str]]:
    """What paramiko still offers and we do not: CBC, 3DES, MD5, SHA-1."""
    import paramiko

    weak = ("cbc", "3des", "md5", "sha1", "group14-sha1")
    preferred: dict[str, tuple[str, ...]] = {
        "ciphers": paramiko.Transport._preferred_ciphers,  # type: ignore[attr-defined]  # noqa: SLF001
        "macs": paramiko.Transport._preferred_macs,  # type: ignore[attr-defined]  # noqa: SLF001
        "kex": paramiko.Transport._preferred_kex,  # type: ignore[attr-defined]  # noqa: SLF001
    }
    return {kind: [name for name in names if any(word in name for word in weak)] for kind, names in preferred.items()}


def _other_algorithms(algorithm: str) -> list[str]:
    """Those of host keys that paramiko would take and that give no key of this one."""
    import paramiko

    preferred: tuple[str, ...] = paramiko.Transport._preferred_keys  # type: ignore[attr-defined]  # noqa: SLF001
    # An RSA key is of one algorithm and signs by several (RFC 8332).
    signs = ("rsa-sha2-512", "rsa-sha2-256") if algorithm == "ssh-rsa" else (algorithm,)
    return [name for name in preferred if name not in signs]


def fetch_host_key(
    host: str, port: int, deadline: Deadline, stream: Any = None, *, algorithm: str | None = None
) -> HostKey | None:
    """The host key a server shows, before any authentication.

    Args:
        stream: a connection to it, where there is one already; it is closed.
        algorithm: of its keys the one of this kind; without, the one that it and we prefer.

    Returns:
        None: it has no key of that algorithm.

    Raises:
        UnreachableError: nothing there speaks SSH in time.
    """
    import paramiko

    quiet_paramiko()
    disabled = disabled_algorithms()
    if algorithm is not None:
        disabled["keys"] = _other_algorithms(algorithm)
    try:
        with (
            contextlib.closing(
                stream if stream is not None else socket.create_connection((host, port), timeout=deadline.remaining())
            ) as sock,
            contextlib.closing(paramiko.Transport(sock, disabled_algorithms=disabled)) as transport,
        ):
            transport.start_client(timeout=deadline.remaining())
            key = transport.get_remote_server_key()
            return HostKey(key.get_name(), key.get_base64())
    except paramiko.ssh_exception.IncompatiblePeer as error:
        if algorithm is not None and "host key" in str(error):
            return None
        raise _not_ssh(host, port, error) from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise _not_ssh(host, port, error) from error


def _not_ssh(host: str, port: int, error: Exception) -> UnreachableError:
    return UnreachableError(
        f"{host}:{port} does not answer as an SSH server: {str(error) or type(error).__name__}",
        hint="check the address, the port and that sshd runs there",
    )


def quiet_paramiko() -> None:
    """Keep paramiko's log off the terminal: what matters of it comes back as an exception."""
    logger = logging.getLogger("paramiko")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
