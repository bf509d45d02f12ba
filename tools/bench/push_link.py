"""Links between the host and a device for tools/bench/push.py: a TCP proxy of ours that delays, limits and counts.

It runs as a process of its own: `python push_link.py PORT DELAY_S BYTES_PER_S`. A proxy's delay is no network's: the
two TCP connections that it joins see no delay, lose nothing, and their congestion control is never asked.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LINKS", "Link", "Proxy", "linked"]

_CHUNK_BYTES = 256 * 1024
# On the way at once: what a delay of 25 ms holds at 10 Gbit/s; of a limited link, what a router would keep.
_DELAYED_CHUNKS = 128
_LIMITED_BYTES = 16 * 1024
_LIMITED_CHUNKS = 16


@dataclass(frozen=True)
class Link:
    """round_trip_s: added by the proxy, half of it each way. bytes_per_s: 0: no limit. direct: no proxy at all."""

    name: str
    round_trip_s: float = 0.0
    bytes_per_s: int = 0
    direct: bool = False


LINKS = (
    Link("0 ms", direct=True),
    Link("10 ms", 0.010),
    Link("50 ms", 0.050),
    Link("50 Mbit/s", 0.0, 50_000_000 // 8),
)


@dataclass
class Proxy:
    """Where to connect, and what has travelled."""

    port: int
    process: subprocess.Popen[str] | None = None

    def bytes_so_far(self) -> int:
        """Bytes of both directions since it was started."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["bytes"])


@contextlib.contextmanager
def linked(link: Link, port: int) -> Iterator[Proxy]:
    """A way to a port of this machine over such a link."""
    if link.direct:
        yield Proxy(port)
        return
    command = [sys.executable, str(Path(__file__)), str(port), str(link.round_trip_s / 2), str(link.bytes_per_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Proxy(int(json.loads(process.stdout.readline())["port"]), process)
    finally:
        process.kill()
        process.communicate()


class _Count:
    total = 0


def _carry(source: socket.socket, sink: socket.socket, delay_s: float, bytes_per_s: int, count: _Count) -> None:
    size, chunks = (_LIMITED_BYTES, _LIMITED_CHUNKS) if bytes_per_s else (_CHUNK_BYTES, _DELAYED_CHUNKS)
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(chunks)

    def read() -> None:
        data = b"x"
        while data:
            try:
                data = source.recv(size)
                # A message that is not acknowledged at once would have sshd hold the next one back for 40 ms.
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            except OSError:
                data = b""
            under_way.put((time.monotonic() + delay_s, data))

    threading.Thread(target=read, daemon=True).start()
    free = 0.0
    with contextlib.suppress(OSError):
        while True:
            due, data = under_way.get()
            if bytes_per_s:
                free = max(free, time.monotonic() - 0.01) + len(data) / bytes_per_s
                due = max(due, free)
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                break
            sink.sendall(data)
            count.total += len(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _serve(port: int, delay_s: float, bytes_per_s: int) -> None:
    counts: list[_Count] = []
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(json.dumps({"port": server.getsockname()[1]}), flush=True)

    def accept() -> None:
        while True:
            near, _ = server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for side in (near, far):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for one, other in ((near, far), (far, near)):
                counts.append(_Count())
                arguments = (one, other, delay_s, bytes_per_s, counts[-1])
                threading.Thread(target=_carry, args=arguments, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps({"bytes": sum(count.total for count in counts)}), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
