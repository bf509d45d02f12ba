"""What comes with the distributions: a bill of materials, the licences, and what is known against any of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .environments import Environment
from .steps import ROOT, BrokenError, NotCheckedError, shell

__all__ = ["allowed", "audit", "licences_of", "licences_page", "verdict", "write_bill"]

# Licences whose terms a user keeps by installing the package unchanged. LGPL: as a library of its own, as pip does it.
_ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "LGPL-2.1", "LGPL-2.1-only",
    "LGPL-2.1-or-later", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Python-2.0.1", "Unlicense",
    "Zlib", "HPND", "NCSA", "LGPL-3.0-only", "LGPL-3.0-or-later", "BSD", "CNRI-Python",
}  # fmt: skip
# What packages call theirs where they do not use SPDX's names.
_NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache": "Apache-2.0",
    "apache license": "Apache-2.0",
    "bsd license": "BSD",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd-3-clause license": "BSD-3-Clause",
    "bsd": "BSD",
    "lgpl-2.1": "LGPL-2.1",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
# Read by us in the package itself, whose metadata have no form that a tool knows.
_READ = {"protobuf": "BSD-3-Clause"}


def write_bill(made: Environment, path: Path, version: str) -> list[dict[str, Any]]:
    """CycloneDX 1.6 of everything in an environment; the components."""
    shell([sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--spec-version", "1.6",
           "--pyproject", ROOT / "pyproject.toml", "--of", "JSON", "-o", path, made.python])  # fmt: skip
    bill = json.loads(path.read_text())
    # The tool reads pyproject.toml, where the version is dynamic.
    bill["metadata"]["component"] |= {"version": version, "purl": f"pkg:pypi/kedge@{version}"}
    path.write_text(json.dumps(bill, indent=1) + "\n")
    return list(bill["components"])


def licences_of(component: dict[str, Any]) -> list[str]:
    """SPDX names or expressions; those that a classifier names only where nothing better is stated."""
    stated: list[str] = []
    for entry in component.get("licenses", []):
        if "expression" in entry:
            return [entry["expression"]]
        one = entry["license"]
        name = str(one.get("id") or one.get("name") or "").strip()
        if one.get("text") or "\n" in name or len(name) > 80:
            continue  # the licence's own words, which are kept with the package
        name = name.removeprefix("License :: OSI Approved :: ").removeprefix("License :: ")
        stated.append(_NAMES.get(name.lower(), name))
    found = sorted({name for name in stated if name and name not in ("OSI Approved", "declared license file")})
    return found or [_READ[name] for name in (component["name"],) if name in _READ]


def allowed(names: Iterable[str]) -> bool:
    """Whether each licence, or of "A OR B" one, is among those that may come along."""
    from license_expression import ExpressionError, get_spdx_licensing

    spdx = get_spdx_licensing()

    def holds(node: Any) -> bool:
        if isinstance(node, spdx.AND):
            return all(holds(part) for part in node.args)
        if isinstance(node, spdx.OR):
            return any(holds(part) for part in node.args)
        return str(getattr(node, "license_symbol", node).key) in _ALLOWED

    def one(name: str) -> bool:
        try:
            return holds(spdx.parse(name))
        except ExpressionError:  # no SPDX: a name that a package made up
            return name in _ALLOWED

    listed = list(names)
    return bool(listed) and all(one(name) for name in listed)


def licences_page(bills: dict[str, list[dict[str, Any]]], path: Path) -> str:
    """A table in Markdown of every package that an installation brings.

    Raises:
        BrokenError: a licence is unknown, or may not come along unread.
    """
    rows: dict[str, tuple[str, str, list[str]]] = {}
    for extra, components in bills.items():
        for part in components:
            version, _, where = rows.get(part["name"], (part.get("version", ""), "", []))
            rows[part["name"]] = (version, " / ".join(licences_of(part)) or "unknown", [*where, extra])
    lines = [
        "# Licences of what is installed with kedge",
        "",
        "Of the base and of the extra `optimize`. The extras `tensorrt`, `cuda` and `nvml` (NVIDIA's own terms),",
        "`modelopt`, `cluster`, `examples`, `docs` and `dev` are not listed: who asks for one reads its terms.",
        "",
        "| package | version | licence | comes with |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {version} | {licence} | {', '.join(where)} |"
        for name, (version, licence, where) in sorted(rows.items())
    ]
    path.write_text("\n".join(lines) + "\n")
    odd = [f"{name}: {licence}" for name, (_, licence, _) in sorted(rows.items()) if not allowed(licence.split(" / "))]
    if odd:
        raise BrokenError(f"licences to be read before they come along (tools/release/supply.py): {'; '.join(odd)}")
    return f"{len(rows)} packages"


def audit(made: Environment) -> str:
    """Known vulnerabilities of what is installed, as PyPI tells them.

    Raises:
        BrokenError: there are some. NotCheckedError: PyPI does not tell.
    """
    site = next((made.folder / "lib").glob("python*/site-packages"))
    try:
        said = shell(
            [sys.executable, "-m", "pip_audit", "--path", site, "--format", "json", "--progress-spinner", "off"],
            expect=(0, 1),
            timeout_s=300,
        )  # fmt: skip
        found = json.loads(said)["dependencies"]
    except (BrokenError, ValueError, KeyError) as error:
        raise NotCheckedError(f"pip-audit could not ask PyPI: {str(error).splitlines()[-1][:150]}") from error
    return verdict(found)


def verdict(found: list[dict[str, Any]]) -> str:
    """What pip-audit's list of dependencies says.

    Raises:
        BrokenError: something is known against one. NotCheckedError: PyPI told nothing of most of them.
    """
    known = [f"{one['name']} {one['version']}: {vuln['id']}" for one in found for vuln in one.get("vulns", [])]
    if known:
        raise BrokenError(f"known vulnerabilities: {'; '.join(known)}")
    skipped = [one for one in found if "skip_reason" in one and not one["name"].startswith("kedge")]
    asked = len([one for one in found if "skip_reason" not in one])
    if len(skipped) > asked:
        why = str(skipped[0]["skip_reason"])[:120]
        raise NotCheckedError(f"PyPI told nothing of {len(skipped)} of {len(found)} packages: {why}")
    said = f"{asked} packages, nothing known against them"
    return said + (f"; not asked: {', '.join(one['name'] for one in skipped)}" if skipped else "")
