"""The daemon: takes the state folder's lock, opens the doors, loads the models, serves, and obeys signals."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from . import __version__
from .configuration import Configuration, Options
from .doors import Doors
from .errors import AgentError
from .formats.manifest import Manifest
from .handover import Upgrades
from .process import Signals, feeding, hold, log_to, serve_command, socket_folder, wait_for_parent
from .runtime.cuda_lanes import lost_gpu
from .runtime.table import RUNTIMES, runtime_named
from .serving.agent_routes import with_agent_routes
from .serving.building import Builds
from .serving.deploys import Deploys
from .serving.recorded import recorder_of, with_recorder
from .serving.repository import Repository
from .serving.routes import control_handler, inference_handler
from .serving.shared_memory import Regions
from .settings import remember_config
from .store.crashes import Marks
from .store.files import make_directory, translate_os_error
from .store.journal import Journal
from .store.layout import Layout
from .store.slots import settle
from .systemd import Notifier
from .watchdog import Watchdog, ask_health
from .wire import PROTOCOLS_SPOKEN, Greeting, render_greeting

if TYPE_CHECKING:
    from .standby import Standby

__all__ = ["Options", "serve"]

_LOG = logging.getLogger("kedge.daemon")

_MODELS_S = 20.0
_HANDED_S = 5.0
_CLOSE_S = 30.0


def serve(options: Options) -> None:
    """Serve until SIGTERM, SIGINT, or (with `parent_pipe`) the end of standard input; SIGHUP has settings read again.

    A greeting line goes to standard output once the doors are open; with `parent_pipe`, once the models
    are loaded too. On the way out, requests inside are answered.

    Raises:
        AgentError: another agent holds the state folder (busy), it or the settings cannot be used, or requests were
            cut because they did not end in time (busy).
    """
    # systemd's watchdog ends a wedged agent with SIGABRT: then every thread says where it stood.
    faulthandler.enable()
    # onnxruntime (seen: 1.32) else keeps an identifier of the device, and a database of what it tells its maker.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    layout = Layout(options.state)
    notifier = Notifier(os.environ)
    try:
        configuration = Configuration(options)
        # A signal ends a standby as it ends any program: it serves nobody yet.
        standby = _stand_by(options.standby, layout, configuration) if options.standby is not None else None
        signals = Signals()
        if options.parent_pipe:
            threading.Thread(target=wait_for_parent, args=(signals,), daemon=True).start()
        upgrades = _run(layout, options, configuration, signals, notifier, standby)
        if upgrades.leaving and not upgrades.hand_over(notifier, signals.handle):
            _start_anew(layout, options)
    except OSError as error:
        raise translate_os_error(error, f"using {error.filename or options.state}") from error


def _stand_by(handle: int, layout: Layout, configuration: Configuration) -> Standby:
    from .standby import Standby

    standby = Standby(handle, layout)
    runtimes = {name: runtime_named(name) for name in RUNTIMES}
    standby.rehearse(runtimes, configuration.threads(), configuration.settings.rules_of)
    standby.wait()
    return standby


def _start_anew(layout: Layout, options: Options) -> NoReturn:
    """Be the agent that is current, in this very process: whoever watches it need not know."""
    command = serve_command(layout.root, layout.root / "agent" / "current", options.successor())
    os.execv(command[0], command)  # noqa: S606  (the command is our own)


def _run(
    layout: Layout,
    options: Options,
    configuration: Configuration,
    signals: Signals,
    notifier: Notifier,
    standby: Standby | None,
) -> Upgrades:
    with contextlib.ExitStack() as stack:
        if options.ephemeral and not options.state.is_dir():
            # Whoever started us has cleaned up and gone: nothing may be made again.
            raise AgentError(f"{options.state} is gone", kind="not_found")
        make_directory(layout.root, mode=0o700)
        last = stack.enter_context(hold(layout, _HANDED_S if standby is not None else 0.0))
        if options.ephemeral:
            # Only whoever holds the folder may remove it: a second agent on it is refused above.
            stack.callback(shutil.rmtree, options.state, ignore_errors=True)
        log_to(layout.log)
        try:
            remember_config(layout.root, options.config)
        except OSError as error:
            # It serves all the same: what goes live is judged again, by what this process reads.
            _LOG.error("pushes may obey other settings than %s: %s", configuration.path, error)
        if standby is not None:
            standby.take(last)
            notifier.muted = True
        elif (ended := settle(layout)) is not None:
            _LOG.error("an upgrade of the agent was cut short: %s", ended.reason or ended.state)
        return _serve(layout, options, configuration, signals, notifier, standby)


def _serve(
    layout: Layout,
    options: Options,
    configuration: Configuration,
    signals: Signals,
    notifier: Notifier,
    standby: Standby | None,
) -> Upgrades:
    runtimes = {name: runtime_named(name) for name in RUNTIMES}
    regions = Regions(configuration.settings.shared_memory_prefix)
    marks = Marks(layout)
    repository = Repository(
        layout, runtimes, configuration.threads(), configuration.settings.rules_of, rehearse=True, marks=marks
    )
    deploys = Deploys(layout, repository, Journal(layout), configuration.releases, marks)
    builds = Builds(layout)
    upgrades = Upgrades(
        layout,
        options.successor(),
        lambda: _served(repository),
        deploys.still,
        lambda: signals.put(signal.SIGUSR1),
        configuration.releases,
        installed=not (options.parent_pipe or options.ephemeral),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(marks.close)
        folder = stack.enter_context(socket_folder(layout))
        stack.callback(regions.close)
        stack.callback(repository.close)
        stack.callback(deploys.close)
        stack.callback(builds.close)
        control = control_handler(repository, regions, layout, runtimes, builds, deploys, configuration.to_json)
        control, inference = with_agent_routes(upgrades, control), inference_handler(repository, regions)
        if configuration.settings.recorder.enabled:
            how = "takeover" if standby is not None else "after-crash" if marks.unclean else "start"
            recorder = recorder_of(layout, repository, configuration.settings.recorder.limit_bytes, how)
            recorder.start()
            stack.callback(recorder.close)
            control, inference = with_recorder(recorder, control), with_recorder(recorder, inference)
        doors = Doors(folder, inference, control, configuration.settings)
        stack.callback(doors.close)
        _LOG.info("kedge-agent %s serving on %s", __version__, folder)
        notifier.ready("loading models")
        if standby is not None:
            standby.opened()
        # Loading goes on behind an open door: the device answers at once, whatever a model weighs.
        load = (layout, options, repository, deploys, notifier, doors, standby)
        threading.Thread(target=_load, args=load, daemon=True).start()
        # Whoever starts an agent for itself asks it next, and for a model.
        wait_s = _MODELS_S if configuration.parent_pipe else 0.0
        threading.Thread(target=_greet, args=(repository, wait_s), daemon=True).start()
        with _watched(notifier, doors, repository, configuration):
            while (number := signals.next()) == signal.SIGHUP:
                notifier.reloading()
                _reload(configuration, doors, repository, regions)
                notifier.ready("serving" if configuration.problem is None else f"old settings: {configuration.problem}")
        if number != signal.SIGUSR1:
            upgrades.stop()
        drain_s = configuration.settings.drain_s
        _LOG.info("stopping")
        if upgrades.leaving:
            stack.enter_context(feeding(notifier, drain_s + _CLOSE_S))
            notifier.status("another agent takes over")
        else:
            notifier.stopping("answering the requests inside")
        upgrades.closed_at = time.monotonic()
        if not doors.drain(drain_s):
            _LOG.error("requests are cut: they did not end within %g s", drain_s)
            if not upgrades.leaving:
                raise AgentError(
                    f"stopped, and cut requests that did not end within {drain_s:g} s",
                    kind="busy",
                    hint="give them longer: drain_s in the agent's settings",
                )
    return upgrades


def _served(repository: Repository) -> list[Manifest]:
    """The releases that serve, once all are loaded."""
    repository.ready.wait()
    return [live.manifest for live in repository.live()]


def _greet(repository: Repository, wait_s: float) -> None:
    repository.ready.wait(wait_s)
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(render_greeting(Greeting(PROTOCOLS_SPOKEN, __version__)))
        sys.stdout.buffer.flush()


def _load(
    layout: Layout,
    options: Options,
    repository: Repository,
    deploys: Deploys,
    notifier: Notifier,
    doors: Doors,
    standby: Standby | None,
) -> None:
    deploys.begin()
    if standby is not None:
        try:
            standby.prove(repository, doors.path("infer"))
        except Exception:
            _LOG.exception("this agent does not serve what the one before it did, which is gone")
            # It ends in order, and no model is to blame.
            deploys.close()
            _start_anew(layout, options)
        notifier.muted = False
        notifier.ready("serving")
    notifier.status("serving")


@contextlib.contextmanager
def _watched(notifier: Notifier, doors: Doors, repository: Repository, configuration: Configuration) -> Iterator[None]:
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
        lost_gpu,
    )
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()


def _reload(configuration: Configuration, doors: Doors, repository: Repository, regions: Regions) -> None:
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
