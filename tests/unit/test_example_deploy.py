"""How the worked examples deploy: a busy machine is given a second chance, any other refusal is told."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_of_examples", EXAMPLES / "example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


worked = loaded()
DONE = {"release": "sha256:1"}


def refused(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[str]]]:
    def answers(*documents: dict[str, Any]) -> tuple[Any, list[str]]:
        example, asked, left = worked.Example.__new__(worked.Example), [], list(documents)

        def kedge(*words: str, expect: tuple[int, ...]) -> dict[str, Any]:
            assert expect == (0, 5)
            asked.append(" ".join(words))
            return left.pop(0)

        example.name = "example"
        monkeypatch.setattr(example, "kedge", kedge)
        monkeypatch.setattr(worked.time, "sleep", lambda seconds: None)
        return example, asked

    return answers


def test_a_p99_that_a_busy_machine_spoilt_is_measured_once_more(answering: Any) -> None:
    example, asked = answering(refused("release 1 was refused: latency gate: p99 is 120 ms"), DONE)
    assert example.deploy("m.release") == (DONE, 2)
    assert asked == ["deploy m.release --to local"] * 2


def test_a_machine_that_stays_busy_ends_the_example(answering: Any) -> None:
    example, asked = answering(*[refused("latency gate: p99 is 120 ms")] * worked.ATTEMPTS)
    with pytest.raises(SystemExit, match=r"refused 2 times: latency gate: p99 is 120 ms"):
        example.deploy("m.release")
    assert len(asked) == worked.ATTEMPTS


@pytest.mark.parametrize(
    "message",
    [
        "memory gate: a process takes 2 bytes of its own, above 1",
        "latency gate: p99; parity gate: cosine",
        "it crashed",
    ],
)
def test_what_another_gate_refuses_is_told_at_once(answering: Any, message: str) -> None:
    example, asked = answering(refused(message))
    with pytest.raises(SystemExit, match=message):
        example.deploy("m.release")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("printed", "told"),
    [(b'{"error": {"message": "no"}}', "no"), (b"", ""), (b"{}", ""), (b"[]", ""), (b'{"error": null}', "")],
)
def test_the_message_of_a_command_that_failed_is_found(printed: bytes, told: str) -> None:
    assert worked._error_of(printed) == told
