"""The state folder taken aside and put back, as docs/operations.md says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from kedge.deploy.push import deploy, rollback
from kedge.transport.base import Deadline
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.conftest import make_release
from tests.support import models


def live(client: AgentClient) -> str:
    (model,) = client.get("/kedge/v1/status")["models"]
    return str(model["release"])


@pytest.mark.slow
def test_a_state_folder_that_was_put_back_elsewhere_serves_and_goes_back_as_before(tmp_path: Path) -> None:
    first, second = make_release(tmp_path, version=1), make_release(tmp_path, version=2, seed=1)
    state, restored = tmp_path / "device", tmp_path / "restored"
    state.mkdir(mode=0o700)
    agent = LocalAgent(state)
    agent.start(Deadline.after(60, "starting the agent"))
    try:
        deploy(agent, first)
        deploy(agent, second)
    finally:
        agent.close()

    archive = tmp_path / "state.tar"
    subprocess.run(["tar", "--create", "--file", archive, "--directory", state, "."], check=True)
    restored.mkdir(mode=0o700)
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", restored, "--same-owner"], check=True)

    other = LocalAgent(restored)
    other.start(Deadline.after(60, "starting the agent"))
    client = AgentClient(other)
    try:
        assert live(client) == second.digest
        assert np.isfinite(client.infer("digits", {"image": models.images()[:1]}).outputs["logits"]).all()
        rollback(other, "digits")
        assert live(client) == first.digest
    finally:
        client.close()
        other.close()
