"""Runs the ONNX backend tests through the agent's onnxruntime, and writes the table of it.

    python -m tools.conformance.onnx_nodes [--out docs/onnx-operators.md]

Each test's model is loaded, bound to a slot's buffers and run as a request is. A test that does not pass is run again
by onnxruntime alone: it is a failure of the agent's where onnxruntime passes, and exit status 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from onnx.backend.test.runner import Runner

from kedge_agent.errors import AgentError
from kedge_agent.runtime.base import LoadOptions
from kedge_agent.runtime.onnxruntime import OnnxRuntime

from .onnx_cases import Case, Tensors, cases, unserved_type

__all__ = ["DOCUMENT", "OTHER_VALUES", "Outcome", "Verdict", "document", "run_all", "run_case"]

Verdict = Literal["passed", "unsupported", "not served", "failed"]

OTHER_VALUES = "other values"
"""How a reason begins where nothing was refused; which tests that hits hangs on the processor."""

DOCUMENT = Path(__file__).parents[2] / "docs/onnx-operators.md"

# Codes, and the paths of a temporary model and of onnxruntime's sources.
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : |Load model from \S+ failed:|/onnxruntime_src/\S+ ")

_HEAD = """# ONNX operators, through the agent

The backend tests that ship with onnx {onnx}, run through the agent's runtime with onnxruntime {onnxruntime} on the CPU:
loaded, bound to a slot's buffers, submitted and waited for, as a request is. The tolerance is each test's own.

`python -m tools.conformance.onnx_nodes` writes this file; a test runs all of it and holds this file against the run.

| outcome | tests | what it means |
|---|---|---|
| passed | {passed} | the outputs are those ONNX says |
| unsupported | {unsupported} | onnxruntime itself refuses the model, or computes something else |
| not served | {not_served} | an input or output is of a type for which the Open Inference Protocol has no tensor |
| failed | {failed} | onnxruntime passes, the agent does not |
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one test; reason: why it did not pass."""

    name: str
    verdict: Verdict
    reason: str = ""


def run_all(found: Iterable[Case] | None = None) -> list[Outcome]:
    """Run the tests, or those given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        return [run_case(case, path) for case in (cases() if found is None else found)]


def run_case(case: Case, path: Path) -> Outcome:
    """Run one test; its model is written to `path`."""
    kind = unserved_type(case.model)
    if kind is not None:
        return Outcome(case.name, "not served", kind)
    path.write_bytes(case.model.SerializeToString())
    by_agent = _fault(case, _through_agent, path)
    if by_agent is None:
        return Outcome(case.name, "passed")
    alone = _fault(case, _alone, path)
    # Where onnxruntime computes something, if not what ONNX says, so must the agent.
    if alone is None or (alone.startswith(OTHER_VALUES) and not by_agent.startswith(OTHER_VALUES)):
        return Outcome(case.name, "failed", by_agent)
    return Outcome(case.name, "unsupported", alone)


def document(outcomes: Sequence[Outcome]) -> str:
    """The file: counts, and every test that did not pass."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    lines = [
        _HEAD.format(
            onnx=onnx.__version__,
            onnxruntime=onnxruntime.__version__,
            passed=counts["passed"],
            unsupported=counts["unsupported"],
            not_served=counts["not served"],
            failed=counts["failed"],
        )
    ]
    for verdict in ("failed", "unsupported", "not served"):
        some = [outcome for outcome in outcomes if outcome.verdict == verdict]
        if some:
            lines += [f"## {verdict.capitalize()}", "", "| test | why |", "|---|---|"]
            lines += [f"| `{outcome.name}` | {_cell(outcome.reason)} |" for outcome in some]
            lines.append("")
    return "\n".join(lines)


def _fault(case: Case, run: Callable[[Case, Path], Iterable[Tensors]], path: Path) -> str | None:
    """Why the outputs are not those expected, or None when they are."""
    try:
        for (_, expected), outputs in zip(case.runs, run(case, path), strict=True):
            Runner.assert_similar_outputs(expected, outputs, rtol=case.rtol, atol=case.atol)
    except AssertionError as error:
        return f"{OTHER_VALUES}: {_first(error)}"
    except Exception as error:  # onnxruntime raises many unrelated classes
        return _first(error)
    return None


def _through_agent(case: Case, path: Path) -> Iterable[Tensors]:
    model = OnnxRuntime().load(path, LoadOptions())
    slot = model.slot()
    try:
        for inputs, _ in case.runs:
            feed = dict(zip(case.inputs, inputs, strict=True))
            binding = slot.bind({name: np.shape(array) for name, array in feed.items()})
            for name, array in feed.items():
                binding.inputs[name][...] = array
            binding.submit()
            binding.wait()
            yield [binding.outputs[spec.name] for spec in model.outputs]
    finally:
        slot.close()
        model.close()


def _alone(case: Case, path: Path) -> Iterable[Tensors]:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    for inputs, _ in case.runs:
        yield session.run(None, dict(zip(case.inputs, inputs, strict=True)))


def _first(error: Exception) -> str:
    text = error.message if isinstance(error, AgentError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _NOISE.sub("", lines[0]) if lines else type(error).__name__


def _cell(reason: str) -> str:
    return reason.replace("|", "\\|")[:240]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, write the table, name what failed."""
    parser = argparse.ArgumentParser(description="Run the ONNX backend tests through the agent's runtime.")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    given = parser.parse_args(arguments)
    outcomes = run_all()
    given.out.write_text(document(outcomes), encoding="utf-8")
    failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
    for outcome in failed:
        print(f"{outcome.name}: {outcome.reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
