"""The device named `local`: the same agent as a child process of ours, no SSH."""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, BinaryIO, Literal

from kedge_agent.wire import GREETING_PREFIX

from ..errors import AgentMissingError
from .base import LOCAL, Channel, Deadline, Door, agreed, greet

__all__ = ["LocalAgent", "ProcessChannel"]

_STOP_S = 10.0
_ERROR_TAIL_BYTES = 4096
_ERROR = "kedge-agent: error: "
_HINT = "  hint: "


class ProcessChannel:
    """A child process whose standard input and output are one socket of ours."""

    window_bytes_per_s = math.inf

    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        # A file, not a pipe: what nobody reads must not stop the process from talking.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the channel)
        with theirs:
            end = theirs.fileno()
            self._process = subprocess.Popen(
                command, stdin=end, stdout=end, stderr=self._errors, start_new_session=True, cwd="/"
            )

    def sendall(self, data: bytes | memoryview, /) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def recv(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""
        return self._socket.recv(size)

    def makefile(self, mode: Literal["rb"], /) -> BinaryIO:
        """A buffered reader."""
        return self._socket.makefile(mode)

    def settimeout(self, seconds: float | None, /) -> None:
        """Limit each later operation."""
        self._socket.settimeout(seconds)

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        """Exit status and the end of the error output."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode, _tail(self._errors)

    def close(self) -> None:
        """Hang up, and see the process off; idempotent."""
        self._socket.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._errors.close()


class LocalAgent:
    """An agent on a state folder of this machine: joined when one serves it already, else started.

    A started agent is stopped by `close`, and stops by itself when this process dies: it watches
    a pipe whose other end only we hold.

    Args:
        state: the state folder.
        ephemeral: remove the state folder when the agent stops.
        command: how to run the agent; the default is this interpreter's own `kedge_agent`.
        threads: intra-operator threads of each model; 0 takes every core.
    """

    name = LOCAL

    def __init__(
        self,
        state: Path,
        *,
        ephemeral: bool = False,
        command: Sequence[str] = (sys.executable, "-m", "kedge_agent"),
        threads: int = 0,
    ) -> None:
        self.state = state.absolute()
        self._command = [*command, "--state", str(self.state)]
        self._ephemeral = ephemeral
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, deadline: Deadline) -> None:
        """Start the daemon, unless one serves the state folder.

        Raises:
            AgentMissingError: it does not start.
        """
        with contextlib.suppress(AgentMissingError):
            self.open_door("control", deadline).close()
            return
        command = [*self._command, "serve", "--parent-pipe", "--threads", str(self._threads)]
        if self._ephemeral:
            command.append("--ephemeral")
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as errors:
            # A session of its own: Ctrl-C is for us, and we stop the agent in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True, cwd="/"
            )
            out = self._process.stdout
            assert out is not None
            readable, _, _ = select.select([out], [], [], deadline.remaining())
            if readable and out.readline().startswith(GREETING_PREFIX):
                return
            process, self._process = self._process, None
            with process:
                process.kill()
            said = _tail(errors)
        if "already serves" in said:
            # Somebody else started one between our look and our start: theirs serves us too.
            while deadline.remaining():
                with contextlib.suppress(AgentMissingError):
                    self.open_door("control", deadline).close()
                    return
                time.sleep(0.1)
        lines = said.strip().splitlines()
        reason = next((line for line in lines if line.startswith(_ERROR)), lines[-1] if lines else "no reason given")
        hint = next((line for line in lines if line.startswith(_HINT)), f"see {self.state / 'agent.log'}")
        raise AgentMissingError(
            f"the local agent did not start: {reason.removeprefix(_ERROR)}", hint=hint.removeprefix(_HINT)
        )

    @property
    def pid(self) -> int | None:
        """Process id of the daemon we started, None when we joined another's."""
        return self._process.pid if self._process is not None else None

    def open_door(self, door: Door, deadline: Deadline) -> Channel:
        """See `Transport.open_door`."""
        return self._open(["dial-stdio", door], deadline)[0]

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        """See `Transport.open_receive`."""
        return self._open(["receive"], deadline)

    def open_diagnose(self, words: Sequence[str], deadline: Deadline) -> Channel:
        """See `Transport.open_diagnose`."""
        return self._open(["diagnose", *words], deadline)[0]

    def _open(self, arguments: list[str], deadline: Deadline) -> tuple[Channel, int]:
        channel = ProcessChannel([*self._command, *arguments])
        try:
            return channel, agreed(greet(channel, self.name, deadline))
        except BaseException:
            channel.close()
            raise

    def close(self) -> None:
        """Stop the agent if we started it; idempotent, and may be called again after an interrupt."""
        process = self._process
        if process is None:
            return
        for step in (_hang_up, subprocess.Popen.terminate, subprocess.Popen.kill):
            step(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
                break
        if process.stdout is not None:
            process.stdout.close()
        if self._ephemeral:
            # The agent does this itself; after a kill it could not.
            shutil.rmtree(self.state, ignore_errors=True)
        self._process = None


def _tail(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _ERROR_TAIL_BYTES))
    return errors.read().decode(errors="replace")


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
