"""The soak of tools/soak.py, short: a real agent under load while its model is switched."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.soak.run import Edition, Rules, soak, verdict

from kedge.model.session import ReferenceModel
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from tests.conftest import make_release
from tests.support import models


@pytest.fixture
def agent(tmp_path: Path) -> LocalAgent:
    return LocalAgent(tmp_path / "state", threads=1)


def run(agent: LocalAgent, tmp_path: Path, rules: Rules, *, answers_of: tuple[int, int]) -> dict:
    """answers_of: the seeds of the models whose answers are expected of versions 1 and 2, which have seeds 1 and 2."""
    inputs = {"image": models.images(1)}
    editions = []
    for version, seed in enumerate(answers_of, 1):
        release = make_release(tmp_path, version=version, seed=version)
        expected = ReferenceModel(models.classifier(tmp_path / f"expected-{version}.onnx", seed=seed)).run(inputs)
        editions.append(Edition(release, expected))
    try:
        agent.start(Deadline.after(60, "starting the agent"))
        return soak(agent, editions, inputs, rules)
    finally:
        agent.close()


@pytest.mark.slow
def test_no_request_fails_while_releases_are_switched_under_load(agent: LocalAgent, tmp_path: Path) -> None:
    # A minute is too short for the tool's own bound: what a runtime keeps of its first loads is still being gathered.
    rules = Rules(seconds=20, capacity_s=2, activate_every_s=1.5, sample_every_s=0.2, growth=0.2)
    report = run(agent, tmp_path, rules, answers_of=(1, 2))
    assert report["problems"] == []
    assert report["failed"] == 0
    assert report["activations"] >= 3
    assert report["requests"] > 100
    assert report["rss_bytes"]["growth"] < rules.growth
    assert report["passed"]
    assert verdict(report).startswith("passed: ")


def test_answers_of_another_model_fail_the_soak(agent: LocalAgent, tmp_path: Path) -> None:
    rules = Rules(seconds=2, capacity_s=0.3, activate_every_s=0.5, sample_every_s=0.1)
    report = run(agent, tmp_path, rules, answers_of=(1, 3))
    assert report["failed"] > 0
    assert "version 2 answered wrongly" in report["problems"]
    assert not report["passed"]
    assert verdict(report).startswith("FAILED: ")
