"""Ask a device's `diagnose` process: what it writes is bounded, checked, and told apart by its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedge_agent.formats.parts import Part, read_parts
from kedge_agent.wire import WireError

from ..errors import IncompatibleError, UnreachableError
from ..transport.base import Channel, Deadline, Transport, agent_hint, told_error

__all__ = ["Told", "ask"]


@dataclass(frozen=True)
class Told:
    """What came beside the data. private: the redactor's map, None where none came. end: how it went."""

    private: Mapping[str, Any] | None
    end: Mapping[str, Any]


def ask(
    transport: Transport,
    words: Sequence[str],
    deadline: Deadline,
    take: Callable[[bytes], object],
    *,
    limit_bytes: int,
    note: Callable[[Mapping[str, Any]], object] = lambda progress: None,
) -> Told:
    """Have a device's `diagnose` process do something (`kedge_agent.diagnose.command`); its agent need not run.

    Args:
        words: what is asked for.
        take: gets the data, in order.
        limit_bytes: more data than this are refused.
        note: told of each collector that has ended.

    Raises:
        UnreachableError: the device does not answer, or the stream was cut before its end.
        IncompatibleError: what it writes makes no sense, or is too long.
        KedgeError: what the device reports.
    """
    channel = transport.open_diagnose(words, deadline)
    private: Mapping[str, Any] | None = None
    left = limit_bytes
    try:
        for kind, body in read_parts(_reader(channel, deadline)):
            if kind is Part.DATA:
                left -= len(body)
                if left < 0:
                    raise IncompatibleError(
                        f"{transport.name} sends more than {limit_bytes} bytes", hint=agent_hint(transport.name)
                    )
                take(body)
                continue
            if not isinstance(body, dict):
                raise WireError(f"{kind.name} is no object")
            if kind is Part.PROGRESS:
                note(body)
            elif kind is Part.PRIVATE:
                private = body
            elif kind is Part.ERROR:
                kind_of = str(body.get("kind") or "internal")
                raise told_error(
                    transport.name, kind_of, str(body.get("error"))[:1000], str(body.get("hint") or "")[:1000]
                )
            else:
                return Told(private, body)
    except WireError as error:
        raise IncompatibleError(
            f"{transport.name}: what the device tells makes no sense: {error}", hint=agent_hint(transport.name)
        ) from error
    except (EOFError, OSError) as error:
        said = channel.end(1.0)[1].strip().splitlines()
        why = str(error) or (said[-1][:300] if said else "the stream was cut")
        raise UnreachableError(
            f"{transport.name}: the device stopped telling: {why}",
            hint="check the link to the device, then try again",
        ) from error
    finally:
        channel.close()
    raise AssertionError("read_parts ends with END or ERROR")


def _reader(channel: Channel, deadline: Deadline) -> Callable[[int], bytes]:
    file = channel.makefile("rb")

    def read_exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            channel.settimeout(deadline.remaining())
            got = file.read(size - len(data))
            if not got:
                raise EOFError
            data += got
        return bytes(data)

    return read_exactly
