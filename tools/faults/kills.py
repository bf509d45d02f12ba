"""SIGKILL at random offsets of uploads: what was acknowledged is never asked for again, what is live stays whole."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.agents import Device, assert_invariant, damaged_files
from tests.support.receivers import frame_message, message, receiver
from tests.support.weights import weighty_release

from kedge.release.bundle import Release
from kedge_agent.wire import Message

_BULK_BYTES = 9 * 1024 * 1024 + 4567
_ROUND = 100
_RESTART_EVERY = 20
_AFTER_S = 0.2


@dataclass
class Kills:
    """What was done. late: kills after everything had been sent, while the device accepted it."""

    kills: int = 0
    late: int = 0
    restarts: int = 0
    accepted: int = 0
    acknowledged: int = 0


def kill_uploads(folder: Path, kills: int, seed: int, tell: Callable[[str], object] = lambda line: None) -> Kills:
    """Kill that many receiving processes, each at a random offset of what it is sent, each push resuming the last one.

    A daemon serves all the while from the same store; it is killed and started again every few kills.

    Raises:
        AssertionError: something that must hold does not; the message says at which kill.
    """
    chance = random.Random(seed)  # noqa: S311  (no secret)
    done = Kills()
    while done.kills < kills:
        _round(folder / f"round-{done.kills}", min(_ROUND, kills - done.kills), chance, done)
        tell(f"{done.kills} kills, {done.late} of them late; {done.accepted} releases accepted")
    return done


def _round(folder: Path, kills: int, chance: random.Random, done: Kills) -> None:
    folder.mkdir(parents=True)
    device = Device(folder / "state")
    live = weighty_release(folder, version=1, seed=1, bulk_bytes=_BULK_BYTES)
    device.start()
    try:
        device.serve(live)
        release, acknowledged = live, set[tuple[int, int]]()
        for number in range(kills):
            if release is live:
                # Of the same file names, other bytes: a collection that ran at the wrong moment would show.
                version = live.manifest.version + 1
                release, acknowledged = (
                    weighty_release(folder, version=version, seed=version, bulk_bytes=_BULK_BYTES),
                    set(),
                )
            where = f"kill {done.kills + number} of this run"
            accepted = _kill_one(device.state, release, acknowledged, chance, done, where)
            if number % _RESTART_EVERY == _RESTART_EVERY - 1:
                # Killed five times in a row, it would take itself for the cause.
                device.restart(orderly=done.restarts % 2 == 1)
                done.restarts += 1
            assert device.agent is not None
            assert_invariant(device.state, device.agent, {live.digest})
            if accepted:
                assert not damaged_files(device.state, release.digest), where
                status, said = device.activate(release)
                assert status == 200, (where, said)
                assert_invariant(device.state, device.agent, {release.digest})
                live = release
                done.accepted += 1
        done.kills += kills
        # Whatever the kills have left, the last push is finished as any other.
        device.push(release)
        assert device.activate(release)[0] == 200
        assert device.agent is not None
        assert_invariant(device.state, device.agent, {release.digest})
    finally:
        device.kill()


def _kill_one(
    state: Path, release: Release, acknowledged: set[tuple[int, int]], chance: random.Random, done: Kills, where: str
) -> bool:
    """Push until the kill; `acknowledged` grows by what the device acknowledged. Whether it accepted the release."""
    with receiver(state) as process:
        wanted = process.want(release)
        asked_again = acknowledged & set(wanted)
        assert not asked_again, f"{where}: acknowledged frames {sorted(asked_again)} are asked for again"
        stream = b"".join([*(frame_message(release, *frame) for frame in wanted), message(Message.COMMIT)])
        # One in five dies while it accepts.
        offset = chance.randrange(len(stream) + len(stream) // 5 + 5)
        try:
            process.send(stream[:offset])
            if offset >= len(stream):
                done.late += 1
                time.sleep(chance.random() * _AFTER_S)
        finally:
            process.process.kill()
        finished = False
        while (said := process.heard()) is not None:
            assert said[0] in (Message.ACK, Message.DONE), f"{where}, offset {offset}: {said[1][:500]!r}"
            finished |= said[0] is Message.DONE
    done.acknowledged += len(process.acknowledged)
    acknowledged |= process.acknowledged
    accepted = (state / "releases" / release.digest).is_dir()
    assert accepted or not finished, f"{where}, offset {offset}: DONE was said, and the release is not there"
    return accepted
