"""`make dist`: everything that must hold before the distributions go out, and what goes with them into dist/.

    python -m tools.release [--out dist] [--final] [--quick]

The last commit is built, not what lies about uncommitted. --final asks for a clean tree, for a dated section of the
changelog, and that nothing is left unchecked. --quick leaves out the environments: what is built is checked, not tried.
What this machine lacks is "not checked", with the reason. Exit code 1 where a step failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from . import built, environments, samples, supply, version
from .steps import ROOT, BrokenError, NotCheckedError, Step, say

_OF_THE_DEMO = (
    "bill of materials, base",
    f"kedge demo, Python {environments.DEMO_PYTHON}",
    "bill of materials, optimize",
    "known vulnerabilities",
)
_MARKS = {"passed": "✓", "failed": "✗", "not checked": "–"}


class Release:
    """Steps one after another; a failed one does not keep the others from being tried."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, name: str, work: Callable[[], str]) -> bool:
        begun = time.monotonic()
        try:
            outcome, detail = "passed", work()
        except NotCheckedError as error:
            outcome, detail = "not checked", str(error)
        except BrokenError as error:
            outcome, detail = "failed", str(error)
        except (ValueError, KeyError, TypeError, IndexError, OSError, StopIteration) as error:
            # What a command printed is not what this step reads.
            outcome, detail = "failed", f"{type(error).__name__}: {error}"
        self.steps.append(Step(name, outcome, detail, time.monotonic() - begun))
        say(f"{_MARKS[outcome]} {name:34} {self.steps[-1].seconds:6.1f} s  {detail}")
        return outcome == "passed"

    @property
    def failed(self) -> bool:
        return any(step.outcome == "failed" for step in self.steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    release, out = Release(), given.out.resolve()
    try:
        built.clear(out)
    except BrokenError as error:
        say(str(error))
        return 1
    stated: list[str] = []

    def one_version() -> str:
        with built.exported("HEAD") as source:
            stated.append(version.stated_version(source))
        return stated[0]

    release.step("what is committed", partial(built.require_clean, final=given.final))
    if release.step("version in one place", one_version):
        changelog = built.committed("CHANGELOG.md")
        release.step("changelog", lambda: version.require_entry(changelog, stated[0], final=given.final))
        _build(release, stated[0], out, quick=given.quick)
    unchecked = [step.name for step in release.steps if step.outcome == "not checked"]
    passed = not release.failed and not (given.final and unchecked)
    document = {"version": stated[0] if stated else None, "passed": passed, "final": given.final, "quick": given.quick}
    document["steps"] = [step.to_json() for step in release.steps]
    (out / "checks.json").write_text(json.dumps(document, indent=1) + "\n")
    said = "passed" if passed else "NOT to be released"
    say(f"{said}: {out}" + (f"; not checked: {', '.join(unchecked)}" if unchecked else ""))
    return int(not passed)


def _build(release: Release, stated: str, out: Path, *, quick: bool) -> None:
    files: list[Path] = []

    def build() -> str:
        files.extend(built.build_all(out))
        return ", ".join(f"{path.name} {path.stat().st_size / 1e3:,.0f} kB" for path in files)

    if not release.step("built twice, the same bytes", build):
        return
    release.step("descriptions (twine)", lambda: built.check_descriptions(files))
    release.step("contents", lambda: built.check_contents(files))
    if quick:
        return
    wheels = {path.name.split("-", 1)[0]: path for path in files if path.suffix == ".whl"}
    with tempfile.TemporaryDirectory(prefix="kedge-dist-") as name:
        made: list[tuple[Path, Path]] = []

        def sample() -> str:
            made.append(samples.make(Path(name)))
            return "a small network, for this machine's target"

        if not release.step("a release to try them with", sample):
            return
        tried = Tried(release, wheels, stated, out, made[0])
        for python in environments.PYTHONS:
            tried.on(python)
        release.step("licences", tried.licences)


@dataclass
class Tried:
    """What is tried in each environment, and what comes of it."""

    release: Release
    wheels: dict[str, Path]
    version: str
    out: Path
    sample: tuple[Path, Path]
    bills: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def on(self, python: str) -> None:
        """One environment, to which extras come as a user adds them; and one for the agent alone."""
        with contextlib.ExitStack() as stack:
            made: list[environments.Environment] = []

            def base() -> str:
                made.append(stack.enter_context(environments.environment(python)))
                environments.install(made[0], str(self.wheels["kedge"]))
                return environments.try_base(made[0], self.version, self.sample[0])

            if self.release.step(f"kedge, Python {python}", base) or made:
                self._extras(python, made[0])
            elif python == environments.DEMO_PYTHON:
                for name in _OF_THE_DEMO:
                    self.release.step(name, partial(_not_without, python))
        self.release.step(f"kedge-agent alone, Python {python}", partial(self._alone, python))

    def _extras(self, python: str, made: environments.Environment) -> None:
        step = self.release.step
        bill_base, demo_name, bill_optimize, known = _OF_THE_DEMO
        if python == environments.DEMO_PYTHON:
            step(bill_base, partial(self._billed, made, "base"))

        def agent() -> str:
            environments.install(made, f"{self.wheels['kedge']}[agent]")
            return environments.try_agent(made, *self.sample)

        def demo() -> str:
            environments.install(made, f"{self.wheels['kedge']}[optimize,agent]", torch=True)
            return environments.try_demo(made)

        step(f"kedge[agent], Python {python}", agent)
        if python == environments.DEMO_PYTHON:
            step(demo_name, demo)
            step(bill_optimize, partial(self._billed, made, "optimize"))
            step(known, partial(supply.audit, made))

    def _alone(self, python: str) -> str:
        with environments.environment(python) as made:
            environments.install(made, f"{self.wheels['kedge_agent']}[onnxruntime]")
            return environments.try_agent_alone(made, self.version)

    def licences(self) -> str:
        """Of what the bills list."""
        if not self.bills:
            raise NotCheckedError("no bill of materials was made")
        return supply.licences_page(self.bills, self.out / "LICENSES.md")

    def _billed(self, made: environments.Environment, extra: str) -> str:
        name = f"kedge-{self.version}{'-' + extra if extra != 'base' else ''}.cdx.json"
        self.bills[extra] = supply.write_bill(made, self.out / name, self.version)
        return f"{name}: {len(self.bills[extra])} components"


def _not_without(python: str) -> str:
    raise NotCheckedError(f"no environment of Python {python} was made")


if __name__ == "__main__":
    sys.exit(main())
