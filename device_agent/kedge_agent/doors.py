"""The agent's doors: who may come in by which, what is open, and how all of it is closed."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import threading
import time
from pathlib import Path

from .serving.http import Handler
from .serving.server import HTTPServer, tcp_listener, unix_listener
from .settings import Settings
from .wire import DOOR_GROUPS

__all__ = ["Doors"]

_LOG = logging.getLogger("kedge.daemon")


class Doors:
    """Two Unix sockets, and a port of localhost where the settings name one.

    Args:
        folder: of the sockets; it exists, and is who may come in limited by the sockets' own modes and groups.
        inference: serves `infer.sock` and the port.
        control: serves `control.sock`, for administrators only.
        settings: limits, port.

    Raises:
        AgentError: the port cannot be listened on (busy, forbidden).
        OSError: a socket cannot be made.
    """

    def __init__(self, folder: Path, inference: Handler, control: Handler, settings: Settings) -> None:
        self._folder = folder
        self._inference = inference
        self._settings = Settings(limits=settings.limits)
        self._tcp: HTTPServer | None = None
        self._leaving: list[HTTPServer] = []
        self._unix: list[HTTPServer] = []
        try:
            for door, handler, allowed in (("infer", inference, None), ("control", control, _is_admin)):
                listener = unix_listener(self.path(door))
                self._unix.append(HTTPServer(listener, handler, settings.limits, allowed, door))
                _give_to_group(self.path(door), DOOR_GROUPS[door])
                self._unix[-1].start()
            self.apply(settings)
        except BaseException:
            self.close()
            raise

    def path(self, door: str) -> Path:
        """Where a door's socket is."""
        return self._folder / f"{door}.sock"

    @property
    def servers(self) -> list[HTTPServer]:
        """Those that accept connections."""
        return [*self._unix, *([self._tcp] if self._tcp is not None else [])]

    def apply(self, settings: Settings) -> None:
        """Open, close or move the port, and set the limits of new requests.

        Raises:
            AgentError: the port cannot be listened on; everything is then as it was.
        """
        if settings.tcp_port != self._settings.tcp_port:
            old, new = self._tcp, None
            if settings.tcp_port is not None:
                new = HTTPServer(tcp_listener(settings.tcp_port), self._inference, settings.limits, door="tcp")
                new.start()
                _LOG.info("inference on port %d of localhost", settings.tcp_port)
            self._tcp = new
            if old is not None:
                _LOG.info("port %d of localhost is closed", self._settings.tcp_port)
                self._leaving.append(old)
                threading.Thread(target=self._leave, args=(old, settings.drain_s), daemon=True).start()
        self._settings = settings
        for server in self.servers:
            server.limits = settings.limits

    def drain(self, timeout_s: float) -> bool:
        """Close every listener at once, then wait for the requests inside; True when all of them were answered."""
        deadline = time.monotonic() + timeout_s
        # Nobody new finds them from here on; and who has connected is accepted before the listeners are closed.
        self._remove()
        servers = [*self.servers, *self._leaving]
        for server in servers:
            server.drain(0)
        cut = [server for server in servers if not server.drain(max(0.0, deadline - time.monotonic()))]
        return not cut

    def close(self) -> None:
        """Cut what is still open, and remove the sockets; idempotent."""
        for server in [*self.servers, *self._leaving]:
            server.close()
        self._remove()

    def _remove(self) -> None:
        for door in DOOR_GROUPS:
            self.path(door).unlink(missing_ok=True)

    def _leave(self, server: HTTPServer, timeout_s: float) -> None:
        server.drain(timeout_s)
        server.close()
        self._leaving.remove(server)


def _give_to_group(path: Path, group: str) -> None:
    # The groups exist where an administrator made them; elsewhere the owner alone may come in.
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(group).gr_gid)


def _is_admin(pid: int, uid: int, gid: int) -> bool:
    if uid in (0, os.geteuid()):
        return True
    try:
        admin = grp.getgrnam(DOOR_GROUPS["control"]).gr_gid
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups, admin = [], -1
    if admin in groups:
        return True
    _LOG.warning("refused process %d of user %d on the control door", pid, uid)
    return False
