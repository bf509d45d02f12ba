"""What the agent tells systemd, without libsystemd. Source of the protocol: sd_notify(3), sd_watchdog_enabled(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

__all__ = ["Notifier"]


class Notifier:
    """Tells the service manager how the service is; does nothing where there is none.

    Args:
        environment: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read from it.

    muted: says nothing; as long as another process is the service.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog = environment.get("WATCHDOG_USEC", "")
        self._watched = environment.get("WATCHDOG_PID") or str(os.getpid())
        self.muted = False

    @property
    def watchdog_s(self) -> float | None:
        """Within how long systemd wants to hear of us again and again; None when it does not watch this process."""
        if not self._address or self._watched != str(os.getpid()) or not self._watchdog.isdigit():
            return None
        return int(self._watchdog) / 1e6 or None

    def ready(self, status: str) -> None:
        """Start, or reloading, is complete."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Settings are being read again; `ready` says when that is done."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading settings")

    def status(self, status: str) -> None:
        """One line for people."""
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def main_process(self, pid: int) -> None:
        """Another process is the service from now on; it must be one of the service's own."""
        self._send(f"MAINPID={pid}")

    def stopping(self, status: str) -> None:
        """The service ends."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address or self.muted:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # A manager that does not listen must not end the service.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.connect(address)
            out.sendall("\n".join(line.replace("\n", " ") for line in lines).encode())
