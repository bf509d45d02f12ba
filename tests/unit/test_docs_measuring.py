"""What a clone needs to make the figures again is told of every benchmark, and of the files that they are of."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from tools.bench.catalogue import BENCHMARKS

from tests.support.environment import shared_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def section() -> str:
    text = (ROOT / "docs" / "measuring.md").read_text("utf-8")
    return text[text.index("## What a clone needs") : text.index("## What has not been measured")]


def test_every_benchmark_says_what_it_needs(section: str) -> None:
    table = section[: section.index("`shared/models`")]
    told = {
        name for row in re.findall(r"^\| (`[a-z`, ]+`) \|", table, re.MULTILINE) for name in re.findall("[a-z]+", row)
    }
    assert told == {benchmark.name for benchmark in BENCHMARKS}


def test_every_file_that_a_benchmark_names_is_told_with_its_sha256(section: str) -> None:
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tools" / "bench").glob("*.py"))
    named = set(re.findall(r"\b(\w+_(?:cifar10|imagenet|cnn|mlperftiny|v3_3|speechcommands))\b", sources))
    rows = dict(re.findall(r"^\| `([\w.]+)\.(?:onnx|th)` \|.*`([0-9a-f]{64})` \|$", section, re.MULTILINE))
    assert len(named) >= 7
    assert named - rows.keys() == set()


def test_the_files_that_are_here_are_those_that_are_told(section: str) -> None:
    told = re.findall(r"^\| `([\w./]+)`.*`([0-9a-f]{64})` \|$", section, re.MULTILINE)
    assert len(told) > 20
    shared = shared_model("resnet20_cifar10.onnx").parents[1]
    paths = {shared / ("data" if "/" in name else "models") / name: sha256 for name, sha256 in told}
    here = {path: sha256 for path, sha256 in paths.items() if path.exists()}
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in here} == here
