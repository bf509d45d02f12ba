from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kedge.cli import main
from kedge.cli.app import _COMMANDS, root
from kedge.targets import host_target
from tests.support import models

HEAVY = {"numpy", "torch", "onnx", "onnxruntime", "paramiko", "sklearn", "rich", "tomlkit"}


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kedge", "--help"], capture_output=True, text=True, check=True
    )
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "kedge" in imported
    assert not imported & HEAVY
    assert "Take a trained model to a device" in done.stdout


def test_help_names_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, _, text) in _COMMANDS.items():
        assert f"  {name} " in shown
        assert text in shown


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help_and_the_common_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    import click

    assert main([name, "--help"]) == 0
    command = root.get_command(click.Context(root), name)
    leaves = command.commands.values() if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        options = {option for parameter in leaf.params for option in parameter.opts}
        assert {"--json", "--quiet"} <= options, leaf.name
        assert leaf.help, leaf.name


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["nonsense"], 2, "nonsense"),
        (["build", "m.onnx"], 2, "--target"),
        (["build", "absent.onnx", "--target", "cpu-generic-x86_64"], 3, "absent.onnx cannot be read"),
        (["build", "absent.onnx", "--target", "orin"], 3, "no target named 'orin'"),
        (["deploy", "absent", "--to", "local"], 3, "absent is not a release"),
        (["status", "--on", "nowhere"], 3, "no device named 'nowhere'"),
        (["device", "add", "x", "host", "--target", "cpu-generic-x86_64"], 3, "not an address"),
        (["device", "trust", "nowhere"], 3, "no device named"),
        (["device", "list", "--inventory", "absent.toml"], 3, "absent.toml does not exist"),
        (["device", "trust", "local"], 3, "'local' is the agent of this kedge"),
        (["device", "upgrade", "local"], 3, "'local' is the agent of this kedge"),
        (["release", "verify", "absent"], 3, "is not a release"),
        (["bench", "m", "--on", "local", "--min-runs", "0"], 3, "bench runs up to"),
    ],
)
def test_errors_are_one_line_and_a_hint_with_their_exit_code(
    arguments: list[str], code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[0].startswith("kedge: error: ")
    assert reason in lines[0]
    assert lines[1].startswith("  hint: ")
    assert len(lines) == 2
    assert captured.out == ""


def test_the_list_of_devices_has_this_machine_with_a_target_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["device", "list", "--json"]) == 0
    (local,) = json.loads(capsys.readouterr().out)
    assert (local["name"], local["target"], local["host"]) == ("local", host_target().name, None)
    assert local["state"] == str(tmp_path / "kedge/local")
    assert main(["device", "list"]) == 0
    assert host_target().name in capsys.readouterr().out


def test_with_json_an_error_is_one_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--on", "nowhere", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["exit_code"] == 3
    assert "nowhere" in document["error"]["message"]


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device"]) == 2
    assert "provision" in capsys.readouterr().out


def test_a_path_that_cannot_be_written_is_the_user_s_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    (tmp_path / "file").touch()
    arguments = ["build", str(model), "--target", "cpu-generic-x86_64", "-o", str(tmp_path / "file" / "release")]
    model.unlink()
    assert main(arguments) == 3
    assert "defect" not in capsys.readouterr().err


def test_a_defect_of_ours_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import kedge.targets

    monkeypatch.setattr(kedge.targets, "list_targets", lambda: 1 / 0)
    assert main(["targets", "list"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_build_show_and_verify_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    models.classifier(tmp_path / "Digits.onnx")
    assert main(["build", "Digits.onnx", "--target", "cpu-generic-x86_64", "--json"]) == 0
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    assert built["folder"] == "digits-fp32.release"
    assert "made up" in captured.err
    assert main(["release", "verify", "digits-fp32.release", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intact"] is True
    assert main(["release", "show", "digits-fp32.release"]) == 0
    assert built["release"] in capsys.readouterr().out
    (tmp_path / "digits-fp32.release" / "golden-in-0.bin").write_bytes(b"\1" * 256)
    assert main(["release", "verify", "digits-fp32.release"]) == 6


def test_optimize_will_not_overwrite_what_it_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    model, out = models.classifier(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    np.save(tmp_path / "x.npy", models.images(8))
    linked = tmp_path / "linked.onnx"
    linked.hardlink_to(model)
    arguments = ["optimize", str(model), "--target", "cpu-generic-x86_64", "--quantize", "int8"]
    arguments += ["--calibration", str(tmp_path / "x.npy")]
    before = model.read_bytes()
    for path in (model, linked):
        assert main([*arguments, "-o", str(path)]) == 3
        assert "may not be overwritten" in capsys.readouterr().err
    assert main([*arguments, "-o", str(tmp_path / "x.npy")]) == 3
    assert "is no name for a model" in capsys.readouterr().err
    assert model.read_bytes() == before
    assert main([*arguments, "-o", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["artefact"] == str(out)
    assert document["after"]["bytes"] == out.stat().st_size < 10_000
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--qat", "2", "--prune", "magnitude=0.5"], "--qat says nothing without --quantize"),
        (["--keep", "fc", "--cluster", "4"], "--keep says nothing without --quantize"),
        (["--quantize", "int8", "--max-size", "0.3"], "--max-size says nothing without --quantize"),
        (["--quantize", "int8", "--trials", "9"], "--trials says nothing without --quantize"),
        ([], "nothing was asked for"),
        (["--prune", "half"], "--prune half is not known"),
        (["--quantize", "int8", "--input-shape", "1,x"], "'1,x' is no shape"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    assert main(["optimize", str(model), "--target", "cpu-generic-x86_64", *options]) == 3
    shown = capsys.readouterr().err
    assert reason in shown
    assert "hint:" in shown


@pytest.mark.parametrize("option", [["--keep", "fc"], ["--max-drop", "0"], ["--train", "x.npz"], ["--seed", "0"]])
def test_a_recipe_takes_no_options_that_it_states_itself(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text("")
    assert main(["optimize", str(tmp_path / "r.toml"), *option]) == 3
    assert f"a recipe states its own {option[0][2:]}" in capsys.readouterr().err


def test_events_are_lines_as_things_happen_and_the_result_is_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = models.adder(tmp_path / "m.onnx")
    arguments = ["build", str(model), "--target", "cpu-generic-x86_64", "--events"]
    assert main(arguments) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"event": "step", "step": "recording golden outputs"} in events
    assert events[-1]["event"] == "result"
    assert events[-1]["result"]["model"] == "m"
    model.unlink()
    assert main(arguments) == 3
    refused = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert refused[-1]["event"] == "error"
    assert refused[-1]["error"]["exit_code"] == 3
    assert main([*arguments, "--json"]) == 2


def test_of_many_small_advances_one_a_hundredth_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from kedge.cli.common import Output

    with Output(as_json=False, quiet=False, events=True).progress() as progress:
        for done in range(10_001):
            progress.share("evaluate", done / 10_000)
        progress.step("push")
        for done in range(0, 10_001, 10):
            progress.bytes(done, 10_000)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events].count("step") == 2
    shares = [event["share"] for event in events if "share" in event]
    sizes = [event["bytes"] for event in events if "bytes" in event]
    assert 90 <= len(shares) <= 102
    assert shares[-1] == 1
    assert 90 <= len(sizes) <= 102
    assert sizes[-1] == 10_000
