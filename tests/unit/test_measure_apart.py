"""Child processes that load models: real ones, that really crash, hang, are killed and run out of memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kedge_agent.child import Limits, run_child
from kedge_agent.errors import AgentError
from kedge_agent.formats.oip import encode_request
from kedge_agent.measure.apart import measure_phases, profile_layers, try_load
from kedge_agent.measure.apart_child import _tensors
from kedge_agent.runtime.base import LoadOptions
from tests.support import models

INPUTS = {"image": models.images(1)}
MIB = 1 << 20


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return models.classifier(tmp_path / "m.onnx")


def refused(path: Path, **more: object) -> AgentError:
    with pytest.raises(AgentError) as caught:
        try_load(path, "onnxruntime", LoadOptions(), INPUTS, **({"timeout_s": 60} | more))  # type: ignore[arg-type]
    return caught.value


def when_it_runs(number: signal.Signals) -> Callable[[int], None]:
    """Send a signal to the child once its interpreter has begun to import: it must end by nothing else."""

    def send(pid: int) -> None:
        while Path(f"/proc/{pid}/cmdline").read_bytes().count(b"\0") < 4:
            time.sleep(0.001)
        os.kill(pid, number)

    return send


def test_a_model_that_loads_is_tried_and_what_it_took_is_told(classifier: Path) -> None:
    tried = try_load(classifier, "onnxruntime", LoadOptions(), INPUTS, timeout_s=60)
    assert tried.import_ms > 0
    assert tried.load_ms > 0
    assert tried.run_ms is not None
    assert tried.peak_rss_bytes is not None
    assert tried.peak_bytes is not None
    assert tried.peak_rss_bytes > tried.peak_bytes > 10 * MIB
    assert try_load(classifier, "onnxruntime", LoadOptions(), None, timeout_s=60).run_ms is None


def test_an_open_file_without_a_name_is_tried_too(classifier: Path) -> None:
    handle = os.memfd_create("model", os.MFD_CLOEXEC)
    try:
        os.write(handle, classifier.read_bytes())
        path = Path(f"/proc/self/fd/{handle}")
        assert try_load(path, "onnxruntime", LoadOptions(), INPUTS, timeout_s=60).run_ms is not None
    finally:
        os.close(handle)


def test_a_load_that_crashes_is_an_error_that_names_the_signal_and_this_process_lives(classifier: Path) -> None:
    for number in (signal.SIGSEGV, signal.SIGABRT):
        error = refused(classifier, started=when_it_runs(number))
        assert error.kind == "incompatible"
        assert f"crashed while it loaded the model, with signal {number.value} ({number.name})" in error.message


def test_a_load_that_the_kernel_kills_is_out_of_memory(classifier: Path) -> None:
    error = refused(classifier, started=when_it_runs(signal.SIGKILL))
    assert error.kind == "space"
    assert "as the kernel does when memory runs out" in error.message


def test_a_model_that_needs_more_memory_than_it_may_have_is_refused_for_it(tmp_path: Path) -> None:
    model = models.padded(tmp_path / "big.onnx", 80 * MIB)
    error = refused(model, address_space_bytes=260 * MIB)
    assert error.kind == "space"


def test_a_runtime_that_cannot_even_begin_within_its_memory_is_refused_for_it(classifier: Path) -> None:
    assert refused(classifier, address_space_bytes=100 * MIB).kind == "space"


def test_a_load_that_hangs_is_ended_at_its_deadline(classifier: Path) -> None:
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)

    error = refused(classifier, timeout_s=0.5, started=stop)
    assert error.kind == "busy"
    assert "not done after 0.5 s" in error.message
    assert not Path(f"/proc/{pids[0]}").exists()


def test_what_the_runtime_refuses_is_refused_in_its_own_words(tmp_path: Path, classifier: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(classifier.read_bytes()[:200])
    error = refused(tmp_path / "broken.onnx")
    assert error.kind == "incompatible"
    assert "refuses the model" in error.message
    with pytest.raises(AgentError, match="no runtime named 'tflite'"):
        try_load(classifier, "tflite", LoadOptions(), None, timeout_s=60)


def test_load_phases_are_measured_one_by_one_with_the_import_told_apart(classifier: Path) -> None:
    found = measure_phases(classifier, "onnxruntime", LoadOptions(), INPUTS, runs=20, timeout_s=60)
    parts = ["import", "first_load", "first_run", "warm_load", "inference"]
    assert list(found) == [*parts, "runs", "latency"]
    for part in parts:
        assert found[part]["ms"] > 0
        assert found[part]["begin_bytes"] <= found[part]["peak_bytes"] >= found[part]["end_bytes"] > 0
    assert found["latency"]["count"] == found["runs"] == 20
    # The runtime's library is far larger than this model: it must be in the import and not in the first load.
    grown = [found[part]["end_bytes"] - found[part]["begin_bytes"] for part in ("import", "first_load")]
    assert grown[0] > 5 * MIB
    assert found["warm_load"]["ms"] < found["import"]["ms"] + found["first_load"]["ms"]


def test_layers_are_profiled_in_a_process_of_their_own(classifier: Path) -> None:
    layers = profile_layers(classifier, "onnxruntime", LoadOptions(), INPUTS, runs=7, timeout_s=60)
    assert {"Conv", "MatMul"} <= {layer.kind for layer in layers}
    assert {len(layer.times_ms) for layer in layers} == {7}


def test_texts_reach_the_child_as_they_are(tmp_path: Path) -> None:
    inputs = {"text": np.array([["cat", b"\xff"], ["", "dög"]], dtype=object), "n": np.array(3, "i4")}
    header, buffers = encode_request(inputs)
    (tmp_path / "inputs.json").write_bytes(header)
    (tmp_path / "inputs.bin").write_bytes(b"".join(buffers))
    read = _tensors(tmp_path, "inputs")
    assert read is not None
    assert read["text"].tolist() == [[b"cat", b"\xff"], [b"", "dög".encode()]]
    assert (read["n"].shape, read["n"].item()) == ((), 3)


def test_a_child_is_the_first_that_the_kernel_would_end_and_comes_after_whoever_serves(tmp_path: Path) -> None:
    ended = run_child("tests.support.children:told", tmp_path, {"x": [1, "ü"]}, Limits(60, nice=3))
    assert ended.answer == {"request": {"x": [1, "ü"]}, "oom_score_adj": 1000, "nice": os.nice(0) + 3}
    assert ended.code == 0


def test_a_child_ends_with_whoever_started_it(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from kedge_agent.child import Limits, run_child
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
folder = Path({str(tmp_path)!r})
limits = Limits(60, started=lambda pid: (folder / "pid").write_text(str(pid)))
run_child("tests.support.children:forever", folder, {{}}, limits)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        try:
            deadline = time.monotonic() + 20
            while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            parent.kill()
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_child_prints_does_not_become_its_answer(tmp_path: Path) -> None:
    ended = run_child("tests.support.children:noisy", tmp_path, {}, Limits(60))
    assert ended.answer == {"fine": True}
    assert ended.printed[-1] == json.dumps({"fine": False})
