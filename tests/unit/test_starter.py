"""`kedge init`: what it writes is a recipe, and nothing is written over."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import onnx
import pytest

from kedge.cli import main
from kedge.errors import BadInputError
from kedge.model.gates import GateOptions
from kedge.optimize.quantize.step import Quantize
from kedge.optimize.recipe import RobustnessSettings, read_recipe
from kedge.run.settings import RunSettings, read_run_settings
from kedge.run.starter import write_starter
from kedge.targets import host_target
from tests.support import models
from tests.support.digits import residual_net

HERE = host_target().name
ELSEWHERE = "cpu-generic-aarch64" if HERE == "cpu-generic-x86_64" else "cpu-generic-x86_64"


def test_what_it_writes_is_a_recipe_of_this_machine_for_this_machine(tmp_path: Path) -> None:
    path = write_starter(tmp_path / "new")
    recipe = read_recipe(path)
    assert path == tmp_path / "new" / "kedge.toml"
    assert (recipe.target, recipe.source, recipe.max_drop) == (HERE, "model.onnx", 0.01)
    assert [step.kind for step in recipe.passes] == ["quantize"]
    assert recipe.data.calibration == "train.npz"
    assert recipe.data.evaluation == "test.npz"
    assert read_run_settings(path) == RunSettings(to="local", version=1)


def test_what_stands_there_as_a_comment_is_taken_without_its_sign(tmp_path: Path) -> None:
    path = write_starter(tmp_path)
    # A key or the head of a table; the rest of the comments is prose.
    text = re.sub(r"(?m)^# (?=[a-z_0-9]+ = |\[)", "", path.read_text())
    path.write_text(text)
    recipe = read_recipe(path)
    assert [step.kind for step in recipe.passes] == ["quantize", "prune-structured", "recover"]
    assert recipe.data.train == "train.npz"
    assert recipe.preprocess is not None
    assert isinstance(recipe.gates, GateOptions)
    assert recipe.gates.probation_s == 60


def test_a_model_s_name_source_and_inputs_are_filled_in(tmp_path: Path) -> None:
    model = tmp_path / "models" / "residual.onnx"
    model.parent.mkdir()
    residual_net().write(model)
    text = write_starter(tmp_path / "new", model, ELSEWHERE).read_text()
    recipe = read_recipe(tmp_path / "new" / "kedge.toml")
    assert recipe.base is not None
    assert (recipe.base / recipe.source).samefile(model)
    assert (recipe.name, recipe.target) == ("residual", ELSEWHERE)
    assert "# input image: FP32 [any, 1, 8, 8]\n" in text
    # One channel, before the sides: a grey picture.
    assert '# mode = "grayscale"' in text
    assert '# layout = "NCHW"' in text
    # This machine is none of that kind: a device has to be named.
    assert f"kedge device add my-device USER@HOST --target {ELSEWHERE}" in text


def test_a_model_of_no_pictures_says_nothing_of_them(tmp_path: Path) -> None:
    model = models.adder(tmp_path / "m.onnx")
    assert "preprocess" not in write_starter(tmp_path / "new", model, HERE).read_text()


def test_names_of_a_foreign_model_say_nothing_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "x\n[gates]\np99_ms = 1\x7f"
    model = models.adder(tmp_path / "m\n[robustness].onnx")
    proto = onnx.load(model)
    tensor = proto.graph.input[0]
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = evil if name == tensor.name else name
    tensor.name = evil
    onnx.save(proto, model)
    path = write_starter(tmp_path / "a folder\n[robustness]", model, HERE)
    recipe = read_recipe(path)
    assert recipe.gates is None
    assert recipe.robustness == RobustnessSettings()
    assert recipe.base is not None
    assert (recipe.base / recipe.source).samefile(model)
    assert "\\n[gates]" in path.read_text()


def test_a_folder_with_a_space_is_named_as_a_shell_takes_it(tmp_path: Path) -> None:
    text = write_starter(tmp_path / "a folder").read_text()
    line = next(line for line in text.splitlines() if line.startswith("#     kedge run"))
    assert shlex.split(line.removeprefix("#")) == ["kedge", "run", str(tmp_path / "a folder" / "kedge.toml")]


def test_a_name_that_is_not_utf_8_leaves_no_empty_recipe_behind(tmp_path: Path) -> None:
    model = tmp_path / os.fsdecode(b"m\xff.onnx")
    models.adder(tmp_path / "m.onnx").rename(model)
    with pytest.raises(BadInputError, match="is not UTF-8"):
        write_starter(tmp_path / "new", model, HERE)
    assert not (tmp_path / "new").exists()


def test_what_this_machine_has_no_runtime_for_is_not_sent_to_it(tmp_path: Path) -> None:
    text = write_starter(tmp_path, target="rtx-a2000").read_text()
    assert 'to = "my-device"' in text


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kedge.toml").write_text("mine")
    with pytest.raises(BadInputError, match=r"kedge\.toml exists"):
        write_starter(tmp_path)
    assert main(["init", str(tmp_path)]) == 3
    assert (tmp_path / "kedge.toml").read_text() == "mine"
    assert "kedge.toml exists" in capsys.readouterr().err


def test_a_model_needs_its_target_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    residual_net().write(tmp_path / "m.onnx")
    assert main(["init", "--model", "m.onnx", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "no target was named"
    assert not (tmp_path / "kedge.toml").exists()
    assert main(["init", "--model", "m.onnx", "--target", HERE, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipe": "kedge.toml", "model": "m.onnx"}


def test_a_file_that_is_no_model_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert main(["init", str(tmp_path), "--model", str(tmp_path / "m.onnx"), "--target", HERE]) == 3
    assert "m.onnx is not a valid ONNX model" in capsys.readouterr().err
    assert not (tmp_path / "kedge.toml").exists()


@pytest.mark.parametrize(
    ("table", "reason"),
    [("version = 0", "version is 0"), ('device = "x"', "no key 'device'"), ("to = 3", "to is 3")],
)
def test_a_run_table_states_what_is_known(tmp_path: Path, table: str, reason: str) -> None:
    path = write_starter(tmp_path)
    path.write_text(path.read_text().split("[run]")[0] + f"[run]\n{table}\n")
    with pytest.raises(BadInputError, match=reason):
        read_run_settings(path)


def test_the_quantisation_that_it_begins_with_is_the_default_one(tmp_path: Path) -> None:
    assert read_recipe(write_starter(tmp_path)).passes == (Quantize(precision="int8"),)
