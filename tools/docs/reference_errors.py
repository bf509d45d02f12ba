"""Pages of every error's text, by the package that says it, and of every exit code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

import kedge.errors
from kedge.errors import ExitCode, KedgeError
from kedge_agent.wire import FAULTS

from .errors import CARRIED, Entry, find_errors

__all__ = ["anchors", "error_pages"]

_INDEX = """# Error texts

Every message that kedge and its agent can say, found in the sources: the exit code, the hint, and where it comes from.
`{name}` stands for what is filled in. The search of this site finds a message by the words around that; the thirty
or so that people meet most, with cause and cure, are in [troubleshooting](../troubleshooting.md).

```{toctree}
:hidden:
:glob:

errors/*
```

| area | messages |
|---|---|"""
_CODES = """# Exit codes and their errors

Which errors end with which code. What to do about each code, with an example, is in [exit codes](../exit-codes.md).
"""

_NO_CODE = 1000


def error_pages() -> dict[str, str]:
    """Pages by path below docs/generated: errors.md, one an area, and exit-codes.md."""
    areas = _areas()
    rows = [f"| [{_title(area)}](errors/{area}.md) | {len(texts)} |" for area, texts in areas.items()]
    pages = {"errors.md": "\n".join([_INDEX, *rows]), "exit-codes.md": _codes_page(areas)}
    for area, texts in areas.items():
        pages[f"errors/{area}.md"] = _page(area, texts)
    return pages


def anchors() -> dict[tuple[str, str], str]:
    """The anchor of each message, by the area that says it and its text."""
    found: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for area, texts in _areas().items():
        for text in texts:
            words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\{[^}]*\}", "", text.lower())).strip("-")
            anchor = base = f"error-{area}-{words[:60].strip('-')}"
            number = 1
            while anchor in taken:
                number += 1
                anchor = f"{base}-{number}"
            taken.add(anchor)
            found[area, text] = anchor
    return found


def _areas() -> dict[str, dict[str, list[Entry]]]:
    """Messages by area and by text."""
    areas: dict[str, dict[str, list[Entry]]] = {}
    for entry in find_errors().entries:
        areas.setdefault(_area(entry), {}).setdefault(entry.text, []).append(entry)
    return dict(sorted(areas.items()))


def _area(entry: Entry) -> str:
    """The package that says it: `optimize`, or `agent-store`; modules without a package are their side's own."""
    side, *rest = entry.module.split(".")
    name = rest[0] if len(rest) > 1 else ""
    return "-".join(part for part in ({"kedge_agent": "agent"}.get(side, "" if name else "kedge"), name) if part)


def _title(area: str) -> str:
    if area == "kedge":
        return "kedge"
    side, _, name = area.partition("-")
    return ("kedge-agent" + (f": {name}" if name else "")) if side == "agent" else f"kedge {area}"


def _page(area: str, texts: dict[str, list[Entry]]) -> str:
    known = anchors()
    lines = [f"# Errors of {_title(area)}", "", "`{name}` stands for what is filled in.", ""]
    by_code: dict[int, list[str]] = {}
    for text, entries in texts.items():
        by_code.setdefault(min(_NO_CODE if entry.code is None else entry.code for entry in entries), []).append(text)
    for code, listed in sorted(by_code.items()):
        heading = "Within other messages" if code == _NO_CODE else f"Exit code {code}: {ExitCode(code).name}"
        lines += [f"## {heading}", ""]
        for text in listed:
            lines += [f"({known[area, text]})=", f"### {_code(text)}", "", *_facts(texts[text]), ""]
    passed = [entry for entry in find_errors().carried if _area(entry) == area]
    if passed:
        lines += ["## Passed on", "", "Here another error's words are said again, or what the other side told:", ""]
        lines += [f"- `{entry.module}` `{entry.function}`: {_code(entry.text)}" for entry in passed]
    return "\n".join(lines)


def _facts(entries: Iterable[Entry]) -> list[str]:
    facts: list[str] = []
    for entry in entries:
        fact = f"- {_code_of(entry)}; said in `{entry.path}`, `{entry.function or 'on import'}`"
        if entry.hint:
            fact += "\n  - hint: " + "; or: ".join(_code(hint) for hint in entry.hint.split(" / "))
        if fact not in facts:
            facts.append(fact)
    return facts


def _code_of(entry: Entry) -> str:
    if entry.code is not None:
        return f"exit code [{entry.code} `{ExitCode(entry.code).name}`](#exit-code-{entry.code})"
    if entry.error in CARRIED:
        return f"`{entry.error}`, met {CARRIED[entry.error]}"
    return "the exit code of the error that it passes on"


def _codes_page(areas: dict[str, dict[str, list[Entry]]]) -> str:
    classes = [
        found for found in vars(kedge.errors).values() if inspect.isclass(found) and issubclass(found, KedgeError)
    ]
    lines = [_CODES]
    for code in ExitCode:
        lines += [f"(exit-code-{int(code)})=", f"## {int(code)} {code.name}", ""]
        said = [
            f"- `{each.__name__}`: {(inspect.getdoc(each) or '').splitlines()[0]}"
            for each in classes
            if each.exit_code == code
        ]
        said += [f"- of the agent's faults: `{kind}`" for kind, fault in FAULTS.items() if fault.exit_code == code]
        where = [
            f"[{_title(area)}](errors/{area}.md) ({number})"
            for area, texts in areas.items()
            if (number := sum(any(entry.code == code for entry in entries) for entries in texts.values()))
        ]
        lines += [*(said or ["No error has it: it is a result."]), ""]
        lines += [f"Its messages: {', '.join(where)}.", ""] if where else []
    return "\n".join(lines)


def _code(text: str) -> str:
    """A code span, which may hold backticks."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
