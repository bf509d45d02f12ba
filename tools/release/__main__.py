"""`make dist`: everything that must hold before the distributions go out, and what goes with them into dist/.

    python -m tools.release [--out dist] [--final] [--quick]

--final asks for a dated section of the changelog. --quick leaves out the environments: what is built is checked, not
tried.
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
    stated = version.stated_version()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    release.step("version in one place", lambda: stated)
    release.step("changelog", lambda: version.require_entry(changelog, stated, final=given.final))
    files: list[Path] = []

    def build() -> str:
        files.extend(built.build_all(out))
        return ", ".join(f"{path.name} {path.stat().st_size / 1e3:,.0f} kB" for path in files)

    if release.step("built twice, the same bytes", build):
        release.step("descriptions (twine)", lambda: built.check_descriptions(files))
        release.step("contents", lambda: built.check_contents(files))
        if not given.quick:
            wheels = {path.name.split("-", 1)[0]: path for path in files if path.suffix == ".whl"}
            with tempfile.TemporaryDirectory(prefix="kedge-dist-") as name:
                tried = Tried(release, wheels, stated, out, samples.make(Path(name)))
                for python in environments.PYTHONS:
                    tried.on(python)
            if tried.bills:
                release.step("licences", lambda: supply.licences_page(tried.bills, out / "LICENSES.md"))
    document = {"version": stated, "passed": not release.failed, "steps": [step.to_json() for step in release.steps]}
    (out / "checks.json").write_text(json.dumps(document, indent=1) + "\n")
    say(f"{'NOT to be released' if release.failed else 'passed'}: {out}")
    return int(release.failed)


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

            self.release.step(f"kedge, Python {python}", base)
            if made:
                self._extras(python, made[0])
        self.release.step(f"kedge-agent alone, Python {python}", partial(self._alone, python))

    def _extras(self, python: str, made: environments.Environment) -> None:
        step = self.release.step
        if python == environments.DEMO_PYTHON:
            step("bill of materials, base", partial(self._billed, made, "base"))

        def agent() -> str:
            environments.install(made, f"{self.wheels['kedge']}[agent]")
            return environments.try_agent(made, *self.sample)

        def demo() -> str:
            environments.install(made, f"{self.wheels['kedge']}[optimize,agent]", torch=True)
            return environments.try_demo(made)

        step(f"kedge[agent], Python {python}", agent)
        if python == environments.DEMO_PYTHON and step(f"kedge demo, Python {python}", demo):
            step("bill of materials, optimize", partial(self._billed, made, "optimize"))
            step("known vulnerabilities", partial(supply.audit, made))

    def _alone(self, python: str) -> str:
        with environments.environment(python) as made:
            environments.install(made, f"{self.wheels['kedge_agent']}[onnxruntime]")
            return environments.try_agent_alone(made, self.version)

    def _billed(self, made: environments.Environment, extra: str) -> str:
        name = f"kedge-{self.version}{'-' + extra if extra != 'base' else ''}.cdx.json"
        self.bills[extra] = supply.write_bill(made, self.out / name)
        return f"{name}: {len(self.bills[extra])} components"


if __name__ == "__main__":
    sys.exit(main())
