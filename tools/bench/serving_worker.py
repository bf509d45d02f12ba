"""A process of tools/bench/serving.py that asks, or runs the bare model: jobs come as lines of JSON, and answers go.

    python serving_worker.py client
    python serving_worker.py bare THREADS '{"NAME": {"path": "….onnx", "input": "….npy"}}'

It imports nothing that it does not need: the bare model's memory is measured here.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving_client import Connection

LEAST_RUNS = 3


def main() -> int:
    job_of = client if sys.argv[1] == "client" else bare(int(sys.argv[2]), json.loads(sys.argv[3]))
    print("{}", flush=True)
    for line in sys.stdin:
        try:
            answer = {"found": job_of(**json.loads(line))}
        except Exception as error:  # told to the parent, who decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
    return 0


def measure(once: Callable[[], None], begin: float, seconds: float) -> dict[str, Any]:
    """Warm up until `begin`, then measure for so long: milliseconds of each run, and the seconds of all."""
    once()
    while time.perf_counter() < begin:
        once()
    samples = []
    first = last = time.perf_counter()
    while len(samples) < LEAST_RUNS or last - first < seconds:
        once()
        now = time.perf_counter()
        samples.append((now - last) * 1e3)
        last = now
    return {"latencies_ms": samples, "seconds": last - first}


def client(address: str | list[Any], request: str, begin: float, seconds: float) -> list[dict[str, Any]]:
    """One client on a connection of its own; `request` is a file of prepared bytes."""
    content = Path(request).read_bytes()
    with Connection(Path(address) if isinstance(address, str) else (address[0], address[1])) as connection:

        def once() -> None:
            status, _, body = connection.ask(content)
            if status != 200:
                raise RuntimeError(f"status {status}: {bytes(body[:200])!r}")

        return [measure(once, begin, seconds)]


def bare(threads: int, models: dict[str, dict[str, str]]) -> Callable[..., list[dict[str, Any]]]:
    """`session.run` as people call it, from as many threads of this process as the job says."""
    import numpy as np
    import onnxruntime

    sessions = {}
    for name, model in models.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model["path"], options, providers=["CPUExecutionProvider"])
        sessions[name] = (session, {session.get_inputs()[0].name: np.load(model["input"])})

    def job(model: str, callers: int, begin: float, seconds: float) -> list[dict[str, Any]]:
        session, inputs = sessions[model]
        found: list[dict[str, Any]] = []

        def call() -> None:
            found.append(measure(lambda: session.run(None, inputs), begin, seconds))

        running = [threading.Thread(target=call) for _ in range(callers)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return found

    return job


if __name__ == "__main__":
    sys.exit(main())
