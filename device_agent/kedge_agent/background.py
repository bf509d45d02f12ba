"""An agent in the background, without systemd: how it is started, and how whoever serves a state folder is stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from .errors import AgentError
from .settings import Settings, read_settings, settings_of
from .store.layout import Layout
from .wire import FAULTS, GREETING_PREFIX

__all__ = ["own_command", "start", "stop"]

_START_S = 30.0
_STOP_S = 30.0
# For one that has not come up, and is told to end.
_END_S = 10.0


def own_command(state: Path, config: Path | None) -> list[str]:
    """How this very agent serves: the interpreter and its options that run us now (python -I run.py, -m …)."""
    own = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    # It will run elsewhere, where a path from here leads nowhere.
    if own[-2:-1] != ["-m"] and os.path.isfile(own[-1]):
        own[-1] = os.path.abspath(own[-1])
    settings = ["--config", str(config)] if config is not None else []
    return [sys.executable, *own[1:], "--state", str(state), "serve", *settings]


def start(state: Path, config: Path | None, threads: int) -> None:
    """Have an agent serve in a session of its own; returns once its doors are open.

    Raises:
        AgentError: it does not start (no_agent), or another serves the folder (busy).
    """
    command = [*own_command(state, config), "--threads", str(threads)]
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A new file: a daemon that runs already keeps writing into its own.
    (state / "start.log").unlink(missing_ok=True)
    with (state / "start.log").open("wb") as log:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, cwd="/"
        )
    assert daemon.stdout is not None
    readable, _, _ = select.select([daemon.stdout], [], [], _START_S)
    if readable and daemon.stdout.readline().startswith(GREETING_PREFIX):
        return
    daemon.terminate()
    try:
        daemon.wait(_END_S)
    except subprocess.TimeoutExpired:
        # One that hangs as it starts hears nothing; what it has written survives a kill as it survives a power cut.
        daemon.kill()
    busy = daemon.wait() == FAULTS["busy"].exit_code
    said = (state / "start.log").read_text(errors="replace").strip().splitlines()
    reason = next(
        (line for line in said if line.startswith("kedge-agent: error: ")), said[-1] if said else "no reason given"
    )
    raise AgentError(
        f"the agent did not start: {reason.removeprefix('kedge-agent: error: ')}",
        kind="busy" if busy else "no_agent",
        hint=f"see {state / 'start.log'} and {state / 'agent.log'}",
    )


def stop(state: Path, config: Path | None) -> None:
    """End whoever serves the state folder, in order; returns once nobody does.

    Raises:
        AgentError: it does not end in time (busy).
    """
    layout = Layout(state)
    pid = _holder(layout.lock)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    settings = Settings()
    with contextlib.suppress(AgentError):
        settings = read_settings(config) if config is not None else settings_of(state)
    patience_s = settings.drain_s + _STOP_S
    deadline = time.monotonic() + patience_s
    while _holder(layout.lock) is not None:
        if time.monotonic() > deadline:
            raise AgentError(f"the agent (process {pid}) did not stop within {patience_s:g} s", kind="busy")
        time.sleep(0.05)


def _holder(lock: Path) -> int | None:
    """The process that holds the lock; None when nobody does, whatever number the file still holds."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(handle, 32, 0)
        return int(text) if text.isdigit() else None
    finally:
        os.close(handle)
    return None
