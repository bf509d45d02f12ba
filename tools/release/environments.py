"""The built wheels in empty environments, on every Python that is served: the base, the agent, and the demo.

Nothing is imported from the checkout: each environment's own programs run, in a home of their own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..setup import interpreters
from ..setup.make_venv import CONSTRAINTS
from .steps import BrokenError, NotCheckedError, shell

__all__ = [
    "PYTHONS",
    "Environment",
    "environment",
    "interpreter",
    "try_agent",
    "try_agent_alone",
    "try_base",
    "try_demo",
]

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
DEMO_PYTHON = "3.11"

_HELP = """
import click, importlib
from kedge.cli.app import root
from click.testing import CliRunner
def walk(group, words):
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        done = CliRunner().invoke(root, [*words, name, "--help"])
        assert done.exit_code == 0, (words, name, done.output)
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from walk(command, [*words, name])
print(len(list(walk(root, []))))
"""


@dataclass(frozen=True)
class Environment:
    """folder: the virtual environment's. home: what its programs take for the user's."""

    folder: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, program: str, *words: str | Path, expect: tuple[int, ...] = (0,), timeout_s: float = 300) -> str:
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
        }
        return shell(
            [self.folder / "bin" / program, *words], cwd=self.home, env=env, expect=expect, timeout_s=timeout_s
        )


def interpreter(version: str) -> str:
    """A CPython of this version that makes environments.

    Raises:
        NotCheckedError: this machine has none.
    """
    found = interpreters.interpreter(version, needs="ensurepip")
    if found is None:
        raise NotCheckedError(f"no Python {version} on this machine")
    return found


@contextmanager
def environment(version: str) -> Iterator[Environment]:
    """An empty environment, which has not even pip; gone afterwards."""
    python = interpreter(version)
    with tempfile.TemporaryDirectory(prefix="kedge-dist-") as name:
        made = Environment(Path(name) / "venv", Path(name) / "home")
        made.home.mkdir()
        shell([python, "-m", "venv", "--without-pip", made.folder])
        yield made


def install(made: Environment, requirement: str, *, torch: bool = False) -> None:
    """One requirement, and nothing that would have to be compiled.

    Args:
        requirement: a path of a wheel, with extras: kedge-0.1.0-py3-none-any.whl[agent].
        torch: the CPU build first, as the set-up does it.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(made.python)]
    if torch:
        command = (
            "import sys; from pathlib import Path; from tools.setup.make_venv import install_torch; "
            "install_torch(sys.argv[2:], Path(sys.argv[1]))"
        )
        shell([sys.executable, "-c", command, str(made.python), *pip])
    # Compiling what is installed takes longer than all that is tried here.
    words = ["install", "--quiet", "--no-compile", "--constraint", CONSTRAINTS, "--only-binary", ":all:", requirement]
    shell([*pip, *words])
    shell([*pip, "check"])


def try_base(made: Environment, version: str, release: Path) -> str:
    """Commands that a field engineer's laptop has: the base alone, without torch and onnxruntime."""
    if made.run("kedge", "--version").strip() != f"kedge {version}":
        raise BrokenError(f"kedge --version is not {version}")
    commands = int(made.run("python", "-I", "-c", _HELP))
    targets = json.loads(made.run("kedge", "targets", "list", "--json"))
    json.loads(made.run("kedge", "targets", "show", "orin-nano-8gb", "--json"))
    made.run("kedge", "device", "add", "bench1", "me@192.0.2.7", "--target", "cpu-generic-aarch64")
    if "bench1" not in made.run("kedge", "device", "list", "--json"):
        raise BrokenError("a device that was added is not listed")
    made.run("kedge", "release", "verify", release)
    shown = json.loads(made.run("kedge", "release", "show", release, "--json"))
    made.run("kedge", "preflight", next(release.glob("*.onnx")), "--target", "orin-nano-8gb", "--json", expect=(0, 7))
    for words in (("cache", "list"), ("rollout", "list")):
        json.loads(made.run("kedge", *words, "--json"))
    refused = json.loads(made.run("kedge", "infer", "m", "--on", "nowhere", "--input", "x.npy", "--json", expect=(3,)))
    if not refused["error"]["hint"]:
        raise BrokenError("an error came without a hint")
    return f"{commands} commands' --help, {len(targets)} targets, release {shown['release'][:12]}"


def try_agent(made: Environment, release: Path, inputs: Path) -> str:
    """The whole of what a device does, as `local`: deploy behind gates, infer, measure."""
    model = json.loads((release / "manifest.json").read_bytes())["model"]
    try:
        made.run("kedge", "deploy", release, "--to", "local", "--json")
        made.run("kedge", "infer", model, "--on", "local", "--input", inputs, "--json")
        measured = json.loads(made.run("kedge", "bench", model, "--on", "local", "--duration-ms", "300", "--json"))
        history = json.loads(made.run("kedge", "history", "--on", "local", "--json"))
    finally:
        made.run("kedge-agent", "--state", made.home / ".local/state/kedge/local", "stop", expect=(0, 4, 14))
    if not measured or not history:
        raise BrokenError("bench or history said nothing")
    return "deployed to local, inferred, measured"


def try_demo(made: Environment) -> str:
    """`kedge demo`, from the wheel."""
    before = set(made.home.rglob("*"))
    document = json.loads(made.run("kedge", "demo", "--json", timeout_s=600))
    left = {path for path in made.home.rglob("*") if ".cache" not in path.parts} - before
    if left:
        raise BrokenError(f"the demo left {min(left)} behind")
    said = ", ".join(f"{name.upper()} {one['accuracy']['share']:.2%}" for name, one in document["results"].items())
    return f"demo in {document['seconds']:.0f} s: {said}"


def try_agent_alone(made: Environment, version: str) -> str:
    """What lands on a device: the agent without the SDK, in the background and back."""
    if version not in made.run("kedge-agent", "--version"):
        raise BrokenError(f"kedge-agent --version is not {version}")
    made.run("python", "-I", "-c", "import kedge", expect=(1,))
    state = made.home / "state"
    try:
        made.run("kedge-agent", "--state", state, "start")
        status = json.loads(made.run("kedge-agent", "--state", state, "status"))
    finally:
        made.run("kedge-agent", "--state", state, "stop", expect=(0, 4, 14))
    if not status["ready"]:
        raise BrokenError("the agent was not ready")
    return "started, ready, stopped; nothing of the SDK"
