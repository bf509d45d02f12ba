"""Jump hosts: one connection to each in this process, shared by all the devices behind it.

sshd lets only so many in at once that have not authenticated yet (MaxStartups, 10 by default): a fleet behind one host
would be turned away at its door. Channels on a connection that stands are not counted.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import KedgeError, UnreachableError
from .address import SshAddress
from .base import Deadline
from .hostkeys import HostKey, fetch_host_key
from .ssh_channel import QuickSocket
from .ssh_client import make_client
from .ssh_errors import Server, translated

if TYPE_CHECKING:
    import paramiko

__all__ = ["Hop", "leave", "reach", "shown_host_key"]

_PROHIBITED, _FAILED = 1, 2
"""Why a channel is not opened: RFC 4254, section 5.1."""


@dataclass(eq=False)
class Hop:
    """A connection to a jump host. users: who holds it; the last one that leaves closes it."""

    address: SshAddress
    until: float
    users: int = 0
    made: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    client: paramiko.SSHClient | None = None
    before: Hop | None = None

    def alive(self) -> bool:
        """Whether it is being made, or stands."""
        if not self.made.is_set():
            return True
        transport = self.client.get_transport() if self.client is not None else None
        return transport is not None and transport.is_active()


_hops: dict[SshAddress, Hop] = {}
_lock = threading.Lock()


def reach(server: Server, deadline: Deadline) -> tuple[Any, Hop | None]:
    """A stream to a server's port, by way of its jump hosts where it has some, and what to `leave` afterwards.

    Raises:
        UnreachableError: there is no answer, or a jump host does not let us through; the message says which.
        KedgeError: a jump host shows another key, or accepts none of ours.
    """
    import paramiko

    address = server.address
    if not address.jumps:
        with translated(server):
            return QuickSocket.connected((address.host, address.port), deadline.remaining()), None
    *before, last = address.jumps
    hop = _join(replace(last, jumps=tuple(before), state=None), server, deadline)
    try:
        assert hop.client is not None
        transport = hop.client.get_transport()
        if transport is None or not transport.is_active():
            raise UnreachableError(
                f"{server.where}: the connection to the jump host {last} is gone", hint="run the command again"
            )
        try:
            with translated(server):
                return transport.open_channel(
                    "direct-tcpip", (address.host, address.port), ("127.0.0.1", 0), timeout=deadline.remaining()
                ), hop
        except UnreachableError as error:
            cause = error.__cause__
            if not isinstance(cause, paramiko.ChannelException):
                raise
            raise _refused(server, last, cause) from cause
    except BaseException:
        leave(hop)
        raise


def _refused(server: Server, last: SshAddress, error: paramiko.ChannelException) -> UnreachableError:
    if error.code == _PROHIBITED:
        return UnreachableError(
            f"{server.where}: the jump host {last} does not forward to it",
            hint="AllowTcpForwarding and PermitOpen in its sshd_config, restrict and permitopen in authorized_keys",
        )
    why = "no connection" if error.code == _FAILED else error.text
    return UnreachableError(
        f"{server.where} cannot be reached from the jump host {last}: {why}",
        hint="check the address as the jump host sees it, and that sshd runs there",
    )


def _join(address: SshAddress, server: Server, deadline: Deadline) -> Hop:
    """The connection to a jump host: the one that stands, the one that somebody makes now, or a new one."""
    while True:
        with _lock:
            hop = _hops.get(address)
            if hop is None or not hop.alive():
                hop = _hops[address] = Hop(address, until=deadline.at)
            hop.users += 1
            ours = hop.users == 1
        try:
            if ours:
                _make(hop, deadline)
            while not hop.made.wait(deadline.remaining()):
                pass
            if hop.error is None:
                return hop
            if ours and not isinstance(hop.error, Exception):
                raise hop.error
            # It failed because whoever made it had less time than we have: we make another.
            if not ours and isinstance(hop.error, UnreachableError) and hop.until <= time.monotonic() < deadline.at:
                leave(hop)
                continue
            raise _of(server, address, hop.error) from hop.error
        except BaseException:
            leave(hop)
            raise


def _make(hop: Hop, deadline: Deadline) -> None:
    server = Server(hop.address, None)
    try:
        stream, hop.before = reach(server, deadline)
        hop.client = make_client(server, stream, deadline)
    except BaseException as error:
        # Each of those who wait gets one of its own, with its device's name.
        hop.error = error
    finally:
        if hop.error is not None:
            with _lock:
                if _hops.get(hop.address) is hop:
                    del _hops[hop.address]
        hop.made.set()


def _of(server: Server, address: SshAddress, error: BaseException) -> BaseException:
    if isinstance(error, KedgeError):
        # A jump host before that one has told its name already.
        prefix = f"{server.device}: " if server.device is not None else ""
        return type(error)(f"{prefix}{error.message}", hint=error.hint)
    if isinstance(error, Exception):
        return error
    return UnreachableError(f"{server.where}: connecting to the jump host {address} was interrupted", hint="try again")


def leave(hop: Hop | None) -> None:
    """Hold it no longer; once for each `reach`."""
    if hop is None:
        return
    with _lock:
        hop.users -= 1
        if hop.users:
            return
        if _hops.get(hop.address) is hop:
            del _hops[hop.address]
    if hop.client is not None:
        hop.client.close()
    leave(hop.before)


def shown_host_key(device: str, address: SshAddress, deadline: Deadline) -> HostKey:
    """The host key that a device shows, before any authentication to it; its jump hosts must let us through.

    Of several that it has: the one of the pinned key's algorithm, where one is pinned; else the one that both prefer.

    Raises:
        KedgeError: as `reach`, and nothing there speaks SSH in time.
    """
    shown = None
    if address.host_key is not None:
        shown = _shown(device, address, deadline, address.host_key.algorithm)
    if shown is None:
        shown = _shown(device, address, deadline, None)
    assert shown is not None
    return shown


def _shown(device: str, address: SshAddress, deadline: Deadline, algorithm: str | None) -> HostKey | None:
    if not address.jumps:
        return fetch_host_key(address.host, address.port, deadline, algorithm=algorithm)
    stream, hop = reach(Server(address, device), deadline)
    try:
        return fetch_host_key(address.host, address.port, deadline, stream, algorithm=algorithm)
    finally:
        leave(hop)
