"""The push of a deploy over a connection that breaks: when it is taken up again, and when it is given up."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from kedge.deploy.sending import send
from kedge.errors import UnreachableError
from kedge.release.bundle import Release, write_release
from kedge.transport.base import Channel, Deadline
from kedge.transport.local import LocalAgent, ProcessChannel
from kedge.transport.upload import Progress, UploadResult
from tests.conftest import make_release

MOST_TRIES = 20


class Flaky(LocalAgent):
    """A real `receive` that can be killed within a push."""

    tries = 0
    last: Channel

    def open_receive(self, deadline: Deadline) -> tuple[Channel, int]:
        self.tries += 1
        assert self.tries < MOST_TRIES
        self.last, protocol = super().open_receive(deadline)
        return self.last, protocol

    def kill(self) -> None:
        assert isinstance(self.last, ProcessChannel)
        self.last._process.kill()


@pytest.fixture
def device(tmp_path: Path) -> Flaky:
    return Flaky(tmp_path / "device")


def push(
    device: Flaky, release: Release, progress: Progress, patience_s: float, limit: int | None = None
) -> UploadResult:
    return send(
        device,
        release,
        release.offer(),
        progress=progress,
        state=lambda name: None,
        limit_bytes_per_s=limit,
        patience_s=patience_s,
    )


def test_a_push_that_breaks_before_anything_is_acknowledged_is_given_up(device: Flaky, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError):
        push(device, make_release(tmp_path, version=1), lambda done, total: device.kill(), 0.3)
    assert device.tries > 1


def test_a_push_goes_on_for_as_long_as_each_try_gets_further(device: Flaky, tmp_path: Path) -> None:
    small = make_release(tmp_path, version=1)
    body = json.loads(small.manifest_bytes)
    del body["files"]
    sources: dict[str, Path | bytes] = {entry.name: path for entry, path in small.files()}
    for name in ("a.bin", "b.bin", "c.bin"):
        sources[name] = os.urandom(1 << 20)
    release = write_release(tmp_path / "large", sources, body)

    def progress(done: int, total: int) -> None:
        if done:
            device.kill()

    done = push(device, release, progress, 0.1, limit=4 << 20)
    assert device.tries > 2
    # What the device took and could not acknowledge any more was there.
    assert done.sent_bytes + done.skipped_bytes == release.manifest.total_bytes


def test_one_that_took_long_to_break_is_taken_up_again(device: Flaky, tmp_path: Path) -> None:
    release = make_release(tmp_path, version=1)

    def progress(done: int, total: int) -> None:
        if device.tries == 1:
            time.sleep(0.3)
            device.kill()

    assert push(device, release, progress, 0.1).sent_bytes == release.manifest.total_bytes
