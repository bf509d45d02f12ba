from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.samples import Samples
from kedge.model.session import ReferenceModel
from kedge.optimize.evaluate import top1
from kedge.optimize.quantize.affine import INT4, UINT8, Grid, QuantParams, asymmetric, symmetric
from kedge.optimize.train.batches import flip_crop, generator
from kedge.optimize.train.fake_quant import FakeQuant, fake_quantize
from kedge.optimize.train.gradient import attacked, input_gradient
from kedge.optimize.train.qat import train_quantised
from kedge.optimize.train.recover import Recover, reestimate_batchnorm
from kedge.optimize.train.scores import head_of
from kedge.optimize.train.settings import TrainSettings, learning_rate_at
from kedge.optimize.train.view import TorchView
from kedge.optimize.work import Work
from kedge.targets import load_target
from tests.support.models import adder


def net(*, end: str = "logits", batch: str | int = "n", norm: bool = True, seed: int = 0) -> Graph:
    """image [n, 1, 8, 8] → [n, 10]: two convolutions, BatchNormalization, pooling, a matrix; random weights."""
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    ones, zeros = np.ones(8, np.float32), np.zeros(8, np.float32)
    constants = {"w1": weight(8, 1, 3, 3), "w2": weight(16, 8, 3, 3), "b2": np.zeros(16, np.float32)}
    constants |= {"scale": ones, "shift": zeros, "mean": zeros, "variance": ones}
    constants |= {
        "fc": weight(10, 64).T,
        "bias": np.zeros(10, np.float32),
        "shape": np.array([batch if batch == 1 else -1, 64]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "scale", "shift", "mean", "variance"], ["b1"], name="norm"),
        helper.make_node("Relu", ["b1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p2", "shape"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["m"], name="last"),
        helper.make_node("Add", ["m", "bias"], ["logits"]),
    ]
    if not norm:
        nodes[2].input[0] = "c1"
        del nodes[1]
    if end == "probabilities":
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1))
    if end == "exponentials":
        nodes += [
            helper.make_node("Exp", ["logits"], ["e"]),
            helper.make_node("ReduceSum", ["e", "one"], ["s"]),
            helper.make_node("Div", ["e", "s"], ["exponentials"]),
        ]
        constants["one"] = np.array([1])
    made = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    graph = Graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    graph.prune_unused()
    return graph


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small are slower on several threads, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[Samples, Samples]:
    """Images 0 to 1 with labels: 900 to train on, 400 to judge by."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    whole = Samples({"image": images[order]}, data.target[order].astype(np.int64), "digits")
    return whole.take(slice(0, 900)), whole.take(slice(900, 1300))


@pytest.fixture(scope="module")
def trained(digits: tuple[Samples, Samples], tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The net, well trained."""
    work = work_on(net(), digits[0], tmp_path_factory.mktemp("trained"))
    return Recover(learning_rate=1e-2, epochs=10, batch=64, validation=0.0).apply(net(), work).graph


def work_on(original: Graph, train: Samples | None, scratch: Path, **settings: Any) -> Work:
    return Work(load_target("cpu-generic-x86_64"), original, None, train, scratch, scratch, **settings)


def accuracy(graph: Graph, samples: Samples, folder: Path) -> float:
    assert samples.labels is not None
    path = folder / "judged.onnx"
    graph.write(path)
    return top1(next(iter(ReferenceModel(path).run(dict(samples.inputs)).values())), samples.labels).share


def without(graph: Graph, share: float) -> Graph:
    """A share of the second convolution's smallest weights, and all of two of its channels' inputs, set to zero."""
    cut = graph.copy()
    weight = cut.array("w2")
    weight[np.abs(weight) < np.quantile(np.abs(weight), share)] = 0
    cut.set_array("w2", weight)
    return cut


QUICK = Recover(learning_rate=2e-3, epochs=2, batch=100)


def test_training_makes_a_net_that_knows_nothing_know_digits(trained, digits, tmp_path):
    assert accuracy(net(), digits[1], tmp_path) < 0.3
    assert accuracy(trained, digits[1], tmp_path) > 0.9


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "onecycle"])
def test_every_optimiser_and_schedule_lowers_the_loss(optimizer, schedule, digits, tmp_path):
    recover = Recover(
        optimizer=optimizer,
        schedule=schedule,
        nesterov=optimizer == "sgd",
        learning_rate=0.05 if optimizer == "sgd" else 3e-3,
        weight_decay=1e-4,
        clip_norm=5.0,
        label_smoothing=0.05,
        epochs=2,
        batch=50,
    )
    changed = recover.apply(net(), work_on(net(), digits[0], tmp_path)).changed
    assert changed["loss_last"] < changed["loss_first"]
    assert changed["epochs"] == 2
    assert changed["parameters_trained"] == 72 + 16 + 1152 + 16 + 640 + 10
    assert changed["validation"]["judged_by"] == "labels"
    assert changed["validation"]["best"]["share"] > changed["validation"]["before"]["share"]
    assert changed["seconds_per_epoch"] > 0


def test_the_graph_given_is_not_changed_and_names_stay(digits, tmp_path):
    graph = net()
    before = graph.digest
    made = QUICK.apply(graph, work_on(graph, digits[0], tmp_path)).graph
    assert Graph(graph.proto).digest == before
    assert sorted(made.initializers) == sorted(graph.initializers)
    assert [node.name for node in made.nodes] == [node.name for node in graph.nodes]
    assert not np.array_equal(made.array("mean"), graph.array("mean"))


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(digits, tmp_path):
    def weights(seed: int, folder: str) -> np.ndarray:
        (tmp_path / folder).mkdir()
        augmented = dataclasses.replace(QUICK, augment="flip-crop")
        return augmented.apply(net(), work_on(net(), digits[0], tmp_path / folder, seed=seed)).graph.array("w2")

    first = weights(1, "a")
    np.testing.assert_array_equal(first, weights(1, "b"))
    assert not np.array_equal(first, weights(2, "c"))


class _Cut(Exception):  # noqa: N818
    pass


def cut_at(share: float) -> Callable[[str, float], None]:
    def progress(_: str, done: float) -> None:
        if done > share:
            raise _Cut

    return progress


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_run_that_was_cut_off_goes_on_to_the_very_same_result(optimizer, digits, tmp_path):
    recover = Recover(
        optimizer=optimizer, epochs=4, batch=100, learning_rate=2e-3, augment="flip-crop", distil=0.5, epoch_kept="last"
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = recover.apply(net(), work_on(net(seed=1), digits[0], whole))
    with pytest.raises(_Cut):
        recover.apply(net(), work_on(net(seed=1), digits[0], parts, progress=cut_at(0.6)))
    resumed = recover.apply(net(), work_on(net(seed=1), digits[0], parts))
    assert resumed.changed["resumed_after_epoch"] == 2
    assert resumed.graph.digest == expected.graph.digest
    assert resumed.changed["loss_last"] == expected.changed["loss_last"]
    again = recover.apply(net(), work_on(net(seed=1), digits[0], parts))
    assert again.changed["resumed_after_epoch"] == 4
    assert again.graph.digest == expected.graph.digest


def test_a_checkpoint_of_other_parameters_data_or_graph_is_not_used(digits, tmp_path):
    QUICK.apply(net(), work_on(net(), digits[0], tmp_path))
    for recover, graph, data in (
        (dataclasses.replace(QUICK, learning_rate=1e-3), net(), digits[0]),
        (QUICK, net(seed=5), digits[0]),
        (QUICK, net(), digits[0].take(slice(0, 800))),
    ):
        assert recover.apply(graph, work_on(graph, data, tmp_path)).changed["resumed_after_epoch"] == 0
    assert QUICK.apply(net(), work_on(net(), digits[0], tmp_path)).changed["resumed_after_epoch"] == 2


@pytest.mark.parametrize("damage", ["cut", "foreign", "pickle"])
def test_a_damaged_or_hostile_checkpoint_is_left_aside(damage, digits, tmp_path):
    QUICK.apply(net(), work_on(net(), digits[0], tmp_path))
    path = next(tmp_path.glob("recover-*.pt"))
    key = torch.load(path, weights_only=True)["key"]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        torch.save({"key": key, "at": {"epoch": 1}, "now": {}, "best": {}, "optimizer": {}}, path)
    else:
        torch.save({"key": key, "at": Path("x")}, path)  # a class, which only running code could load
    assert QUICK.apply(net(), work_on(net(), digits[0], tmp_path)).changed["resumed_after_epoch"] == 0


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_zeros_of_a_sparse_layer_survive_training(optimizer, trained, digits, tmp_path):
    sparse = without(trained, 0.6)
    recover = dataclasses.replace(QUICK, optimizer=optimizer, weight_decay=0.01, validation=0.0)
    result = recover.apply(sparse, work_on(trained, digits[0], tmp_path))
    zeros = sparse.array("w2") == 0
    assert np.array_equal(result.graph.array("w2") == 0, zeros)
    assert result.changed["zeros_kept"] == int(zeros.sum())
    assert not np.array_equal(result.graph.array("w2"), sparse.array("w2"))


def test_few_zeros_are_kept_only_when_told(trained, digits, tmp_path):
    sparse = without(trained, 0.1)
    kept = {}
    for keep in ("auto", "yes", "no"):
        recover = dataclasses.replace(QUICK, keep_zeros=keep, validation=0.0)
        kept[keep] = int((recover.apply(sparse, work_on(trained, digits[0], tmp_path)).graph.array("w2") == 0).sum())
    assert kept["yes"] == int((sparse.array("w2") == 0).sum()) > 100
    assert kept["auto"] == kept["no"] < kept["yes"] / 5  # a weight that no gradient reaches may stay


def test_distillation_alone_needs_no_labels(trained, digits, tmp_path):
    broken = without(trained, 0.9)
    unlabelled = Samples(digits[0].inputs, None, "calibration")
    work = dataclasses.replace(work_on(trained, None, tmp_path), calibration=unlabelled)
    result = dataclasses.replace(QUICK, distil=1.0).apply(broken, work)
    assert result.changed["validation"]["judged_by"] == "teacher"
    assert accuracy(result.graph, digits[1], tmp_path) > accuracy(broken, digits[1], tmp_path) + 0.05
    with pytest.raises(BadInputError, match="recover needs labelled training data"):
        dataclasses.replace(QUICK, distil=0.5).apply(broken, work)


def test_a_teacher_with_no_torch_form_answers_through_onnxruntime(trained, digits, tmp_path):
    teacher = trained.copy()
    last = teacher.by_name["last"]
    last.op_type, last.domain = "FusedMatMul", "com.microsoft"
    teacher.proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    teacher.touched()
    with pytest.raises(IncompatibleError, match=r"com\.microsoft\.FusedMatMul"):
        TorchView(teacher)
    results = [
        dataclasses.replace(QUICK, distil=1.0, epoch_kept="last").apply(
            without(trained, 0.9), work_on(model, digits[0], folder)
        )
        for model, folder in ((teacher, tmp_path / "a"), (trained, tmp_path / "b"))
    ]
    assert results[0].changed["loss_last"] == pytest.approx(results[1].changed["loss_last"], rel=1e-3)


@pytest.mark.parametrize("end", ["probabilities", "exponentials"])
def test_probabilities_at_the_end_train_like_logits(end, digits, tmp_path):
    losses = []
    for graph in (net(), net(end=end)):
        folder = tmp_path / graph.output_names[0]
        losses.append(QUICK.apply(graph, work_on(graph, digits[0], folder)).changed["loss_last"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_early_stop_ends_training_that_does_not_improve(trained, digits, tmp_path):
    recover = Recover(learning_rate=1e-9, epochs=50, batch=100, early_stop=2, freeze_batchnorm=True)
    result = recover.apply(trained, work_on(trained, digits[0], tmp_path))
    assert result.changed["epochs"] == 2
    assert result.changed["kept_epoch"] == 0
    assert any("stopped after epoch 2" in note for note in result.notes)
    assert result.graph.digest == trained.digest


def test_the_best_epoch_is_kept_or_the_last_when_told(trained, digits, tmp_path):
    spoil = Recover(
        optimizer="sgd", learning_rate=3.0, clip_norm=1.0, schedule="constant", warmup=0.0, epochs=2, batch=100
    )
    best = spoil.apply(trained, work_on(trained, digits[0], tmp_path))
    last = dataclasses.replace(spoil, epoch_kept="last").apply(trained, work_on(trained, digits[0], tmp_path))
    assert best.changed["kept_epoch"] == 0
    assert best.graph.digest == trained.digest
    assert any("the weights are unchanged" in note for note in best.notes)
    assert last.changed["kept_epoch"] == 2
    assert accuracy(last.graph, digits[1], tmp_path) < accuracy(trained, digits[1], tmp_path)


def test_training_that_diverges_says_so(digits, tmp_path):
    huge = Samples({"image": digits[0].inputs["image"] * np.float32(1e38)}, digits[0].labels)
    with pytest.raises(BadInputError, match=r"training diverged in epoch 1: the loss is (nan|inf)") as caught:
        QUICK.apply(net(norm=False), work_on(net(), huge, tmp_path))
    assert "learning_rate" in caught.value.hint


def test_event_files_hold_loss_accuracy_and_learning_rate(digits, tmp_path):
    QUICK.apply(net(), work_on(net(), digits[0], tmp_path))
    files = list((tmp_path / "events").rglob("events.out.tfevents.*"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for name in (b"loss/train", b"accuracy/train", b"accuracy/validation", b"learning_rate"):
        assert name in content


def test_progress_grows_with_every_batch_to_the_whole(digits, tmp_path):
    seen: list[float] = []
    work = work_on(net(), digits[0], tmp_path, progress=lambda step, share: seen.append(share))
    QUICK.apply(net(), work)
    assert seen == sorted(seen)
    assert len(seen) == 2 * 9 + 1  # 810 samples in nine batches, two epochs, and the end
    assert seen[-1] == 1.0


def test_frozen_layers_and_norms_stay_as_they_are(trained, digits, tmp_path):
    recover = dataclasses.replace(QUICK, freeze=("fir*",), freeze_batchnorm=True, validation=0.0)
    made = recover.apply(trained, work_on(trained, digits[0], tmp_path)).graph
    for name in ("w1", "scale", "shift", "mean", "variance"):
        np.testing.assert_array_equal(made.array(name), trained.array(name))
    assert not np.array_equal(made.array("w2"), trained.array("w2"))


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_training_on_attacked_inputs_withstands_the_attack_better(attack, trained, digits, tmp_path):
    eps, held = 0.15, digits[1]

    def under_attack(graph: Graph) -> float:
        slopes = input_gradient(graph)(held.inputs, held.labels)["image"]
        moved = np.clip(held.inputs["image"] + eps * np.sign(slopes), 0, 1).astype(np.float32)
        return accuracy(graph, Samples({"image": moved}, held.labels), tmp_path)

    recover = Recover(
        learning_rate=3e-3, epochs=3, batch=100, adversarial=attack, eps=eps, adversarial_steps=2, epoch_kept="last"
    )
    harder = recover.apply(trained, work_on(trained, digits[0], tmp_path)).graph
    assert under_attack(harder) > under_attack(trained) + 0.1


def test_an_attack_stays_within_eps_and_the_bounds_of_the_data():
    x = {"x": torch.rand(5, 3), "kind": torch.arange(5)}
    moved = attacked(
        x, lambda inputs: inputs["x"].square().sum(), {"x": (0.0, 1.0)}, eps=0.3, steps=4, random=generator(1)
    )
    assert float((moved["x"] - x["x"]).abs().max()) <= 0.3 + 1e-6
    assert float(moved["x"].min()) >= 0.0
    assert float(moved["x"].max()) <= 1.0
    assert float(moved["x"].square().sum()) > float(x["x"].square().sum())
    assert moved["kind"] is x["kind"]


def test_a_gradient_of_the_input_is_that_of_finite_differences(trained, digits):
    gradient = input_gradient(trained)
    x, labels = digits[1].inputs["image"][:3], digits[1].labels[:3]
    slopes = gradient({"image": x}, labels)["image"]
    alone = gradient({"image": x[1:2]}, labels[1:2])["image"]
    np.testing.assert_allclose(slopes[1:2], alone, rtol=1e-3, atol=1e-6)
    view = TorchView(trained).eval()

    def loss(image: np.ndarray) -> float:
        with torch.no_grad():
            logits = view({"image": torch.from_numpy(image)})["logits"].double()
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum"))

    place = np.unravel_index(np.argmax(np.abs(slopes)), slopes.shape)
    up, down = x.copy(), x.copy()
    up[place] += 1e-3
    down[place] -= 1e-3
    assert (loss(up) - loss(down)) / 2e-3 == pytest.approx(float(slopes[place]), rel=0.05)


def test_a_gradient_through_a_softmax_does_not_vanish():
    with_softmax, without_softmax = input_gradient(net(end="probabilities")), input_gradient(net())
    x, labels = np.full((2, 1, 8, 8), 30.0, np.float32), np.array([3, 4])
    np.testing.assert_allclose(
        with_softmax({"image": x}, labels)["image"], without_softmax({"image": x}, labels)["image"], rtol=1e-5
    )


def test_labels_that_do_not_fit_are_refused(digits, tmp_path):
    wrong = Samples(digits[0].inputs, digits[0].labels + 5, "digits")
    with pytest.raises(BadInputError, match="labels of digits go from 5 to 14, the model has 10 classes"):
        QUICK.apply(net(), work_on(net(), wrong, tmp_path))
    with pytest.raises(BadInputError, match="labels do not fit"):
        input_gradient(net())({"image": digits[0].inputs["image"][:2]}, np.array([1, 10]))


def test_a_model_that_is_no_classifier_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"no output of class scores"):
        head_of(Graph.read(adder(tmp_path / "adder.onnx")))


def test_a_graph_of_batch_one_is_trained_in_batches(digits, tmp_path):
    result = QUICK.apply(net(batch=1), work_on(net(), digits[0], tmp_path))
    assert result.changed["loss_last"] < result.changed["loss_first"]
    assert not any("one sample at a time" in note for note in result.notes)


def test_flip_crop_moves_images_of_either_layout_by_an_eighth_at_most():
    image = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
    first = flip_crop({"x": image}, generator(3))["x"]
    last = flip_crop({"x": image.permute(0, 2, 3, 1).contiguous()}, generator(3))["x"]
    assert first.shape == image.shape
    torch.testing.assert_close(first, last.permute(0, 3, 1, 2))
    middle = image[:, :, 8, 8]
    for sample in range(2):
        place = (first[sample, 0] == middle[sample, 0]).nonzero()[0]
        assert all(5 <= int(p) <= 10 for p in place)
        torch.testing.assert_close(first[sample, :, place[0], place[1]], middle[sample])
    with pytest.raises(BadInputError, match="holds no images to flip"):
        flip_crop({"x": torch.zeros(3, 5)}, generator(0))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0]),
        ("cosine", [0.5, 1.0, 0.5, 0.0]),
        ("step", [0.5, 1.0, 0.1, 0.01]),
    ],
)
def test_schedules_warm_up_and_fall(schedule, expected):
    settings = TrainSettings(schedule=schedule, learning_rate=1.0, warmup=0.2)
    found = [learning_rate_at(settings, step, 1000) for step in (99, 200, 601, 999)]
    assert found == pytest.approx(expected, abs=0.01)


def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing():
    settings = TrainSettings(schedule="onecycle", learning_rate=1.0)
    rates = [learning_rate_at(settings, step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.04, abs=1e-3)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) == 299
    assert rates[-1] < 1e-5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 1.5}, "epochs is 1.5, not a whole number"),
        ({"distil": 1.2}, "distil is 1.2"),
        ({"batch": True}, "batch is True"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"early_stop": 2, "validation": 0.0}, "early_stop needs held-out data"),
        ({"nesterov": True}, "nesterov needs optimizer sgd"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(BadInputError, match=message):
        Recover(**wrong)


def test_batchnorm_statistics_are_those_of_the_samples_again(trained, digits):
    shifted = trained.copy()
    shifted.set_array("w1", trained.array("w1") * 3 + 0.1)
    view = TorchView(shifted)
    assert reestimate_batchnorm(view, digits[0], batch=450) == 1
    seen: list[torch.Tensor] = []
    view.activation_hook = lambda name, value: (seen.append(value) if name == "c1" else None, value)[1]
    with torch.no_grad():
        view.eval()({"image": torch.from_numpy(digits[0].inputs["image"])})
    graph = view.to_graph()
    np.testing.assert_allclose(graph.array("mean"), seen[0].mean((0, 2, 3)).numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(graph.array("variance"), seen[0].var((0, 2, 3)).numpy(), rtol=0.02)
    np.testing.assert_array_equal(graph.array("w1"), shifted.array("w1"))


# quantisation-aware training


@pytest.mark.parametrize(
    "params",
    [
        asymmetric(-0.7, 1.3, UINT8),
        symmetric(np.array([0.5, 1.0, 0.25]), INT4, axis=1),
        symmetric(0.9, Grid(-4, 3, "int8")),
    ],
)
def test_fake_quantisation_gives_what_the_grid_gives(params):
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    fake = FakeQuant({"x": params}, {})
    found = fake.activation("x", torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, params.fake(x), atol=1e-6)
    assert fake.activation("y", torch.zeros(1)).tolist() == [0.0]


def test_gradients_pass_straight_through_inside_the_range_and_not_outside():
    x = torch.tensor([0.11, 0.24, 5.0, -5.0], requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    fake_quantize(x, scale, torch.tensor(0.0), -4, 3).backward(torch.ones(4))
    assert x.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    # Esser et al. 2020, equation 3: round(v) - v inside, the bound outside.
    assert float(scale.grad) == pytest.approx((1 - 1.1) + (2 - 2.4) + 3 - 4, abs=1e-5)


def grids(graph: Graph, samples: Samples, bits: int) -> tuple[dict[str, QuantParams], dict[str, QuantParams]]:
    """What plain calibration gives: ranges of activations, largest weights of channels."""
    seen: dict[str, tuple[float, float]] = {}

    def look(name: str, value: torch.Tensor) -> torch.Tensor:
        seen[name] = (float(value.min()), float(value.max()))
        return value

    view = TorchView(graph).eval()
    view.activation_hook = look
    with torch.no_grad():
        view({"image": torch.from_numpy(samples.inputs["image"][:200])})
    activations = {name: asymmetric(*seen[name], UINT8) for name in ("image", "p1", "f")}
    top = 2 ** (bits - 1) - 1
    weights = {}
    for name, tensor, axis in (("first", "w1", 0), ("second", "w2", 0), ("last", "fc", 1)):
        value = np.abs(graph.array(tensor))
        amax = value.max(axis=tuple(i for i in range(value.ndim) if i != axis))
        weights[name] = symmetric(amax, Grid(-top, top, "int8"), axis=axis)
    return activations, weights


def simulated(graph: Graph, activations: Any, weights: Any, samples: Samples) -> float:
    view = TorchView(graph).eval()
    FakeQuant(activations, weights).install(view)
    with torch.no_grad():
        scores = view({"image": torch.from_numpy(samples.inputs["image"])})["logits"].numpy()
    return top1(scores, samples.labels).share


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory) -> Graph:
    """The net without BatchNormalization, well trained."""
    work = work_on(net(norm=False), digits[0], tmp_path_factory.mktemp("plain"))
    return Recover(learning_rate=1e-2, epochs=10, batch=64, validation=0.0).apply(net(norm=False), work).graph


def test_quantisation_aware_training_beats_quantisation_alone_at_three_bits(plain, digits, tmp_path):
    activations, weights = grids(plain, digits[0], bits=3)
    alone = simulated(plain, activations, weights, digits[1])
    settings = Recover(learning_rate=5e-3, epochs=3, batch=100, distil=0.5)
    made = train_quantised(plain, activations, weights, work_on(plain, digits[0], tmp_path), settings)
    after = simulated(made.graph, made.activations, made.weights, digits[1])
    assert after > alone + 0.05
    assert made.trained.to_json()["epochs"] == 3
    for name, params in weights.items():
        assert made.weights[name].low == params.low
        assert made.weights[name].axis == params.axis
        assert made.weights[name].scale.shape == params.scale.shape
        assert not np.array_equal(made.weights[name].scale, params.scale)
        assert (made.weights[name].scale > 0).all()
    assert made.activations["p1"].zero_point == activations["p1"].zero_point


def test_fixed_scales_stay_while_weights_train(plain, digits, tmp_path):
    activations, weights = grids(plain, digits[0], bits=3)
    work = work_on(plain, digits[0], tmp_path)
    made = train_quantised(plain, activations, weights, work, QUICK, learn_scales=False)
    for found, given in ((made.weights, weights), (made.activations, activations)):
        for name, params in given.items():
            np.testing.assert_array_equal(found[name].scale, params.scale)
    assert not np.array_equal(made.graph.array("w2"), plain.array("w2"))


def test_quantisation_aware_training_resumes_to_the_same_result(plain, digits, tmp_path):
    activations, weights = grids(plain, digits[0], bits=2)
    settings = Recover(epochs=2, batch=100, epoch_kept="last")
    expected = train_quantised(plain, activations, weights, work_on(plain, digits[0], tmp_path / "a"), settings)
    cut = work_on(plain, digits[0], tmp_path / "b", progress=cut_at(0.7))
    with pytest.raises(_Cut):
        train_quantised(plain, activations, weights, cut, settings)
    made = train_quantised(plain, activations, weights, work_on(plain, digits[0], tmp_path / "b"), settings)
    assert made.trained.resumed_after_epoch == 1
    assert made.graph.digest == expected.graph.digest
    np.testing.assert_array_equal(made.weights["last"].scale, expected.weights["last"].scale)


def test_grids_of_what_is_not_there_are_refused(plain, digits, tmp_path):
    grid = asymmetric(0, 1, UINT8)
    work = work_on(plain, digits[0], tmp_path)
    with pytest.raises(BadInputError, match="there is no tensor 'nothing' to quantise"):
        train_quantised(plain, {"nothing": grid}, {}, work, QUICK)
    with pytest.raises(BadInputError, match="there is no weighted node 'Relu_1' to quantise"):
        train_quantised(plain, {}, {"Relu_1": grid}, work, QUICK)
