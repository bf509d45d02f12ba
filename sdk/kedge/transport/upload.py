"""The host's half of a push: stream the frames the device lacks, collect its acknowledgements."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from kedge_agent.formats.delta import encodings
from kedge_agent.formats.digests import sha256_hex
from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.formats.offer import AGENT, Offer, offer_bytes
from kedge_agent.wire import ENCODING_DELTA, ENCODING_RAW, FRAME_HEADER, Message, WireError

from ..errors import IncompatibleError, UnreachableError
from .base import Channel, Deadline, agent_hint
from .encoding import Base, EncodedFrame, Encoder
from .known import KnownObjects
from .lanes import Frames, Lanes, OpenMore
from .link import Link, Pace
from .listening import Listener, Want, parse_want

__all__ = ["Progress", "UploadResult", "upload"]

# Hashing what a slow device has already may take minutes a gigabyte.
_PATIENCE_S = 900.0

Progress = Callable[[int, int], None]
"""Called with bytes acknowledged and bytes to send, of content."""


@dataclass(frozen=True)
class UploadResult:
    """What a push did.

    sent_bytes: of content that the device lacked. wire_bytes: payload that travelled for it, encodings and repetitions
    included. skipped_bytes: of files or frames that were in their place. copied_bytes: that the device made of what it
    had elsewhere. delta_frames: that travelled as a difference. resent_frames: that were sent a second time.
    channels: that the push had, those that brought no frame not counted.
    """

    sent_bytes: int
    wire_bytes: int
    skipped_bytes: int
    copied_bytes: int
    delta_frames: int
    resent_frames: int
    seconds: float
    channels: int = 1


def upload(
    channel: Channel,
    device: str,
    manifest: bytes,
    files: Sequence[tuple[FileEntry, Path]],
    progress: Progress = lambda done, total: None,
    *,
    offer: Offer | None = None,
    protocol: int,
    limit_bytes_per_s: int | None = None,
    open_more: OpenMore | None = None,
    deadline: Deadline | None = None,
) -> UploadResult:
    """Push a release, or an agent, through a channel to a `receive` process.

    Args:
        files: entries in manifest order, each with the path of its bytes on this machine.
        offer: what comes with the manifest; None: nothing does. Its encodings are filled in here.
        protocol: that the channel speaks (`Transport.open_receive`).
        limit_bytes_per_s: send no faster; None: as fast as it goes.
        open_more: `Transport.open_receive`, for more channels where the window of one is too small for the link; None:
            there is one channel.
        deadline: by which it must be over. A send or a read that blocks is ended by who closes the transport then.

    Raises:
        KedgeError: what the device reports (no space, integrity, busy), or that the link broke.
            Frames acknowledged by then are on the device's disk and are not sent again.
    """
    try:
        if protocol == 1 and offer is not None and offer.kind == AGENT:
            raise IncompatibleError(
                f"{device}: its agent is too old to be replaced by itself",
                hint=agent_hint(device, "provision", "install it anew"),
            )
        push = _Push(channel, device, files, progress, Pace(limit_bytes_per_s, deadline), open_more, deadline)
        result = push.run(manifest, offer or Offer(), protocol)
    finally:
        channel.close()
    if offer is None or offer.kind != AGENT:
        # An agent's wheels are compressed: no difference to the ones before them is small.
        KnownObjects().remember(files)
    return result


class _Push:
    """One push; what comes back is counted by the listener's thread while the caller's sends."""

    def __init__(
        self,
        channel: Channel,
        device: str,
        files: Sequence[tuple[FileEntry, Path]],
        progress: Progress,
        pace: Pace,
        open_more: OpenMore | None,
        deadline: Deadline | None,
    ) -> None:
        self._channel = channel
        self._device = device
        self._files = files
        self._progress = progress
        self._pace = pace
        self._open_more = open_more
        self._deadline = deadline
        self._link = Link(channel, pace, self._on_sent)
        self._lanes: Lanes | None = None
        self._changed = threading.Condition()
        self._listener = Listener(channel, device, self._on_ack, self._on_again, self._changed)
        self._total = 0
        self._acknowledged = 0
        self._wanted: frozenset[tuple[int, int]] = frozenset()
        self._on_disk: set[tuple[int, int]] = set()
        self._wire_bytes = 0
        self._delta_frames = 0
        self._resent_frames = 0
        self._channels = 1
        # Frames that travelled in another form than raw, and may be asked for again.
        self._open: set[tuple[int, int]] = set()
        self._again: deque[tuple[int, int]] = deque()

    def run(self, manifest: bytes, offer: Offer, protocol: int) -> UploadResult:
        """All of it; see `upload`."""
        begin = time.monotonic()
        self._channel.settimeout(self._patience("pushing").remaining())
        try:
            if protocol > 1:
                self._link.send(Message.OFFER, data=offer_bytes(replace(offer, encodings=encodings())))
            self._link.send(Message.MANIFEST, data=manifest)
            self._listener.start()
            self._listener.wait_for(self._listener.has_want, self._patience("checking what it has"))
            want = parse_want(self._listener.want(), [entry for entry, _ in self._files], protocol)
            self._wanted = frozenset(want.frames)
            self._total = sum(self._length(file, frame) for file, frame in want.frames)
            self._progress(0, self._total)
            self._send_frames(want, manifest, offer)
            self._listener.expect(sha256_hex(manifest))
            self._link.send(Message.COMMIT)
            self._listener.wait_for(self._listener.done, self._patience("accepting what was pushed"))
            if self._on_disk != self._wanted:
                raise IncompatibleError(
                    f"{self._device}: it is done, with {len(self._on_disk)} of {len(self._wanted)} frames acknowledged",
                    hint=agent_hint(self._device),
                )
        except OSError as error:
            # What the device said before it hung up explains more than the broken pipe does.
            self._listener.join(2.0) if self._listener.is_alive() else None
            self._listener.check()
            raise UnreachableError(
                f"{self._device}: the push broke off: {error}", hint="run it again: it resumes"
            ) from error
        everything = sum(entry.size_bytes for entry, _ in self._files)
        return UploadResult(
            sent_bytes=self._total,
            wire_bytes=self._wire_bytes,
            skipped_bytes=everything - self._total - want.copied_bytes,
            copied_bytes=want.copied_bytes,
            delta_frames=self._delta_frames,
            resent_frames=self._resent_frames,
            seconds=time.monotonic() - begin,
            channels=self._channels,
        )

    def _patience(self, what: str) -> Deadline:
        return Deadline.after(_PATIENCE_S, f"{self._device}: {what}", self._deadline)

    def _send_frames(self, want: Want, manifest: bytes, offer: Offer) -> None:
        taken = [each for each in want.encodings if each in encodings()]
        bases = _bases(want)
        joins = want.joins and not bases

        def hello(link: Link) -> None:
            link.send(Message.OFFER, data=offer_bytes(Offer(offer.kind, encodings=encodings(), join=True)))
            link.send(Message.MANIFEST, data=manifest)

        def rate() -> float | None:
            own = self._link.rate()
            return None if own is None else own + lanes.rates()

        with closing(Encoder(self._files, taken, bases, rate)) as encoder:
            frames = Frames(encoder, [entry for entry, _ in self._files], want.frames)
            lanes = Lanes(
                self._open_more if joins else None,
                self._device,
                hello,
                frames,
                self._pace,
                self._channel.window_bytes_per_s,
                self._changed,
                self._count,
            )
            with closing(lanes):
                self._lanes = lanes
                while not self._is_sent(frames, lanes):
                    while (frame := frames.next()) is not None:
                        self._send(frame)
                        self._resend(encoder)
                    self._listener.wait_for(
                        lambda: self._again or frames.has_returned() or not (self._open or lanes.busy()),
                        self._patience("taking the last frames"),
                    )
                    self._resend(encoder)
                self._channels += lanes.used()
                self._wire_bytes += lanes.wire_bytes
                self._resent_frames += frames.repeated

    def _on_sent(self) -> None:
        if self._lanes is not None:
            self._lanes.consider(self._link.rate())

    def _is_sent(self, frames: Frames, lanes: Lanes) -> bool:
        """Whether all is sent, and what has to be acknowledged is; no other channel then begins to take frames."""
        with self._changed:
            waits = self._open or self._again or frames.left_bytes or frames.has_returned()
            return not waits and lanes.stop()

    def _resend(self, encoder: Encoder) -> None:
        while self._again:
            file, frame = self._again.popleft()
            damaged = encoder.distrust(file)
            if damaged is not None:
                KnownObjects().forget(damaged)
            self._resent_frames += 1
            self._send(encoder.raw(file, frame))

    def _send(self, frame: EncodedFrame) -> None:
        self._listener.check()
        if frame.encoding != ENCODING_RAW:
            self._open.add((frame.file, frame.frame))
            self._delta_frames += frame.encoding == ENCODING_DELTA
        self._wire_bytes += len(frame.data)
        self._link.send(Message.FRAME, FRAME_HEADER.pack(frame.file, frame.frame, frame.encoding), frame.data)

    def _length(self, file: int, frame: int) -> int:
        return frame_length(self._files[file][0].size_bytes, frame)

    def _on_ack(self, file: int, frame: int) -> None:
        self._open.discard((file, frame))
        self._count(file, frame)

    def _count(self, file: int, frame: int) -> None:
        if (file, frame) not in self._wanted:
            raise WireError(f"frame {frame} of file {file} was acknowledged, and never asked for")
        if (file, frame) in self._on_disk:
            return
        self._on_disk.add((file, frame))
        self._acknowledged += self._length(file, frame)
        self._progress(self._acknowledged, self._total)

    def _on_again(self, file: int, frame: int) -> None:
        if (file, frame) in self._open:
            self._again.append((file, frame))
            self._open.discard((file, frame))


def _bases(want: Want) -> dict[int, Base]:
    """Of each file, the likest base that this host has too."""
    known = KnownObjects()
    out: dict[int, Base] = {}
    for file, objects in want.bases.items():
        for index, (sha256, size_bytes) in enumerate(objects):
            path = known.find(sha256, size_bytes)
            if path is not None:
                out[file] = Base(index, sha256, path)
                break
    return out
