"""A case of tools/fuzz, and the pieces that all families are made of."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from tools.fuzz.device import Device

__all__ = ["DOORS", "Case", "paths", "pieces", "request"]

DOORS = st.sampled_from(("infer", "infer", "infer", "control"))
"""Of a case, most often the one for inference."""


@dataclass(frozen=True)
class Case:
    """Bytes for a door, in the pieces in which they are sent. answers: how many must come; None: that is open."""

    door: str
    pieces: tuple[bytes, ...]
    answers: int | None


def request(method: str, target: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A request whose framing is sound."""
    lines = [f"{method} {target} HTTP/1.1", "Host: d", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def pieces(draw: DrawFn, data: bytes) -> tuple[bytes, ...]:
    """The same bytes, mostly whole, sometimes cut anywhere."""
    if len(data) < 2 or draw(st.integers(0, 3)):
        return (data,)
    at = draw(st.integers(1, len(data) - 1))
    return (data[:at], data[at:])


def paths(device: Device) -> list[str]:
    """Paths that are served."""
    out = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/metrics", "/v2/repository/index"]
    out += ["/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/kedge/v1/info", "/kedge/v1/status"]
    for model in device.models:
        base = f"/v2/models/{model.name}"
        out += [base, f"{base}/ready", f"{base}/config", f"{base}/stats", f"{base}/versions/1", f"{base}/infer"]
    return out
