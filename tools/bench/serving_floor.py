"""The least that a Python process can do for a request: what tools/bench/serving.py calls the floor.

No checks, no errors, no limits, one request at a time: a head is looked at, the tensor received into memory that is
bound to the session, the session run, its memory sent. What a server adds to this is its own.

    python serving_floor.py SOCKET     KEDGE_BENCH_MODELS: {"NAME": {"path": "…", "threads": 1}}
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_PATH = re.compile(rb"\S+ /(\w+)")


class Bound:
    """A session bound to memory of its own, for batch 1."""

    def __init__(self, path: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        first, last = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.x = np.zeros([size if isinstance(size, int) else 1 for size in first.shape], np.float32)
        self.y = np.zeros_like(self.session.run(None, {first.name: self.x})[0])
        self.io = self.session.io_binding()
        self.io.bind_input(first.name, "cpu", 0, np.float32, self.x.shape, self.x.ctypes.data)
        self.io.bind_output(last.name, "cpu", 0, np.float32, self.y.shape, self.y.ctypes.data)
        self.view = memoryview(self.x.reshape(-1).view(np.uint8))
        self.alone = threading.Lock()
        self.head = f"HTTP/1.1 200 OK\r\nContent-Length: {self.y.nbytes}\r\n\r\n".encode()


def serve(connection: socket.socket, models: dict[str, Any]) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    while seen := connection.recv(4096, socket.MSG_PEEK):
        end = seen.find(b"\r\n\r\n") + 4
        connection.recv(end)
        found = _PATH.match(seen)
        model = models.get(found[1].decode()) if found else None
        if model is None:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            continue
        done, view = 0, model.view
        with model.alone:
            while done < len(view):
                done += connection.recv_into(view[done:])
            model.session.run_with_iobinding(model.io)
            connection.sendmsg([model.head, model.y])


def main() -> None:
    models = {name: Bound(**each) for name, each in json.loads(os.environ["KEDGE_BENCH_MODELS"]).items()}
    with socket.socket(socket.AF_UNIX) as listener:
        Path(sys.argv[1]).unlink(missing_ok=True)
        listener.bind(sys.argv[1])
        listener.listen()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, models), daemon=True).start()


if __name__ == "__main__":
    main()
