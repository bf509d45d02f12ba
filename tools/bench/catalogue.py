"""Which benchmarks there are: what each measures, how it is run in either size, and where its figures go."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tools.bench.facts import ROOT

__all__ = ["BENCHMARKS", "DONE", "MISSING", "RESULTS", "ROOT", "SMOKE_S", "Benchmark", "peers_folder"]

RESULTS = ROOT / "benchmarks" / "results"
#: What all smoke sizes together may take, in seconds.
SMOKE_S = 15 * 60.0
#: Exit status of a benchmark that lacks something: its last line is "not measured: " and the reason.
MISSING = 7
#: In a folder of peers: its environment is whole.
DONE = "done"


@dataclass(frozen=True)
class Benchmark:
    """One program, run by this interpreter from the repository's root.

    what: in one sentence. program: its words before the options. smoke, full: options of either size. peers: of whom it
    compares with, a name of tools/bench/peers.py, or none. results: names of its files, without ending; several where
    it takes a folder. smoke_s, peers_smoke_s: seconds that it, and the making of its peers, may take in the smoke size;
    the full one has all the time. smoke_codes: exit statuses that are no failure in the smoke size. needs: files of
    `shared` that it cannot do without. note: what is to be known beside its figures, to be fair to the others.
    """

    name: str
    title: str
    what: str
    program: tuple[str, ...]
    smoke: tuple[str, ...] = ("--smoke",)
    full: tuple[str, ...] = ()
    peers: str = ""
    results: tuple[str, ...] = ()
    smoke_s: float = 300.0
    peers_smoke_s: float = 0.0
    smoke_codes: tuple[int, ...] = (0,)
    needs: tuple[str, ...] = ()
    note: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its files below the results, without ending."""
        return self.results or (self.name,)

    def out(self, folder: Path, suffix: str) -> Path:
        """What `--out` gets; suffix: "" or ".smoke"."""
        return folder if self.results else folder / f"{self.name}{suffix}.json"


def _script(name: str) -> tuple[str, ...]:
    return (f"tools/bench/{name}.py",)


BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        "startup",
        "Start-up",
        "how long commands take to answer, and an agent to be ready and to answer its first request",
        _script("startup"),
    ),
    Benchmark(
        "serving",
        "Serving",
        "a request to the agent beside MLServer, FastAPI and the bare model: latency, throughput, memory, start",
        _script("serving"),
        peers="serving",
        note="MLServer's REST takes JSON alone, and its gRPC was not measured; kedge and `FastAPI, bytes` are sent "
        "bytes. The floor is the least that a Python process can do behind a Unix socket.",
        peers_smoke_s=150.0,
    ),
    Benchmark(
        "transport",
        "The way to the model",
        "the same request bare, to an agent on this machine, and over SSH",
        _script("transport"),
    ),
    Benchmark(
        "push",
        "Push",
        "a file to a device by kedge, scp, sftp, rsync, paramiko and asyncssh; what a second version and a cut cost",
        _script("push"),
        peers="push",
        note="Links but `0 ms` are a proxy of ours, whose delay hides congestion control. kedge's time holds the "
        "sha256 of every byte and the release's acceptance; the others leave their bytes to the kernel.",
        peers_smoke_s=60.0,
    ),
    Benchmark(
        "optimize",
        "Optimise",
        "static INT8 by kedge, onnxruntime's own tool and ModelOpt: accuracy, size, latency, seconds",
        _script("optimize"),
        peers="modelopt",
        note="ModelOpt's Q/DQ is made for TensorRT: what it costs on this CPU is not what it is for, and its speed on "
        "a GPU was not measured here.",
    ),
    Benchmark(
        "recipes",
        "Recipes",
        "the recipes of `examples/cifar10`, and a transformer: accuracy, multiplications, size, seconds",
        _script("recipes"),
    ),
    Benchmark(
        "engines",
        "Build",
        "engines of TensorRT for RTX, compiled on this host without a GPU: bytes, seconds, memory",
        _script("engines"),
    ),
    Benchmark(
        "fleet",
        "Fleet",
        "rollouts against the number of devices: real agents and simulated ones, by threads and by dask",
        _script("fleet"),
    ),
    Benchmark(
        "recorder",
        "Flight recorder",
        "what recording costs of a core and of the disk, and how far back it reaches",
        _script("recorder"),
    ),
    Benchmark(
        "doctor",
        "Doctor",
        "how long `kedge doctor` takes, of this machine and of a device over SSH",
        _script("doctor"),
    ),
    Benchmark(
        "demo",
        "Demo",
        "`kedge demo`: a small network, trained, quantised, deployed and measured",
        _script("demo"),
    ),
    Benchmark(
        "soak",
        "Soak",
        "an agent at half of its capacity while releases are switched: failed requests, growth of its memory",
        ("-m", "tools.soak"),
        smoke=("--minutes", "0.25"),
        # So short a time says nothing of growth, which it would fail for.
        smoke_codes=(0, 1),
        needs=("models/resnet20_cifar10.onnx",),
    ),
    Benchmark(
        "fuzz",
        "Fuzz",
        "malformed and hostile requests against a real agent: crashes, hangs, unexplained errors",
        ("-m", "tools.fuzz"),
        smoke=("--cases", "1000"),
    ),
    Benchmark(
        "gpu",
        "GPU",
        "copies, a request against a bare loop, and overlap, on the GPU that is here",
        _script("gpu"),
        results=("gpu-latency", "gpu-overlap", "gpu-bandwidth"),
    ),
)
"""In the order in which they run and stand on the page."""


def peers_folder() -> Path:
    """Where the environments of peers are made once, unless `--peers` says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "kedge" / "bench-peers"
