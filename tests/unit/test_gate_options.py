"""Gates as the user states them: options, recipes, notes in the model; and the manifest that comes of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.build.gates import GateOptions, gates_of
from kedge.build.release import BuildOptions, build_release
from kedge.cli import main
from kedge.errors import BadInputError
from kedge.model.onnx_io import read_model
from kedge.optimize.pipeline import optimise
from kedge.optimize.recipe import read_recipe
from kedge.release.bundle import open_release
from kedge.targets import host_target
from kedge_agent.formats.gates import LatencyGate, ParityLimits, ProbationRules
from tests.support import models

EVERYTHING: dict[str, Any] = {
    "cosine_min": 0.99,
    "relative_error_max": 0.05,
    "max_abs_error_max": 1,
    "outputs": {"logits": {"cosine_min": 0.9}},
    "p99_ms": 12.5,
    "p99_ratio_max": 1.5,
    "memory_peak_bytes": 1 << 29,
    "probation_s": 60,
    "error_share_max": 0.001,
}

RECIPE = """
target = "cpu-generic-x86_64"

[model]
source = "MODEL"

[[pass]]
kind = "simplify"

[gates]
p99_ms = 12
probation_s = 30
error_share_max = 0.001

[gates.outputs.logits]
relative_error_max = 0.1
"""


def test_what_is_not_stated_is_not_in_the_manifest_but_for_parity() -> None:
    assert GateOptions().to_manifest() == {"parity": {"cosine_min": "0.999", "relative_error_max": "0.02"}}
    assert GateOptions().to_note() == {}


def test_every_gate_of_a_release_arrives_in_its_manifest(tmp_path: Path) -> None:
    options = BuildOptions("digits", 1, GateOptions.from_mapping(EVERYTHING))
    model = models.classifier(tmp_path / "m.onnx")
    gates = build_release(model, host_target(), tmp_path / "r", options).release.manifest.gates
    assert gates.parity.limits == ParityLimits(0.99, 0.05, 1.0)
    assert gates.parity.of("logits").cosine_min == 0.9
    assert gates.latency == LatencyGate(12.5, 1.5)
    assert gates.memory_peak_bytes == 1 << 29
    assert gates.probation == ProbationRules(60, 0.001)


def test_a_note_gives_back_what_was_stated() -> None:
    stated = GateOptions.from_mapping(EVERYTHING)
    assert GateOptions.from_mapping(stated.to_note()) == stated


def test_what_is_asked_for_goes_before_what_the_model_notes() -> None:
    noted = {"cosine_min": "0.9", "p99_ms": "5", "outputs": {"a": {"cosine_min": "0.5"}, "b": {"cosine_min": "0.6"}}}
    asked = GateOptions(p99_ms="7", outputs={"b": {"relative_error_max": "1"}})
    gates = gates_of({"gates": noted}, asked)
    assert (gates.cosine_min, gates.p99_ms, gates.relative_error_max) == ("0.9", "7", None)
    assert gates.outputs == {"a": {"cosine_min": "0.5"}, "b": {"relative_error_max": "1"}}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"p99": 1}, "no key 'p99'"),
        ({"p99_ms": True}, "p99_ms is True"),
        ({"p99_ms": -1}, "outside"),
        ({"p99_ms": float("nan")}, "p99_ms is nan"),
        ({"cosine_min": "high"}, "not a decimal number"),
        ({"probation_s": 1.5}, "probation_s is 1.5"),
        ({"probation_s": 100_000}, "outside"),
        ({"error_share_max": 0.5}, "without probation_s"),
        ({"memory_peak_bytes": "512MiB"}, "memory_peak_bytes is '512MiB'"),
        ({"outputs": {"logits": {}}}, "outputs"),
        ({"outputs": {"logits": {"p99_ms": 1}}}, "no key 'p99_ms'"),
        ({"outputs": [1]}, "outputs"),
    ],
    ids=str,
)
def test_what_no_device_would_take_is_refused_with_its_place(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadInputError, match="gates") as refused:
        GateOptions.from_mapping(table)
    assert reason in refused.value.message
    assert refused.value.hint


def test_a_hint_names_the_recipes_table_and_no_file() -> None:
    with pytest.raises(BadInputError, match=r"/tmp/r\.toml: gates\.outputs") as refused:
        GateOptions.from_mapping({"outputs": 1}, "/tmp/r.toml: gates")
    assert refused.value.hint == "limits by an output's name, as in [gates.outputs.logits]"


def test_a_note_that_is_no_gate_is_refused_and_not_passed_over() -> None:
    with pytest.raises(BadInputError, match="the gates that the model notes"):
        gates_of({"gates": {"cosine_min": "none at all"}}, GateOptions())


def test_a_gate_on_an_output_that_is_not_there_is_refused(tmp_path: Path) -> None:
    gates = GateOptions(outputs={"nothing": {"cosine_min": "0.5"}})
    model = models.classifier(tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="nothing"):
        build_release(model, host_target(), tmp_path / "r", BuildOptions("digits", 1, gates))


def test_the_command_line_states_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models.classifier(tmp_path / "m.onnx")
    arguments = ["--p99-ms", "12", "--p99-ratio", "1.5", "--peak-memory", "512MiB", "--probation", "60"]
    arguments += ["--max-abs-error", "0.5", "--max-error-share", "0.1", "--min-cosine", "0.9", "-o", "r"]
    assert main(["build", "m.onnx", "--target", host_target().name, "--quiet", *arguments]) == 0
    gates = open_release(Path("r")).manifest.gates
    assert gates.parity.limits == ParityLimits(0.9, 0.02, 0.5)
    assert gates.latency == LatencyGate(12.0, 1.5)
    assert gates.memory_peak_bytes == 512 << 20
    assert gates.probation == ProbationRules(60, 0.1)


@pytest.mark.parametrize("size", ["512", "12 parsecs", "MiB", "-1MB", "1e3MB", "0.0001kB"])
def test_a_size_without_a_known_unit_is_a_usage_error(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "m.onnx", "--target", "x", "--peak-memory", size]) == 2
    assert size in capsys.readouterr().err


def test_a_recipe_s_gates_reach_the_manifest_through_the_model(tmp_path: Path) -> None:
    written = tmp_path / "r.toml"
    written.write_text(RECIPE.replace("MODEL", str(models.classifier(tmp_path / "given.onnx"))))
    recipe = read_recipe(written)
    done = optimise(recipe, tmp_path / "made.onnx", lambda step, share: None)
    asked = BuildOptions("digits", 1, GateOptions(cosine_min="0.5"))
    manifest = build_release(done.model, host_target(), tmp_path / "r", asked).release.manifest
    assert manifest.gates.latency == LatencyGate(12.0, None)
    assert manifest.gates.parity.of("logits") == ParityLimits(0.5, 0.1)
    assert manifest.gates.probation == ProbationRules(30, 0.001)
    origin = manifest.provenance["optimize"]
    assert origin["recipe_sha256"] == hashlib.sha256(written.read_bytes()).hexdigest()
    assert origin["libraries"]["onnxruntime"] == manifest.provenance["libraries"]["onnxruntime"]
    assert "gates" not in manifest.provenance
    again = optimise(replace(recipe, source=str(done.model), gates=None), tmp_path / "again.onnx", lambda *_: None)
    assert read_model(again.model).notes["gates"] == read_model(done.model).notes["gates"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("p99 = 1", "gates has no key 'p99'"),
        ('p99_ms = "fast"', "p99_ms"),
        ("memory_peak_bytes = 0.5", "memory_peak_bytes"),
    ],
)
def test_a_recipe_whose_gates_cannot_be_used_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("p99_ms = 12", line))
    with pytest.raises(BadInputError, match=reason):
        read_recipe(tmp_path / "r.toml")
