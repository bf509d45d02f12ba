from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kedge.cli import main
from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.onnx_io import read_model
from kedge.model.samples import Samples
from kedge.optimize.passes import PASSES, make_pass, parameters_of
from kedge.optimize.pipeline import Optimised, optimise
from kedge.optimize.recipe import Data, Recipe, RobustnessSettings, read_recipe
from kedge.optimize.work import silent
from tests.support import environment, models
from tests.support.digits import CPU, RTX, digits, residual_net, trained_net
from tests.support.schemas import validate


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that another test has finished would be taken for this one's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Given:
    """A user's files: a trained model and data."""

    model: Path
    train: Path
    calibration: Path
    evaluation: Path

    def hashes(self) -> list[str]:
        files = (self.model, self.train, self.calibration, self.evaluation)
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    train, evaluation = digits()
    trained_net(train, folder).write(folder / "digits.onnx")

    def save(name: str, samples: Samples) -> Path:
        assert samples.labels is not None
        np.savez(folder / name, x=samples.inputs["image"], labels=samples.labels)
        return folder / name

    return Given(
        folder / "digits.onnx",
        save("train.npz", train.first(400)),
        save("calibration.npz", train.take(slice(400, 464))),
        save("evaluation.npz", evaluation.first(300)),
    )


def recipe(given: Given, *steps: tuple[str, dict[str, Any]], target: str = RTX, **more: Any) -> Recipe:
    """For a target that this host does not stand in for: seconds of timing are left out."""
    data = Data(str(given.calibration), str(given.train), str(given.evaluation))
    passes = tuple(make_pass(kind, parameters) for kind, parameters in steps)
    return Recipe(str(given.model), target, passes, **{"data": data, **more})


INT8 = ("quantize", {"calibrator": "mse"})


class Steps:
    """Progress that remembers the steps."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __call__(self, step: str, share: float) -> None:
        assert 0 <= share <= 1
        self.names.add(step)


# Recipes


WHOLE = """
name = "digits"
target = "cpu-generic-x86_64"
seed = 7
[model]
source = "m.onnx"
[data]
train = "train.npz"
evaluation = "test.npz"
calibration_samples = 64
metrics = ["mine:f1"]
[preprocess]
scale = "1/255"
[[pass]]
kind = "prune-magnitude"
ratio = 0.5
[[pass]]
kind = "quantize"
keep = ["head", "stem*"]
[gate]
max_drop = 0
[robustness]
samples = 50
"""


def test_a_recipe_says_what_is_done_and_with_what(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(WHOLE)
    read = read_recipe(tmp_path / "r.toml")
    assert (read.source, read.target, read.name, read.seed, read.max_drop) == ("m.onnx", CPU, "digits", 7, 0.0)
    assert read.base == tmp_path
    assert read.data == Data("", "train.npz", "test.npz", 64, metrics=("mine:f1",))
    assert read.robustness == RobustnessSettings(50, 0)
    assert [step.kind for step in read.passes] == ["prune-magnitude", "quantize"]
    assert parameters_of(read.passes[1])["keep"] == ["head", "stem*"]
    assert read.preprocess is not None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "digits"', 'nam = "digits"', "no key 'nam'"),
        ('name = "digits"', 'name = "../digits"', "name is '../digits'"),
        ('target = "cpu-generic-x86_64"', "", "lacks target"),
        ('source = "m.onnx"', "", r"lacks \[model\] source"),
        ("seed = 7", "seed = true", "seed is True"),
        ("seed = 7", "seed = -1", "seed is -1"),
        ("seed = 7", "seed =", "is not TOML"),
        ("seed = 7", "seed = " + "[" * 5000, "is not TOML"),
        ("[data]", "[date]", "no key 'date'"),
        ("calibration_samples = 64", "calibration_samples = -1", "calibration_samples is negative"),
        ("calibration_samples = 64", 'calibration_samples = "all"', "calibration_samples is 'all'"),
        ('metrics = ["mine:f1"]', "metrics = [1]", "metrics is"),
        ('metrics = ["mine:f1"]', 'metrics = "mine:f1"', "metrics is 'mine:f1'"),
        ('scale = "1/255"', 'scale = "1/"', "scale"),
        ('kind = "quantize"', 'kind = "quantise"', "no pass named 'quantise'"),
        ('kind = "quantize"', "", "needs a kind"),
        ("ratio = 0.5", "ration = 0.5", "no parameter 'ration'"),
        ("ratio = 0.5", 'ratio = "half"', "prune-magnitude.ratio is 'half'"),
        ("ratio = 0.5", "ratio = nan", "ratio"),
        ('keep = ["head", "stem*"]', "keep = [3]", r"quantize.keep\[\] is 3"),
        ('keep = ["head", "stem*"]', 'calibrator = "best"', "calibrator is 'best'"),
        ("max_drop = 0", "max_drop = 1.5", "max_drop is 1.5"),
        ("max_drop = 0", "max_drop = nan", "max_drop is nan"),
        ("samples = 50", "samples = -50", "-50 samples"),
        ("[gate]", "[[gate]]", "gate is"),
    ],
)
def test_a_fault_in_a_recipe_is_one_line_and_a_hint(old: str, new: str, reason: str, tmp_path: Path) -> None:
    assert WHOLE.count(old) == 1
    (tmp_path / "r.toml").write_text(WHOLE.replace(old, new))
    with pytest.raises(BadInputError, match=reason) as error:
        read_recipe(tmp_path / "r.toml")
    assert "\n" not in str(error.value)
    assert error.value.hint
    assert "\n" not in error.value.hint


@pytest.mark.parametrize("content", [b"\xff\xfe", b" " * (2 << 20), None])
def test_what_is_no_recipe_at_all_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError) as error:
        read_recipe(path)
    assert error.value.hint


@pytest.mark.parametrize("kind", PASSES)
def test_every_pass_can_be_made_of_its_defaults_and_says_them_again(kind: str) -> None:
    made = make_pass(kind, {})
    assert made.kind == kind
    stated = parameters_of(made)
    assert parameters_of(make_pass(kind, json.loads(json.dumps(stated)))) == stated
    with pytest.raises(BadInputError, match="no parameter 'nonsense'"):
        make_pass(kind, {"nonsense": 1})


# The whole way


@pytest.mark.parametrize("target", [CPU, RTX])
def test_the_whole_way_proves_what_it_kept_and_leaves_the_files_alone(
    target: str, given: Given, tmp_path: Path
) -> None:
    before, out = given.hashes(), tmp_path / "made" / "q.onnx"
    robustness = RobustnessSettings(40, 20)
    done = optimise(recipe(given, INT8, target=target, max_drop=0.02, robustness=robustness), out, silent)
    validate(done.document, "optimize")
    json.dumps(done.document, allow_nan=False)
    assert given.hashes() == before
    assert read_model(out).is_quantized
    assert done.passed is True
    document = done.document
    assert document["comparison"]["drop"] <= 0.02
    assert document["comparison"]["agreement"]["count"] == 300
    assert document["before"]["metrics"]["top1"]["share"] > 0.85
    assert document["after"]["bytes"] == out.stat().st_size < 0.8 * document["before"]["bytes"]
    layers = {row["name"] for row in document["layers"] if row["precision"] == "int8"}
    # An image's channels are too few for the CPU's integer kernels to pay.
    assert layers >= {"left", "right", "head"}
    assert ("stem" in layers) == (target == RTX)
    assert document["histograms"]
    assert document["robustness"]["points"]
    noted = read_model(out).notes["accuracy"]
    assert noted["samples"] == 300
    for side in ("before", "after"):
        assert float(noted[side]["top1"]) == document[side]["metrics"]["top1"]["share"]
    assert noted["simulated"] == (target == RTX)
    # No device was asked, and this host's time says nothing of a GPU's.
    assert (document["after"]["latency"] is None) == (target == RTX)


def test_every_technique_together(given: Given, tmp_path: Path) -> None:
    steps = (
        ("simplify", {}),
        ("prune-magnitude", {"ratio": 0.4}),
        ("recover", {"epochs": 2, "learning_rate": 2e-3, "batch": 64, "distil": 0.5, "validation": 0.0}),
        ("cluster", {"bits": 5, "min_values": 64}),
        INT8,
    )
    out = tmp_path / "q.onnx"
    done = optimise(recipe(given, *steps), out, silent)
    validate(done.document, "optimize")
    assert [entry["kind"] for entry in done.document["passes"]] == [kind for kind, _ in steps]
    assert done.document["comparison"]["drop"] < 0.05
    graph = Graph.read(out)
    weights = graph.array(graph.producer[graph.by_name["left"].input[1]].input[0])
    assert weights.dtype == np.int8
    # Pruned and shared weights are still pruned and shared once they are integers: one scale a row keeps both.
    assert np.mean(weights == 0) > 0.3
    assert all(len(np.unique(row)) <= 32 for row in weights)


def test_training_with_quantisation_in_the_loop_ends_in_the_same_form(given: Given, tmp_path: Path) -> None:
    parameters = {"precision": "w4a8", "epochs": 1, "batch": 64, "calibrator": "mse", "validation": 0.0}
    done = optimise(recipe(given, ("qat", parameters)), tmp_path / "q.onnx", silent)
    validate(done.document, "optimize")
    assert done.document["comparison"]["drop"] < 0.05
    assert read_model(tmp_path / "q.onnx").is_quantized


def test_a_pass_that_is_finished_is_not_run_again_until_something_changes(given: Given, tmp_path: Path) -> None:
    def run(**more: Any) -> tuple[Optimised, set[str]]:
        steps = Steps()
        wanted = recipe(given, ("simplify", {}), ("quantize", {"calibrator": "mse", **more}))
        return optimise(wanted, tmp_path / "q.onnx", steps), steps.names

    first, ran = run()
    assert {"simplifying", "calibrating"} <= ran
    made = (tmp_path / "q.onnx").read_bytes()
    second, ran = run()
    assert not {"simplifying", "calibrating"} & ran
    assert second.document["passes"] == first.document["passes"]
    assert (tmp_path / "q.onnx").read_bytes() == made
    # Another parameter: that pass and those after it, not those before.
    _, ran = run(keep=["head"])
    assert "simplifying" not in ran
    assert "calibrating" in ran
    # A record that was damaged is made again.
    stages = list((tmp_path / "cache").rglob("stages/*.json"))
    assert stages
    for path in stages:
        path.write_bytes(path.read_bytes()[:-9])
    _, ran = run()
    assert {"simplifying", "calibrating"} <= ran
    assert (tmp_path / "q.onnx").read_bytes() == made


def test_evaluation_data_that_were_trained_on_are_refused(given: Given, tmp_path: Path) -> None:
    data = Data(str(given.calibration), str(given.train), str(given.train))
    with pytest.raises(BadInputError, match="400 of the 400 evaluation samples are also in the train data") as error:
        optimise(recipe(given, INT8, data=data), tmp_path / "q.onnx", silent)
    assert error.value.hint
    assert not (tmp_path / "q.onnx").exists()


def test_without_labels_agreement_is_what_is_held(given: Given, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.load(given.evaluation)["x"])
    data = Data(str(given.calibration), "", str(tmp_path / "x.npy"))
    done = optimise(recipe(given, INT8, data=data, max_drop=0.05), tmp_path / "q.onnx", silent)
    validate(done.document, "optimize")
    assert done.document["comparison"]["drop"] is None
    assert done.passed is (done.document["comparison"]["agreement"]["share"] >= 0.95) is True


def test_without_evaluation_data_nothing_is_claimed(given: Given, tmp_path: Path) -> None:
    data = Data(str(given.calibration))
    done = optimise(recipe(given, INT8, data=data, max_drop=0.5), tmp_path / "q.onnx", silent)
    validate(done.document, "optimize")
    assert done.document["comparison"] is None
    assert done.document["before"]["metrics"] is None
    assert done.passed is False
    assert "--evaluate" in done.document["gate"]["next"]


def test_a_model_of_a_fixed_batch_and_few_samples(given: Given, tmp_path: Path) -> None:
    graph, source = residual_net(batch=8), Graph.read(given.model)
    for name in ("ws", "wl", "wr", "wh"):
        graph.set_array(name, source.array(name))
    graph.write(tmp_path / "m.onnx")
    x = np.load(given.evaluation)["x"]
    np.save(tmp_path / "few.npy", x[:3])
    wanted = recipe(given, INT8, data=Data(str(given.calibration), "", str(tmp_path / "few.npy")))
    done = optimise(Recipe(str(tmp_path / "m.onnx"), CPU, wanted.passes, wanted.data), tmp_path / "q.onnx", silent)
    assert done.document["comparison"]["agreement"]["count"] == 3
    assert "batch 8" in done.document["after"]["latency"]["conditions"]


# The command


def command(given: Given, out: Path, *more: str) -> list[str]:
    return [
        *("optimize", str(given.model), "--target", RTX, "--calibration", str(given.calibration)),
        *("--evaluate", str(given.evaluation), "-o", str(out), *more),
    ]


def test_the_command_prints_one_document_and_leaves_a_page(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.onnx"
    assert main(command(given, out, "--quantize", "int8", "--max-drop", "0.05", "--json")) == 0
    shown = capsys.readouterr().out
    document = json.loads(shown)
    assert (document["artefact"], document["report"]) == (str(out), str(tmp_path / "q.html"))
    assert json.loads((tmp_path / "q.json").read_text()).items() <= document.items()
    assert (tmp_path / "q.html").read_text().lstrip().startswith("<!")


def test_a_gate_that_does_not_hold_names_layers_and_the_next_step(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.onnx"
    assert main(command(given, out, "--prune", "magnitude=0.97", "--max-drop", "0.01")) == 5
    said = capsys.readouterr().err
    assert "points lost, 1.00 allowed; most error arises in" in said
    assert "hint: add a recover pass after pruning: --recover with --train" in said
    gate = json.loads((tmp_path / "q.json").read_text())["gate"]
    assert gate["passed"] is False
    assert set(gate["blame"]) <= {"stem", "left", "right", "head"}
    assert gate["blame"]
    assert out.exists()


def test_quantisation_aware_training_from_the_command_line(given: Given, tmp_path: Path) -> None:
    options = ("--quantize", "int8", "--calibrator", "mse", "--qat", "1", "--train", str(given.train), "--quiet")
    assert main(command(given, tmp_path / "q.onnx", *options)) == 0
    assert read_model(tmp_path / "q.onnx").is_quantized


def test_a_recipe_is_run_from_its_own_folder(given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for path, name in ((given.model, "m.onnx"), (given.train, "train.npz"), (given.evaluation, "test.npz")):
        (tmp_path / "in" / name).write_bytes(path.read_bytes())
    text = WHOLE.replace('metrics = ["mine:f1"]', "").replace('[preprocess]\nscale = "1/255"', "")
    text = (
        text.replace(CPU, RTX).replace("max_drop = 0\n", "max_drop = 0.2\n").replace("[robustness]\nsamples = 50", "")
    )
    (tmp_path / "in" / "r.toml").write_text(text)
    assert main(["optimize", str(tmp_path / "in" / "r.toml"), "-o", str(tmp_path / "q.onnx"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seed"] == 7
    assert document["model"]["name"] == "digits"
    assert document["data"]["calibration"]["count"] == 64


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shufflenet_v2_12_int8_qop.onnx", "is quantised already"),
        ("silero_vad_16k_op15.onnx", "holds 8 of 'input', 2 of 'state'"),
    ],
)
def test_models_that_cannot_be_quantised_are_refused_with_the_reason(
    name: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = environment.shared_model(name)
    before = hashlib.sha256(model.read_bytes()).hexdigest()
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "c.npz",
        input=random.standard_normal((8, 576)).astype(np.float32),
        state=np.zeros((2, 8, 128), np.float32),
        sr=np.array(16000),
    )
    arguments = ["--target", CPU, "--quantize", "int8", "--calibration", str(tmp_path / "c.npz")]
    assert main(["optimize", str(model), *arguments, "-o", str(tmp_path / "q.onnx")]) in (3, 7)
    said = capsys.readouterr().err
    assert reason in said
    assert "hint:" in said
    assert "Traceback" not in said
    assert hashlib.sha256(model.read_bytes()).hexdigest() == before
    assert not (tmp_path / "q.onnx").exists()


def test_a_precision_that_the_target_lacks_is_refused(given: Given, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="not fp8") as error:
        optimise(recipe(given, ("quantize", {"precision": "fp8"}), target=CPU), tmp_path / "q.onnx", silent)
    assert error.value.hint


def test_a_model_without_calibration_data_is_told_so(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    with pytest.raises(BadInputError, match="needs calibration data"):
        optimise(Recipe(str(model), CPU, (make_pass("quantize", {}),)), tmp_path / "q.onnx", silent)
