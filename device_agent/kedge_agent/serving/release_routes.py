"""The control door's routes for what the store has of a release: so that a host can have it back."""

from __future__ import annotations

import os
import re
from dataclasses import asdict

from ..errors import AgentError
from ..formats.manifest import MANIFEST_NAME
from ..formats.offer import offer_bytes
from ..store.files import read_bounded, translate_os_error
from ..store.layout import Layout
from ..store.releases import read_acceptance, read_offer, read_release
from ..wire import FRAME_BYTES, MAX_MANIFEST_BYTES
from .http import Request, Response, Route, json_response, route

__all__ = ["release_routes"]

_DIGEST = r"(?P<digest>[0-9a-f]{64})"
_SHA256 = r"(?P<sha256>[0-9a-f]{64})"


def release_routes(layout: Layout) -> list[Route]:
    """Routes of the releases in a store; they change nothing."""

    def show(_: Request, digest: str) -> Response:
        manifest = read_release(layout, digest)
        return json_response(
            {
                "release": digest,
                "model": manifest.model,
                "version": manifest.version,
                "bytes": manifest.total_bytes,
                "accepted": asdict(read_acceptance(layout, digest)),
            }
        )

    def manifest(_: Request, digest: str) -> Response:
        read_release(layout, digest)
        return _bytes(read_bounded(layout.release(digest) / MANIFEST_NAME, MAX_MANIFEST_BYTES))

    def offer(_: Request, digest: str) -> Response:
        read_release(layout, digest)
        return _bytes(offer_bytes(read_offer(layout, digest)))

    def content(request: Request, digest: str, sha256: str) -> Response:
        match = re.fullmatch(r"offset=(\d{1,15})", request.query)
        if match is None:
            raise AgentError("say where to begin: ?offset=0")
        entry = next((each for each in read_release(layout, digest).files if each.sha256 == sha256), None)
        if entry is None:
            raise AgentError(f"release {digest[:12]} has no such file", kind="not_found", hint="see its manifest")
        try:
            with (layout.release(digest) / entry.name).open("rb", buffering=0) as file:
                return _bytes(os.pread(file.fileno(), FRAME_BYTES, int(match[1])))
        except OSError as error:
            raise translate_os_error(error, f"reading {entry.name}") from error

    return [
        route("GET", rf"/kedge/v1/releases/{_DIGEST}", show),
        route("GET", rf"/kedge/v1/releases/{_DIGEST}/manifest", manifest),
        route("GET", rf"/kedge/v1/releases/{_DIGEST}/offer", offer),
        route("GET", rf"/kedge/v1/releases/{_DIGEST}/objects/{_SHA256}", content),
    ]


def _bytes(data: bytes) -> Response:
    return Response(200, [data], (), "application/octet-stream")
