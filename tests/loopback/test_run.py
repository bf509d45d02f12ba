"""`kedge run` on the real agent: the whole way, once more, with another model, and where it stops."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from onnx import TensorProto, helper

from kedge.bench.rules import BenchRules
from kedge.bench.run import run_bench
from kedge.cli import main
from kedge.config import config_dir, state_dir
from kedge.errors import BusyError, ExitCode
from kedge.model.samples import Samples
from kedge.optimize.events import events_of
from kedge.release.bundle import open_release
from kedge.release.signing import sign
from kedge.targets import host_target
from kedge.transport.base import LOCAL, Deadline
from kedge.transport.local import LocalAgent
from tests.support.digits import digits, residual_net, trained_net
from tests.support.keys import make_key
from tests.support.schemas import validate

pytest.importorskip("torch", reason="the network is trained: needs kedge[optimize]")

HERE = host_target().name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model, and data as `kedge init` supposes them."""
    folder = tmp_path_factory.mktemp("made")
    train, evaluation = digits()
    trained_net(train, folder / "work").write(folder / "digits.onnx")
    for name, samples in (("train", train.first(200)), ("test", evaluation)):
        save(folder / f"{name}.npz", samples)
    return folder


def save(path: Path, samples: Samples) -> None:
    assert samples.labels is not None
    np.savez(path, image=samples.inputs["image"], labels=samples.labels)


@pytest.fixture
def here(made: Path, bare: Path) -> Path:
    """A folder of a test's own: a trained model, data, and a recipe that `kedge init` has written."""
    (bare / "digits.onnx").unlink()
    for path in made.glob("*.*"):
        (bare / path.name).symlink_to(path)
    return bare


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a model that learnt nothing, and without the data."""
    monkeypatch.chdir(tmp_path)
    residual_net().write(tmp_path / "digits.onnx")
    assert main(["init", "--model", "digits.onnx", "--target", HERE, "--quiet"]) == 0
    change("[run]", "[gates]\nprobation_s = 0\n\n[run]")
    return tmp_path


def change(old: str, new: str) -> None:
    recipe = Path("kedge.toml")
    text = recipe.read_text()
    assert text.count(old) == 1, old
    recipe.write_text(text.replace(old, new))


def write_device(target: str) -> None:
    """`cam`, at a port where nobody listens."""
    config_dir().mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    (config_dir() / "devices.toml").write_text(
        f'[cam]\nhost = "127.0.0.1"\nport = 1\nuser = "nobody"\nstate = "/nowhere"\n'
        f'target = "{target}"\nhost_key = "{key}"\n'
    )


def kedge(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def states(document: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["state"] for step in document["steps"]}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of a tenth of a second: how long they take is not what is tested."""
    import kedge.bench.rules

    monkeypatch.setattr(kedge.bench.rules, "BenchRules", lambda: BenchRules(warmup_ms=10, duration_ms=100))


@pytest.mark.slow
def test_a_recipe_that_init_wrote_goes_all_the_way_and_once_more_nothing_is_done_twice(
    here: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, first, _ = kedge(capsys, "run")
    assert code == 0, first["error"]
    validate(first, "run")
    assert json.loads((here / "digits-run" / "run.json").read_text()) == first
    assert states(first) == {
        "optimize": "done",
        "build": "done",
        "bench-before": "skipped",
        "deploy": "done",
        "bench": "done",
    }
    assert first["optimize"]["after"]["metrics"]["top1"]["share"] > 0.9
    assert first["optimize"]["after"]["bytes"] < first["optimize"]["before"]["bytes"]
    assert first["build"]["golden_made_up"] is False
    assert [gate["passed"] for gate in first["deploy"]["gates"]] == [True, True, True]
    assert first["bench"]["before"] is None
    assert first["bench"]["now"]["release"] == first["build"]["release"]
    for step in first["steps"]:
        assert all(Path(file).exists() for file in step["files"].values()), step
    release = open_release(here / "digits-run" / "digits.release")
    golden = np.frombuffer((release.folder / "golden-in-0.bin").read_bytes(), np.float32).reshape(-1, 1, 8, 8)
    assert np.array_equal(golden, np.load("test.npz")["image"][: len(golden)])

    sign(release, make_key(here, "key").path)
    code, again, _ = kedge(capsys, "run")
    assert code == 0, again["error"]
    assert again["reused_passes"] == 1
    assert states(again) == {**states(first), "deploy": "skipped"}
    assert again["build"]["release"] == first["build"]["release"]
    assert again["deploy"] is None
    assert open_release(release.folder).signatures
    validate(again, "run")


@pytest.mark.slow
def test_what_served_before_is_measured_before_it_is_replaced(
    here: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first, _ = kedge(capsys, "run")
    change('precision = "int8" ', 'precision = "int8-dynamic" ')
    code, second, _ = kedge(capsys, "run", "--model-version", "2", "-o", "other")
    assert code == 0, second["error"]
    validate(second, "run")
    assert second["bench"]["before"]["release"] == first["build"]["release"]
    assert second["bench"]["now"]["release"] == second["build"]["release"] != first["build"]["release"]
    assert second["deploy"]["previous"] == first["build"]["release"]
    # Nothing can measure it again once it is replaced.
    code, again, _ = kedge(capsys, "run", "--model-version", "2", "-o", "other")
    assert code == 0
    assert states(again)["deploy"] == "skipped"
    assert again["bench"]["before"] == second["bench"]["before"]
    validate(again, "run")
    assert second["version"] == second["bench"]["now"]["version"] == 2

    code, document, _ = kedge(capsys, "run", "-o", "older")
    assert code == ExitCode.INTEGRITY
    assert "version 1 of digits is below 2, which local has had" in document["error"]["message"]
    assert not Path("older").exists()

    # A rollout has its own document; a version below the one that the device has had is refused on the device.
    code, third, _ = kedge(capsys, "run", "--canary", "100%")
    assert code == ExitCode.FLEET
    validate(third, "run")
    assert states(third)["deploy"] == "failed"
    assert states(third)["bench"] == "waiting"
    assert third["error"] is None
    assert third["rollout"]["counts"] == {"failed": 1}
    code, fourth, _ = kedge(capsys, "run", "--canary", "100%", "--model-version", "3")
    assert code == 0
    assert fourth["deploy"] is None
    assert fourth["rollout"]["counts"] == {"updated": 1}
    assert fourth["bench"]["now"]["release"] == fourth["rollout"]["release"]


@pytest.mark.slow
def test_a_live_release_that_cannot_be_measured_is_replaced_all_the_same(
    here: Path, short: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kedge(capsys, "run")
    change('precision = "int8" ', 'precision = "int8-dynamic" ')
    measured = []

    def busy_at_first(*given: Any) -> dict[str, Any]:
        measured.append(given)
        if len(measured) == 1:
            raise BusyError("somebody else measures")
        return run_bench(*given)

    monkeypatch.setattr("kedge.run.steps.run_bench", busy_at_first)
    code, document, _ = kedge(capsys, "run", "-o", "other")
    assert code == 0, document["error"]
    validate(document, "run")
    before = next(step for step in document["steps"] if step["step"] == "bench-before")
    assert (before["state"], before["why"]) == (
        "skipped",
        "what serves could not be measured: somebody else measures",
    )
    assert document["bench"]["before"] is None
    assert document["bench"]["now"]["release"] == document["build"]["release"]


@pytest.mark.slow
def test_an_agent_of_another_command_that_ends_meanwhile_is_started_anew(
    here: Path, short: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = LocalAgent(state_dir() / LOCAL)
    owner.start(Deadline.after(60, "starting the local agent"))

    def ended(*given: Any) -> dict[str, Any]:
        owner.close()
        return run_bench(*given)

    monkeypatch.setattr("kedge.run.steps.run_bench", ended)
    try:
        code, document, _ = kedge(capsys, "run")
    finally:
        owner.close()
    assert code == 0, document["error"]
    assert document["bench"]["now"]["release"] == document["build"]["release"]


@pytest.mark.slow
def test_a_full_disk_is_told_and_not_what_came_of_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        # Then run.json cannot be written either.
        Path("digits-run").rename("moved")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kedge.run.steps.build_release", full)
    code, document, err = kedge(capsys, "run")
    assert code == ExitCode.BAD_INPUT
    assert states(document)["build"] == "failed"
    assert document["error"]["message"] == "writing a file: No space left on device"
    assert document["error"]["message"] in err
    validate(document, "run")


@pytest.mark.slow
def test_event_files_of_another_recipe_of_the_name_are_not_this_run_s(
    here: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    other = events_of("digits") / "recover-0123456789ab"
    other.mkdir(parents=True)
    (other / "events.out.tfevents.0.host").write_bytes(b"another's")
    code, document, _ = kedge(capsys, "run")
    assert code == 0
    assert document["events"] is None


@pytest.mark.slow
def test_a_device_that_is_down_does_not_keep_the_others_from_the_release(
    here: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_device(HERE)
    code, document, _ = kedge(capsys, "run", "--to", "cam,local", "--max-failures", "1")
    assert code == ExitCode.FLEET
    validate(document, "run")
    assert document["device"] == "cam"
    before = next(step for step in document["steps"] if step["step"] == "bench-before")
    assert before["state"] == "skipped"
    assert "cam (nobody@127.0.0.1:1)" in before["why"]
    assert {each["device"]: each["state"] for each in document["rollout"]["devices"]}["local"] == "updated"


@pytest.mark.slow
def test_the_text_tells_what_was_lost_gained_and_measured(
    here: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["run"]) == 0
    out = capsys.readouterr().out
    for words in ("top-1 accuracy", "as given", "optimised", "gates on the device", "parity passed", "compute p99"):
        assert words in out
    assert "nothing served digits on local" in out


@pytest.mark.slow
def test_a_gate_that_does_not_hold_ends_it_before_anything_is_built(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    residual_net(seed=1).write(here / "raw.onnx")
    change('source = "digits.onnx"', 'source = "raw.onnx"')
    change('precision = "int8" ', 'precision = "w4a8"\nrounding = "nearest" ')
    change("max_drop = 0.01 ", "max_drop = 0.0 ")
    code, document, err = kedge(capsys, "run")
    assert code == ExitCode.GATE
    validate(document, "run")
    assert states(document)["optimize"] == "failed"
    assert states(document)["build"] == "waiting"
    assert document["error"]["exit_code"] == ExitCode.GATE
    assert document["error"]["message"] in err
    # What was refused can be looked at.
    assert (here / "digits-run" / "digits.html").is_file()
    assert not (here / "digits-run" / "digits.release").exists()


@pytest.mark.slow
def test_an_interrupted_run_says_how_far_it_is(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kedge.run.steps.build_release", interrupted)
    assert main(["run"]) == ExitCode.INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    document = json.loads(Path("digits-run", "run.json").read_text())
    validate(document, "run")
    assert states(document)["optimize"] == "done"
    assert states(document)["build"] == "interrupted"


def test_a_device_of_another_platform_is_refused_before_an_hour_of_training(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "cpu-generic-aarch64" if HERE == "cpu-generic-x86_64" else "cpu-generic-x86_64"
    write_device(other)
    code, document, _ = kedge(capsys, "run", "--to", "cam,local")
    assert code == ExitCode.INCOMPATIBLE
    assert f"cam is {other}" in document["error"]["message"]
    assert not Path("digits-run").exists()


def test_a_device_without_the_runtime_is_refused_before_an_hour_of_training(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_device("rtx-a2000" if HERE == "cpu-generic-x86_64" else "dgx-spark")
    code, document, _ = kedge(capsys, "run", "--to", "cam")
    assert code == ExitCode.INCOMPATIBLE
    assert "tensorrt-rtx" in document["error"]["message"]
    assert not Path("digits-run").exists()


def test_axes_that_an_engine_needs_bounds_of_are_refused_before_the_passes(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "free",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "wide"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "wide"])],
    )
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), bare / "digits.onnx")
    target = "rtx-a2000" if HERE == "cpu-generic-x86_64" else "dgx-spark"
    change(f'target = "{HERE}"', f'target = "{target}"')
    write_device(target)
    code, document, _ = kedge(capsys, "run", "--to", "cam", "--canary", "100%")
    assert code == ExitCode.BAD_INPUT
    assert document["error"]["message"].startswith("input x has free dimensions besides its batch")
    assert "kedge build --shapes" in document["error"]["hint"]
    assert states(document)["optimize"] == "failed"
    # The data, which are not there, were not looked for yet.
    validate(document, "run")


def test_a_device_that_does_not_answer_is_told_before_an_hour_of_training(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_device(HERE)
    code, document, _ = kedge(capsys, "run", "--to", "cam")
    assert code == ExitCode.UNREACHABLE
    assert "cam" in document["error"]["message"]
    assert not Path("digits-run").exists()


@pytest.mark.parametrize(
    ("words", "recipe", "code", "reason"),
    [
        ((), ('to = "local"', 'to = ""'), 3, "no device was named"),
        (("--to", "nowhere"), None, 3, "nowhere"),
        (("--dry-run",), None, 2, "No such option '--dry-run'"),
        (("absent.toml",), None, 3, "absent.toml cannot be read"),
        ((), ("version = 1", "versoin = 1"), 3, "no key 'versoin'"),
        (("-o", "."), None, 3, "digits.onnx was given, and may not be overwritten"),
        (("--canary", "nonsense"), None, 3, "nonsense"),
        (("--canary", "100%", "--attest", "/nope"), None, 3, "the key /nope does not exist"),
        (("--canary", "100%", "--source", "https://user:word@host/r"), None, 3, "holds a password"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    bare: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    recipe: tuple[str, str] | None,
    code: int,
    reason: str,
) -> None:
    if recipe is not None:
        change(*recipe)
    before = sorted(bare.iterdir())
    found, document, _ = kedge(capsys, "run", *words)
    assert found == code
    assert reason in document["error"]["message"]
    assert sorted(bare.iterdir()) == before


@pytest.mark.slow
def test_events_are_lines_and_the_result_is_the_last(
    here: Path, short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["run", "--events"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert "recording golden outputs" in steps
    assert {"push", "gate", "switch"} <= set(steps)
    assert "gate" in {event["event"] for event in events}
    assert events[-1]["event"] == "result"
    validate(events[-1]["result"], "run")
