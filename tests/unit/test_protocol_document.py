"""docs/wire-protocol.md lists what the control door answers, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kedge_agent.serving import routes
from kedge_agent.serving.agent_routes import agent_routes

DOCUMENT = Path(__file__).parents[2] / "docs/wire-protocol.md"
NAMES = {"digest": "DIGEST", "sha256": "SHA256", "model": "NAME", "key": "JOB"}


def test_the_table_of_the_control_door_has_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Any = None
    tables: list[Any] = []
    monkeypatch.setattr(routes, "routed", tables.extend)
    deploys: Any = SimpleNamespace(permit=None)
    routes.control_handler(absent, absent, absent, absent, absent, deploys, absent)
    served = []
    for method, pattern, _ in [*tables, *agent_routes(absent)]:
        if pattern.pattern.startswith("/kedge/"):
            path = re.sub(r"\(\?P<(\w+)>[^()]*\)", lambda found: NAMES[found[1]], pattern.pattern)
            served.append(f"{method} {path}")
    listed = re.findall(r"^\| `((?:GET|POST) /kedge/v1/[^`?]*)(?:\?[^`]*)?` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(served)
