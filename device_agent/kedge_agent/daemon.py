"""The daemon: takes the state folder's lock, opens the two doors, loads the models, serves."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import logging
import logging.handlers
import os
import pwd
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import __version__
from .errors import AgentError
from .runtime.base import Runtime
from .runtime.onnxruntime import OnnxRuntime
from .serving.building import Builds
from .serving.http import UnixHTTPServer
from .serving.repository import Repository
from .serving.routes import control_handler, inference_handler
from .store.files import make_directory, translate_os_error
from .store.layout import SYSTEM_SOCKETS, Layout, socket_directory
from .wire import DOOR_GROUPS, PROTOCOLS_SPOKEN, Greeting, render_greeting

__all__ = ["Options", "serve"]

_LOG = logging.getLogger("kedge.daemon")

_LOG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Options:
    """How the daemon runs.

    state: the state folder.
    threads: intra-operator threads of each model; 0 takes every core this process may use.
    parent_pipe: stop when standard input ends, which it does when the parent dies.
    ephemeral: remove the state folder on the way out.
    """

    state: Path
    threads: int = 0
    parent_pipe: bool = False
    ephemeral: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise AgentError(f"threads are 0 to 1024, not {self.threads}")


def serve(options: Options) -> None:
    """Serve until SIGTERM, SIGINT, or (with `parent_pipe`) the end of standard input.

    A greeting line goes to standard output once both doors are open.

    Raises:
        AgentError: another agent holds the state folder (busy), or it cannot be used.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.parent_pipe:
        threading.Thread(target=_wait_for_parent, args=(stop,), daemon=True).start()
    layout = Layout(options.state)
    try:
        _run(layout, options, stop)
    except OSError as error:
        raise translate_os_error(error, f"using {error.filename or options.state}") from error


def _run(layout: Layout, options: Options, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        if options.ephemeral and not options.state.is_dir():
            # Whoever started us has cleaned up and gone: nothing may be made again.
            raise AgentError(f"{options.state} is gone", kind="not_found")
        make_directory(layout.root, mode=0o700)
        stack.enter_context(_hold(layout))
        if options.ephemeral:
            # Only whoever holds the folder may remove it: a second agent on it is refused above.
            stack.callback(shutil.rmtree, options.state, ignore_errors=True)
        _log_to(layout.log)
        _serve(layout, options, stop)


def _serve(layout: Layout, options: Options, stop: threading.Event) -> None:
    threads = options.threads or len(os.sched_getaffinity(0))
    onnx = OnnxRuntime()
    runtimes: dict[str, Runtime] = {onnx.name: onnx}
    repository = Repository(layout, runtimes, threads)
    builds = Builds(layout)
    folder = socket_directory(layout.root)
    # Who may use a door is decided by the socket's own mode and group.
    make_directory(folder, mode=0o755 if folder == SYSTEM_SOCKETS else 0o700)
    handlers = {
        "infer": (inference_handler(repository), None),
        "control": (control_handler(repository, layout, runtimes, builds), _is_admin),
    }
    servers: list[UnixHTTPServer] = []
    try:
        for door, handler in handlers.items():
            server = UnixHTTPServer(folder / f"{door}.sock", *handler)
            _give_to_group(folder / f"{door}.sock", DOOR_GROUPS[door])
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
            servers.append(server)
        _LOG.info("kedge-agent %s serving on %s", __version__, folder)
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(render_greeting(Greeting(PROTOCOLS_SPOKEN, __version__)))
            sys.stdout.buffer.flush()
        _notify_systemd("READY=1")
        # Loading goes on behind an open door: the device answers at once, whatever a model weighs.
        threading.Thread(target=repository.start, daemon=True).start()
        stop.wait()
        _LOG.info("stopping")
        _notify_systemd("STOPPING=1")
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        builds.close()
        repository.close()
        for door in handlers:
            (folder / f"{door}.sock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
            if folder != SYSTEM_SOCKETS:
                folder.parent.rmdir()


@contextlib.contextmanager
def _hold(layout: Layout) -> Iterator[None]:
    handle = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
            raise AgentError(
                f"an agent already serves {layout.root} (process {owner})",
                kind="busy",
                hint="stop it first: kedge-agent stop",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _wait_for_parent(stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    stop.set()


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


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


def _notify_systemd(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.sendall(message.encode())
