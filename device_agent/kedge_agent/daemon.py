"""The daemon: takes the state folder's lock, opens the doors, loads the models, serves, and obeys signals."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import logging
import logging.handlers
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .doors import Doors
from .errors import AgentError
from .runtime.table import RUNTIMES, runtime_named
from .serving.building import Builds
from .serving.repository import Repository
from .serving.routes import control_handler, inference_handler
from .serving.shared_memory import Regions
from .settings import Settings, read_settings, remember_config, settings_path
from .store.files import make_directory, translate_os_error
from .store.layout import SYSTEM_SOCKETS, Layout, socket_directory
from .systemd import Notifier
from .watchdog import Watchdog, ask_health
from .wire import PROTOCOLS_SPOKEN, Greeting, render_greeting

__all__ = ["Options", "serve"]

_LOG = logging.getLogger("kedge.daemon")

_LOG_BYTES = 4 * 1024 * 1024
_MODELS_S = 20.0


@dataclass(frozen=True)
class Options:
    """How the daemon runs.

    state: the state folder.
    threads: intra-operator threads of each model; 0: as the settings have it.
    parent_pipe: stop when standard input ends, which it does when the parent dies.
    ephemeral: remove the state folder on the way out.
    config: the file of settings; None: where `settings_path` finds it.
    """

    state: Path
    threads: int = 0
    parent_pipe: bool = False
    ephemeral: bool = False
    config: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= 1024:
            raise AgentError(f"threads are 0 to 1024, not {self.threads}")


class _Signals:
    """SIGTERM, SIGINT and SIGHUP, in a pipe.

    Whichever thread the kernel gives a signal to writes it there. A main thread that waited on a lock would sleep on.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def next(self) -> int:
        """Wait for the next one."""
        return os.read(self._reader, 1)[0]

    def put(self, number: int) -> None:
        """As if it had come from outside."""
        os.write(self._writer, bytes([number]))


class _Configuration:
    """The settings in force, and why the file on disk is not, where it is not.

    Raises:
        AgentError: as `read_settings`.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.parent_pipe = options.parent_pipe
        self.path = settings_path(options.state, options.config)
        self.settings = self.read()
        self.problem: str | None = None

    def read(self) -> Settings:
        """The settings on disk.

        Raises:
            AgentError: as `read_settings`.
        """
        return read_settings(self.path, must_exist=self._options.config is not None)

    def threads(self) -> int:
        """Intra-operator threads of each model."""
        return self._options.threads or self.settings.threads or len(os.sched_getaffinity(0))

    def to_json(self) -> Mapping[str, Any]:
        """As the agent's information has it: the file, and what keeps its present content from being in force."""
        return {"file": str(self.path), "problem": self.problem}


def serve(options: Options) -> None:
    """Serve until SIGTERM, SIGINT, or (with `parent_pipe`) the end of standard input; SIGHUP has settings read again.

    A greeting line goes to standard output once the doors are open; with `parent_pipe`, once the models
    are loaded too. On the way out, requests inside are answered.

    Raises:
        AgentError: another agent holds the state folder (busy), it or the settings cannot be used, or requests were
            cut because they did not end in time (busy).
    """
    signals = _Signals()
    # systemd's watchdog ends a wedged agent with SIGABRT: then every thread says where it stood.
    faulthandler.enable()
    # onnxruntime (seen: 1.32) else keeps an identifier of the device, and a database of what it tells its maker.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if options.parent_pipe:
        threading.Thread(target=_wait_for_parent, args=(signals,), daemon=True).start()
    layout = Layout(options.state)
    try:
        _run(layout, options, signals)
    except OSError as error:
        raise translate_os_error(error, f"using {error.filename or options.state}") from error


def _run(layout: Layout, options: Options, signals: _Signals) -> None:
    configuration = _Configuration(options)
    with contextlib.ExitStack() as stack:
        if options.ephemeral and not options.state.is_dir():
            # Whoever started us has cleaned up and gone: nothing may be made again.
            raise AgentError(f"{options.state} is gone", kind="not_found")
        make_directory(layout.root, mode=0o700)
        stack.enter_context(_hold(layout))
        if options.ephemeral:
            # Only whoever holds the folder may remove it: a second agent on it is refused above.
            stack.callback(shutil.rmtree, options.state, ignore_errors=True)
        remember_config(layout.root, options.config)
        _log_to(layout.log)
        _serve(layout, configuration, signals)


def _serve(layout: Layout, configuration: _Configuration, signals: _Signals) -> None:
    runtimes = {name: runtime_named(name) for name in RUNTIMES}
    regions = Regions(configuration.settings.shared_memory_prefix)
    repository = Repository(layout, runtimes, configuration.threads(), configuration.settings.rules_of, rehearse=True)
    builds = Builds(layout)
    notifier = Notifier(os.environ)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_socket_folder(layout))
        stack.callback(regions.close)
        stack.callback(repository.close)
        stack.callback(builds.close)
        control = control_handler(repository, regions, layout, runtimes, builds, configuration.to_json)
        doors = Doors(folder, inference_handler(repository, regions), control, configuration.settings)
        stack.callback(doors.close)
        _LOG.info("kedge-agent %s serving on %s", __version__, folder)
        notifier.ready("loading models")
        # Loading goes on behind an open door: the device answers at once, whatever a model weighs.
        threading.Thread(target=_load, args=(repository, notifier), daemon=True).start()
        # Whoever starts an agent for itself asks it next, and for a model.
        wait_s = _MODELS_S if configuration.parent_pipe else 0.0
        threading.Thread(target=_greet, args=(repository, wait_s), daemon=True).start()
        with _watched(notifier, doors, repository, configuration):
            while signals.next() == signal.SIGHUP:
                notifier.reloading()
                _reload(configuration, doors, repository, regions)
                notifier.ready("serving" if configuration.problem is None else f"old settings: {configuration.problem}")
        drain_s = configuration.settings.drain_s
        _LOG.info("stopping")
        notifier.stopping("answering the requests inside")
        if not doors.drain(drain_s):
            _LOG.error("requests are cut: they did not end within %g s", drain_s)
            raise AgentError(
                f"stopped, and cut requests that did not end within {drain_s:g} s",
                kind="busy",
                hint="give them longer: drain_s in the agent's settings",
            )


def _greet(repository: Repository, wait_s: float) -> None:
    repository.ready.wait(wait_s)
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(render_greeting(Greeting(PROTOCOLS_SPOKEN, __version__)))
        sys.stdout.buffer.flush()


def _load(repository: Repository, notifier: Notifier) -> None:
    repository.start()
    notifier.status("serving")


@contextlib.contextmanager
def _watched(notifier: Notifier, doors: Doors, repository: Repository, configuration: _Configuration) -> Iterator[None]:
    """Feed systemd's watchdog meanwhile, where it has one for us."""
    if notifier.watchdog_s is None:
        yield
        return
    watchdog = Watchdog(
        notifier,
        notifier.watchdog_s,
        lambda timeout_s: ask_health(doors.path("infer"), timeout_s),
        lambda: doors.servers,
        repository.stuck_s,
        lambda: configuration.settings.stuck_s,
    )
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()


def _reload(configuration: _Configuration, doors: Doors, repository: Repository, regions: Regions) -> None:
    """Put the settings on disk in force, or keep those that are, and say why."""
    try:
        settings = configuration.read()
        doors.apply(settings)
    except AgentError as error:
        configuration.problem = error.message
        _LOG.error("the old settings stay: %s", error)
        return
    configuration.settings, configuration.problem = settings, None
    repository.threads, repository.rules_of = configuration.threads(), settings.rules_of
    regions.prefix = settings.shared_memory_prefix
    _LOG.info("settings were read again: %s", configuration.path)


@contextlib.contextmanager
def _socket_folder(layout: Layout) -> Iterator[Path]:
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


def _wait_for_parent(signals: _Signals) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    signals.put(signal.SIGTERM)


def _log_to(path: Path) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=2)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
