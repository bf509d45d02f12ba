"""The old agent's side of an upgrade, with a program of a few lines in the new one's place."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.manifest import Manifest
from kedge_agent.handover import Upgrades, _load_s
from kedge_agent.store.layout import Layout
from kedge_agent.store.rules import OFF, ReleaseRules
from kedge_agent.store.slots import REFUSED, agents_folder, read_outcome, read_trial
from kedge_agent.systemd import Notifier
from tests.conftest import make_release

OWN, NEW = "a" * 64, "b" * 64
IN_TIME_S = 30

_STANDBY = """
import json, socket, sys
link = socket.socket(fileno=int(sys.argv[sys.argv.index("--standby") + 1])).makefile("rw")
def say(**message):
    print(json.dumps(message), file=link, flush=True)
told = json.loads(link.readline())
say(progress="digits", tried=told["models"]["digits"])
say(progress="other", tried=None)
say(ready=True)
link.readline()
go = link.readline()
with open({heard!r}, "w") as out:
    out.write(go)
say(committed=True)
link.readline()
"""


class Old:
    """An agent that is asked to make way; `live` is what it serves.

    leave: what happens when it is about to; `left` is set then.
    """

    def __init__(self, folder: Path, live: list[Manifest], leave: Callable[[Upgrades], None]) -> None:
        self.layout, self.heard = Layout(folder / "state"), folder / "heard"
        program = agents_folder(self.layout) / NEW / "run.py"
        program.parent.mkdir(parents=True)
        program.write_text(_STANDBY.format(heard=str(self.heard)))
        self.live, self.left = live, threading.Event()
        rules = ReleaseRules(signatures=OFF)

        def leaves() -> None:
            leave(self.upgrades)
            self.left.set()

        self.upgrades = Upgrades(
            self.layout, [], lambda: self.live, nullcontext, leaves, lambda: rules, installed=False
        )
        self.upgrades._own = OWN

    def close(self) -> None:
        """What the end of this agent's process does."""
        now = self.upgrades._now
        if now is not None:
            assert now.link is not None
            assert now.child is not None
            now.link.close()
            now.child.wait(IN_TIME_S)
            now.alone.close()

    def told(self) -> dict[str, str]:
        """What the new agent was told to serve when it was told to take over."""
        models = json.loads(self.heard.read_text())["models"]
        assert isinstance(models, dict)
        return models


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, Release]:
    folder = tmp_path_factory.mktemp("releases")
    return make_release(folder, version=1), make_release(folder, version=2, seed=2)


def test_who_takes_over_is_told_what_serves_when_the_doors_are_closed(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    first, second = (release.manifest for release in releases)
    old = Old(tmp_path, [first], lambda upgrades: None)
    old.upgrades.start(NEW)
    assert old.left.wait(IN_TIME_S)
    assert old.upgrades.leaving
    # Deployed, or taken back, after the rehearsal had begun.
    old.live = [second]
    reading, writing = os.pipe()
    try:
        assert old.upgrades.hand_over(Notifier({}), reading)
    finally:
        os.close(reading)
        os.close(writing)
        old.close()
    assert old.told() == {"digits": second.digest}


def test_a_release_that_was_not_loaded_beside_the_old_agent_has_time_to_be_loaded(
    releases: tuple[Release, Release],
) -> None:
    live = [release.manifest for release in releases]
    of_second = sum(entry.size_bytes for entry in live[1].files) / 5e6
    assert of_second > 0
    assert _load_s(live, {live[0].digest}) == of_second
    assert _load_s(live, {each.digest for each in live}) == 0


def test_a_stop_that_comes_just_before_the_handover_leaves_nobody(
    tmp_path: Path, releases: tuple[Release, Release]
) -> None:
    old = Old(tmp_path, [releases[0].manifest], Upgrades.stop)
    old.upgrades.start(NEW)
    assert old.left.wait(IN_TIME_S)
    assert not old.upgrades.leaving
    assert read_trial(old.layout) is None
    ended = read_outcome(old.layout)
    assert ended is not None
    assert (ended.state, ended.reason) == (REFUSED, "the agent was stopped meanwhile")
    old.close()
    assert not old.heard.exists()
