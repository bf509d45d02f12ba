"""The host keys that OpenSSH's known_hosts have already: `ssh-keygen -F` finds them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ..errors import BadInputError
from .address import expanded
from .hostkeys import HostKey

__all__ = ["KNOWN_HOSTS", "known_key"]

KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
"""Where ssh looks, but for what its configuration says."""

_TIME_LIMIT_S = 15.0
_MAX_BYTES = 1024 * 1024
_PREFERRED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def known_key(host: str, port: int, files: Sequence[str] = KNOWN_HOSTS) -> HostKey | None:
    """The key that known_hosts has of a host, hashed names too; None where it has none.

    Of several the one that ssh would prefer. Lines of authorities are none, and a key that any file says is revoked of
    this host is not known by other lines.

    Raises:
        BadInputError: there is no ssh-keygen.
    """
    name = host if port == 22 else f"[{host}]:{port}"
    found: list[HostKey] = []
    revoked: set[str] = set()
    for file in files:
        path = expanded(file)
        if not os.path.isfile(path):
            continue
        try:
            done = subprocess.run(
                ["ssh-keygen", "-F", name, "-f", os.fspath(path)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIME_LIMIT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise BadInputError("there is no ssh-keygen on this machine", hint="install OpenSSH's client") from error
        except subprocess.TimeoutExpired as error:
            raise BadInputError(f"ssh-keygen -F takes too long on {path}", hint="look at that file") from error
        for line in done.stdout[:_MAX_BYTES].decode(errors="replace").splitlines():
            fields = line.split()
            if len(fields) >= 4 and fields[0] == "@revoked":
                revoked.add(fields[3])
            if len(fields) >= 3 and not line.startswith(("#", "@")) and fields[1] in _PREFERRED:
                found.append(HostKey.parse(" ".join(fields[1:3])))
    left = [key for key in found if key.blob not in revoked]
    return min(left, key=lambda key: _PREFERRED.index(key.algorithm), default=None)
