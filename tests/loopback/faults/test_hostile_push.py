"""A sender that breaks the rules: it is refused, nothing is accepted, what serves goes on, and the next push works."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kedge.release.bundle import Release
from kedge_agent.formats.offer import Offer, offer_bytes
from kedge_agent.wire import (
    ENCODING_DELTA,
    ENCODING_RAW,
    ENCODING_ZSTD,
    FRAME_HEADER,
    MAX_MANIFEST_BYTES,
    MESSAGE_HEADER,
    Message,
)
from tests.support.agents import Device, assert_invariant, damaged_files
from tests.support.receivers import PushError, Receiver, frame_message, message, push, receiver
from tests.support.weights import weighty_release

pytestmark = pytest.mark.slow

OFFER = message(Message.OFFER, offer_bytes(Offer()))


def manifest(release: Release) -> bytes:
    return message(Message.MANIFEST, release.manifest_bytes)


def raw(file: int, frame: int, data: bytes, encoding: int = ENCODING_RAW) -> bytes:
    return message(Message.FRAME, FRAME_HEADER.pack(file, frame, encoding) + data)


def wrong_bytes(release: Release) -> bytes:
    good = frame_message(release, 0, 0)
    return good[:-1] + bytes([good[-1] ^ 1])


AFTER_WANT: dict[str, Callable[[Release], Iterable[bytes]]] = {
    "other bytes than the manifest names": lambda release: [wrong_bytes(release)],
    "a frame of a file that is none": lambda release: [raw(4000, 0, b"x")],
    "a frame that its file has not": lambda release: [raw(0, 17, b"x")],
    "the same frame twice": lambda release: [frame_message(release, 0, 0)] * 2,
    "a frame cut short": lambda release: [raw(0, 0, b"short")],
    "a frame of nothing": lambda release: [raw(0, 0, b"")],
    "a frame without its header": lambda release: [message(Message.FRAME, b"abc")],
    "an encoding that is none": lambda release: [raw(0, 0, b"x", 200)],
    "zstd that is none": lambda release: [raw(0, 0, b"not zstd at all", ENCODING_ZSTD)] * 2,
    "a difference to nothing": lambda release: [raw(0, 0, b"\xff" * 64, ENCODING_DELTA)] * 2,
    "a frame longer than any": lambda release: [MESSAGE_HEADER.pack(Message.FRAME, 1 << 31)],
    "a second manifest": lambda release: [manifest(release)],
    "a second offer": lambda release: [OFFER],
    "a message that only the device sends": lambda release: [message(Message.DONE, b"{}")],
    "a message of no type": lambda release: [message(99, b"")],
    "the end before all was sent": lambda release: [message(Message.COMMIT)],
}


@pytest.mark.parametrize("what", AFTER_WANT)
def test_what_breaks_the_rules_of_an_upload_is_refused_and_the_next_push_works(
    device: Device, tmp_path: Path, what: str
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n, small_files=2, bulk_bytes=100_000) for n in (1, 2))
    device.start()
    device.serve(first)
    with receiver(device.state) as process:
        process.want(second, Offer())
        with contextlib.suppress(BrokenPipeError):
            for part in AFTER_WANT[what](second):
                process.send(part)
            if what in ("zstd that is none", "a difference to nothing"):
                # The device may ask for the frame raw; whoever sends rubbish again, or ends here, is refused.
                process.send(message(Message.COMMIT))
        assert refusal(process).kind in ("bad_input", "integrity")
        assert process.ends()[0] in (3, 6)
    assert_untouched(device, first, second)
    push(device.state, second, offer=Offer())
    assert not damaged_files(device.state, second.digest)


BEFORE_WANT: dict[str, Callable[[Release], Iterable[bytes]]] = {
    "a manifest longer than any": lambda release: [MESSAGE_HEADER.pack(Message.MANIFEST, MAX_MANIFEST_BYTES + 1)],
    "a manifest that is none": lambda release: [message(Message.MANIFEST, b"{}")],
    "a manifest that climbs": lambda release: [message(Message.MANIFEST, climbing(release))],
    "an offer that is none": lambda release: [message(Message.OFFER, b"[]")],
    "an offer longer than any": lambda release: [MESSAGE_HEADER.pack(Message.OFFER, 1 << 30)],
    "offers without end": lambda release: [OFFER] * 1000,
    "a frame before the manifest": lambda release: [frame_message(release, 0, 0)],
    "the end at once": lambda release: [message(Message.COMMIT)],
    "a login shell's line": lambda release: [b"Welcome to Ubuntu 22.04\n"],
}


def climbing(release: Release) -> bytes:
    body = json.loads(release.manifest_bytes)
    body["files"][0]["name"] = "../../../state.json"
    return json.dumps(body).encode()


@pytest.mark.parametrize("what", BEFORE_WANT)
def test_what_breaks_the_rules_before_a_frame_is_asked_for_is_refused(
    device: Device, tmp_path: Path, what: str
) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n, small_files=2, bulk_bytes=100_000) for n in (1, 2))
    device.start()
    device.serve(first)
    with receiver(device.state) as process:
        with contextlib.suppress(BrokenPipeError):
            for part in BEFORE_WANT[what](second):
                process.send(part)
        assert refusal(process).kind == "bad_input"
        assert process.ends()[0] == 3
    assert_untouched(device, first, second)
    device.serve(second)
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {second.digest})


def test_an_upload_without_end_is_ended_by_the_device(device: Device, tmp_path: Path) -> None:
    first, second = (weighty_release(tmp_path, version=n, seed=n, small_files=2, bulk_bytes=100_000) for n in (1, 2))
    device.start()
    device.serve(first)
    with receiver(device.state) as process:
        frames = process.want(second, Offer())
        sent = 0
        with contextlib.suppress(BrokenPipeError):
            # All that was asked for, and then the same again, for ever.
            while sent < 50 * len(frames):
                for frame in frames:
                    process.send(frame_message(second, *frame))
                    sent += 1
        assert sent < 5 * len(frames), "the device took everything"
        assert refusal(process).kind == "bad_input"
    assert_untouched(device, first, second)


def test_rubbish_that_the_device_could_ask_for_again_is_not_taken_for_ever(device: Device, tmp_path: Path) -> None:
    release = weighty_release(tmp_path, version=1, small_files=2, bulk_bytes=100_000)
    with receiver(device.state) as process:
        process.want(release, Offer(encodings=(ENCODING_RAW, ENCODING_ZSTD, ENCODING_DELTA)))
        rubbish = raw(0, 0, b"\x28\xb5\x2f\xfd rubbish", ENCODING_ZSTD)
        listener = threading.Thread(target=lambda: [None for _ in iter(process.heard, None)])
        listener.start()
        with contextlib.suppress(BrokenPipeError):
            for _ in range(200_000):
                process.send(rubbish)
            pytest.fail("the device took everything")
        listener.join(60)
    assert not (device.state / "releases" / release.digest).exists()


def refusal(process: Receiver) -> PushError:
    """What the device says when it refuses; it says so by itself, before the host hangs up."""
    patience = threading.Timer(30, process.process.kill)
    patience.start()
    while (said := process.heard()) is not None and said[0] is not Message.ERROR:
        pass
    patience.cancel()
    assert said is not None, "it was not refused"
    return PushError(json.loads(said[1]))


def assert_untouched(device: Device, live: Release, refused: Release) -> None:
    assert not (device.state / "releases" / refused.digest).exists()
    assert device.agent is not None
    assert_invariant(device.state, device.agent, {live.digest})
