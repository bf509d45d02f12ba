from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.graph import Graph
from kedge.model.preprocess import Preprocess
from kedge.model.samples import Samples
from kedge.optimize.robustness.attack import Gradient, bounds_of, fgsm, pgd, view_gradient
from kedge.optimize.robustness.corrupt import KINDS, AffinePixels, check_strength, corrupt, noise_relative, severities
from kedge.optimize.robustness.measure import ATTACKS, robustness
from tests.support import models
from tests.support.environment import SHARED, shared_model

COLOUR = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SIDE, CLASSES = 6, 3


def pictures(count: int = 12, side: int = 16, channels: int = 3) -> np.ndarray:
    """Smooth random pictures: what JPEG and blur are made for."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, side // 4, side // 4, channels))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype(np.uint8)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def error(damaged: np.ndarray, pixels: np.ndarray) -> float:
    return float(np.mean((damaged.astype(float) - pixels) ** 2))


# pixels


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("mode", ["RGB", "BGR", "grayscale"])
@pytest.mark.parametrize("numbers", [{}, {"scale": 1 / 127.5, "mean": (1.0,)}, COLOUR])
def test_pixels_are_found_again_and_give_the_same_bits(layout: str, mode: str, numbers: dict) -> None:
    if mode == "grayscale":
        numbers = {key: value[:1] if isinstance(value, tuple) else value for key, value in numbers.items()}
    pixels = pictures(channels=1 if mode == "grayscale" else 3)
    x = Preprocess(layout=layout, mode=mode, **numbers).apply(pixels)
    space = AffinePixels(layout=layout, mode=mode, **numbers)
    np.testing.assert_array_equal(space.to_pixels(x), pixels)
    np.testing.assert_array_equal(space.from_pixels(space.to_pixels(x)), x)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"std": (1.0, 0.0, 1.0)}, {"layout": "CHW"}])
def test_preprocessing_that_cannot_be_undone_is_refused(wrong: dict) -> None:
    with pytest.raises(BadInputError):
        AffinePixels(**wrong)


# corruptions


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 224])
def test_every_published_severity_damages_more_than_the_one_before(kind: str, side: int, channels: int) -> None:
    pixels = pictures(channels=channels)
    strengths = severities(side)[kind]
    damage = [error(corrupt(pixels, kind, strength, random()), pixels) for strength in strengths]
    assert len(strengths) == 5
    assert damage[0] > 0
    assert damage == sorted(damage)


def test_noise_has_the_stated_strength_and_follows_its_seed() -> None:
    gray = np.full((4, 64, 64, 3), 128, np.uint8)
    noisy = corrupt(gray, "noise", 0.1, random())
    assert noisy.std() == pytest.approx(0.1 * 255, rel=0.02)
    np.testing.assert_array_equal(noisy, corrupt(gray, "noise", 0.1, random()))
    assert (noisy != corrupt(gray, "noise", 0.1, random(1))).any()


def test_contrast_moves_each_pixel_to_the_mean_of_its_picture() -> None:
    pixels = np.zeros((2, 2, 2, 1), np.uint8)
    pixels[0, 0] = 100  # mean 50
    pixels[1] = 200
    damaged = corrupt(pixels, "contrast", 0.5, random())
    np.testing.assert_array_equal(damaged[0, :, :, 0], [[75, 75], [25, 25]])
    np.testing.assert_array_equal(damaged[1], pixels[1])


def test_blur_keeps_the_mean_and_does_not_mix_pictures_or_channels() -> None:
    pixels = np.zeros((2, 33, 33, 2), np.uint8)
    pixels[0, 16, 16, 0] = 255
    damaged = corrupt(pixels, "blur", 1.0, random())
    # The peak of a Gaussian of σ = 1 in two dimensions is 1 / 2π.
    assert damaged[0, 16, 16, 0] == round(255 / (2 * np.pi))
    assert damaged[0, :, :, 1].max() == damaged[1].max() == 0
    np.testing.assert_array_equal(damaged[0, :, :, 0], damaged[0, :, :, 0].T)


@pytest.mark.parametrize(("kind", "strength"), [("noise", 0.0), ("contrast", 1.0), ("blur", 0.0)])
def test_a_strength_of_nothing_changes_nothing(kind: str, strength: float) -> None:
    np.testing.assert_array_equal(corrupt(pictures(), kind, strength, random()), pictures())


@pytest.mark.parametrize(
    ("kind", "strength"),
    [("fog", 1), ("noise", -0.1), ("noise", float("nan")), ("contrast", 2), ("jpeg", 0), ("jpeg", 50.5), ("blur", 1e9)],
)
def test_a_strength_that_makes_no_sense_is_refused(kind: str, strength: float) -> None:
    with pytest.raises(BadInputError):
        check_strength(kind, strength)


def test_noise_on_other_inputs_is_a_share_of_their_own_spread() -> None:
    x = (7 + 5 * random(1).standard_normal((100, 200))).astype(np.float32)
    noisy = noise_relative(x, 0.2, random())
    assert noisy.dtype == x.dtype
    assert (noisy - x).std() == pytest.approx(1.0, rel=0.03)
    with pytest.raises(BadInputError, match="int32"):
        noise_relative(np.zeros((3, 3), np.int32), 0.1, random())


# attacks


def linear(seed: int = 3) -> np.ndarray:
    return random(seed).standard_normal((SIDE * SIDE, CLASSES)).astype(np.float32)


def analytic(weights: np.ndarray) -> Gradient:
    """Softmax regression: dL/dx = W (softmax(xW) - onehot)."""

    def gradient(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        scores = x.reshape(len(x), -1) @ weights
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return ((shares - np.eye(CLASSES)[labels]) @ weights.T).reshape(x.shape)

    return gradient


def loss(weights: np.ndarray, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores = (x.reshape(len(x), -1) @ weights).astype(np.float64)
    return np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1) - scores[range(len(x)), labels]


def linear_graph(weights: np.ndarray, *, softmax: bool = False, batch: str | int = "n") -> Graph:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    nodes += [helper.make_node("Softmax", ["y"], ["p"], axis=1)] if softmax else []
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("p" if softmax else "y", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    return Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


SPACE = AffinePixels(scale=1 / 255, mean=(0.5,), std=(0.25,), mode="grayscale")


def small_pictures(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, and the labels that the linear model gives them."""
    x = SPACE.from_pixels(random(8).integers(0, 256, (count, SIDE, SIDE, 1)).astype(np.uint8))
    return x, (x.reshape(count, -1) @ linear()).argmax(axis=1)


def test_an_attack_of_strength_0_changes_nothing() -> None:
    x, labels = small_pictures()
    bounds = bounds_of(SPACE, x)
    np.testing.assert_array_equal(fgsm(x, labels, analytic(linear()), 0, bounds), x)
    np.testing.assert_array_equal(pgd(x, labels, analytic(linear()), 0, bounds), x)


@pytest.mark.parametrize("epsilon", [1, 8, 64])
def test_attacks_stay_in_the_ball_and_among_valid_pixels(epsilon: float) -> None:
    x, labels = small_pictures()
    bounds = bounds_of(SPACE, x)
    assert float(bounds.low.min()) == pytest.approx((0 - 0.5) / 0.25)
    assert float(bounds.high.max()) == pytest.approx((1 - 0.5) / 0.25)
    assert float(bounds.level.max()) == pytest.approx(1 / 255 / 0.25)
    for moved in (
        fgsm(x, labels, analytic(linear()), epsilon, bounds),
        pgd(x, labels, analytic(linear()), epsilon, bounds, steps=4, step_size=epsilon),
    ):
        assert np.abs(moved - x).max() <= epsilon * bounds.level.max() * (1 + 1e-5)
        assert np.abs(moved - x).max() > 0
        assert (moved >= bounds.low).all()
        assert (moved <= bounds.high).all()


def test_fgsm_moves_every_pixel_a_whole_step_up_the_loss() -> None:
    x, labels = small_pictures()
    moved = fgsm(x, labels, analytic(linear()), 2, bounds_of(SPACE, x))
    levels = SPACE.to_pixels(moved).astype(int) - SPACE.to_pixels(x)
    assert set(np.unique(levels)) <= {-2, -1, 0, 1, 2}
    assert (np.abs(levels) == 2).mean() > 0.95
    assert (loss(linear(), moved, labels) > loss(linear(), x, labels)).all()


def test_pgd_starts_at_random_follows_its_seed_and_reaches_what_fgsm_reaches() -> None:
    x, labels = small_pictures()
    bounds, gradient = bounds_of(SPACE, x), analytic(linear())
    once, again, other = (pgd(x, labels, gradient, 8, bounds, steps=1, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()
    strong = loss(linear(), pgd(x, labels, gradient, 8, bounds), labels).mean()
    assert strong >= loss(linear(), fgsm(x, labels, gradient, 8, bounds), labels).mean() * 0.999


@pytest.mark.parametrize("value", [-1, 300, float("nan")])
def test_an_attack_out_of_range_is_refused(value: float) -> None:
    x, labels = small_pictures()
    for attack in (fgsm, pgd):
        with pytest.raises(BadInputError, match="attack of ε"):
            attack(x, labels, analytic(linear()), value, bounds_of(SPACE, x))
    with pytest.raises(BadInputError, match="one step"):
        pgd(x, labels, analytic(linear()), 1, bounds_of(SPACE, x), steps=0)


def test_a_gradient_that_is_none_is_refused() -> None:
    x, labels = small_pictures()
    with pytest.raises(BadInputError, match="gradient"):
        fgsm(x, labels, lambda x, labels: np.full(x.shape, np.nan), 1, bounds_of(SPACE, x))
    with pytest.raises(BadInputError, match="gradient"):
        fgsm(x, labels, lambda x, labels: x[:1], 1, bounds_of(SPACE, x))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("batch", ["n", 1])
def test_the_gradient_of_a_graph_is_the_analytic_one(softmax: bool, batch: str | int) -> None:
    x, labels = small_pictures()
    gradient = view_gradient(linear_graph(linear(), softmax=softmax, batch=batch))
    # A model that is sure of itself: after a saturated Softmax nothing would be left to follow.
    np.testing.assert_allclose(gradient(x * 9, labels), analytic(linear())(x * 9, labels), atol=1e-4)


def test_graphs_without_a_gradient_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="one input"):
        view_gradient(Graph.read(models.adder(tmp_path / "a.onnx")))
    graph = Graph.read(models.classifier(tmp_path / "m.onnx"))
    graph.proto.graph.node[1].op_type = "NonZero"
    graph.touched()
    with pytest.raises(IncompatibleError, match="NonZero"):
        view_gradient(graph)


# the whole


def labelled(count: int = 40) -> Samples:
    x, labels = small_pictures(count)
    return Samples({"x": x}, labels, "small pictures")


def coarse() -> Graph:
    return linear_graph(np.sign(linear()))


def test_every_kind_is_measured_before_and_after() -> None:
    before = linear_graph(linear())
    seen: list[float] = []
    report = robustness(
        before,
        coarse(),
        labelled(),
        SPACE,
        gradient=view_gradient(before),
        attack_limit=20,
        progress=lambda step, share: seen.append(share),
    )
    assert {point["kind"] for point in report["points"]} == {*KINDS, *ATTACKS}
    assert {point["before"]["count"] for point in report["points"] if point["kind"] in KINDS} == {40}
    assert {point["before"]["count"] for point in report["points"] if point["kind"] in ATTACKS} == {20}
    assert report["clean"]["before"]["share"] == 1
    assert report["clean"]["after"]["share"] < 1
    assert report["not_measured"] == []
    assert "transfer attack" in report["conditions"]
    assert seen[-1] == 1
    shares = {(point["kind"], point["strength"]): point["before"]["share"] for point in report["points"]}
    for strength in (1, 2, 4):
        assert shares["pgd", strength] <= shares["fgsm", strength] <= 1
    assert shares["fgsm", 8] < 1


def test_the_same_seed_gives_the_same_report_and_another_draws_others() -> None:
    def report(seed: int) -> dict:
        return robustness(coarse(), None, labelled(), SPACE, {"noise": [0.1], "jpeg": [40]}, limit=25, seed=seed)

    assert report(1) == report(1)
    assert report(1)["points"] != report(2)["points"]
    assert [(point["kind"], point["after"]) for point in report(1)["points"]] == [("noise", None), ("jpeg", None)]
    assert "Attacks" not in report(1)["conditions"]


def test_of_inputs_that_are_no_pictures_noise_alone_is_measured() -> None:
    report = robustness(linear_graph(linear()), coarse(), labelled())
    assert {point["kind"] for point in report["points"]} == {"noise"}
    assert report["points"][0]["unit"] == "σ, share of the inputs' own σ"
    assert {entry["kind"] for entry in report["not_measured"]} == {"blur", "contrast", "jpeg", "fgsm", "pgd"}
    assert "no pictures" in report["conditions"]


def test_without_a_gradient_attacks_are_not_measured_and_not_zero() -> None:
    report = robustness(linear_graph(linear()), None, labelled(), SPACE, {"fgsm": [1], "contrast": [0.5]})
    assert [point["kind"] for point in report["points"]] == ["contrast"]
    assert report["not_measured"] == [{"kind": "fgsm", "reason": "no gradient of the model was given"}]


def test_inputs_that_were_preprocessed_in_another_way_are_noticed() -> None:
    report = robustness(linear_graph(linear()), None, labelled(), AffinePixels(mode="grayscale"), {"blur": [1]})
    assert report["points"] == []
    assert "no pixels under the stated preprocessing" in report["not_measured"][0]["reason"]


def test_without_labels_or_scores_nothing_is_measured() -> None:
    x, labels = small_pictures()
    assert robustness(coarse(), None, Samples({"x": x}), SPACE)["points"] == []
    regression = linear_graph(linear()[:, :1])
    report = robustness(regression, None, Samples({"x": x}, labels), SPACE)
    assert report["clean"] is None
    assert "no output" in report["conditions"]


@pytest.mark.parametrize("strengths", [{"fog": [1]}, {"pgd": [-1]}, {"jpeg": [40, 0]}])
def test_strengths_are_checked_before_anything_runs(strengths: dict) -> None:
    with pytest.raises(BadInputError):
        robustness(coarse(), None, labelled(), SPACE, strengths)


@pytest.mark.slow
def test_a_real_network_loses_to_attacks_as_known() -> None:
    graph = Graph.read(shared_model("resnet20_cifar10.onnx"))
    mosaic = SHARED / "data" / "cifar10" / "test_0.webp"
    if not mosaic.is_file():
        pytest.skip("needs CIFAR-10's test pictures in a folder `shared/data/cifar10` beside the checkout")
    from PIL import Image

    with Image.open(mosaic) as image:
        wall = np.asarray(image.crop((0, 0, 25 * 32, 4 * 32)).convert("RGB"))
    pixels = wall.reshape(4, 32, 25, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    labels = np.load(SHARED / "data" / "cifar10" / "test_labels.npy")[:100].astype(np.int64)
    samples = Samples({"input": Preprocess(**COLOUR).apply(pixels)}, labels, "CIFAR-10")
    strengths = {"contrast": [0.75, 0.15], "fgsm": [2], "pgd": [2]}
    report = robustness(
        graph, None, samples, AffinePixels(**COLOUR), strengths, gradient=view_gradient(graph), attack_limit=16
    )
    shares = [point["before"]["share"] for point in report["points"]]
    assert report["clean"]["before"]["share"] > 0.85
    assert shares[0] > 0.8
    assert shares[1] < 0.6
    assert shares[3] <= shares[2] < 0.7
