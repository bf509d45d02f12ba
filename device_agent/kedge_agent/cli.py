"""The agent's command line: what the host runs over SSH, and what a person runs on the device."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import __version__
from .errors import AgentError
from .wire import DOORS, FAULTS, PROTOCOLS_SPOKEN, Greeting, render_greeting

__all__ = ["main"]

_SILENCE_S = 60.0
_GRACE_S = 60.0
# A frame that is like the device's own travels in less than a kilobyte, and making it may take a busy host seconds.
_SLOWEST_BYTES_PER_S = 200


def _default_state() -> Path:
    if os.geteuid() == 0:
        from .store.layout import SYSTEM_STATE

        return SYSTEM_STATE
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "kedge"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kedge-agent", description="kedge's agent on a device")
    parser.add_argument("--version", action="version", version=f"kedge-agent {__version__}")
    parser.add_argument(
        "--state",
        type=Path,
        default=None,
        help="state folder  [/var/lib/kedge or ~/.local/state/kedge]",
    )
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--config", type=Path, default=None, help="file of settings  [/etc/kedge/agent.json or STATE/agent.json]"
    )
    threads = argparse.ArgumentParser(add_help=False)
    threads.add_argument(
        "--threads", type=int, default=0, help="threads of each model  [as the settings have it, else all cores]"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve in the foreground", parents=[settings, threads])
    serve.add_argument("--parent-pipe", action="store_true", help="stop when standard input ends")
    serve.add_argument("--standby", type=int, help=argparse.SUPPRESS)
    serve.add_argument("--ephemeral", action="store_true", help="remove the state folder at the end")
    commands.add_parser("start", help="serve in the background", parents=[settings, threads])
    commands.add_parser("stop", help="stop the background agent", parents=[settings])
    unit = commands.add_parser("unit", help="print a hardened unit for systemd", parents=[settings])
    unit.add_argument("--user", default="kedge", help="unprivileged user, and group, it runs as  [kedge]")
    unit.add_argument("--port", action="store_true", help="let the settings open a port of localhost")
    hardware = unit.add_mutually_exclusive_group()
    hardware.add_argument("--gpu", action="store_true", help="for a machine with an NVIDIA GPU")
    hardware.add_argument("--jetson", action="store_true", help="for a Jetson")
    commands.add_parser("status", help="print what is being served, as JSON")
    commands.add_parser("receive", help="receive a release on standard input (the host runs this)")
    accept = commands.add_parser("import", help="accept a release from a .kedge archive, by the rules of a push")
    accept.add_argument("archive", metavar="FILE|-", help="the archive; - is standard input")
    commands.add_parser(
        "ssh-command", help="what a key may do that may push and call alone (authorized_keys names this)"
    )
    look = commands.add_parser("diagnose", help="facts, recordings, logs or a snapshot (the host runs this)")
    look.add_argument("words", nargs=argparse.REMAINDER)
    dial = commands.add_parser("dial-stdio", help="join standard input and output to a door (the host runs this)")
    dial.add_argument("door", choices=DOORS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code of docs/exit-codes.md."""
    arguments = _parser().parse_args(argv)
    code = _outcome(arguments)
    if arguments.command == "serve":
        # A thread may still be inside a runtime; the interpreter's own way out would pull the library from under it.
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    return code


def _outcome(arguments: argparse.Namespace) -> int:
    state = (arguments.state or _default_state()).absolute()
    try:
        _run(arguments, state)
    except AgentError as error:
        _report(error)
        return FAULTS[error.kind].exit_code
    except BrokenPipeError:
        # The host hung up; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAULTS["internal"].exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _report(error: AgentError) -> None:
    print(f"kedge-agent: error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)


def _run(arguments: argparse.Namespace, state: Path) -> None:
    config = arguments.config.absolute() if getattr(arguments, "config", None) is not None else None
    if arguments.command == "serve":
        # numpy would make a thread for each core, for products of matrices that the agent does not compute.
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        from .daemon import Options, serve

        options = (arguments.threads, arguments.parent_pipe, arguments.ephemeral, config, arguments.standby)
        serve(Options(state, *options))
    elif arguments.command == "start":
        from .background import start

        start(state, config, arguments.threads)
    elif arguments.command == "stop":
        from .background import stop

        stop(state, config)
    elif arguments.command == "unit":
        _unit(arguments, config)
    elif arguments.command == "status":
        _status(state)
    elif arguments.command == "receive":
        _receive(state)
    elif arguments.command == "import":
        _import(state, arguments.archive)
    elif arguments.command == "dial-stdio":
        from .dial import dial

        with _greeted_with_the_reason():
            dial(state, arguments.door)
    elif arguments.command == "diagnose":
        _diagnose(state, arguments.words)
    elif arguments.command == "ssh-command":
        from .forced import allowed_command

        with _greeted_with_the_reason():
            words = allowed_command(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
        _run(_parser().parse_args(words), state)


@contextlib.contextmanager
def _greeted_with_the_reason() -> Iterator[None]:
    """What goes wrong before the greeting takes its place: the host reads the reason where it waits for one."""
    try:
        yield
    except AgentError as error:
        _greet(Greeting(PROTOCOLS_SPOKEN, __version__, error.message, error.hint, error.kind))
        raise


def _greet(greeting: Greeting) -> None:
    sys.stdout.buffer.write(render_greeting(greeting))
    sys.stdout.buffer.flush()


def _receive(state: Path) -> None:
    from .settings import settings_of

    with _greeted_with_the_reason():
        rules = settings_of(state).releases
    source = io.BufferedReader(_ImpatientInput(), buffer_size=64 * 1024)
    _greet(Greeting(PROTOCOLS_SPOKEN, __version__))
    # While the host reads that, and speaks.
    from .store.layout import Layout
    from .store.receive import receive

    receive(Layout(state), source, sys.stdout.buffer, rules)


def _diagnose(state: Path, words: list[str]) -> None:
    from .diagnose.command import diagnose, parse_words

    with _greeted_with_the_reason():
        asked = parse_words(words)
    _greet(Greeting(PROTOCOLS_SPOKEN, __version__))
    diagnose(state, asked, sys.stdout.buffer)


def _import(state: Path, archive: str) -> None:
    from .settings import settings_of
    from .store.files import translate_os_error
    from .store.import_archive import import_archive
    from .store.layout import Layout

    rules = settings_of(state).releases
    try:
        with open(0 if archive == "-" else archive, "rb", closefd=archive != "-") as source:
            digest = import_archive(Layout(state), source, rules)
    except OSError as error:
        raise translate_os_error(error, f"reading {archive}") from error
    print(json.dumps({"release": digest}))


class _ImpatientInput(io.RawIOBase):
    """Standard input that gives up on a host that is silent, or drips: neither must hold a release's lock for ever."""

    def __init__(self) -> None:
        super().__init__()
        # For how long a host may yet be waited for: the work of this device does not count.
        self._left_s = _GRACE_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        begin = time.monotonic()
        readable, _, _ = select.select([0], [], [], max(0.0, min(_SILENCE_S, self._left_s)))
        if not readable:
            raise EOFError
        size = os.readv(0, [buffer])
        self._left_s += size / _SLOWEST_BYTES_PER_S - (time.monotonic() - begin)
        return size


def _status(state: Path) -> None:
    import http.client

    from .dial import connect
    from .store.layout import socket_directory

    connection = http.client.HTTPConnection("agent", timeout=30)
    connection.sock = connect(state, "control")
    with contextlib.closing(connection):
        connection.request("GET", "/kedge/v1/status")
        body = json.loads(connection.getresponse().read())
    print(json.dumps({**body, "sockets": str(socket_directory(state))}, indent=2))


def _unit(arguments: argparse.Namespace, config: Path | None) -> None:
    from .background import own_command
    from .settings import read_settings, settings_path
    from .store.layout import SYSTEM_STATE
    from .unit import UnitOptions, systemd_version, unit_text

    # A unit is for the system, whoever prints it.
    state = arguments.state.absolute() if arguments.state is not None else SYSTEM_STATE
    settings = read_settings(settings_path(state, config))
    options = UnitOptions(
        own_command(state, config),
        state,
        arguments.user,
        tcp=arguments.port or settings.tcp_port is not None,
        hardware="jetson" if arguments.jetson else "gpu" if arguments.gpu else "cpu",
        drain_s=settings.drain_s,
        systemd=systemd_version(),
    )
    print(unit_text(options), end="")
