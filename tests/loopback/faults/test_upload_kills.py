"""The receiving process dies, anywhere: what was acknowledged stays, what serves goes on, and so does the next push."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tools.faults.kills import kill_uploads

from kedge_agent.failpoints import FAILPOINTS
from kedge_agent.formats.offer import Offer
from tests.support.agents import Device, assert_invariant, damaged_files
from tests.support.receivers import PushError, frame_message, push, receiver
from tests.support.weights import weighty_release

pytestmark = pytest.mark.slow

SEED = 20261126


@pytest.mark.timeout(900)
def test_two_hundred_kills_at_random_offsets_of_uploads_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    done = kill_uploads(tmp_path, 200, SEED)
    assert done.kills == 200
    assert done.acknowledged > 200
    assert done.late > 10
    assert done.accepted > 5


@pytest.mark.parametrize("place", [name for name in FAILPOINTS if name.startswith(("receive.", "accept."))])
def test_a_kill_at_any_step_of_a_push_leaves_a_store_in_which_the_next_push_goes_on(
    device: Device, tmp_path: Path, place: str
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n, small_files=3) for n in (1, 2))
    device.start()
    device.serve(first)
    acknowledged: set[tuple[int, int]] = set()
    # Twice: what the first one leaves must not be in the second one's way.
    for _ in range(2):
        with receiver(device.state, KEDGE_FAILPOINTS=f"{place}=kill") as process:
            try:
                wanted = process.want(second, Offer())
                assert not acknowledged & set(wanted)
                for frame in wanted:
                    process.send(frame_message(second, *frame))
                process.commit()
            except (PushError, BrokenPipeError):
                while process.heard() is not None:
                    pass
            code, errors = process.ends()
            acknowledged |= process.acknowledged
        if code == 0:
            # Nothing is left to do at this place once everything was acknowledged before.
            assert acknowledged
            break
        assert code == -signal.SIGKILL, f"{place} was not reached: {errors}"
        assert device.agent is not None
        assert_invariant(device.state, device.agent, {first.digest})
    sent = push(device.state, second, offer=Offer())
    assert not acknowledged & set(sent)
    assert not damaged_files(device.state, second.digest)
    assert device.activate(second)[0] == 200
    assert_invariant(device.state, device.restart(), {second.digest})
    assert device.rollback()[0] == 200
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {first.digest})
