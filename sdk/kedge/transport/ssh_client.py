"""A connection to an SSH server that has shown the pinned host key and accepted one of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .base import Deadline
from .hostkeys import disabled_algorithms, quiet_paramiko
from .ssh_auth import Keys
from .ssh_channel import fast_ciphers_first
from .ssh_errors import Server, refuse_unpinned, translated

if TYPE_CHECKING:
    import paramiko

__all__ = ["make_client"]

_KEEPALIVE_S = 15


def make_client(
    server: Server, stream: Any, deadline: Deadline, begun: Callable[[paramiko.SSHClient], None] | None = None
) -> paramiko.SSHClient:
    """Compare the host key with the pinned one, then authenticate.

    Args:
        server: whom we want to reach.
        stream: a connection to it, a socket or a channel; closed where this fails.
        begun: is given the client before it says anything: closing that ends our waiting.

    Raises:
        KedgeError: as `ssh_errors.translated`.
    """
    import paramiko

    quiet_paramiko()
    address = server.address
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(refuse_unpinned(server))
    try:
        if begun is not None:
            begun(client)
        with translated(server):
            if address.host_key is not None:
                pinned = paramiko.PKey.from_type_string(address.host_key.algorithm, address.host_key.raw)
                entry = address.host if address.port == 22 else f"[{address.host}]:{address.port}"
                client.get_host_keys().add(entry, address.host_key.algorithm, pinned)
            client.connect(
                address.host,
                address.port,
                address.user,
                sock=stream,
                timeout=deadline.remaining(),
                banner_timeout=deadline.remaining(),
                auth_timeout=deadline.remaining(),
                channel_timeout=deadline.remaining(),
                auth_strategy=Keys(address),  # type: ignore[arg-type]
                disabled_algorithms=disabled_algorithms(),
                transport_factory=fast_ciphers_first,
            )
            transport = client.get_transport()
            if transport is None:
                # Somebody closed it meanwhile.
                raise EOFError("the connection was closed")
            transport.set_keepalive(_KEEPALIVE_S)
    except BaseException:
        client.close()
        stream.close()
        raise
    return client
