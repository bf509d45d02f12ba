"""`kedge demo`, as a person runs it, and interrupted as a person interrupts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from kedge.demo.workspace import in_workspace
from tests.support.children import processes_under
from tests.support.schemas import validate

pytest.importorskip("torch", reason="the demo trains a network: needs kedge[optimize]")
pytest.importorskip("sklearn", reason="the demo reads scikit-learn's digits: needs kedge[optimize]")


def environment(folder: Path) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return {**os.environ, "TMPDIR": str(folder)}


def nothing_left(folder: Path, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not processes_under(folder) and not list(folder.iterdir()):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_the_demo_s_document_is_as_documented_and_its_figures_make_sense(tmp_path: Path) -> None:
    temporary, keep = tmp_path / "tmp", tmp_path / "kept"
    done = subprocess.run(
        [sys.executable, "-m", "kedge", "demo", "--json", "--keep", str(keep)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(temporary),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    document = json.loads(done.stdout)
    validate(document, "demo")
    fp32, int8 = document["results"]["fp32"], document["results"]["int8"]
    assert document["data"]["held_out_images"] == 360
    assert fp32["accuracy"]["share"] > 0.93
    assert abs(document["int8_over_fp32"]["accuracy_points"]) <= 1.0
    assert int8["model_bytes"] < 0.35 * fp32["model_bytes"]
    assert fp32["release"] != int8["release"]
    assert nothing_left(temporary), (processes_under(temporary), list(temporary.rglob("*")))
    assert sorted(path.name for path in keep.iterdir()) == [
        "calibration.npy",
        "digits-fp32.onnx",
        "digits-int8.onnx",
        "images.npy",
        "labels.npy",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["at once", "imports", "training", "quantising", "deploying", "measuring"])
def test_ctrl_c_leaves_no_process_and_no_folder(tmp_path: Path, moment: str) -> None:
    temporary = tmp_path / "tmp"
    demo = subprocess.Popen(
        [sys.executable, "-m", "kedge", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(temporary),
        start_new_session=True,
    )
    wait_for(moment, temporary, demo)
    # As a terminal does it: to the whole foreground group at once.
    os.killpg(demo.pid, signal.SIGINT)
    if moment in ("at once", "imports"):
        # While Python itself starts, it can lose the signal: raised in a callback of the import system, the
        # interrupt is printed as ignored. A person presses the keys again.
        press_again_until_it_ends(demo)
    out, err = demo.communicate(timeout=60)
    if moment not in ("at once", "imports"):  # before main() runs, Python's own handler reports
        # Interrupted inside exec(), Python dies of SIGINT itself in the end, which a shell shows as 130 too.
        assert demo.returncode in (130, -signal.SIGINT), (out, err)
        assert err.strip() == "kedge: error: interrupted"
    assert demo.returncode != 0, (out, err)
    assert nothing_left(temporary), (processes_under(temporary), list(temporary.rglob("*")))


def press_again_until_it_ends(demo: subprocess.Popen[str]) -> None:
    for _ in range(20):
        with contextlib.suppress(subprocess.TimeoutExpired):
            demo.wait(timeout=2)
            return
        os.killpg(demo.pid, signal.SIGINT)


def wait_for(moment: str, temporary: Path, demo: subprocess.Popen[str]) -> None:
    signs = {
        "training": lambda: list(temporary.glob("kedge-demo-*/models")),
        "quantising": lambda: list(temporary.glob("kedge-demo-*/models/digits-fp32.onnx")),
        "deploying": lambda: list(temporary.glob("kedge-demo-*/device-fp32")),
        "measuring": lambda: list(temporary.glob("kedge-demo-*/device-int8/models/digits/state.json")),
    }
    pauses = {"at once": 0.0, "imports": 0.6, "training": 2.0, "deploying": 0.1, "measuring": 3.0}
    end = time.monotonic() + 120
    while moment in signs and not signs[moment]():
        assert time.monotonic() < end
        assert demo.poll() is None, demo.communicate()
        time.sleep(0.005)
    time.sleep(pauses.get(moment, 0.0))


def test_a_workspace_is_gone_after_success_failure_and_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    closed: list[str] = []

    def work(ending: BaseException | None):
        def inner(folder: Path, stack: ExitStack) -> str:
            assert tempfile.gettempdir() == str(folder)
            (folder / "file").touch()
            stack.callback(closed.append, "closed")
            if ending is not None:
                raise ending
            return "done"

        return inner

    assert in_workspace(work(None)) == "done"
    for ending in (ValueError("x"), KeyboardInterrupt()):
        with pytest.raises(type(ending)):
            in_workspace(work(ending))
    assert closed == ["closed"] * 3
    assert list(tmp_path.iterdir()) == []
    assert tempfile.gettempdir() == str(tmp_path)


def interrupted_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> list[str]:
    """Ctrl-C while the workspace is cleaned up, and with `before` once more before that; what was done."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done: list[str] = []

    def clean() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("cleaned")

    def work(folder: Path, stack: ExitStack) -> None:
        stack.callback(clean)
        if before:
            signal.raise_signal(signal.SIGINT)
        done.append("worked")

    with pytest.raises(KeyboardInterrupt):
        in_workspace(work)
    return done


def test_an_interrupt_during_the_cleaning_waits_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interrupted_cleaning(tmp_path, monkeypatch, before=False) == ["worked", "cleaned"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_interrupt_does_not_stop_the_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interrupted_cleaning(tmp_path, monkeypatch, before=True) == ["cleaned"]
    assert list(tmp_path.iterdir()) == []
