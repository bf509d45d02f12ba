"""What a device tells of a deploy is looked at once, and nothing that makes no sense gets to a renderer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kedge.deploy.deployed import NonsenseError, read_gate, read_parity, read_probation, read_side

DIGEST = "a" * 64
SIDE = {"release": DIGEST, "version": 1, "runtime": "onnxruntime", "precision": "fp32", "p99_ms": 1.5}
GATE = {"gate": "latency", "passed": True, "figures": {"p99_ms": 1.5}, "limits": {"p99_ms": None}}
PARITY = {"output": "y", "cosine": 1.0, "max_abs_error": None, "relative_error": 0}
PROBATION = {"elapsed_s": 1.5, "seconds": 2, "requests": 3, "errors": 0, "p99_ms": None}


def test_what_is_not_documented_is_left_out_and_what_is_not_told_is_null() -> None:
    assert read_side({**SIDE, "state": "serving"}) == {**SIDE, "size_bytes": None, "peak_bytes": None}
    assert read_gate({"event": "gate", **GATE}) == GATE
    assert read_parity([{**PARITY, "more": 1}]) == [PARITY]
    assert read_probation({"event": "probation", **PROBATION}) == {**PROBATION, "cut_by": None}


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (read_side, {}),
        (read_side, {**SIDE, "release": "abc"}),
        (read_side, {**SIDE, "version": "1"}),
        (read_side, {**SIDE, "p99_ms": "x"}),
        (read_side, {**SIDE, "p99_ms": float("inf")}),
        (read_side, {**SIDE, "peak_bytes": -1}),
        (read_gate, 5),
        (read_gate, {**GATE, "gate": None}),
        (read_gate, {**GATE, "passed": "yes"}),
        (read_gate, {**GATE, "figures": []}),
        (read_gate, {**GATE, "figures": {"p99_ms": "x"}}),
        (read_gate, {**GATE, "limits": {"peak_bytes": []}}),
        (read_gate, {**GATE, "gate": "parity", "figures": {"outputs": 5}}),
        (read_parity, {}),
        (read_parity, [{}]),
        (read_parity, [5]),
        (read_parity, [{**PARITY, "cosine": "x"}]),
        (read_probation, {}),
        (read_probation, {**PROBATION, "errors": "x"}),
        (read_probation, {**PROBATION, "elapsed_s": "x"}),
        (read_probation, {**PROBATION, "cut_by": 1}),
    ],
)
def test_what_makes_no_sense_is_refused(read: Callable[[Any], Any], told: Any) -> None:
    with pytest.raises(NonsenseError):
        read(told)
