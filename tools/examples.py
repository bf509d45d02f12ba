"""The worked examples: run them, hold a run against the committed result, and put results into the READMEs.

    python -m tools.examples run NAME… [--write]    run; compare with result.json, or replace it and the README's block
    python -m tools.examples readme                 write the blocks of all READMEs from the results
    python -m tools.examples check                  every block says what its result.json says

A README is never given figures by hand: what stands between `<!-- result -->` and `<!-- /result -->` comes from here.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["EXAMPLES", "check", "command_of", "committed", "differences", "measured", "names", "rendered", "run"]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

from example import RESULT_FORMAT, figure_text, tolerance_text  # noqa: E402

_BLOCK = re.compile(r"(<!-- result -->\n).*?(?<=\n)(<!-- /result -->)", re.DOTALL)
_SH = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# An example's first figures are what it kept of its accuracy.
_HEADLINES = 2


def names() -> list[str]:
    """The worked examples: folders with a run.py."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/run.py"))


def measured() -> list[str]:
    """Those that have a result."""
    return [name for name in names() if (EXAMPLES / name / "result.json").is_file()]


def command_of(name: str) -> str:
    """The README's command: its first block of shell, as written.

    Raises:
        ValueError: there is none.
    """
    found = _SH.search((EXAMPLES / name / "README.md").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{name}/README.md has no block of shell")
    return found[1].strip()


def committed(name: str) -> dict[str, Any]:
    """The result that is committed.

    Raises:
        ValueError: it is not of the format that is read here.
    """
    document: dict[str, Any] = json.loads((EXAMPLES / name / "result.json").read_text(encoding="utf-8"))
    if document.get("kedge_example") != RESULT_FORMAT or document["example"] != name:
        raise ValueError(f"{name}/result.json is no result of {name} in format {RESULT_FORMAT}")
    return document


def run(name: str, out: Path) -> None:
    """Run an example, and have it write its figures.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, str(EXAMPLES / name / "run.py"), "--out", str(out)], check=True)


def differences(before: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """Where a fresh result is not within the committed one's tolerances; none where it is."""
    wanted = {figure["name"]: figure for figure in before["figures"]}
    found = {figure["name"]: figure for figure in fresh["figures"]}
    out = [f"{name} is not measured any more" for name in wanted.keys() - found.keys()]
    out += [f"{name} is new" for name in found.keys() - wanted.keys()]
    for name, figure in wanted.items():
        compare = figure["compare"]
        if compare is None or name not in found:
            continue
        old, new, unit = figure["value"], found[name]["value"], figure["unit"]
        if old is None or new is None:
            if old is not new:
                out.append(f"{name} was {figure_text(old, unit)} and is {figure_text(new, unit)}")
            continue
        allowed = compare["tolerance"] * (abs(old) if compare["kind"] == "rel" else 1)
        # 0.95 and 0.93 are 0.02 apart, though a little more in binary.
        if not abs(new - old) <= allowed + 1e-9:  # NaN is within no tolerance
            said = tolerance_text(compare, unit)
            out.append(f"{name} was {figure_text(old, unit)} and is {figure_text(new, unit)} ({said})")
    return out


def rendered(document: Mapping[str, Any]) -> str:
    """A result as the README shows it."""
    conditions = document["conditions"]
    libraries = ", ".join(f"{name} {conditions[name]}" for name in ("onnxruntime", "torch") if conditions[name])
    rows = [
        f"| {figure['name']} | {figure_text(figure['value'], figure['unit'])} | "
        f"{tolerance_text(figure['compare'], figure['unit'])} | {figure['note']} |"
        for figure in document["figures"]
    ]
    where = (
        f"In {document['seconds']:.0f} s on {conditions['processor']}, {conditions['cores']} cores; "
        f"kedge {document['kedge']}, Python {conditions['python']}, {libraries}; {document['measured']}."
    )
    return "\n".join(["| | measured | another run | |", "|---|--:|---|---|", *rows, "", where])


def _overview() -> str:
    rows = []
    for name in measured():
        title = (EXAMPLES / name / "README.md").read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
        document = committed(name)
        kept = [f"{each['name']}: {figure_text(each['value'], each['unit'])}" for each in document["figures"]]
        rows.append(f"| [{title}]({name}/README.md) | {document['seconds']:.0f} s | {'; '.join(kept[:_HEADLINES])} |")
    return "\n".join(["| example | takes | |", "|---|--:|---|", *rows])


def _pages() -> dict[Path, str]:
    """Every README with a block, and what its block is to say."""
    pages = {EXAMPLES / name / "README.md": rendered(committed(name)) for name in measured()}
    return {**pages, EXAMPLES / "README.md": _overview()}


def _filled(page: Path, block: str) -> str:
    text = page.read_text(encoding="utf-8")
    out, count = _BLOCK.subn(lambda found: f"{found[1]}\n{block}\n\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"{page} has {count} blocks <!-- result --> … <!-- /result -->, not one")
    return out


def check() -> list[str]:
    """READMEs whose block does not say what the results say."""
    return [
        f"{page.relative_to(EXAMPLES.parent)} does not show its result: python -m tools.examples readme"
        for page, block in _pages().items()
        if page.read_text(encoding="utf-8") != _filled(page, block)
    ]


def _write() -> None:
    for page, block in _pages().items():
        page.write_text(_filled(page, block), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="run examples")
    runs.add_argument("names", nargs="+", choices=names(), metavar="NAME")
    runs.add_argument("--write", action="store_true", help="the fresh result replaces the committed one")
    commands.add_parser("readme", help="write the blocks of the READMEs")
    commands.add_parser("check", help="blocks against results")
    given = parser.parse_args()
    wrong: list[str] = []
    if given.command == "run":
        for name in given.names:
            with tempfile.TemporaryDirectory() as folder:
                out = EXAMPLES / name / "result.json" if given.write else Path(folder) / "result.json"
                run(name, out)
                if not given.write:
                    wrong += differences(committed(name), json.loads(out.read_text(encoding="utf-8")))
    if given.command == "readme" or (given.command == "run" and given.write):
        _write()
    if given.command == "check":
        wrong = check()
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
