"""`ssh-command`: what a key may do whose line in authorized_keys says

    command="STATE/bin/kedge-agent ssh-command",restrict ssh-ed25519 …

It may push, call and diagnose, and nothing else: no shell, no files, no forwarding. Signatures then bind whoever holds
the key.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from .errors import AgentError
from .wire import DOORS

__all__ = ["allowed_command"]

_ALLOWED = (["receive"], *(["dial-stdio", door] for door in DOORS))
# It changes nothing; what may follow it, it says itself.
_LOOK = "diagnose"
_MAX_COMMAND = 4096


def allowed_command(asked: str) -> list[str]:
    """The agent's own arguments for what was asked, as sshd left it in SSH_ORIGINAL_COMMAND.

    The path to the agent in it counts for nothing: this agent answers, on its own state folder. No shell reads it.

    Raises:
        AgentError: it is something else (forbidden).
    """
    try:
        words = shlex.split(asked) if len(asked) <= _MAX_COMMAND else []
    except ValueError:
        words = []
    if words[:1] == ["exec"]:
        del words[0]
    if words and PurePosixPath(words[0]).name == "kedge-agent" and (words[1:] in _ALLOWED or words[1:2] == [_LOOK]):
        return words[1:]
    raise AgentError(
        f"this key may push releases, call the agent and diagnose, and nothing else; asked for: {asked[:80]!r}",
        kind="forbidden",
        hint="log in with another key for what needs a shell or files, as kedge device provision does",
    )
