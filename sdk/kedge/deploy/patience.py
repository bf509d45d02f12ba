"""How long a connection that was lost is tried to be made again."""

from __future__ import annotations

import time

from ..transport.base import Deadline, Transport
from ..transport.local import LocalAgent

__all__ = ["Patience", "hang_up"]

_FIRST_PAUSE_S = 0.2
_MOST_PAUSE_S = 5.0


class Patience:
    """Time since the device last answered, and growing pauses between tries.

    Args:
        seconds: without an answer, after which it is over.
        deadline: at which it is over whatever was answered; None: there is none.
    """

    def __init__(self, seconds: float, deadline: Deadline | None = None) -> None:
        self._seconds = seconds
        self._deadline = deadline
        self.renew()

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._deadline is not None and self._deadline.has_passed

    def renew(self) -> None:
        """The device answered."""
        self._last = time.monotonic()
        self._pause_s = _FIRST_PAUSE_S

    def wait(self) -> bool:
        """Wait a little before the next try; False at once where patience is over."""
        end = self._last + self._seconds
        if self._deadline is not None:
            end = min(end, self._deadline.at)
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(self._pause_s, left))
        self._pause_s = min(self._pause_s * 2, _MOST_PAUSE_S)
        return True


def hang_up(transport: Transport) -> None:
    """Give a broken connection up, so that the next request makes another.

    To an agent on this machine there is none, and closing the transport would stop the agent.
    """
    if not isinstance(transport, LocalAgent):
        transport.close()
