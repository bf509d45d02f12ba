"""The recipes on CIFAR-10 say what they lack: their data do not come with the repository."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("torch")
SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cifar10" / "cifar10.py"


@pytest.mark.parametrize(
    ("function", "lacking", "folder"),
    [
        ("test", "no test images in {}", "data/cifar10"),
        ("train", "no train images in {}", "data/cifar10"),
        ("resnet20", "no checkpoint resnet20_cifar10.th in {}", "models"),
        ("resnet56", "no checkpoint resnet56_cifar10.th in {}", "models"),
    ],
)
def test_what_is_lacking_is_named_with_the_variable_that_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, lacking: str, folder: str
) -> None:
    monkeypatch.setenv("KEDGE_SHARED", str(tmp_path))
    spec = importlib.util.spec_from_file_location("example_cifar10", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(FileNotFoundError) as caught:
        getattr(module, function)()
    assert str(caught.value) == lacking.format(tmp_path / folder) + "; set KEDGE_SHARED"
