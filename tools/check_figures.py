"""Every figure of README.md is a result's, or says which command makes it.

    python tools/check_figures.py [--write]

Behind a figure that comes from a file of benchmarks/results stands a comment that names file, place and format:

    **1.05 ×** <!-- figure: serving # models / mobilenetv2 / ways / kedge, TCP / over_bare / median # **{:.2f} ×** -->

What the file holds there, in that format, must be the text before the comment. `name=value` in a place is the entry
of a list whose `name` is `value`. A factor may stand before the format: `1e-6 {:.0f} MB`. A figure that is no result
names its command, or says what it is: `1.4 GB <!-- figure by: du -sh .venv -->`. In prose, a number with a unit that
has neither is an error. Between `<!-- demo -->` and `<!-- /demo -->` is the table of `kedge demo`, made of demo.json;
--write makes it anew.

Exit status 1, and a line each, where README differs from the results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

__all__ = ["faults", "rendered"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_MARK = re.compile(r"<!-- figure: (?P<file>[\w.-]+) # (?P<place>.+?) # (?:(?P<factor>[\d.e+-]+) )?(?P<format>.+?) -->")
_BY = re.compile(r"<!-- figure by: .+? -->")
_DEMO = re.compile(r"(?<=<!-- demo -->\n).*?(?=<!-- /demo -->)", re.DOTALL)
_UNITS = r"×|x|µs|ms|s|h|%|per cent|[kK]B|MB|GB|MiB|GiB|points?|hours?|minutes?|seconds?|requests?|/s"
_FIGURE = re.compile(rf"(?<![\w.,/-])\d[\d.,]*\s?(?:{_UNITS})(?!\w)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_BESIDE = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make the demo's table anew")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    if arguments.write:
        text = rendered(text, RESULTS)
        path.write_text(text, encoding="utf-8")
    found = faults(text, RESULTS)
    for fault in found:
        print(f"README.md{fault}", file=sys.stderr)
    return 1 if found else 0


def faults(text: str, results: Path) -> list[str]:
    """What of the text is not what the results say: `:LINE: sentence` each."""
    out = []
    for mark in _MARK.finditer(text):
        before = text[: mark.start()].rstrip()
        try:
            expected = _expected(results, mark)
        except (OSError, ValueError, LookupError, TypeError) as error:
            why = str(error) or type(error).__name__
            out.append(_at(text, mark.start(), f"{mark['file']} # {mark['place']}: {why}"))
            continue
        if not before.endswith(expected) or before[: -len(expected)][-1:].isdigit():
            said = before.rpartition("\n")[2][-_BESIDE:]
            out.append(_at(text, mark.start(), f"…{said}: {mark['file']}.json says {expected}"))
    if (block := _DEMO.search(text)) is not None:
        try:
            if block.group() != _table(results):
                line = "the demo's table is not demo.json's: python tools/check_figures.py --write"
                out.append(_at(text, block.start(), line))
        except OSError as error:
            out.append(_at(text, block.start(), f"the demo's table: {error}"))
    return out + _unmarked(text)


def rendered(text: str, results: Path) -> str:
    """The text with the demo's table made of demo.json.

    Raises:
        OSError: demo.json is not there.
    """
    table = _table(results)
    return _DEMO.sub(lambda _: table, text)


def _expected(results: Path, mark: re.Match[str]) -> str:
    value: Any = json.loads((results / f"{mark['file']}.json").read_text(encoding="utf-8"))
    for step in mark["place"].split(" / "):
        if isinstance(value, list):
            name, equals, wanted = step.partition("=")
            value = next(each for each in value if str(each[name]) == wanted) if equals else value[int(step)]
        else:
            value = value[step]
    factor = mark["factor"]
    return mark["format"].format(value if factor is None else value * float(factor))


def _unmarked(text: str) -> list[str]:
    """Numbers with a unit, in prose, that no comment follows."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    # Blanked, not taken out: places stay what they were.
    prose = _CODE.sub(blank, _FENCE.sub(blank, text))
    marks = [mark for pattern in (_MARK, _BY) for mark in pattern.finditer(text)]
    for mark in marks:
        prose = prose[: mark.start()] + " " * (mark.end() - mark.start()) + prose[mark.end() :]
    return [
        _at(text, found.start(), f"{found.group()} says neither its results file nor its command")
        for found in _FIGURE.finditer(prose)
        if not any(0 <= mark.start() - found.end() <= _BESIDE and not text[found.end() : mark.start()].strip(" *_().,")
                   for mark in marks)
    ]  # fmt: skip


def _table(results: Path) -> str:
    from kedge.report.demo import demo_tables

    document = json.loads((results / "demo.json").read_text(encoding="utf-8"))["demo"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        demo_tables(document)
    # The conditions below the table are the page's.
    rows = takewhile(lambda line: not line.startswith("data "), said.getvalue().strip("\n").splitlines())
    return "\n".join(["```", *"\n".join(line.rstrip() for line in rows).rstrip().splitlines(), "```", ""])


def _at(text: str, place: int, what: str) -> str:
    return f":{text.count(chr(10), 0, place) + 1}: {what}"


if __name__ == "__main__":
    sys.exit(main())
