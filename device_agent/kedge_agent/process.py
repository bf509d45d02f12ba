"""What the daemon's process has and holds: signals, the state folder's lock, the sockets' folder, the log; and how
there comes to be another one."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import logging.handlers
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import AgentError
from .store.files import make_directory
from .store.layout import SYSTEM_SOCKETS, Layout, socket_directory
from .systemd import Notifier

__all__ = [
    "Signals",
    "bound_output",
    "feeding",
    "hold",
    "how_it_ended",
    "log_to",
    "serve_command",
    "socket_folder",
    "wait_for_parent",
]

_LOG_BYTES = 4 * 1024 * 1024
_POLL_S = 0.02
_FEED_S = 5.0
_LOOK_S = 60.0


class Signals:
    """SIGTERM, SIGINT and SIGHUP, in a pipe.

    Whichever thread the kernel gives a signal to writes it there. A main thread that waited on a lock would sleep on.
    """

    def __init__(self) -> None:
        self.handle, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def next(self) -> int:
        """Wait for the next one."""
        return os.read(self.handle, 1)[0]

    def put(self, number: int) -> None:
        """As if it had come from outside."""
        os.write(self._writer, bytes([number]))


@contextlib.contextmanager
def socket_folder(layout: Layout) -> Iterator[Path]:
    """The folder of the daemon's sockets; removed at the end, where nothing else is in it."""
    folder = socket_directory(layout.root)
    # Who may use a door is decided by the socket's own mode and group.
    make_directory(folder, mode=0o755 if folder == SYSTEM_SOCKETS else 0o700)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
            if folder != SYSTEM_SOCKETS:
                folder.parent.rmdir()


@contextlib.contextmanager
def hold(layout: Layout, patience_s: float) -> Iterator[int | None]:
    """Hold the state folder's lock; the context is the process that held it last, as far as the lock tells.

    Args:
        patience_s: for how long to wait for it.

    Raises:
        AgentError: another agent holds it (busy).
    """
    handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    end = time.monotonic() + patience_s
    try:
        while not _locked(handle):
            if time.monotonic() < end:
                time.sleep(_POLL_S)
                continue
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            raise AgentError(
                f"an agent already serves {layout.root} (process {owner})",
                kind="busy",
                hint="stop it first: kedge-agent stop",
            )
        last = os.pread(handle, 32, 0)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield int(last) if last.isdigit() else None
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_parent(signals: Signals) -> None:
    """Put SIGTERM when standard input ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    signals.put(signal.SIGTERM)


def log_to(path: Path) -> None:
    """Log to a file, of which three are kept; times are in UTC, as ISO 8601 has them."""
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    formatter.converter = time.gmtime
    formatter.default_time_format, formatter.default_msec_format = "%Y-%m-%dT%H:%M:%S", "%s.%03dZ"
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    threading.Thread(target=_bound_errors, args=(path.with_name("start.log"),), name="errors", daemon=True).start()


def _bound_errors(path: Path) -> None:
    while bound_output(2, path, _LOG_BYTES):
        time.sleep(_LOOK_S)


def bound_output(handle: int, path: Path, limit_bytes: int) -> bool:
    """Empty the file that output goes to, where it has grown too long; False: it goes elsewhere, now and later.

    `kedge-agent start` has a file for standard error, and a library that warns of each request would fill the disk.
    """
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or not os.path.samestat(found, path.stat()):
            return False
        # What is written next then goes to its new end.
        fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_APPEND)
        if found.st_size > limit_bytes:
            os.ftruncate(handle, 0)
            os.write(handle, b"(what was here is gone: it was too long)\n")
    except FileNotFoundError:
        return False
    except OSError:
        # A disk that fails says so elsewhere.
        return True
    return True


def serve_command(state: Path, folder: Path, options: Sequence[str]) -> list[str]:
    """How the agent of a slot serves: as the launcher starts it."""
    return [sys.executable, "-I", str(folder / "run.py"), "--state", str(state), "serve", *options]


@contextlib.contextmanager
def feeding(notifier: Notifier, limit_s: float) -> Iterator[None]:
    """Tell systemd's watchdog meanwhile that all is well, for as long as it may take and no longer."""
    over = threading.Event()
    end = time.monotonic() + limit_s

    def feed() -> None:
        while not over.wait(_FEED_S) and time.monotonic() < end:
            notifier.alive()

    notifier.alive()
    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def how_it_ended(child: subprocess.Popen[bytes]) -> str:
    """For a sentence that begins with who it was."""
    try:
        code = child.wait(5)
    except subprocess.TimeoutExpired:
        return "hung up"
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"was ended by {name}" + ("; memory may have run out" if name == "SIGKILL" else "")
