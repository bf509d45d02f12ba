"""The set-up script, on machines that lack something."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make_venv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_venv", ROOT / "tools" / "setup" / "make_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def item(name: str, url: str) -> dict:
    return {"metadata": {"name": name, "version": "1"}, "download_info": {"url": url}}


def test_a_python_without_venv_is_told_the_package_in_one_line(
    make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_venv.missing() is None
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    said = make_venv.missing()
    assert f"apt-get install python3.{sys.version_info.minor}-venv" in said
    assert "\n" not in said


def test_a_python_too_old_is_told_in_one_line(make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_venv.sys, "version_info", (3, 9, 2, "final", 0))
    assert "3.10 or newer, this is 3.9.2" in make_venv.missing()


def test_a_download_s_size_is_added_up_or_said_to_be_unknown(make_venv: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a b.whl").write_bytes(b"\0" * 3_000_000)
    known = item("torch", (tmp_path / "a b.whl").as_uri())
    assert make_venv.size_of([known, known]) == "6 MB to download"
    assert make_venv.size_of([known, item("x", (tmp_path / "absent").as_uri())]) == "size unknown"


def test_a_plan_with_cuda_libraries_is_recognised(make_venv: ModuleType) -> None:
    assert not make_venv.is_cuda([item("torch", ""), item("sympy", "")])
    for name in ("nvidia-cublas", "nvidia-cudnn-cu13", "cuda-bindings", "triton"):
        assert make_venv.is_cuda([item("torch", ""), item(name, "")])


def test_make_without_a_target_says_what_there_is_to_make() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "test-all", "check", "lint", "format", "bench", "clean", "help"):
        assert f"{target} " in said


def test_the_constraints_pin_every_direct_dependency() -> None:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    import re

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    pinned = {
        re.split(r"[=;<> ]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "tools" / "setup" / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    for requirement in wanted:
        if requirement.startswith("kedge["):
            continue  # an extra that builds on another of ours
        assert re.split(r"[>=;<\[ ]", requirement)[0].lower().replace("_", "-") in pinned, requirement
