"""The servers that tools/bench/serving.py compares: how each is started, when it is ready, what memory it takes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving_client import Address, Connection, ResponseError, prepare

from kedge.build.release import BuildOptions, build_release
from kedge.deploy.push import deploy
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent
from kedge_agent.store.layout import socket_directory

__all__ = [
    "Memory",
    "Server",
    "fastapi",
    "floor",
    "kedge",
    "kedge_empty",
    "make_peers",
    "memory_of",
    "mlserver",
    "running",
]

_HERE = Path(__file__).resolve().parent
_PATIENCE_S = 120.0
_POLL_S = 0.002
_STOP_S = 10.0


@dataclass(frozen=True)
class Memory:
    """Of a process and all that it started, in bytes. Shared pages count once in pss_bytes, in each for rss_bytes."""

    processes: int
    rss_bytes: int
    pss_bytes: int


@dataclass(frozen=True)
class Server:
    """How a server is started in `folder`, and a request that it answers with 200 when all of its models are loaded."""

    name: str
    command: Sequence[str]
    folder: Path
    address: Address
    ready: bytes
    environment: Mapping[str, str] | None = None


@contextlib.contextmanager
def running(server: Server) -> Iterator[tuple[int, float]]:
    """Its process id, and the seconds from the start of the process to the first good answer to `ready`.

    Raises:
        RuntimeError: it ended, or was not ready in time; the message holds its last words.
    """
    log = server.folder / "log.txt"
    with log.open("wb") as out:
        environment = {**os.environ, **(server.environment or {})}
        begin = time.perf_counter()
        process = subprocess.Popen(
            server.command,
            cwd=server.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process.pid, _wait_ready(server, process, begin, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def memory_of(pid: int) -> Memory:
    """The process and its descendants, from /proc/PID/smaps_rollup."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = {pid}
    while more := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= more
    sums = {"Rss": 0, "Pss": 0}
    counted = 0
    for each in tree:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = dict(
                line.split(":", 1) for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:]
            )
            counted += 1
            for key in sums:
                sums[key] += int(fields[key].split()[0]) * 1024
    return Memory(counted, sums["Rss"], sums["Pss"])


def kedge(folder: Path, models: Mapping[str, Path], threads: int, workers: int) -> tuple[Server, Address]:
    """The agent with these models deployed; and its TCP address, the Unix socket being the server's own.

    workers: requests of a model that compute at a time.
    """
    state = folder / "state"
    agent = LocalAgent(state, threads=threads)
    try:
        agent.start(Deadline.after(_PATIENCE_S, "starting the agent"))
        for name, path in models.items():
            release = build_release(path, host_target(), folder / f"{name}.release", BuildOptions(name)).release
            deploy(agent, release)
    finally:
        agent.close()
    port = free_port()
    settings = {"tcp_port": port, "models": {"*": {"workers": workers}}}
    (state / "agent.json").write_text(json.dumps(settings), encoding="utf-8")
    return _agent("kedge", folder, state, threads), ("127.0.0.1", port)


def kedge_empty(folder: Path) -> Server:
    """The agent with nothing deployed: no runtime is loaded."""
    state = folder / "state"
    state.mkdir(mode=0o700)
    return _agent("kedge, no model", folder, state, 1)


def floor(folder: Path, models: Mapping[str, Path], threads: int) -> Server:
    """The process of serving_floor.py."""
    path = Path(tempfile.mkdtemp(prefix="kedge-floor-", dir=folder)) / "s"
    settings = {name: {"path": str(model), "threads": threads} for name, model in models.items()}
    command = [sys.executable, str(_HERE / "serving_floor.py"), str(path)]
    environment = {"KEDGE_BENCH_MODELS": json.dumps(settings)}
    return Server("the floor", command, folder, path, prepare("GET", "/"), environment)


def fastapi(folder: Path, python: str, models: Mapping[str, Path], threads: int) -> Server:
    """The application of serving_fastapi.py under uvicorn, without a line of log a request."""
    port = free_port()
    command = [python, "-m", "uvicorn", "serving_fastapi:app", "--app-dir", str(_HERE)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"]
    settings = {name: {"path": str(path), "threads": threads} for name, path in models.items()}
    return Server(
        "FastAPI",
        command,
        folder,
        ("127.0.0.1", port),
        prepare("GET", "/ready"),
        {"KEDGE_BENCH_MODELS": json.dumps(settings)},
    )


def mlserver(folder: Path, python: str, models: Mapping[str, Path], threads: int, workers: int) -> Server:
    """MLServer with the runtime of serving_mlserver.py. workers: processes that infer; 0: its own."""
    shutil.copyfile(_HERE / "serving_mlserver.py", folder / "serving_mlserver.py")
    port = free_port()
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": workers,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    for name, path in models.items():
        model = {
            "name": name,
            "implementation": "serving_mlserver.OnnxModel",
            "parameters": {"uri": str(path), "extra": {"threads": threads}},
        }
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    program = "from mlserver.cli import main; main()"
    return Server(
        "MLServer",
        [python, "-c", program, "start", str(folder)],
        folder,
        ("127.0.0.1", port),
        prepare("GET", "/v2/health/ready"),
        {"PYTHONPATH": str(folder)},
    )


def make_peers(folder: Path, onnxruntime: str) -> dict[str, str]:
    """Make an environment for each of the others, with the same onnxruntime as here; their interpreters by name."""
    # MLServer 1.7.1 asks uvloop for a loop that none is any longer made for, from uvloop 0.22 on.
    wanted = {"mlserver": ["mlserver", "uvloop<0.22"], "fastapi": ["fastapi", "uvicorn[standard]", "numpy"]}
    out = {}
    for name, packages in wanted.items():
        python = folder / name / "bin" / "python"
        if not (folder / name / "done").exists():
            venv.create(folder / name, with_pip=True, clear=True)
            arguments = ["-m", "pip", "install", "--quiet", *packages, f"onnxruntime=={onnxruntime}"]
            subprocess.run([str(python), *arguments], check=True)
            (folder / name / "done").touch()
        out[name] = str(python)
    return out


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _agent(name: str, folder: Path, state: Path, threads: int) -> Server:
    command = [sys.executable, "-m", "kedge_agent", "--state", str(state), "serve", "--parent-pipe"]
    command += ["--threads", str(threads)]
    return Server(name, command, folder, socket_directory(state) / "infer.sock", prepare("GET", "/v2/health/ready"))


def _wait_ready(server: Server, process: subprocess.Popen[bytes], begin: float, log: Path) -> float:
    while time.perf_counter() - begin < _PATIENCE_S:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, ResponseError), Connection(server.address, 5.0) as connection:
            if connection.ask(server.ready)[0] == 200:
                return time.perf_counter() - begin
        time.sleep(_POLL_S)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise RuntimeError(f"{server.name} did not get ready: {(said or ['it said nothing'])[-1][:300]}")
