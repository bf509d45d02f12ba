"""Take an engine from the device that built it: what it says that it built, the bytes, the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedge_agent.formats.manifest import is_digest
from kedge_agent.formats.passport import Passport, PassportError, parse_passport
from kedge_agent.wire import FRAME_BYTES, WireError, parse_json

from ..errors import IncompatibleError, IntegrityError
from ..transport.base import agent_hint
from ..transport.client import AgentClient

__all__ = ["nonsense", "pull_engine", "pull_report", "stated"]

Progress = Callable[[str, float], None]

_MAX_ENGINE_BYTES = 1 << 33
_MAX_REPORT_BYTES = 64 << 20


def nonsense(device: str, what: str) -> IncompatibleError:
    """The error of an agent whose answer is none."""
    return IncompatibleError(
        f"{device}: the agent's answer makes no sense: {what[:200]}",
        hint=agent_hint(device, "provision"),
    )


def stated(result: Any, device: str) -> tuple[int, str, Passport]:
    """Size, sha256 and passport of what a device says that it built.

    Raises:
        IncompatibleError: it is no such statement.
    """
    if not isinstance(result, dict):
        raise nonsense(device, "a build without a result")
    size, sha256 = result.get("bytes"), result.get("sha256")
    if type(size) is not int or not 0 < size <= _MAX_ENGINE_BYTES or not is_digest(str(sha256)):
        raise nonsense(device, f"an engine of {size} bytes")
    try:
        return size, str(sha256), parse_passport(result.get("passport"))
    except PassportError as error:
        raise nonsense(device, str(error)) from error


def pull_report(client: AgentClient, key: str, device: str) -> dict[str, Any]:
    """What the build came to, as the device tells it; of no weight for anything but the report."""
    data = bytearray()
    while len(data) <= _MAX_REPORT_BYTES:
        path = f"/kedge/v1/engines/{key}?part=report.json&offset={len(data)}"
        part = client.get_bytes(path, limit_bytes=FRAME_BYTES)
        data += part
        if len(part) < FRAME_BYTES:
            break
    try:
        report = parse_json(data, floats=True, limit=_MAX_REPORT_BYTES)
    except WireError as error:
        raise nonsense(device, str(error)) from error
    if not isinstance(report, dict):
        raise nonsense(device, "a report that is no object")
    return report


def pull_engine(client: AgentClient, key: str, size: int, device: str, progress: Progress) -> bytes:
    """The bytes of an engine, part by part; whether they are the right ones is for the caller to see.

    Raises:
        IntegrityError: it ends early. KedgeError: the device cannot be reached.
    """
    parts: list[memoryview] = []
    done = 0
    while done < size:
        progress("pulling the engine back", done / size)
        part = client.get_bytes(f"/kedge/v1/engines/{key}?part=engine&offset={done}", limit_bytes=FRAME_BYTES)
        if not part:
            raise IntegrityError(f"{device}: the engine ends after {done} of {size} bytes", hint="try again")
        parts.append(part)
        done += len(part)
    return b"".join(parts)[:size]
