"""Places where a test makes the agent fail: killed, hung, without disk space. Nothing happens unless asked for.

    KEDGE_FAILPOINTS="deploy.renamed=kill,journal.append@2=enospc"

The variable is read once, at the first place. Whoever can set it for the agent could kill the agent as well.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from functools import cache

__all__ = ["FAILPOINTS", "reached"]

FAILPOINTS = (
    # A push, in the process that receives it.
    "receive.offered",
    "receive.reserved",
    "receive.written",
    "receive.synced",
    "receive.acknowledged",
    "receive.committed",
    "accept.judged",
    "accept.objects",
    "accept.folder",
    "accept.renamed",
    "accept.cleaned",
    # A deploy, in the daemon.
    "deploy.begun",
    "deploy.verified",
    "deploy.gated",
    "deploy.loaded",
    "deploy.prepared",
    "deploy.renamed",
    "deploy.switched",
    "deploy.probation",
    "deploy.passed",
    "deploy.committed",
    "revert.begun",
    "revert.renamed",
    "revert.done",
    "rollback.begun",
    "rollback.renamed",
    "rollback.done",
    "journal.append",
    "journal.written",
    "journal.synced",
    "start.replayed",
    "collect.marked",
    "collect.removed",
    # The agent replaces itself.
    "upgrade.unpacked",
    "upgrade.standby",
    "upgrade.marked",
    "upgrade.released",
    "upgrade.taken",
    "upgrade.healthy",
    "upgrade.committed",
)
"""Every place, in the order in which a release meets them."""


def reached(name: str) -> None:
    """Fail here, where the environment asks for it at this place (and, after `@`, for this time it is reached).

    Raises:
        OSError: as asked: `eio` or `enospc`. `kill` ends the process, `hang` never returns.
    """
    asked = _asked()
    if not asked or name not in asked:
        return
    action, turns = asked[name]
    turns[0] -= 1
    if turns[0] != 0:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        while True:
            time.sleep(3600)
    raise OSError(getattr(errno, action.upper()), os.strerror(getattr(errno, action.upper())))


@cache
def _asked() -> dict[str, tuple[str, list[int]]]:
    out = {}
    for item in filter(None, os.environ.get("KEDGE_FAILPOINTS", "").split(",")):
        place, _, action = item.partition("=")
        name, _, turn = place.partition("@")
        if name not in FAILPOINTS or action not in ("kill", "hang", "eio", "enospc"):
            raise ValueError(f"KEDGE_FAILPOINTS: {item!r}")
        out[name] = (action, [int(turn or 1)])
    return out
