"""Benchmarks one after the other: what fails, lacks something or takes too long is named, and the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tools.bench import __main__ as command
from tools.bench import runner
from tools.bench.catalogue import BENCHMARKS, Benchmark
from tools.bench.facts import ROOT
from tools.bench.runner import FAILED, MEASURED, NOT_MEASURED, Size, run_all

GOOD = 'import sys, pathlib; pathlib.Path(sys.argv[-1]).write_text("{}")'


def benchmark(folder: Path, name: str, program: str) -> Benchmark:
    path = folder / f"{name}.py"
    path.write_text(program, encoding="utf-8")
    return Benchmark(name, name.title(), f"what {name} does", (str(path),), smoke=())


def size(folder: Path, *, smoke: bool = True, limit_s: float | None = None) -> Size:
    return Size(smoke, folder / "peers", folder / "results", limit_s)


def test_one_that_fails_is_named_with_its_last_word_and_the_others_run(tmp_path: Path) -> None:
    said: list[str] = []
    chosen = [
        benchmark(tmp_path, "bad", 'import sys; print("first", file=sys.stderr); raise ValueError("it fell over")'),
        benchmark(tmp_path, "silent", "raise SystemExit(3)"),
        benchmark(tmp_path, "idle", "pass"),
        benchmark(tmp_path, "garbled", GOOD.replace("{}", "{")),
        benchmark(tmp_path, "good", GOOD),
    ]
    outcomes = run_all(chosen, size(tmp_path), said.append)
    assert [each.outcome for each in outcomes.values()] == [FAILED, FAILED, FAILED, FAILED, MEASURED]
    assert outcomes["bad"].reason == "ValueError: it fell over (exit status 1)"
    assert outcomes["silent"].reason == "it said nothing (exit status 3)"
    assert outcomes["idle"].reason == "it ended well and wrote no figures"
    assert outcomes["garbled"].reason.startswith("its figures are no JSON")
    conditions = json.loads((tmp_path / "results" / "good.smoke.json").read_text())["conditions"]
    assert {"processor", "cores", "python", "commit", "load_average"} <= conditions.keys()
    assert "    first" in said
    assert next(line for line in said if not line.startswith("warning")) == "[1 of 5] bad: what bad does"
    assert said[-1].startswith("[5 of 5] good: measured after")


def test_what_the_machine_lacks_is_not_measured_and_no_failure(tmp_path: Path) -> None:
    program = 'import sys; print("not measured: no GPU here", file=sys.stderr); sys.exit(7)'
    needy = replace(benchmark(tmp_path, "needy", GOOD), needs=("models/nothing-of-this-name.onnx",))
    outcomes = run_all([benchmark(tmp_path, "gpu", program), needy], size(tmp_path), lambda _: None)
    assert (outcomes["gpu"].outcome, outcomes["gpu"].reason) == (NOT_MEASURED, "no GPU here")
    assert outcomes["needy"].outcome == NOT_MEASURED
    assert "shared/models/nothing-of-this-name.onnx is not there" in outcomes["needy"].reason


@pytest.mark.slow
def test_one_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    child = 'import os, subprocess, sys; p = subprocess.Popen(["sleep", "600"]); '
    child += f'open({str(tmp_path / "pid")!r}, "w").write(str(p.pid)); p.wait()'
    slow = replace(benchmark(tmp_path, "slow", child), smoke_s=5.0)
    outcomes = run_all([slow, benchmark(tmp_path, "good", GOOD)], size(tmp_path), lambda _: None)
    assert outcomes["slow"].reason == "it was stopped after 5 s, its limit in this size"
    assert outcomes["good"].outcome == MEASURED
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not stat.exists() or " Z " in stat.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("what it started runs on")


def test_beyond_the_time_of_all_together_nothing_more_is_begun(tmp_path: Path) -> None:
    outcomes = run_all([benchmark(tmp_path, "late", GOOD)], size(tmp_path, limit_s=1.0), lambda _: None)
    assert outcomes["late"].outcome == NOT_MEASURED
    assert not (tmp_path / "results" / "late.smoke.json").exists()


def test_a_smoke_run_that_fails_leaves_no_figures_of_another_day_and_a_full_one_keeps_them(tmp_path: Path) -> None:
    bad = benchmark(tmp_path, "bad", "raise SystemExit(1)")
    (tmp_path / "results").mkdir()
    for name in ("bad.json", "bad.smoke.json", "bad.smoke.md"):
        (tmp_path / "results" / name).write_text("{}")
    for smoke in (True, False):
        run_all([bad], size(tmp_path, smoke=smoke), lambda _: None)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "bad.json",
        "runs.json",
        "runs.smoke.json",
    ]


def test_outcomes_of_benchmarks_that_do_not_run_again_are_kept(tmp_path: Path) -> None:
    run_all([benchmark(tmp_path, "first", "raise SystemExit(1)")], size(tmp_path, smoke=False), lambda _: None)
    run_all([benchmark(tmp_path, "second", GOOD)], size(tmp_path, smoke=False), lambda _: None)
    outcomes = json.loads((tmp_path / "results" / "runs.json").read_text())["outcomes"]
    assert outcomes["first"]["outcome"] == FAILED
    assert outcomes["second"] | {"seconds": 0, "at": "", "kedge": ""} == {
        "outcome": MEASURED,
        "reason": "",
        "peers": "",
        "seconds": 0,
        "at": "",
        "command": "python -m tools.bench --only second",
        "kedge": "",
    }


def test_peers_that_are_not_there_are_not_made_in_the_smoke_size_unless_there_is_time(tmp_path: Path) -> None:
    recipe = "import json, sys, pathlib; out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1]); "
    recipe += "out.write_text(json.dumps({'argv': sys.argv}))"
    compared = replace(benchmark(tmp_path, "compared", recipe), peers="modelopt", peers_smoke_s=0.0)
    without = run_all([compared], size(tmp_path), lambda _: None)["compared"]
    assert without.outcome == MEASURED
    assert "made in the full size alone" in without.peers
    assert "--make-peers" not in (tmp_path / "results" / "compared.smoke.json").read_text()
    (tmp_path / "peers" / "modelopt").mkdir(parents=True)
    (tmp_path / "peers" / "modelopt" / "done").touch()
    assert run_all([compared], size(tmp_path), lambda _: None)["compared"].peers == ""
    assert "--make-peers" in (tmp_path / "results" / "compared.smoke.json").read_text()


def test_the_command_ends_with_1_where_a_benchmark_failed_and_makes_the_page_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = BENCHMARKS[0].name
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    for program, expected in (("raise SystemExit(2)", 1), (GOOD.replace("{}", '{\\"commands\\": {}}'), 0)):
        chosen = replace(benchmark(tmp_path, name, program), smoke=())
        monkeypatch.setattr(command, "BENCHMARKS", (chosen,))
        assert command.main(["--smoke", "--only", name]) == expected
        assert (tmp_path / "README.md").exists()
        assert (f"{name} failed: it said nothing" in capsys.readouterr().err) == bool(expected)


@pytest.mark.slow
def test_every_program_explains_itself_and_takes_its_smoke_options() -> None:
    """Its own parser is asked: no benchmark is run."""
    for each in BENCHMARKS:
        words = [sys.executable, *each.program, "--help"]
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment(), timeout=60
        )
        assert done.returncode == 0, done.stderr
        for option in (*[word for word in each.smoke if word.startswith("--")], "--out"):
            assert option in done.stdout, (each.name, option)
        assert ("--make-peers" in done.stdout) == bool(each.peers), each.name


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_command_ends_the_benchmark_and_all_that_it_started(
    number: signal.Signals, tmp_path: Path
) -> None:
    with slow_command(tmp_path) as run:
        run.send_signal(number)
        assert run.wait(30) == 128 + number
    assert until(lambda: ended(tmp_path / "pid"))
    assert not (tmp_path / "README.md").exists()


def test_under_nohup_a_terminal_that_closes_ends_nothing(tmp_path: Path) -> None:
    with slow_command(tmp_path, "nohup") as run:
        run.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert run.poll() is None
        assert not ended(tmp_path / "pid")
        run.terminate()
        assert run.wait(30) == 128 + signal.SIGTERM
    assert until(lambda: ended(tmp_path / "pid"))


@contextlib.contextmanager
def slow_command(folder: Path, *before: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, while its one benchmark waits for a child whose number is in FOLDER/pid."""
    pid = folder / "pid"
    child = 'import subprocess; p = subprocess.Popen(["sleep", "600"]); '
    child += f'open({str(pid)!r}, "w").write(str(p.pid)); p.wait()'
    (folder / "slow.py").write_text(child, encoding="utf-8")
    chosen = f"Benchmark('startup', 'Slow', 'nothing', ({str(folder / 'slow.py')!r},), smoke=())"
    program = "import sys; from pathlib import Path; from tools.bench import __main__ as command; "
    program += f"from tools.bench.catalogue import Benchmark; command.BENCHMARKS = ({chosen},); "
    program += f"command.RESULTS = Path({str(folder / 'results')!r}); sys.exit(command.main(['--smoke']))"
    # Whoever runs the tests may have nohup before them, which a child inherits.
    words = ["env", "--default-signal=HUP", *before, sys.executable, "-c", program]
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        try:
            assert until(lambda: pid.exists() and pid.read_text())
            yield run
        finally:
            run.terminate()


def ended(pid: Path) -> bool:
    stat = Path(f"/proc/{pid.read_text()}/stat")
    return not stat.exists() or " Z " in stat.read_text()


def until(true: Callable[[], object]) -> bool:
    """Whether it comes true within 20 seconds."""
    for _ in range(400):
        if true():
            return True
        time.sleep(0.05)
    return False


def test_a_tree_that_differs_from_its_commit_is_warned_of_and_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tree, warned in (("0.1.0, commit abc-dirty", True), ("0.1.0, commit abc", False)):
        said: list[str] = []
        monkeypatch.setattr(runner, "commit", lambda tree=tree: tree)
        run_all([benchmark(tmp_path, "good", GOOD)], size(tmp_path), said.append)
        assert any(line.startswith("warning: files differ from their commit") for line in said) == warned
        outcomes = json.loads((tmp_path / "results" / "runs.smoke.json").read_text())["outcomes"]
        assert outcomes["good"]["kedge"] == tree


CUT = """
import json, sys
sys.path.insert(0, "tools/bench")
import optimize
case = json.load(open("benchmarks/results/optimize.json"))["cases"]["resnet20"]
def measured(self, key, made):
    if key != "resnet20":
        raise KeyboardInterrupt
    return case
optimize.Bench.case = measured
optimize.missing = lambda shared: []
optimize.warm_up = lambda folder: None
optimize.CASES = {"resnet20": lambda *_: None, **{name: lambda *_: None for name in sys.argv[3:]}}
sys.argv[3:] = []
sys.exit(optimize.main())
"""


@pytest.mark.slow
def test_figures_of_all_models_are_not_replaced_by_those_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    out, part = tmp_path / "optimize.json", tmp_path / "optimize.unfinished.json"
    out.write_text("of before")
    words = [sys.executable, "-c", CUT, "--out", str(out)]
    cut = subprocess.run(
        [*words, "resnet56"], cwd=ROOT, env=environment(), capture_output=True, check=False, timeout=60
    )
    assert cut.returncode != 0
    assert out.read_text() == "of before"
    assert list(json.loads(part.read_text())["cases"]) == ["resnet20"]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert list(json.loads(out.read_text())["cases"]) == ["resnet20"]
    assert out.with_suffix(".md").exists()
    assert not part.exists()


LACKING = """
import sys
from types import SimpleNamespace
sys.path.insert(0, "tools/bench")
import contextlib, gpu
gpu.opened = lambda: SimpleNamespace(cuda=SimpleNamespace(current=contextlib.nullcontext))
gpu.described = lambda cuda: {}
gpu.bandwidth = lambda cuda: {"rows": []}
def chosen(name):
    raise gpu.MissingError("no TensorRT for this GPU")
gpu.chosen = chosen
sys.exit(gpu.main())
"""


@pytest.mark.slow
def test_a_gpu_without_tensorrt_leaves_no_new_bandwidth_beside_old_latency(tmp_path: Path) -> None:
    """The GPU is made up: what it measures is not the matter, but what is written when the rest cannot be."""
    words = [sys.executable, "-c", LACKING, "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 7
    assert "not measured: no TensorRT for this GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []
