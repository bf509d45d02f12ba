"""`make dist`: everything that must hold before the distributions go out, and what goes with them into dist/.

    python -m tools.release [--out dist] [--final] [--quick]

--final asks for a dated section of the changelog. --quick leaves out the environments: what is built is checked, not
tried.
What this machine lacks is "not checked", with the reason. Exit code 1 where a step failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
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
            _try(release, wheels, stated, out)
    document = {"version": stated, "passed": not release.failed, "steps": [step.to_json() for step in release.steps]}
    (out / "checks.json").write_text(json.dumps(document, indent=1) + "\n")
    say(f"{'NOT to be released' if release.failed else 'passed'}: {out}")
    return int(release.failed)


def _try(release: Release, wheels: dict[str, Path], stated: str, out: Path) -> None:
    bills: dict[str, list[dict[str, Any]]] = {}

    def billed(made: environments.Environment, extra: str) -> str:
        name = f"kedge-{stated}{'-' + extra if extra != 'base' else ''}.cdx.json"
        bills[extra] = supply.write_bill(made, out / name)
        return f"{name}: {len(bills[extra])} components"

    with tempfile.TemporaryDirectory(prefix="kedge-dist-") as name:
        made_release, inputs = samples.make(Path(name))

        def base(python: str) -> str:
            with environments.environment(python, str(wheels["kedge"])) as made:
                if python == environments.DEMO_PYTHON:
                    release.step("bill of materials, base", lambda: billed(made, "base"))
                return environments.try_base(made, stated, made_release)

        def agent(python: str) -> str:
            with environments.environment(python, f"{wheels['kedge']}[agent]") as made:
                return environments.try_agent(made, made_release, inputs)

        def alone(python: str) -> str:
            with environments.environment(python, f"{wheels['kedge_agent']}[onnxruntime]") as made:
                return environments.try_agent_alone(made, stated)

        def demo() -> str:
            requirement = f"{wheels['kedge']}[optimize,agent]"
            with environments.environment(environments.DEMO_PYTHON, requirement, torch=True) as made:
                release.step("bill of materials, optimize", lambda: billed(made, "optimize"))
                release.step("known vulnerabilities (pip-audit)", lambda: supply.audit(made))
                return environments.try_demo(made)

        for python in environments.PYTHONS:
            release.step(f"kedge, Python {python}", lambda python=python: base(python))
            release.step(f"kedge[agent], Python {python}", lambda python=python: agent(python))
            release.step(f"kedge-agent alone, Python {python}", lambda python=python: alone(python))
        release.step(f"kedge demo, Python {environments.DEMO_PYTHON}", demo)
        if bills:
            release.step("licences", lambda: supply.licences_page(bills, out / "LICENSES.md"))


if __name__ == "__main__":
    sys.exit(main())
