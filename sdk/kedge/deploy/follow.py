"""Follow what a device does by itself with a release that it has: stage, gate, switch, probation.

The deploy is a job of the device's, which ends it or takes it back whether or not anybody listens. So a connection that
breaks costs nothing but news: it is made again, and the news that came meanwhile are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import (
    AgentMissingError,
    BadInputError,
    BusyError,
    GateRefusedError,
    IncompatibleError,
    KedgeError,
    OutcomeUnknownError,
    UnreachableError,
)
from ..transport.base import Deadline, Transport, agent_hint, told_error
from ..transport.client import AgentClient
from .patience import Patience, hang_up

__all__ = ["RUNNING", "Event", "deploy_state", "ended", "follow", "require_done"]

RUNNING = "running"
_ENDS = ("done", "reverted", "refused")

_WAIT_S = 5
_POLL_S = 0.2
_MOST_STARTS = 5

Event = Callable[[Mapping[str, Any]], None]
"""Told of each event as the device tells it (docs/wire-protocol.md)."""


def deploy_state(client: AgentClient, device: str, release: str, after: int = 0, wait_s: int = 0) -> dict[str, Any]:
    """What the device tells of the last deploy of a release: state, step, events, next, result, error.

    Raises:
        BadInputError: it knows of none.
        KedgeError: the device cannot be reached.
    """
    answer: dict[str, Any] = client.get(
        f"/kedge/v1/deploys/{release}?after={after}&wait={wait_s}", expect=("state", "events", "next")
    )
    events, following = answer["events"], answer["next"]
    if answer["state"] not in (RUNNING, *_ENDS) or type(following) is not int or not isinstance(events, list):
        raise IncompatibleError(
            f"{device}: the agent's answer makes no sense: a deploy that is {str(answer['state'])[:80]!r}",
            hint=agent_hint(device),
        )
    return answer


def ended(answer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What tells one end of a deploy from another; None while it runs, or where there was none."""
    if answer is None or answer["state"] == RUNNING:
        return None
    return {"state": answer["state"], "error": answer.get("error"), "next": answer["next"]}


def follow(
    client: AgentClient,
    transport: Transport,
    release: str,
    *,
    begin: Callable[[], None],
    before: Mapping[str, Any] | None,
    event: Event,
    until: str | None,
    patience_s: float,
    deadline: Deadline | None = None,
) -> dict[str, Any]:
    """Have a release deployed, and follow it until it has ended.

    Args:
        begin: asks the device for it; called again where the device turns out to have heard nothing.
        before: how an earlier deploy of the release had ended (`ended`).
        event: told of each event once, also of those before a connection was lost.
        until: a step at whose beginning to leave the device alone, None: none.
        patience_s: how long a connection that was lost is tried to be made again.
        deadline: after which nobody listens any more; the client has it too.

    Returns:
        The device's last answer; of a deploy that still runs where `until` was reached.

    Raises:
        OutcomeUnknownError: the device cannot be reached any more, or the deadline passed; it goes on by itself, if it
            was asked.
        UnreachableError: it could not be asked.
        KedgeError: what the device says.
    """
    device, patience = transport.name, Patience(patience_s, deadline)
    told: list[Any] = []
    after, starts, asked, heard, lost = 0, 0, False, False, False
    while True:
        try:
            if not asked:
                begin()
                starts += 1
                asked = heard = True
            # An agent that was started anew counts its events from the beginning.
            answer = deploy_state(client, device, release, *((0, 0) if lost else (after, _WAIT_S)))
        except BusyError as error:
            if not asked:
                raise
            _wait(patience, device, error)
            continue
        except (UnreachableError, OutcomeUnknownError, AgentMissingError) as error:
            lost = True
            hang_up(transport)
            if not asked and isinstance(error, OutcomeUnknownError):
                # Whether the device heard a request that it did not answer, its next answer tells.
                starts += 1
                asked = True
            if asked:
                _wait(patience, device, error)
            elif not patience.wait():
                raise
            continue
        except BadInputError:
            # It knows of no such deploy: it never heard of it, or was ended before it had written it down.
            if not asked or starts >= _MOST_STARTS:
                raise
            asked = heard = False
            continue
        patience.renew()
        if not heard and before is not None and ended(answer) == before and starts < _MOST_STARTS:
            asked = False
            continue
        heard = True
        news = [each for each in answer["events"] if not lost or each not in told]
        after, lost = answer["next"], False
        for each in news:
            told.append(each)
            if isinstance(each, dict):
                event(each)
                if until is not None and each.get("event") == "step" and each.get("step") == until:
                    return answer
        if answer["state"] != RUNNING:
            return answer
        if not news:
            # What an agent tells of one before it comes from its journal, which nobody waits for.
            time.sleep(_POLL_S)


def _wait(patience: Patience, device: str, error: KedgeError) -> None:
    if not patience.wait():
        what = "the device was still at it" if patience.is_late else "the connection was lost while the device deployed"
        raise OutcomeUnknownError(
            f"{what}: {error.message}",
            hint=f"{device} finishes or goes back by itself; the same command picks up and tells the end",
        ) from error


def require_done(device: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a deploy that has ended well.

    Raises:
        GateRefusedError: a gate refused the release, or it was taken back in its probation.
        KedgeError: what else the device refused it for.
    """
    if answer["state"] == "done":
        result = answer.get("result")
        return dict(result) if isinstance(result, dict) else {}
    error = answer.get("error")
    stated: Mapping[str, Any] = error if isinstance(error, dict) else {}
    reason, hint = str(stated.get("error") or "it gives no reason")[:1000], str(stated.get("hint") or "")[:1000]
    told = told_error(device, str(stated.get("kind") or "gate"), reason, hint)
    if answer["state"] == "reverted":
        what = reason if "back" in reason else f"the release was taken back: {reason}"
        raise GateRefusedError(f"{device}: {what}", hint=told.hint or f"see: kedge history --on {device}")
    raise told
