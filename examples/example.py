"""What the worked examples share: a home of their own, kedge's command line as a reader would type it, and figures.

with Example(__file__) as example:
    example.say("What happens next, and why.")
    built = example.kedge("build", "model.onnx", "--target", example.target)
    example.figure("model, INT8 : FP32", 0.27, "ratio", compare=("abs", 0.02))
    example.finish()
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from kedge import __version__
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ATTEMPTS", "Example", "Figure", "figure_text", "tolerance_text"]

RESULT_FORMAT = 1
_START_S = 60.0
# Of a deploy whose p99 the gate refused, and how long the machine may take to come to rest between them.
ATTEMPTS, _PAUSE_S = 2, 5.0
_WIDTH = 100
_HOMES = {"XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}

Compare = tuple[Literal["abs", "rel"], float]


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    value: in `unit`; None: not measured. compare: how far another run's value may lie from this one, in the figure's
    own unit ("abs") or as a share of it ("rel"); None: it says something of this machine only, and is not compared.
    """

    name: str
    value: float | None
    unit: str
    compare: Compare | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As result.json has it."""
        compare = None if self.compare is None else {"kind": self.compare[0], "tolerance": self.compare[1]}
        return {"name": self.name, "value": self.value, "unit": self.unit, "compare": compare, "note": self.note}


def figure_text(value: float | None, unit: str) -> str:
    """A value for people, in three or four significant digits.

    Units: "share" (shown as per cent), "points" (a difference of two shares, as 0.16 points), "ratio" (as 0.27 ×),
    "bytes" (as kB, MB); others stand behind the number.
    """
    if value is None:
        return "not measured"
    if unit == "share":
        return f"{value * 100:.2f} %"
    if unit == "points":
        return f"{value * 100:.2f} points"
    if unit == "ratio":
        return f"{value:.3g} ×"
    if unit == "bytes":
        for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:g} B"
    number = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"{number} {unit}".rstrip()


def tolerance_text(compare: Mapping[str, Any] | None, unit: str) -> str:
    """How far another run's value may lie off, for people."""
    if compare is None:
        return "not compared"
    tolerance = compare["tolerance"]
    if tolerance == 0:
        return "exactly"
    if compare["kind"] == "rel":
        return f"± {tolerance * 100:g} %"
    if unit in ("share", "points"):
        return f"± {tolerance * 100:g} points"
    return f"± {figure_text(tolerance, unit)}"


class Example:
    """An example's run: nothing of the user's is read or written, nothing is left running or behind.

    folder: scratch, and the current folder of every command. target: the profile of this machine.
    """

    def __init__(self, script: str) -> None:
        self.source = Path(script).resolve().parent
        self.name = self.source.name
        self.target = host_target().name
        parser = argparse.ArgumentParser(description=f"The example {self.name}; see the README.md beside it.")
        parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures here, as JSON")
        out: Path | None = parser.parse_args().out
        self._out = None if out is None else out.absolute()
        self._figures: list[Figure] = []
        self._began = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._local: LocalAgent | None = None

    def __enter__(self) -> Self:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        # SIGTERM unwinds like Ctrl-C: what was started is stopped, what was made is removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        home = Path(tempfile.mkdtemp(prefix="kedge-example-"))
        self._stack.callback(shutil.rmtree, home, ignore_errors=True)
        for variable, name in _HOMES.items():
            (home / name).mkdir()
            self._stack.callback(_set, variable, os.environ.get(variable))
            os.environ[variable] = str(home / name)
        self._stack.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = str(home / "tmp")
        self._stack.callback(os.chdir, Path.cwd())
        self.folder = home / "work"
        self.folder.mkdir()
        os.chdir(self.folder)
        self._stack.callback(self.stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is KeyboardInterrupt:
            print(f"{self.name}: interrupted", file=sys.stderr)
            sys.exit(130)

    def say(self, text: str) -> None:
        """A paragraph for whoever watches."""
        print(f"\n{textwrap.fill(' '.join(text.split()), _WIDTH)}")

    def kedge(self, *words: object, expect: int | tuple[int, ...] = 0) -> dict[str, Any]:
        """Run the real command line, and return its JSON document; its progress and errors go to standard error.

        Args:
            words: the command as a reader would type it. `--json` is added. Paths in the example's own folder are
                shown as from the repository's root.
            expect: the exit code it must have, or those it may have: 5 where a gate's refusal is the point.

        Raises:
            SystemExit: it ended otherwise.
        """
        given = [str(word) for word in words]
        print(f"\n$ {shlex.join(['kedge', *map(self._shown, given)])}")
        if "local" in given:
            self.local()
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "kedge", *given, "--json"], stdout=subprocess.PIPE, check=False, cwd=self.folder
        )
        if done.returncode not in (expect if isinstance(expect, tuple) else (expect,)):
            said = f": {_error_of(done.stdout)}" if done.returncode else ""
            sys.exit(f"{self.name}: kedge {given[0]} ended with {done.returncode}, expected was {expect}{said}")
        print(f"  exit code {done.returncode}, {time.monotonic() - began:.1f} s")
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def deploy(self, release: str) -> tuple[dict[str, Any], int]:
        """Deploy a release to `local`; once more where this machine was too busy just then for its p99.

        The device keeps what was pushed. What any other gate refuses ends the run.

        Returns:
            The command's document, and how many attempts it took.

        Raises:
            SystemExit: it was refused.
        """
        for attempt in range(1, ATTEMPTS + 1):
            deployed = self.kedge("deploy", release, "--to", "local", expect=(0, 5))
            if "error" not in deployed:
                return deployed, attempt
            refused = deployed["error"]["message"]
            if "latency gate" not in refused or "memory gate" in refused or "parity gate" in refused:
                sys.exit(f"{self.name}: {refused}")
            time.sleep(_PAUSE_S)
        sys.exit(f"{self.name}: refused {ATTEMPTS} times: {refused}")

    def local(self, settings: Mapping[str, Any] | None = None) -> LocalAgent:
        """The device `local`, started where it does not run yet; commands `--on local` join it.

        Args:
            settings: of docs/agent.md, written to agent.json of its state folder; the agent is then started anew.
        """
        state = Path(os.environ["XDG_STATE_HOME"]) / "kedge" / "local"
        if settings is not None:
            self.stop()
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            (state / "agent.json").write_text(json.dumps(settings))
            print(f"\nagent.json of `local`: {json.dumps(settings)}")
        if self._local is None:
            self._local = LocalAgent(state)
            self._local.start(Deadline.after(_START_S, "starting the local agent"))
        return self._local

    def stop(self) -> None:
        """Stop the agent; idempotent."""
        if self._local is not None:
            self._local.close()
            self._local = None

    def figure(self, name: str, value: float | None, unit: str, compare: Compare | None = None, note: str = "") -> None:
        """Record a figure (see `Figure`; units: see `figure_text`)."""
        # What comes out of numpy is no JSON.
        plain = getattr(value, "item", lambda: value)()
        self._figures.append(Figure(name, plain, unit, compare, note))

    def finish(self) -> None:
        """Print the figures and, with --out, write result.json."""
        seconds = time.monotonic() - self._began
        rows = [(each.name, figure_text(each.value, each.unit), each.note) for each in self._figures]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        print(f"\n{self.name}, {seconds:.0f} s\n")
        for name, value, note in rows:
            print(f"  {name:{widths[0]}}  {value:>{widths[1]}}  {note}".rstrip())
        if self._out is None:
            return
        document = {
            "kedge_example": RESULT_FORMAT,
            "example": self.name,
            "kedge": __version__,
            "measured": datetime.now(timezone.utc).date().isoformat(),
            "seconds": round(seconds, 1),
            "conditions": {
                "processor": _processor(),
                "cores": len(os.sched_getaffinity(0)),
                "python": platform.python_version(),
                **{name: _version(name) for name in ("onnxruntime", "torch")},
            },
            "figures": [each.to_json() for each in self._figures],
        }
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        self._out.write_text(text + "\n", encoding="utf-8")

    def _shown(self, word: str) -> str:
        for folder, shown in ((self.folder, ""), (self.source, f"examples/{self.name}/")):
            word = word.replace(f"{folder}/", shown)
        return word


def _set(variable: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = value


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _error_of(printed: bytes) -> str:
    """The message in the document of a command that failed; empty where it printed none."""
    try:
        return str(json.loads(printed)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
