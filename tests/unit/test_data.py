from __future__ import annotations

import hashlib
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kedge.errors import BadInputError, ExitCode
from kedge.model.data import load_samples
from kedge.model.onnx_io import ModelSpec, read_model
from kedge.model.preprocess import Preprocess
from kedge.optimize.proof.guard import refuse_overlap
from kedge_agent.formats.tensors import TensorSpec
from tests.support import models

COLOUR = TensorSpec("image", "FP32", (-1, 3, 8, 8))
EIGHT = Preprocess(resize=(8, 8), scale=1 / 255)


def spec(*inputs: TensorSpec) -> ModelSpec:
    return ModelSpec(inputs or (COLOUR,), (TensorSpec("logits", "FP32", (-1, 3)),), 17, 8, False)


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of two images, each of one colour: the first channel tells which."""
    for number, name in enumerate(("ant", "bee", "cat")):
        for index, suffix in enumerate(("png", "bmp")):
            picture(tmp_path / "photos" / name / f"{index}.{suffix}", (number * 50, index, 0))
    return tmp_path / "photos"


def module(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(f"import numpy as np\n{body}\n")
    return f"{name}:make"


def rejects(reason: str, *args: Any, **kwargs: Any) -> str:
    """The hint of the one-line refusal."""
    with pytest.raises(BadInputError, match=reason) as caught:
        load_samples(*args, **kwargs)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    return caught.value.hint


def test_pixels_are_scaled_then_normalised_then_laid_out() -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    out = Preprocess(scale=1 / 255, mean=mean, std=std).apply(pixels)
    want = ((pixels / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, want, atol=1e-5)
    last = Preprocess(scale=1 / 255, mean=mean, std=std, layout="NHWC").apply(pixels)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), out)


def test_the_short_side_is_resized_before_the_centre_is_cut() -> None:
    picture = Image.new("RGB", (40, 20))
    picture.paste((200, 0, 0), (16, 0, 24, 20))
    out = Preprocess(resize=10, crop=(10, 4)).apply(picture)
    assert out.shape == (1, 3, 10, 4)
    np.testing.assert_allclose(out[0, 0, :, 1:3], 200, atol=1)
    np.testing.assert_array_equal(out[0, 1:], 0)


def test_reducing_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = 200
    out = Preprocess(resize=(8, 8), mode="grayscale").apply(stripes)
    np.testing.assert_allclose(out, 100, atol=15)


def test_a_picture_and_its_array_become_the_same() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 20, 30, 3), dtype=np.uint8)
    for mode in ("RGB", "BGR", "grayscale"):
        how = Preprocess(resize=12, crop=(8, 8), mode=mode)
        np.testing.assert_array_equal(how.apply(pixels), how.apply(Image.fromarray(pixels[0])))


def test_grayscale_is_luma_and_bgr_is_reversed() -> None:
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 100
    assert Preprocess(mode="grayscale").apply(red)[0, 0, 0, 0] == 30
    assert list(Preprocess(mode="BGR").apply(red)[0, :, 0, 0]) == [0, 0, 100]


def test_channels_first_pictures_are_known_by_their_shape() -> None:
    digits = np.arange(2 * 28 * 28, dtype=np.uint16).astype(np.uint8).reshape(2, 1, 28, 28)
    np.testing.assert_array_equal(Preprocess(mode="grayscale").apply(digits), digits)


def test_a_preprocessing_goes_through_the_manifest_unchanged() -> None:
    table = {"resize": 256, "crop": 224, "scale": "1/255", "mean": [0.485, 0.456, 0.406], "std": "0.225"}
    read = Preprocess.from_mapping(table)
    assert read.scale == 1 / 255
    assert read.crop == (224, 224)
    body = read.to_manifest()
    assert Preprocess.from_mapping(body) == read
    assert not [value for value in body.values() if isinstance(value, float)]
    assert Preprocess.from_mapping({"scale": 1e-7}).to_manifest()["scale"] == "0.0000001"


@pytest.mark.parametrize(
    ("table", "reason", "hint"),
    [
        ({"rezise": 3}, "no key 'rezise'", "did you mean resize"),
        ({"resize": 0}, "resize is 0", "pixels"),
        ({"resize": True}, "resize is True", "pixels"),
        ({"crop": [1, 2, 3]}, "crop is", "height, width"),
        ({"scale": "1/0"}, "scale is '1/0'", "number"),
        ({"scale": "1e999"}, "scale is inf", "factor"),
        ({"scale": "nan"}, "scale is", "factor|number"),
        ({"mean": [1, 2]}, "mean has 2 numbers", "one a channel"),
        ({"std": 0}, "std is", "above 0"),
        ({"layout": "NCWH"}, "layout is 'NCWH'", "NCHW, NHWC"),
        ({"mode": "CMYK"}, "mode is 'CMYK'", "grayscale"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_refused(table: dict[str, Any], reason: str, hint: str) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        Preprocess.from_mapping(table)
    assert re.search(hint, caught.value.hint)


def test_a_folder_is_read_by_class(photos: Path) -> None:
    samples = load_samples("photos", spec(), EIGHT, base=photos.parent, output_classes=3)
    assert samples.classes == ("ant", "bee", "cat")
    assert samples.labels is not None
    assert sorted(samples.labels) == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(samples.inputs["image"][:, 0, 0, 0] * 255, samples.labels * 50, atol=1e-3)


def test_a_limit_takes_from_every_class_of_a_folder(photos: Path) -> None:
    samples = load_samples(str(photos), spec(), EIGHT, limit=3)
    assert samples.labels is not None
    assert list(samples.labels) == [0, 1, 2]


def test_class_folders_named_by_numbers_are_those_classes(tmp_path: Path) -> None:
    for name in ("003", "017"):
        picture(tmp_path / "d" / name / "a.png", (1, 2, 3))
    samples = load_samples("d", spec(), EIGHT, base=tmp_path, output_classes=20)
    assert samples.labels is not None
    assert list(samples.labels) == [3, 17]
    picture(tmp_path / "d" / "5" / "a.png", (1, 2, 3))
    assert "00" in rejects("sort differently", "d", spec(), EIGHT, base=tmp_path)


def test_calibration_takes_a_folder_of_images_and_never_labels(photos: Path) -> None:
    flat = load_samples("ant", spec(), EIGHT, role="calibration", base=photos)
    assert (flat.count, flat.labels) == (2, None)
    assert load_samples(str(photos), spec(), EIGHT, role="calibration").labels is None
    rejects("no subfolders", "ant", spec(), EIGHT, base=photos)


def test_an_input_of_bytes_gets_whole_pixels(photos: Path) -> None:
    whole = spec(TensorSpec("image", "UINT8", (-1, 8, 8, 3)))
    samples = load_samples(str(photos), whole, Preprocess(resize=(8, 8), layout="NHWC"))
    assert samples.inputs["image"].dtype == np.uint8
    rejects("makes fractions", str(photos), whole, EIGHT)


def test_a_folder_that_cannot_be_used_is_refused_by_name(photos: Path) -> None:
    rejects("needs to know", str(photos), spec(), None)
    rejects("3 class folders, the model has 7", str(photos), spec(), EIGHT, output_classes=7)
    assert "resize and crop" in rejects(
        r"1\.bmp becomes", str(photos), spec(TensorSpec("image", "FP32", (-1, 3, -1, -1))), _grown(photos)
    )
    assert "layout" in rejects("wants shape", str(photos), spec(), Preprocess(resize=(8, 8), layout="NHWC"))
    (photos / "bee" / "x.png").write_bytes((photos / "bee" / "0.png").read_bytes()[:45])
    assert "remove" in rejects(r"bee/x\.png cannot be read as an image", str(photos), spec(), EIGHT)
    (photos / "bee" / "x.png").unlink()
    (photos / "dog").mkdir()
    (photos / "dog" / ".hidden").touch()
    rejects("class 'dog' .* has no images", str(photos), spec(), EIGHT)


def _grown(photos: Path) -> Preprocess:
    picture(photos / "ant" / "1.bmp", (0, 1, 0), (30, 30))
    return Preprocess()


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(photos: Path) -> None:
    for side in (9000, 12000, 40000):
        header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        (photos / "ant" / "huge.png").write_bytes(start + struct.pack(">I", 1 << 20) + b"IDAT")
        rejects(r"huge\.png has more than", str(photos), spec(), EIGHT)


def test_a_deep_picture_is_not_clipped_silently(photos: Path) -> None:
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(photos / "ant" / "deep.png")
    assert "8 bits" in rejects(r"deep\.png.*not 8-bit", str(photos), spec(), EIGHT)


@pytest.mark.parametrize("key", ["image", "x", "inputs", "images"])
@pytest.mark.parametrize("labels", ["labels", "y"])
def test_numpy_archives_are_read_by_usual_names(tmp_path: Path, key: str, labels: str) -> None:
    np.savez(tmp_path / "d.npz", **{key: models.images(5), labels: np.arange(5, dtype=np.uint8)})
    read = load_samples("d.npz", read_model(models.classifier(tmp_path / "m.onnx")), base=tmp_path, limit=4)
    assert read.labels is not None
    assert (read.labels.dtype, list(read.labels)) == (np.int64, [0, 1, 2, 3])
    np.testing.assert_array_equal(read.inputs["image"], models.images(5)[:4])


def test_labels_given_by_name_follow_the_archive_s_classes(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=models.images(3), labels=np.array(["b", "a", "b"]), classes=np.array(["a", "b"]))
    model = read_model(models.classifier(tmp_path / "m.onnx"))
    read = load_samples(str(path), model)
    assert read.labels is not None
    assert (list(read.labels), read.classes) == ([1, 0, 1], ("a", "b"))
    np.savez(path, x=models.images(1), labels=np.array(["z"]), classes=np.array(["a", "b"]))
    rejects("label 'z'", str(path), model)


def test_pictures_in_an_archive_are_preprocessed_and_floats_are_not(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "u.npy", pixels)
    np.save(tmp_path / "f.npy", EIGHT.apply(pixels))
    first, second = (load_samples(f"{name}.npy", spec(), EIGHT, base=tmp_path) for name in "uf")
    np.testing.assert_array_equal(first.inputs["image"], second.inputs["image"])
    assert "preprocess" in rejects("UINT8", "u.npy", spec(), base=tmp_path)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": models.images(3)[:, :, :4], "y": np.zeros(3, int)}, "wants shape"),
        ({"x": models.images(3).astype("f8"), "y": np.zeros(3, int)}, "FP64"),
        ({"x": models.images(3) * np.nan, "y": np.zeros(3, int)}, "NaN or infinity"),
        ({"x": np.full((3, 1, 8, 8), -np.inf, "f4"), "y": np.zeros(3, int)}, "NaN or infinity"),
        ({"x": models.images(3), "y": np.array([0, 1, 4])}, "labels go from 0 to 4, the model has 4 classes"),
        ({"x": models.images(3), "y": np.array([0, 1, -1])}, "labels go from -1 to 1"),
        ({"x": models.images(3), "y": np.array([0.0, 1.0, 2.0])}, "not whole numbers"),
        ({"x": models.images(3), "y": np.eye(3, dtype=int)}, "labels have the shape"),
        ({"x": models.images(3), "y": np.zeros(2, int)}, "3 samples and 2 labels"),
        ({"x": models.images(0), "y": np.zeros(0, int)}, "0 of 'image'"),
        ({"pictures": models.images(3)}, "lacks the inputs image"),
        ({"x": models.images(3), "images": models.images(3)}, "several inputs"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], reason: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    before = hashlib.sha256((tmp_path / "d.npz").read_bytes()).digest()
    model = read_model(models.classifier(tmp_path / "m.onnx"))
    rejects(reason, "d.npz", model, base=tmp_path, output_classes=4)
    assert hashlib.sha256((tmp_path / "d.npz").read_bytes()).digest() == before


def test_what_is_not_there_or_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    rejects("cannot be read", "missing.npz", spec(), base=tmp_path)
    rejects("cannot be read", "missing", spec(), base=tmp_path)
    (tmp_path / "d.csv").write_text("1,2")
    rejects("no known kind", "d.csv", spec(), base=tmp_path)
    rejects("limit", "d.csv", spec(), base=tmp_path, limit=0)
    np.save(tmp_path / "d.npy", np.ones(3, "f4"))
    two = spec(TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,)))
    rejects("2 inputs", "d.npy", two, base=tmp_path)


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedge.model.inputs.MAX_DATA_BYTES", 100)
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros(1000, "f4"))
    rejects("unpacks to more than", "d.npz", spec(), base=tmp_path)


def test_a_function_may_return_all_or_yield_batches(tmp_path: Path) -> None:
    model = read_model(models.classifier(tmp_path / "m.onnx"))
    whole = "def make():\n    return np.ones((4, 1, 8, 8), 'f4'), [0, 1, 2, 3]"
    batches = "def make():\n    for i in range(4):\n        yield {'image': np.ones((1, 1, 8, 8), 'f4')}, np.array([i])"
    for name, body in (("data_whole", whole), ("data_batches", batches)):
        samples = load_samples(module(tmp_path, name, body), model, base=tmp_path, limit=3)
        assert samples.labels is not None
        assert list(samples.labels) == [0, 1, 2]
        assert samples.inputs["image"].shape == (3, 1, 8, 8)
    assert str(tmp_path) not in sys.path


def test_a_limit_ends_a_function_that_never_would(tmp_path: Path) -> None:
    body = "def make():\n    print('noise')\n    while True:\n        yield np.ones((2, 3, 8, 8), 'f4'), None"
    samples = load_samples(module(tmp_path, "data_endless", body), spec(), base=tmp_path, limit=5)
    assert (samples.count, samples.labels) == (5, None)


def test_what_a_function_prints_stays_off_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = "print('importing')\ndef make():\n    print('loading')\n    return np.ones((1, 3, 8, 8), 'f4'), None"
    load_samples(module(tmp_path, "data_prints", body), spec(), base=tmp_path)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "importing\nloading\n")


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("raises", "def make():\n    raise RuntimeError('no disk\\nmore')", "RuntimeError: no disk"),
        ("lazily", "def make():\n    yield 1 / 0", "ZeroDivisionError"),
        ("imports", "import no_such_module_at_all", "no_such_module_at_all"),
        ("nothing", "make = 3", "no function make"),
        ("single", "def make():\n    return np.ones((4, 3, 8, 8), 'f4')", "gives a ndarray"),
        ("triple", "def make():\n    yield 1, 2, 3", "yields a tuple"),
        ("empty", "def make():\n    yield from ()", "gives no samples"),
        ("named", "def make():\n    return {'pixels': np.ones((4, 3, 8, 8), 'f4')}, None", "inputs pixels"),
        ("unequal", "def make():\n    return np.ones((4, 3, 8, 8), 'f4'), [1, 2]", "4 samples and 2 labels"),
        (
            "partly",
            "def make():\n    for y in (None, [1]):\n        yield np.ones((1, 3, 8, 8), 'f4'), y",
            "some batches",
        ),
        ("objects", "def make():\n    return np.array([{}], dtype=object), None", "no model takes"),
    ],
)
def test_a_function_that_gives_no_samples_is_refused(tmp_path: Path, name: str, body: str, reason: str) -> None:
    rejects(reason, module(tmp_path, f"data_{name}", body), spec(), base=tmp_path)
    assert str(tmp_path) not in sys.path


def test_a_module_is_not_mistaken_for_another_of_its_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        module(
            tmp_path / name, "data_namesake", f"def make():\n    return np.full((1, 3, 8, 8), {ord(name)}, 'f4'), None"
        )
    first = load_samples("data_namesake:make", spec(), base=tmp_path / "a")
    assert first.inputs["image"].flat[0] == ord("a")
    assert load_samples("data_namesake:make", spec(), base=tmp_path / "a").count == 1
    assert "rename" in rejects("another module named", "data_namesake:make", spec(), base=tmp_path / "b")


def test_evaluation_on_seen_samples_is_refused_with_their_number(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype("f4")
    for name, part in (("train", pixels[:6]), ("held", pixels[6:]), ("mixed", pixels[4:])):
        np.save(tmp_path / f"{name}.npy", part)
    train, held, mixed = (load_samples(f"{n}.npy", spec(), base=tmp_path) for n in ("train", "held", "mixed"))
    refuse_overlap(held, calibration=None, train=train)
    with pytest.raises(BadInputError, match="2 of the 6 evaluation samples are also in the train data") as caught:
        refuse_overlap(mixed, calibration=None, train=train)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "train.npy" in caught.value.hint
