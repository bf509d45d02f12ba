"""Runs benchmarks one after the other, each as a process: what each came to is written down before the next begins."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from tools.bench.catalogue import DONE, MISSING, ROOT, SMOKE_S, Benchmark
from tools.bench.facts import SHARED, commit, conditions

__all__ = ["FAILED", "MEASURED", "NOT_MEASURED", "Outcome", "Size", "run_all"]

MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
_PREFIX = "not measured: "
_LEAST_S = 5.0
_END_S = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How the last run of a benchmark ended.

    reason: of what was not measured or failed; else empty. peers: why those that need an environment of their own were
    not compared with; else empty. kedge: what was measured, version and commit; "-dirty" where files differed from it.
    """

    outcome: str
    reason: str
    peers: str
    seconds: float
    at: str
    command: str
    kedge: str


@dataclass(frozen=True)
class Size:
    """smoke: the small size, whose files are kept apart. peers: folder of the peers' environments.

    results: folder of all files. limit_s: of all benchmarks together; those that it cuts off are not measured.
    """

    smoke: bool
    peers: Path
    results: Path
    limit_s: float | None = None

    @property
    def suffix(self) -> str:
        """Of the results' names, before the ending."""
        return ".smoke" if self.smoke else ""


def run_all(benchmarks: Sequence[Benchmark], size: Size, say: Say) -> dict[str, Outcome]:
    """Run them in turn; one that fails keeps none from running.

    Each outcome is written to runs.json (runs.smoke.json) at once; those of benchmarks that are not run now stay.
    """
    size.results.mkdir(parents=True, exist_ok=True)
    path = size.results / f"runs{size.suffix}.json"
    known: dict[str, object] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding="utf-8"))["outcomes"]
    limit_s = size.limit_s if size.limit_s is not None else (SMOKE_S if size.smoke else None)
    end = None if limit_s is None else time.monotonic() + limit_s
    if (tree := commit()).endswith("-dirty"):
        say(f"warning: files differ from their commit ({tree}): nobody can make these figures again, and each says so")
    outcomes = {}
    for number, benchmark in enumerate(benchmarks, 1):
        say(f"[{number} of {len(benchmarks)}] {benchmark.name}: {benchmark.what}")
        left = None if end is None else end - time.monotonic()
        outcomes[benchmark.name] = done = _run(benchmark, size, left, say)
        known[benchmark.name] = asdict(done)
        document = {"benchmark": "runs", "outcomes": known}
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        told = "".join(f": {each}" for each in (done.reason, done.peers) if each)
        say(f"[{number} of {len(benchmarks)}] {benchmark.name}: {done.outcome} after {done.seconds:.0f} s{told}")
    return outcomes


def _run(benchmark: Benchmark, size: Size, left_s: float | None, say: Say) -> Outcome:
    words = [*benchmark.program, *(benchmark.smoke if size.smoke else benchmark.full)]
    words += ["--out", str(benchmark.out(size.results, size.suffix))]
    at, begin, peers = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic(), ""
    tree = commit()

    def ended(outcome: str, reason: str = "") -> Outcome:
        seconds = round(time.monotonic() - begin, 1)
        small = ["--smoke"] if size.smoke else []
        command = shlex.join(["python", "-m", "tools.bench", *small, "--only", benchmark.name])
        return Outcome(outcome, reason, peers, seconds, at, command, tree)

    if left_s is not None and left_s < _LEAST_S:
        return ended(NOT_MEASURED, "the time of all benchmarks together was over")
    for needed in benchmark.needs:
        if not (SHARED / needed).exists():
            return ended(NOT_MEASURED, f"shared/{needed} is not there (KEDGE_SHARED names the folder)")
    end = None if left_s is None else begin + left_s
    if benchmark.peers:
        peers = _make_peers(benchmark, size, end, say)
        if not peers:
            words += ["--make-peers", str(size.peers / benchmark.peers)]
    files = [size.results / f"{name}{size.suffix}.json" for name in benchmark.files]
    before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    if size.smoke:
        # What a run of another day found is no figure of this one.
        for path in files:
            for old in size.results.glob(f"{path.stem}.*"):
                old.unlink()
    load = os.getloadavg()
    limit_s = None if end is None else max(min(end - time.monotonic(), benchmark.smoke_s), _LEAST_S)
    try:
        code, said = _process([sys.executable, *words], limit_s, say)
    except subprocess.TimeoutExpired:
        return ended(FAILED, f"it was stopped after {limit_s:.0f} s, its limit in this size")
    if code == MISSING:
        told = [line.removeprefix(_PREFIX) for line in said if line.startswith(_PREFIX)]
        return ended(NOT_MEASURED, told[-1] if told else "it does not say why")
    if code not in (benchmark.smoke_codes if size.smoke else (0,)):
        return ended(FAILED, f"{said[-1] if said else 'it said nothing'} (exit status {code})")
    written = [path for path in files if path.exists() and path.stat().st_mtime_ns != before.get(path)]
    if not written:
        return ended(FAILED, "it ended well and wrote no figures")
    try:
        for path in written:
            _state_conditions(path, load)
    except ValueError as error:
        return ended(FAILED, f"its figures are no JSON: {error}")
    return ended(MEASURED)


def _state_conditions(path: Path, load: tuple[float, float, float]) -> None:
    """Where and of what a program's figures are, where it does not say so itself; load: the average before."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if "conditions" not in document:
        document = {"conditions": conditions(load), **document}
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_peers(benchmark: Benchmark, size: Size, end: float | None, say: Say) -> str:
    """Make the environment of whom it compares with, or find it made; why there is none, or an empty text."""
    folder = size.peers / benchmark.peers
    if (folder / DONE).exists():
        return ""
    limit_s = None
    if size.smoke:
        limit_s = min(benchmark.peers_smoke_s, benchmark.peers_smoke_s if end is None else end - time.monotonic())
        if limit_s < _LEAST_S:
            return f"their environment is not there, and is made in the full size alone (`--only {benchmark.name}`)"
    say(f"    making the environment of its peers in {folder}")
    try:
        code, said = _process([sys.executable, "tools/bench/peers.py", benchmark.peers, str(folder)], limit_s, say)
    except subprocess.TimeoutExpired:
        return f"their environment was not made within {limit_s:.0f} s"
    return f"their environment could not be made: {said[-1] if said else f'exit status {code}'}" if code else ""


def _process(command: Sequence[str], limit_s: float | None, say: Say) -> tuple[int, list[str]]:
    """Its exit status, and the last lines of its standard error, which is passed on as it comes.

    Raises:
        subprocess.TimeoutExpired: it was stopped, with all that it started.
    """
    # Its folder is what it imports its own modules from; the root, what it takes of tests/support.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    last: deque[str] = deque(maxlen=40)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=_pass_on, args=(process.stderr, last, say), daemon=True)
        reader.start()
        try:
            process.wait(limit_s)
        except BaseException:
            _end(process)
            raise
        finally:
            # A child that it left behind may hold the pipe open.
            reader.join(_END_S)
    return process.returncode, list(last)


def _end(process: subprocess.Popen[str]) -> None:
    """Stop a process and what it started: asked first, so that it removes what it made."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def _pass_on(lines: Iterable[str], last: deque[str], say: Say) -> None:
    for line in lines:
        # What is drawn over itself is told once.
        text = line.rstrip("\n").rpartition("\r")[2].rstrip()
        if text:
            last.append(text.strip())
            say(f"    {text}")
