"""The journal is torn, damaged, replaced or gone: the models serve on, and the next deploy is written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release
from tests.support.deploys import deploy, history, killed, must_deploy, settled
from tests.support.seeds import Seed, seed


def cut_last(data: bytes) -> bytes:
    end = len(data.rstrip(b"\0"))
    return data[: end - 20].ljust(len(data), b"\0")


def flip(at: float) -> Callable[[bytes], bytes]:
    def flipped(data: bytes) -> bytes:
        end = len(data.rstrip(b"\0"))
        out = bytearray(data)
        out[int(end * at)] ^= 0x10
        return bytes(out)

    return flipped


def rubbish_after(data: bytes) -> bytes:
    end = len(data.rstrip(b"\0"))
    return data[:end] + os.urandom(len(data) - end)


def record_after_a_gap(data: bytes) -> bytes:
    """A record that was synced where the one before it was not."""
    end = len(data.rstrip(b"\0"))
    last = data[:end].rstrip(b"\n").rfind(b"\n") + 1
    torn = bytearray(data)
    torn[last : last + 9] = bytes(9)
    return bytes(torn)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "last record cut": lambda path: _rewrite(path, cut_last),
    "file cut": lambda path: os.truncate(path, len(path.read_bytes().rstrip(b"\0")) - 7),
    "bit in the last record": lambda path: _rewrite(path, flip(0.98)),
    "bit in the middle": lambda path: _rewrite(path, flip(0.5)),
    "bit in the first record": lambda path: _rewrite(path, flip(0.01)),
    "rubbish after the records": lambda path: _rewrite(path, rubbish_after),
    "a record's beginning never written": lambda path: _rewrite(path, record_after_a_gap),
    "all zeros": lambda path: _rewrite(path, lambda data: bytes(len(data))),
    "all ones": lambda path: _rewrite(path, lambda data: b"\xff" * len(data)),
    "random bytes": lambda path: _rewrite(path, lambda data: os.urandom(len(data))),
    "text of another kind": lambda path: _rewrite(path, lambda data: b'00000000 {"sequence": 1}\n' * 50),
    "empty": lambda path: os.truncate(path, 0),
    "far too long": lambda path: os.truncate(path, 1 << 40),
    "missing": Path.unlink,
    "a folder": lambda path: _replace(path, Path.mkdir),
    "a folder with something in it": lambda path: _replace(path, lambda to: (to / "x" / "y").mkdir(parents=True)),
    "a link to nowhere": lambda path: _replace(path, lambda to: to.symlink_to("/nowhere/at/all")),
    "a link to endless zeros": lambda path: _replace(path, lambda to: to.symlink_to("/dev/zero")),
    "a pipe": lambda path: _replace(path, os.mkfifo),
}


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    folder = tmp_path_factory.mktemp("three")
    return [obedient_release(folder, version=n, probation_s=int(n == 2)) for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def served(three: list[Release], tmp_path_factory: pytest.TempPathFactory) -> Seed:
    """The second version is live, after the first, and the agent was killed."""
    return seed(tmp_path_factory.mktemp("served"), three[:2], killed=True)


@pytest.fixture(scope="module")
def pushed(three: list[Release], tmp_path_factory: pytest.TempPathFactory) -> Seed:
    """The first version is live, the second has been pushed, and the agent was stopped."""
    return seed(tmp_path_factory.mktemp("pushed"), three[:1], three[1:2])


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """What is to be done at a test's end."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_keeps_no_model_from_being_served_nor_the_next_deploy_from_being_written_down(
    three: list[Release], served: Seed, tmp_path: Path, closing: ExitStack, damage: str
) -> None:
    _, second, third = three
    device = served.device(tmp_path)
    closing.callback(device.kill)
    DAMAGE[damage](device.state / "journal")
    agent = device.restart()
    assert_invariant(device.state, agent, {second.digest})
    history(device)
    must_deploy(device, third)
    assert history(device)[-1]["step"] == "committed"
    agent = device.restart()
    assert_invariant(device.state, agent, {third.digest})
    # What was written after the damage is read after a start.
    assert [entry["release"] for entry in history(device)[-1:]] == [third.digest]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["last record cut", "bit in the middle", "all zeros", "missing", "a folder"])
@pytest.mark.parametrize("place", ["deploy.prepared", "deploy.renamed", "deploy.probation"])
def test_a_deploy_whose_journal_is_lost_too_ends_on_one_of_the_two_releases(
    three: list[Release], pushed: Seed, tmp_path: Path, closing: ExitStack, damage: str, place: str
) -> None:
    first, second = three[:2]
    device = pushed.device(tmp_path)
    closing.callback(device.kill)
    device.start(failpoints=f"{place}=kill")
    killed(device, lambda: deploy(device, second))
    device.kill()
    DAMAGE[damage](device.state / "journal")
    agent = device.restart()
    assert_invariant(device.state, agent, {first.digest, second.digest})
    settled(device)
    ended = deploy(device, second)
    assert ended["state"] == "done", ended
    assert_invariant(device.state, agent, {second.digest})


def test_a_journal_that_cannot_be_written_refuses_the_deploy_and_leaves_the_live_release(
    device: Device, tmp_path: Path
) -> None:
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    device.start()
    must_deploy(device, first)
    device.push(second)
    device.stop()
    device.start(failpoints="journal.append@1=eio")
    ended = deploy(device, second)
    assert ended["state"] == "refused", ended
    assert_invariant(device.state, device.agent, {first.digest})
    # The fault was of a moment.
    ended = deploy(device, second)
    assert ended["state"] == "done", ended
    assert_invariant(device.state, device.agent, {second.digest})
