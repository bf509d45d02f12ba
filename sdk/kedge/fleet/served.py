"""What a device serves of a model, and how that does: asked in two or three small requests."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kedge_agent.formats.latency import LEAST_REQUESTS
from kedge_agent.formats.manifest import ManifestError, is_digest, parse_manifest
from kedge_agent.formats.offer import parse_offer
from kedge_agent.wire import MAX_JSON_BYTES

from ..deploy.follow import RUNNING, deploy_state
from ..deploy.told import require
from ..errors import BadInputError, GateRefusedError
from ..transport.base import Deadline
from ..transport.client import AgentClient

__all__ = ["Served", "look_at", "serves", "serves_at_last", "what_serves"]

_METRICS_BYTES = 4 << 20
_PAUSE_S = 1.0
_METRIC = re.compile(r'(?P<name>[a-z_]+)\{(?P<labels>(?:[a-z_]+="[^"\\]*",?)*)\} (?P<value>[0-9.e+-]{1,32})')
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
_LAST_MINUTE = "kedge_inference_last_minute_seconds"
_OF_THOSE = "kedge_inference_last_minute_requests"


@dataclass(frozen=True)
class Served:
    """A model as the device's status tells it. release: live now; None: nothing is. version: of that.

    on_probation: whether a deploy of it has yet to end.
    """

    release: str | None
    version: int | None
    previous: str | None
    on_probation: bool


def what_serves(client: AgentClient, device: str, model: str) -> Served:
    """What serves a model, from one request.

    Raises:
        KedgeError: the device cannot be reached, or what it tells makes no sense.
    """
    rows = require(device, "models", client.get("/kedge/v1/status", expect=("models",))["models"])
    row = next((each for each in rows if each["model"] == model), None)
    if row is None:
        return Served(None, None, None, False)
    release, version = row["release"], row["version"]
    return Served(
        release if release is not None and is_digest(release) else None,
        version if type(version) is int else None,
        row["previous"],
        row.get("probation") is not None,
    )


def serves(client: AgentClient, live: str | None, digest: str, completed: Collection[str] = ()) -> bool:
    """Whether what is live is a release, or completes it with an engine.

    Args:
        completed: digests that are known to.

    Raises:
        KedgeError: the device cannot be reached.
    """
    if live is None or live == digest or live in completed:
        return live is not None
    try:
        told = client.get_bytes(f"/kedge/v1/releases/{live}/offer", limit_bytes=MAX_JSON_BYTES)
        base = parse_offer(told).base
        return base is not None and parse_manifest(base.document).digest == digest
    except (BadInputError, ManifestError):
        # It tells of no such thing: then it is a release of its own.
        return False


def serves_at_last(
    client: AgentClient, device: str, model: str, releases: Collection[str], deadline: Deadline
) -> str | None:
    """What serves a model, once the device is not about to switch to one of these releases any more.

    Raises:
        KedgeError: the device cannot be reached; the deadline passed.
    """
    while True:
        # In this order: what it is not at any more, it has switched to, or not.
        runs = any(_is_at(client, device, each) for each in releases)
        live = what_serves(client, device, model).release
        if not runs or live in releases:
            return live
        deadline.remaining()
        time.sleep(_PAUSE_S)


def look_at(
    client: AgentClient, device: str, model: str, digest: str, completed: Collection[str] = ()
) -> dict[str, Any]:
    """How a model does: `release`, `requests`, `errors`, `p99_ms`, `why`.

    release: what is live; `digest` also where that completes it with an engine. requests, errors: that reached the
    runtime since the release was loaded, and those of them that failed there, as a probation counts them. p99_ms: 99th
    percentile of compute of what clients sent in the last minute, where those were enough. What was not measured is
    None, and `why` says so.

    Raises:
        KedgeError: the device cannot be reached.
    """
    found = what_serves(client, device, model)
    look: dict[str, Any] = dict.fromkeys(("release", "requests", "errors", "p99_ms", "why"))
    if found.release is None:
        return {**look, "why": "the model is not served"}
    look["release"] = digest if serves(client, found.release, digest, completed) else found.release
    try:
        text = bytes(client.get_bytes("/metrics", limit_bytes=_METRICS_BYTES)).decode("utf-8", "replace")
    except BadInputError as error:
        return {**look, "why": error.message}
    figures = _figures(text, {"model": model, "version": str(found.version)})
    answered = figures.get(("nv_inference_request_success", None))
    if answered is None:
        return {**look, "why": "the agent tells no figures of this release"}
    failed = figures.get(("nv_inference_request_failure", "internal"), 0.0)
    p99_s, of = figures.get((_LAST_MINUTE, None)), figures.get((_OF_THOSE, None))
    why = _why_no_p99(p99_s, of)
    return {
        **look,
        "requests": int(answered + failed),
        "errors": int(failed),
        "p99_ms": None if p99_s is None or why is not None else p99_s * 1e3,
        "why": why,
    }


def _why_no_p99(p99_s: float | None, requests: float | None) -> str | None:
    """Why a 99th percentile of so many requests is none; None: it is one."""
    if p99_s is None:
        return "no request was answered in the last minute"
    if requests is None:
        return "its agent does not tell how many requests the last minute's latency is of"
    if requests < LEAST_REQUESTS:
        return f"the last minute had {requests:.0f} of the {LEAST_REQUESTS} requests that a 99th percentile takes"
    return None


def _is_at(client: AgentClient, device: str, release: str) -> bool:
    try:
        return bool(deploy_state(client, device, release)["state"] == RUNNING)
    except (BadInputError, GateRefusedError):
        # It knows of no deploy of it, or does not go on with that.
        return False


def _figures(text: str, of: Mapping[str, str]) -> dict[tuple[str, str | None], float]:
    """Values of one model's metrics, by name and kind of fault; of latencies the 99th percentile of compute."""
    out: dict[tuple[str, str | None], float] = {}
    for line in text.splitlines():
        match = _METRIC.fullmatch(line)
        if match is None:
            continue
        labels = dict(_LABEL.findall(match["labels"]))
        if any(labels.get(key) != value for key, value in of.items()):
            continue
        if match["name"] == _LAST_MINUTE and (labels.get("part"), labels.get("quantile")) != ("compute", "0.99"):
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            out[match["name"], labels.get("reason")] = value
    return out
