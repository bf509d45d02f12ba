"""A host that is killed while it drives a rollout, at any instant, again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kedge.fleet.inventory import Limit
from kedge.fleet.rollout.ledger import Ledger, create
from kedge.fleet.rollout.options import Options
from tests.support.driven import names, plan_of

KILLS = 24
DEVICES = 30
CONCURRENCY = 4


def killed_until_it_ends(ledger: Ledger, folder: Path, dice: random.Random) -> int:
    """How often it was killed before it had ended."""
    command = [sys.executable, "-m", "tests.support.rollout_child", ledger.id, str(folder)]
    root, kills = Path(__file__).parents[2], 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as drivers:
        assert drivers.stdin is not None
        assert drivers.stdout is not None
        while True:
            drivers.stdin.write(b"\n")
            drivers.stdin.flush()
            process = int(drivers.stdout.readline())
            time.sleep(dice.uniform(0.0, 0.12))
            os.kill(process, signal.SIGKILL)
            drivers.stdin.write(b"\n")
            drivers.stdin.flush()
            if int(drivers.stdout.readline()) == 0:
                return kills
            kills += 1
            # Whatever was cut, it reads back, and says that nobody drives it.
            assert ledger.read().to_json(driven=False)["state"] in ("interrupted", "done")
            assert ledger.driver() is None


@pytest.mark.slow
def test_each_device_is_updated_once_and_no_more_at_once_than_allowed_whenever_the_host_dies(tmp_path: Path) -> None:
    dice = random.Random(8)  # noqa: S311  # the same instants each time
    kills = rounds = 0
    while kills < KILLS:
        folder = tmp_path / str(rounds)
        (folder / "updated").mkdir(parents=True)
        rounds += 1
        options = Options(canary=("1", "20%", "100%"), concurrency=CONCURRENCY, pause_s=0.02)
        ledger = create(plan_of(DEVICES, options, limits=[Limit("wifi", frozenset(names(20)), 2)]))
        kills += killed_until_it_ends(ledger, folder, dice)
        document = ledger.read().to_json()
        assert document["state"] == "done"
        assert document["counts"] == {"updated": DEVICES}
        assert sorted(path.name for path in (folder / "updated").iterdir()) == names(DEVICES)
        check_log(folder, ledger)


def check_log(folder: Path, ledger: Ledger) -> None:
    at_work: dict[str, set[str]] = {}
    deploys: Counter[str] = Counter()
    for line in (folder / "log").read_text().splitlines():
        process, what, name, kind = line.split()
        now = at_work.setdefault(process, set())
        if what == "begin":
            now.add(name)
            deploys[name] += kind == "deploy"
            assert len(now) <= CONCURRENCY
            assert len(now & set(names(20))) <= 2
        else:
            now.discard(name)
    # A device is asked again only where its host died before it had answered.
    answered: Counter[str] = Counter()
    for line in (ledger.folder / "events.ndjson").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "answer" and event["answer"]["kind"] == "deploy":
            answered[event["answer"]["device"]] += 1
    assert set(answered.values()) == {1}
    assert sum(deploys.values()) >= DEVICES
