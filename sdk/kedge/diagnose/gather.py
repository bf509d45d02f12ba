"""Gather evidence on a device that is there: what this host sees of the way to it, and what it tells of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kedge_agent.wire import WireError, parse_json

from ..errors import (
    AuthenticationRefusedError,
    BadInputError,
    HostKeyChangedError,
    KedgeError,
    UnknownHostKeyError,
    UnreachableError,
)
from ..report.text import one_line
from ..targets import Target
from ..transport.base import Deadline, Transport, agent_hint
from ..transport.ssh import SshAddress, SshTransport
from .asking import ask
from .evidence import Clock, Evidence, Link, evidence_of

__all__ = ["gather"]

_CONNECT_S = 20.0
_DEVICE_S = 20
_MAX_FACTS_BYTES = 16 << 20

Note = Callable[[Mapping[str, Any]], object]


def gather(transport: Transport, target: Target | None, note: Note = lambda progress: None) -> Evidence:
    """Look at the way to a device and have it tell its facts; what goes wrong with either is evidence, no error.

    Args:
        note: told of each collector that has ended.
    """
    name = transport.name
    link = Link("local", reachable=True)
    if isinstance(transport, SshTransport):
        link = _connected(transport)
        if link.problem is not None:
            return Evidence(name, target, link)
    heard = False

    def hear(progress: Mapping[str, Any]) -> None:
        nonlocal heard
        heard = True
        note(progress)

    begin = time.monotonic()
    try:
        return _asked(transport, target, link, hear)
    except KedgeError as error:
        waited_s = time.monotonic() - begin
        silent = isinstance(error, UnreachableError) and not heard and waited_s >= _DEVICE_S + _CONNECT_S
        link = replace(
            link,
            agent_problem=one_line(_without(name, error.message)),
            agent_hint=error.hint or None,
            agent_silent_s=waited_s if silent else None,
        )
        return Evidence(name, target, link)


def _named(error: KedgeError, address: SshAddress) -> str | None:
    """The jump host that an error about a host key is about; None: it is about the device, or no entry names it."""
    return next((each.name for each in address.jumps if each.name and f" trust {each.name} " in f"{error.hint} "), None)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _connected(transport: SshTransport) -> Link:
    address = transport.address
    # Whoever pastes it needs no brackets around an IPv6 address: the port stands beside it.
    link = Link(
        "ssh",
        reachable=False,
        address=f"{address.user}@{address.host}",
        port=address.port,
        key=None if address.identity is None else str(address.identity.expanduser()),
        jumps=tuple(f"{each.user}@{_bracketed(each.host)}:{each.port}" for each in address.jumps),
    )
    deadline = Deadline.after(_CONNECT_S, f"reaching {transport.name}")
    begin = time.monotonic()
    try:
        transport.connect(deadline)
    except UnreachableError as error:
        return replace(link, problem=_without(transport.name, error.message), hint=error.hint)
    except HostKeyChangedError as error:
        said = _without(transport.name, error.message)
        return replace(
            link, reachable=True, host_key="changed", problem=said, hint=error.hint, stranger=_named(error, address)
        )
    except UnknownHostKeyError as error:
        said = _without(transport.name, error.message)
        return replace(
            link, reachable=True, host_key="not pinned", problem=said, hint=error.hint, stranger=_named(error, address)
        )
    except AuthenticationRefusedError as error:
        said = _without(transport.name, error.message)
        return replace(link, reachable=True, host_key="pinned", login=False, problem=said, hint=error.hint)
    connect_ms = (time.monotonic() - begin) * 1000
    begin = time.monotonic()
    try:
        # A key that may do nothing but push and diagnose is told so, which is a round trip too.
        transport.run(":", deadline)
    except UnreachableError as error:
        return replace(link, problem=_without(transport.name, error.message), hint=error.hint)
    return replace(
        link,
        reachable=True,
        host_key="pinned",
        login=True,
        connect_ms=connect_ms,
        round_trip_ms=(time.monotonic() - begin) * 1000,
    )


def _asked(transport: Transport, target: Target | None, link: Link, note: Note) -> Evidence:
    name = transport.name
    received = bytearray()
    heard_s: list[float] = []

    def tell(progress: Mapping[str, Any]) -> None:
        heard_s.append(time.time())
        note(progress)

    asked_s = time.time()
    deadline = Deadline.after(_DEVICE_S + _CONNECT_S, f"asking {name} for its facts")
    words = ["facts", "--seconds", str(_DEVICE_S)]
    ask(transport, words, deadline, received.extend, limit_bytes=_MAX_FACTS_BYTES, note=tell)
    try:
        document = parse_json(received, floats=True, limit=_MAX_FACTS_BYTES)
    except WireError as error:
        raise BadInputError(f"what it tells makes no sense: {error}", hint=agent_hint(name)) from error
    evidence = evidence_of(name, document, target, link)
    if evidence.at_s is None:
        return evidence
    # It looked at its clock before the first collector ended.
    first_s = heard_s[0] if heard_s else time.time()
    half = max(first_s - asked_s, 0) / 2
    return replace(evidence, link=replace(link, clock=Clock((asked_s + half) - evidence.at_s, half)))


def _without(name: str, message: str) -> str:
    return message.removeprefix(f"{name}: ")
