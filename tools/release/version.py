"""One version in one place, and an entry in the changelog for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from .steps import ROOT, BrokenError

__all__ = ["changes_of", "require_entry", "stated_version"]

_VERSION_FILE = ROOT / "device_agent" / "kedge_agent" / "__init__.py"
_ASSIGNED = re.compile(r"""^\s*(__version__|version)\s*=\s*["']\d""", re.MULTILINE)


def stated_version(root: Path = ROOT) -> str:
    """The version that `kedge_agent/__init__.py` states, from which everything else takes it.

    Raises:
        BrokenError: another source file or pyproject.toml states one too.
    """
    source = root / _VERSION_FILE.relative_to(ROOT)
    others = [
        path
        for folder in ("sdk", "device_agent", "targets", "docs")
        for path in (root / folder).rglob("*.py")
        if path != source and _ASSIGNED.search(path.read_text(encoding="utf-8"))
    ]
    others += [
        path
        for path in (root / "pyproject.toml", root / "device_agent" / "pyproject.toml")
        if _ASSIGNED.search(path.read_text(encoding="utf-8"))
    ]
    if others:
        raise BrokenError(
            f"a version stands in {others[0].relative_to(root)} too: take it from kedge_agent.__version__"
        )
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    raise BrokenError(f"{source.relative_to(root)} states no __version__")


def changes_of(changelog: str, version: str) -> tuple[str, int]:
    """Which section of the changelog holds this version's changes, and how many there are.

    A version that is out has a section `## [1.2.3] - 2026-01-31`; before that its changes are under `## [Unreleased]`.
    """
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for title in (f"[{version}]", "[Unreleased]"):
        for section in sections:
            head, _, body = section.partition("\n")
            if head.startswith(title):
                return head.strip(), len(re.findall(r"^- ", body, flags=re.MULTILINE))
    return "", 0


def require_entry(changelog: str, version: str, *, final: bool) -> str:
    """The section's heading.

    Args:
        final: the version goes out: a dated section of its own is needed.

    Raises:
        BrokenError: nothing is written of this version.
    """
    heading, count = changes_of(changelog, version)
    if not count:
        raise BrokenError(f"CHANGELOG.md says nothing of {version}: write what changes under [Unreleased]")
    if final and not re.fullmatch(rf"\[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", heading):
        raise BrokenError(f"CHANGELOG.md has no dated section: ## [{version}] - YYYY-MM-DD")
    return f"{heading}: {count} changes"
