"""More channels of one push, where the window of the first is what bounds it: each brings frames to the same parcel."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

from kedge_agent.formats.frames import frame_length
from kedge_agent.formats.manifest import FileEntry
from kedge_agent.wire import FRAME_HEADER, Message

from .base import Channel, Deadline
from .encoding import EncodedFrame, Encoder
from .link import Link, Pace
from .listening import Listener

__all__ = ["Frames", "Lanes", "OpenMore"]

_MOST_LANES = 4
# What an end of the encryption takes at best; a window that allows more binds nobody.
_FASTEST_BYTES_PER_S = 300e6
# Of what its window allows: a channel that carries less waits for something else. Its first frame goes at half of it.
_BOUND_SHARE = 0.45
# What takes no longer is sent before other processes of the agent have started, and they would take the processor from
# the one that is at it.
_WORTH_BYTES = 32_000_000
_WORTH_S = 0.5
_OPEN_S = 30.0
# Less than the agent waits for the first channel, which is silent while the last frames are acknowledged elsewhere.
_PATIENCE_S = 20.0

OpenMore = Callable[[Deadline], tuple[Channel, int]]
"""Opens one more channel to the same device (`Transport.open_receive`)."""

Acknowledged = Callable[[int, int], None]


class Frames:
    """Frames that are still to be sent, for whoever can send one next; what comes back travels again, raw.

    Args:
        files: entries in manifest order.
        wanted: frames by file and index.
    """

    def __init__(self, encoder: Encoder, files: Sequence[FileEntry], wanted: Sequence[tuple[int, int]]) -> None:
        self._encoder = encoder
        self._files = files
        self._coming = encoder.encode(wanted)
        self._returned: deque[tuple[int, int]] = deque()
        self._guard = threading.Lock()
        self._failure: Exception | None = None
        self.left_bytes = sum(frame_length(files[file].size_bytes, frame) for file, frame in wanted)
        self.repeated = 0

    def next(self) -> EncodedFrame | None:
        """The next frame; None: there is none now.

        Raises:
            OSError: its file cannot be read; as often as it is called.
        """
        with self._guard:
            if self._failure is not None:
                raise self._failure
            if self._returned:
                self.repeated += 1
                return self._encoder.raw(*self._returned.popleft())
            try:
                frame = next(self._coming, None)
            except Exception as error:
                self._failure = error
                raise
            if frame is not None:
                self.left_bytes -= frame_length(self._files[frame.file].size_bytes, frame.frame)
            return frame

    def give_back(self, frame: tuple[int, int]) -> None:
        """A frame, by file and index, that was not acknowledged and is to be sent again."""
        self._returned.append(frame)

    def has_returned(self) -> bool:
        """Whether a frame came back and is to be sent."""
        return bool(self._returned)


class Lanes:
    """The channels of a push beside its first one; none, until that is found to be bound by its window.

    Args:
        open_more: None: there is no way to open any.
        hello: says OFFER and MANIFEST of one that joins.
        bound_bytes_per_s: what the window of a channel lets through.
        changed: guards what is told from several threads, and is notified of it.
        acknowledged: told of each frame that is on the device's disk, by file and index, once.
    """

    def __init__(
        self,
        open_more: OpenMore | None,
        device: str,
        hello: Callable[[Link], None],
        frames: Frames,
        pace: Pace,
        bound_bytes_per_s: float,
        changed: threading.Condition,
        acknowledged: Acknowledged,
    ) -> None:
        self.open_more = open_more
        self.device = device
        self.hello = hello
        self.frames = frames
        self.pace = pace
        self.changed = changed
        self.acknowledged = acknowledged
        self.stopped = False
        self._bound_bytes_per_s = bound_bytes_per_s
        self._all: list[_Lane] = []

    def consider(self, rate_bytes_per_s: float | None) -> None:
        """Open as many as there is use for, in the background.

        Args:
            rate_bytes_per_s: that the first channel has carried so far.
        """
        if self._all or self.open_more is None or rate_bytes_per_s is None:
            return
        is_bound = rate_bytes_per_s >= _BOUND_SHARE * self._bound_bytes_per_s
        if not is_bound or self.frames.left_bytes < max(_WORTH_BYTES, _WORTH_S * rate_bytes_per_s):
            return
        fastest = min(_FASTEST_BYTES_PER_S, self.pace.limit_bytes_per_s or math.inf)
        useful = min(_MOST_LANES, math.ceil(fastest / self._bound_bytes_per_s))
        self._all = [_Lane(self, self.open_more) for _ in range(useful - 1)]
        for lane in self._all:
            lane.start()

    def rates(self) -> float:
        """Bytes a second that they carry together."""
        return sum(lane.rate() for lane in self._all)

    def busy(self) -> bool:
        """Whether frames are with one of them."""
        return any(lane.begun and not lane.over for lane in self._all)

    def used(self) -> int:
        """How many have brought a frame."""
        return sum(lane.brought > 0 for lane in self._all)

    @property
    def wire_bytes(self) -> int:
        """Payload that travelled through them."""
        return sum(lane.wire_bytes for lane in self._all)

    def stop(self) -> bool:
        """Let none begin any more; False, and nothing is done, while frames are with one of them."""
        with self.changed:
            self.stopped = not self.busy()
            return self.stopped

    def close(self) -> None:
        """Hang all of them up; idempotent."""
        with self.changed:
            self.stopped = True
        for lane in self._all:
            lane.hang_up()


class _Lane(threading.Thread):
    """One channel: sends frames until there are none, and gives back what was not acknowledged when it breaks."""

    def __init__(self, lanes: Lanes, open_more: OpenMore) -> None:
        super().__init__(daemon=True)
        self._lanes = lanes
        self._open_more = open_more
        self._channel: Channel | None = None
        self._link: Link | None = None
        self._under_way: set[tuple[int, int]] = set()
        self.begun = False
        self.over = False
        self.brought = 0
        self.wire_bytes = 0

    def run(self) -> None:
        """Until there are no frames, or something goes wrong: the others then send what it had."""
        lanes = self._lanes
        try:
            channel, protocol = self._open_more(Deadline.after(_OPEN_S, f"{lanes.device}: opening another channel"))
            self._channel = channel
            if protocol > 1:
                self._push(channel)
        except Exception:  # noqa: S110  (the push goes on without it; what ails them all, the first one meets as well)
            pass
        finally:
            with lanes.changed:
                for frame in self._under_way:
                    lanes.frames.give_back(frame)
                self._under_way.clear()
                self.over = True
                lanes.changed.notify_all()
            self.hang_up()

    def rate(self) -> float:
        """Bytes a second that it carries; 0 while nothing is known of it."""
        return 0.0 if self._link is None or self.over else self._link.rate() or 0.0

    def hang_up(self) -> None:
        """Close its channel, if it has one."""
        if self._channel is not None:
            self._channel.close()

    def _push(self, channel: Channel) -> None:
        lanes = self._lanes
        channel.settimeout(_PATIENCE_S)
        link = Link(channel, lanes.pace)
        listener = Listener(channel, lanes.device, self._on_ack, self._on_again, lanes.changed)
        lanes.hello(link)
        listener.start()
        listener.wait_for(listener.has_want, Deadline.after(_PATIENCE_S, "joining"))
        with lanes.changed:
            if lanes.stopped:
                return
            self.begun = True
        self._link = link
        while (frame := lanes.frames.next()) is not None:
            with lanes.changed:
                self._under_way.add((frame.file, frame.frame))
            listener.check()
            self.wire_bytes += len(frame.data)
            link.send(Message.FRAME, FRAME_HEADER.pack(frame.file, frame.frame, frame.encoding), frame.data)
        link.send(Message.COMMIT)
        listener.wait_for(lambda: not self._under_way, Deadline.after(_PATIENCE_S, "taking the last frames"))

    def _on_ack(self, file: int, frame: int) -> None:
        # What was given back is another's to tell of.
        if (file, frame) in self._under_way:
            self._under_way.discard((file, frame))
            self.brought += 1
            self._lanes.acknowledged(file, frame)

    def _on_again(self, file: int, frame: int) -> None:
        if (file, frame) in self._under_way:
            self._under_way.discard((file, frame))
            self._lanes.frames.give_back((file, frame))
