"""What `make dist` lets through, and what it does not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tools.release.built import build_all, check_contents, check_descriptions, clear
from tools.release.steps import ROOT, BrokenError, NotCheckedError
from tools.release.supply import allowed, licences_of, licences_page, verdict
from tools.release.version import changes_of, require_entry, stated_version

import kedge

LOG = """# Changelog

## [Unreleased]

### Added

- one
- two

## [0.1.0] - 2026-11-26

- first
"""


def a_checkout() -> None:
    """Skip where git does not tell what is committed: no checkout, or somebody else's."""
    if subprocess.run(["git", "rev-parse", "--git-dir"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("no git checkout: what is built is held against what git tracks")


def test_the_version_stands_in_one_place(tmp_path: Path) -> None:
    assert stated_version() == kedge.__version__
    for folder in ("sdk", "device_agent", "targets", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert stated_version(tmp_path) == kedge.__version__
    (tmp_path / "sdk" / "kedge" / "other.py").write_text('__version__ = "0.2.0"\n')
    with pytest.raises(BrokenError, match=r"a version stands in sdk/kedge/other\.py too"):
        stated_version(tmp_path)


def test_a_version_of_which_nothing_is_written_does_not_go_out() -> None:
    assert changes_of(LOG, "0.2.0") == ("[Unreleased]", 2)
    assert require_entry(LOG, "0.2.0", final=False) == "[Unreleased]: 2 changes"
    assert require_entry(LOG, "0.1.0", final=True) == "[0.1.0] - 2026-11-26: 1 changes"
    with pytest.raises(BrokenError, match=r"no dated section: ## \[0.2.0\] - YYYY-MM-DD"):
        require_entry(LOG, "0.2.0", final=True)
    with pytest.raises(BrokenError, match=r"says nothing of 0\.2\.0"):
        require_entry(LOG.replace("- one\n- two\n", ""), "0.2.0", final=False)


def test_a_licence_that_nobody_has_read_stops_the_release(tmp_path: Path) -> None:
    assert allowed(["MIT"])
    assert allowed(["Apache-2.0 OR GPL-2.0-only"])
    assert allowed(["(MIT OR Apache-2.0) AND Unicode-DFS-2016"]) is False
    assert not allowed(["AGPL-3.0-only"])
    assert not allowed(["unknown"])
    assert not allowed([])
    fine = {"name": "a", "version": "1", "licenses": [{"license": {"name": "License :: OSI Approved :: MIT License"}}]}
    assert licences_of(fine) == ["MIT"]
    assert licences_page({"base": [fine]}, tmp_path / "page.md") == "1 packages"
    assert "| a | 1 | MIT | base |" in (tmp_path / "page.md").read_text()
    odd = {"name": "b", "version": "2", "licenses": [{"license": {"id": "AGPL-3.0-only"}}]}
    with pytest.raises(BrokenError, match=r"b: AGPL-3\.0-only"):
        licences_page({"base": [fine, odd]}, tmp_path / "page.md")
    with pytest.raises(BrokenError, match="c: unknown"):
        licences_page({"base": [{"name": "c"}]}, tmp_path / "page.md")


@pytest.mark.slow
def test_what_is_built_of_a_commit_is_the_same_twice_and_holds_what_git_tracks(tmp_path: Path) -> None:
    pytest.importorskip("twine", reason="needs kedge[dev]")
    a_checkout()
    clear(tmp_path / "dist")
    files = build_all(tmp_path / "dist")
    assert sorted(path.name for path in files) == [
        f"kedge-{kedge.__version__}-py3-none-any.whl",
        f"kedge-{kedge.__version__}.tar.gz",
        f"kedge_agent-{kedge.__version__}-py3-none-any.whl",
    ]
    assert check_descriptions(files) == "3 files"
    assert f"kedge-{kedge.__version__}.tar.gz " in check_contents(files)


def test_a_wheel_that_lacks_a_file_is_named_with_it(tmp_path: Path) -> None:
    import zipfile

    a_checkout()
    wheel = tmp_path / "kedge_agent-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("kedge_agent/surprise.py", "")
    with pytest.raises(BrokenError, match=r"kedge_agent-0.1.0.*missing \['LICENSE'.*surprise.py"):
        check_contents([wheel])


def test_a_python_that_is_not_here_is_not_checked_rather_than_passed() -> None:
    from tools.release.environments import interpreter

    with pytest.raises(NotCheckedError, match=r"no Python 2\.9 on this machine"):
        interpreter("2.9")


def test_an_audit_of_which_nothing_is_known_is_not_taken_for_a_clean_one() -> None:
    clean, skipped = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found on PyPI"}
    assert verdict([clean]) == "1 packages, nothing known against them"
    assert verdict([clean, skipped]).endswith("not asked: b")
    with pytest.raises(NotCheckedError, match="told nothing of 2 of 3 packages: not found on PyPI"):
        verdict([clean, skipped, skipped])
    with pytest.raises(BrokenError, match="a 1: CVE-2026-1"):
        verdict([{**clean, "vulns": [{"id": "CVE-2026-1"}]}, skipped, skipped])


def test_a_folder_of_somebody_s_is_not_cleared_for_a_release(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(BrokenError, match="is no folder of an earlier run"):
        clear(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "checks.json").write_text("{}")
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_machine_without_a_python_leaves_unchecked_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tools.release import __main__ as release
    from tools.release import environments

    def none_here(version: str) -> str:
        raise NotCheckedError(f"no Python {version} on this machine")

    monkeypatch.setattr(environments, "interpreter", none_here)
    steps = release.Release()
    tried = release.Tried(
        steps, {"kedge": tmp_path / "a", "kedge_agent": tmp_path / "b"}, "1", tmp_path, (tmp_path, tmp_path)
    )
    for python in environments.PYTHONS:
        tried.on(python)
    steps.step("licences", tried.licences)
    outcomes = {step.name: step.outcome for step in steps.steps}
    assert set(outcomes.values()) == {"not checked"}
    assert {"kedge demo, Python 3.11", "bill of materials, optimize", "known vulnerabilities", "licences"} <= set(
        outcomes
    )
