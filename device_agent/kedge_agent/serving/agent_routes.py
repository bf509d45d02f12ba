"""The control door's routes for the agent itself: what it is, and have another take its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..errors import AgentError
from ..formats.manifest import is_digest
from .http import Handler, Request, Response, Route, json_response, route, routed

__all__ = ["AgentUpgrades", "agent_routes", "with_agent_routes"]

_ROOT = "/kedge/v1/agent"


class AgentUpgrades(Protocol):
    """Who has another agent take this one's place."""

    def start(self, bundle: str) -> Mapping[str, Any]:
        """Begin, or join what has begun. Raises AgentError where it cannot."""
        ...

    def to_json(self) -> Mapping[str, Any]:
        """What this agent is, what is under way, and how the last time ended."""
        ...


def agent_routes(upgrades: AgentUpgrades) -> list[Route]:
    """Routes of `upgrades`."""

    def show(_: Request) -> Response:
        return json_response(upgrades.to_json())

    def upgrade(request: Request) -> Response:
        body = request.read_json()
        if not isinstance(body, dict) or set(body) != {"bundle"} or not is_digest(str(body["bundle"])):
            raise AgentError('an upgrade is asked for by {"bundle": the sha256 of its manifest}')
        return json_response(upgrades.start(body["bundle"]))

    return [
        route("GET", _ROOT, show),
        route("POST", f"{_ROOT}/upgrade", upgrade),
    ]


def with_agent_routes(upgrades: AgentUpgrades, others: Handler) -> Handler:
    """A handler of the agent's own routes; every other request is for `others`."""
    own = routed(agent_routes(upgrades))

    def handle(request: Request) -> Response:
        mine = request.path == _ROOT or request.path.startswith(f"{_ROOT}/")
        return own(request) if mine else others(request)

    return handle
