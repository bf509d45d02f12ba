"""The root command. Each command's module is imported only when that command runs."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence

import click

from .. import __version__
from ..errors import ExitCode, KedgeError
from ..report.text import printable

__all__ = ["main", "root"]

# name: (module, attribute, one line of help). The help stands here so that `kedge --help` imports none of them.
_COMMANDS = {
    "init": ("init", "init", "Write a recipe to begin with, kedge.toml."),
    "run": ("run", "run", "A recipe's whole way: optimize, build, deploy and bench."),
    "demo": ("demo", "demo", "The whole way on a bundled example, on a loopback device."),
    "optimize": ("optimize", "optimize", "Make a model smaller and faster for a target, and prove it."),
    "build": ("build", "build", "Make a release of a model for a target."),
    "preflight": ("preflight", "preflight", "What of a model will not run on a target, and why."),
    "deploy": ("deploy", "deploy", "Push a release to devices; each switches behind its gates."),
    "rollout": ("rollout", "rollout", "Rollouts to many devices: list, status, resume, abort."),
    "infer": ("infer", "infer", "Run a deployed model on data of yours."),
    "bench": ("bench", "bench", "Measure a deployed model: latency and memory."),
    "status": ("deploy", "status", "What a device serves, and what it would roll back to."),
    "history": ("history", "history", "What a device did: deploys, latency, heat, clocks over time."),
    "doctor": ("doctor", "doctor", "Why a device is slow or does not serve: checks, causes, cures."),
    "logs": ("logs", "logs", "What the agent on a device wrote down."),
    "snapshot": ("snapshot", "snapshot", "What a device knows of itself, in one file that may be sent."),
    "rollback": ("deploy", "rollback", "Switch a model back to the release it served before."),
    "device": ("device", "device", "Add, trust, provision, upgrade and list devices."),
    "targets": ("targets", "targets", "Profiles of what kinds of devices can do."),
    "release": ("release", "release", "Sign, verify, export, import, push and pull releases."),
    "cache": ("cache", "cache", "What this host keeps of engines and pushed files: list, remove."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"kedge.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kedge", message="%(prog)s %(version)s")
def root() -> None:
    """Take a trained model to a device, prove it there, and haul it back.

    Every command takes --json and --quiet. Exit codes: docs/exit-codes.md.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of docs/exit-codes.md."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # SIGTERM unwinds like Ctrl-C: whatever was started is stopped, whatever was made is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = root.main(given, prog_name="kedge", standalone_mode=False)
        sys.stdout.flush()
    except KedgeError as error:
        return _report(given, error.message, error.hint, error.exit_code, told=error.told)
    except click.exceptions.NoArgsIsHelpError as error:
        # A group without a command: its help is the answer.
        click.echo(error.ctx.get_help())
        return int(ExitCode.USAGE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "kedge"
        return _report(given, error.format_message(), f"see: {path} --help", ExitCode.USAGE)
    except click.ClickException as error:
        return _report(given, error.format_message(), "", ExitCode.BAD_INPUT)
    except (KeyboardInterrupt, click.Abort):
        return _report(given, "interrupted", "", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # Who read our output has gone; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.INTERNAL)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _defect(given, error)
        # A file or folder of the user's, wherever in the work it was met.
        message = f"{error.filename or 'writing a file'}: {error.strerror}"
        return _report(given, message, "check that the path exists, is yours, and has room", ExitCode.BAD_INPUT)
    except Exception as error:  # the last resort: a user never meets a traceback unasked
        return _defect(given, error)
    return result if isinstance(result, int) else int(ExitCode.OK)


def _defect(given: Sequence[str], error: Exception) -> int:
    if os.environ.get("KEDGE_DEBUG"):
        raise error
    hint = "this is a defect of kedge: run it again with KEDGE_DEBUG=1 and report what it prints"
    return _report(given, f"{type(error).__name__}: {error}", hint, ExitCode.INTERNAL)


def _report(given: Sequence[str], message: str, hint: str, code: ExitCode, *, told: bool = False) -> int:
    # Part of it may come from a device: nothing in it may steer the terminal.
    line, hint = (printable(" ".join(text.split())) for text in (message, hint))
    click.echo(f"kedge: error: {line}", err=True)
    if hint:
        click.echo(f"  hint: {hint}", err=True)
    error = {"message": line, "hint": hint, "exit_code": int(code)}
    if told:
        pass  # standard output holds one document, and that is the result
    elif "--json" in given:
        click.echo(json.dumps({"error": error}))
    elif "--events" in given:
        click.echo(json.dumps({"event": "error", "error": error}))
    return int(code)
