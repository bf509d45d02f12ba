"""What a channel over SSH is made of, and what makes it fast: paramiko's own defaults are not (docs/adr/0010)."""

from __future__ import annotations

import contextlib
import math
import socket
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

if TYPE_CHECKING:
    import paramiko

__all__ = ["QuickSocket", "SshChannel", "fast_ciphers_first"]

_DEAD_LINK_MS = 60_000
_ERROR_TAIL_BYTES = 4096
# Whatever is on its way beyond what the link holds lies in sshd, which enlarges its buffer 32 KiB at a time, each time
# copying all of it: a full window costs it 0.2 s.
_LEAST_IN_FLIGHT_BYTES = 512 * 1024
_FASTEST_BYTES_PER_S = 300e6
# paramiko puts AES-CTR and a hash of its own first, which takes twice as long as AES-GCM.
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


class SshChannel:
    """An exec channel as `base.Channel` wants it."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self.window_bytes_per_s = math.inf

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it."""
        try:
            # paramiko copies the rest of a bytes object at every partial send; a view it slices in place.
            self._channel.sendall(memoryview(data))  # type: ignore[arg-type]
        except EOFError as error:
            # Of a link that has just died; it is no OSError.
            raise BrokenPipeError("the connection is gone") from error

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        return self._channel.recv(size)

    def makefile(self, mode: Literal["rb"], /) -> BinaryIO:
        """A buffered reader."""
        return self._channel.makefile(mode)  # type: ignore[return-value]

    def settimeout(self, seconds: float | None, /) -> None:
        """Limit each later operation."""
        self._channel.settimeout(seconds)

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        """Exit status, None if unknown, and the end of the error output."""
        self._channel.status_event.wait(timeout_s)
        known = self._channel.exit_status_ready()
        said = b""
        while self._channel.recv_stderr_ready() and (more := self._channel.recv_stderr(64 * 1024)):
            said = (said + more)[-_ERROR_TAIL_BYTES:]
        return (self._channel.recv_exit_status() if known else None), said.decode(errors="replace")

    def close(self) -> None:
        """Hang up; idempotent."""
        with contextlib.suppress(EOFError, OSError):
            self._channel.close()

    def bound_in_flight(self, round_trip_s: float) -> None:
        """Have no more on the way than the link can hold; of a channel on which nothing was sent yet."""
        most = max(_LEAST_IN_FLIGHT_BYTES, round_trip_s * _FASTEST_BYTES_PER_S)
        with self._channel.lock:
            self.window_bytes_per_s = self._channel.out_window_size / round_trip_s
            self._channel.out_window_size = int(min(self._channel.out_window_size, most))


class QuickSocket(socket.socket):
    """Acknowledges what it reads at once.

    sshd leaves Nagle's algorithm on: it holds a message that widens the window back until the one before it has been
    acknowledged. The kernel, which has nothing to send while the window is shut, would put that off for 40 ms.
    """

    @classmethod
    def connected(cls, address: tuple[str, int], timeout_s: float) -> QuickSocket:
        """A connection to a server, which the kernel gives up when nothing of it is answered for a minute."""
        with socket.create_connection(address, timeout=timeout_s) as plain:
            family, kind, protocol = plain.family, plain.type, plain.proto
            quick = cls(family, kind, protocol, fileno=plain.detach())
        quick.settimeout(timeout_s)
        # A request is a few small packets; Nagle's algorithm would hold the second back for 40 ms.
        quick.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A dead link is found by the kernel: paramiko's keepalive never waits for an answer.
            quick.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_LINK_MS)
        return quick

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As a socket's."""
        data = super().recv(size, flags)
        if hasattr(socket, "TCP_QUICKACK"):
            # It holds for a while only.
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


def fast_ciphers_first(sock: Any, /, **options: Any) -> paramiko.Transport:
    """A transport for `SSHClient.connect` that asks for AES-GCM before anything else; the server has its say."""
    import paramiko

    transport = paramiko.Transport(sock, **options)
    known = transport.get_security_options()
    first = [cipher for cipher in _FAST_CIPHERS if cipher in known.ciphers]
    known.ciphers = tuple(first + [cipher for cipher in known.ciphers if cipher not in first])
    return transport
