from __future__ import annotations

import hashlib
import json
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from kedge.build.plan import plan
from kedge.build.release import BuildOptions, build_release, model_name_for
from kedge.errors import BadInputError, ExitCode, IncompatibleError, IntegrityError
from kedge.fleet.inventory import Inventory, parse_address
from kedge.model.inputs import load_tensors
from kedge.model.onnx_io import read_model
from kedge.optimize.evaluate import Accuracy, top1
from kedge.optimize.quick import quantize_int8
from kedge.release.bundle import Release, open_release
from kedge.report.text import byte_size, milliseconds, per_cent, rate
from kedge.targets import host_target, list_targets, load_target
from kedge.transport.hostkeys import HostKey
from kedge.transport.ssh import SshAddress
from tests.support import models
from tests.support.environment import shared_model


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", list_targets())
def test_every_profile_reads_and_is_named_as_its_file(name: str) -> None:
    assert load_target(name).name == name


def test_a_mistyped_target_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadInputError) as caught:
        load_target("cpu-generic-x86-64")
    assert caught.value.hint == "did you mean cpu-generic-x86_64?"


def test_a_model_s_inputs_outputs_and_versions_are_read(tmp_path: Path) -> None:
    spec = read_model(models.classifier(tmp_path / "m.onnx"))
    assert [(t.name, t.datatype, t.shape) for t in spec.inputs] == [("image", "FP32", (-1, 1, 8, 8))]
    assert spec.inputs[0].symbols == ("batch", "", "", "")
    assert (spec.opset, spec.ir_version, spec.precision) == (models.OPSET, models.IR_VERSION, "fp32")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08"])
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        read_model(path)
    assert "\n" not in caught.value.message


def test_a_model_whose_weights_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    model = onnx.load(models.padded(tmp_path / "m.onnx", 100_000))
    external = tmp_path / "e.onnx"
    onnx.save(model, external, save_as_external_data=True, location="weights.bin")
    with pytest.raises(BadInputError, match="weights in another file"):
        read_model(external)


def test_the_planner_says_why_and_refuses_what_the_target_cannot_run(tmp_path: Path) -> None:
    spec = read_model(models.classifier(tmp_path / "m.onnx"))
    assert "onnxruntime" in plan(spec, host_target()).reason
    half = read_model(models.adder(tmp_path / "h.onnx", datatype=onnx.TensorProto.FLOAT16))
    with pytest.raises(IncompatibleError, match="fp16"):
        plan(half, replace(host_target(), precisions=("fp32", "int8")))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 1, 8, 8), "f8"), "FP64"),
        (np.zeros((4, 8, 8), "f4"), "wants shape"),
        (np.full((4, 1, 8, 8), np.nan, "f4"), "NaN"),
        (np.array(["a"]), "no model takes"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(tmp_path: Path, array: np.ndarray, reason: str) -> None:
    spec = read_model(models.classifier(tmp_path / "m.onnx"))
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(BadInputError, match=reason):
        load_tensors(tmp_path / "x.npy", spec.inputs)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 not a zip", b"\x93NUMPY\1\0"])
def test_a_damaged_numpy_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    spec = read_model(models.classifier(tmp_path / "m.onnx"))
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadInputError, match="cannot be read"):
        load_tensors(tmp_path / "x.npz", spec.inputs)


def test_a_model_of_two_inputs_wants_both_by_name(tmp_path: Path) -> None:
    spec = read_model(models.adder(tmp_path / "m.onnx"))
    np.savez(tmp_path / "x.npz", a=np.ones(3, "f4"), b=np.ones(3, "f4"))
    assert set(load_tensors(tmp_path / "x.npz", spec.inputs)) == {"a", "b"}
    np.savez(tmp_path / "y.npz", a=np.ones(3, "f4"))
    with pytest.raises(BadInputError, match="lacks the inputs b"):
        load_tensors(tmp_path / "y.npz", spec.inputs)
    np.save(tmp_path / "z.npy", np.ones(3, "f4"))
    with pytest.raises(BadInputError, match="2 inputs"):
        load_tensors(tmp_path / "z.npy", spec.inputs)


def test_a_release_is_the_same_bytes_when_it_is_built_again(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    before = sha256(model)
    golden = {"image": models.images()}
    first, second = (
        build_release(model, host_target(), tmp_path / name, BuildOptions("m"), golden).release for name in ("a", "b")
    )
    assert first.digest == second.digest == hashlib.sha256(first.manifest_bytes).hexdigest()
    assert sha256(model) == before
    first.verify()


def test_a_release_without_real_inputs_says_so(tmp_path: Path) -> None:
    built = build_release(models.classifier(tmp_path / "m.onnx"), host_target(), tmp_path / "r", BuildOptions("m"))
    assert built.golden_made_up
    assert built.release.manifest.provenance["golden_inputs"] == "made up"


def test_a_model_of_a_fixed_batch_records_one_batch(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx", batch=3)
    build = build_release(model, host_target(), tmp_path / "r", BuildOptions("m"), {"image": models.images(16)})
    assert build.release.manifest.golden.inputs[0].shape == (3, 1, 8, 8)
    with pytest.raises(BadInputError, match="2 samples"):
        build_release(model, host_target(), tmp_path / "q", BuildOptions("m"), {"image": models.images(2)})


def test_building_never_overwrites_a_folder_that_is_no_release(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("ten years")
    with pytest.raises(BadInputError, match="not a whole release"):
        build_release(models.classifier(tmp_path / "m.onnx"), host_target(), precious, BuildOptions("m"))
    assert (precious / "thesis.txt").read_text() == "ten years"


def test_a_folder_that_only_looks_like_a_release_is_not_replaced(tmp_path: Path, release: Release) -> None:
    model = models.classifier(tmp_path / "m.onnx")
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text("{}")
    (release.folder / "notes.txt").write_text("mine")
    for folder in (web, release.folder):
        with pytest.raises(BadInputError, match="not a whole release"):
            build_release(model, host_target(), folder, BuildOptions("m"))
    (release.folder / "notes.txt").unlink()
    build_release(model, host_target(), release.folder, BuildOptions("m"))


@pytest.mark.parametrize("name", ["Digits", "a b", "", "../x", "x" * 65])
def test_a_name_the_device_would_refuse_is_refused_here(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="cannot name a model"):
        build_release(models.classifier(tmp_path / "m.onnx"), host_target(), tmp_path / "r", BuildOptions(name))


@pytest.mark.parametrize(
    ("file", "name"), [("ResNet-20 (v2).onnx", "resnet-20-v2"), ("___.onnx", "model"), ("a.b.onnx", "a-b")]
)
def test_a_model_is_named_after_its_file(file: str, name: str) -> None:
    assert model_name_for(Path(file)) == name


def test_a_changed_missing_or_stray_file_is_found(release: Release) -> None:
    model = release.folder / "model.onnx"
    data = model.read_bytes()
    model.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="other bytes"):
        open_release(release.folder).verify()
    model.write_bytes(data + b"!")
    with pytest.raises(IntegrityError, match=f"names {len(data)}"):
        open_release(release.folder)
    model.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        open_release(release.folder)
    model.write_bytes(data)
    (release.folder / "extra").touch()
    with pytest.raises(IntegrityError, match="does not name: extra"):
        open_release(release.folder).verify()


def test_a_folder_without_a_manifest_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is not a release"):
        open_release(tmp_path)


def test_quantising_keeps_the_answers_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = models.classifier(tmp_path / "m.onnx", seed=3)
    before = sha256(model)
    images = models.images(64)
    done = quantize_int8(model, {"image": images}, host_target(), tmp_path / "q.onnx")
    assert sha256(model) == before
    assert done.calibrator in ("min-max", "percentile", "mse")
    spec = read_model(tmp_path / "q.onnx")
    assert (spec.is_quantized, spec.precision) == (True, "int8")
    from kedge.model.session import ReferenceModel

    full, small = (ReferenceModel(path).run({"image": images})["logits"] for path in (model, tmp_path / "q.onnx"))
    assert np.abs(full - small).max() < 0.05 * np.abs(full).max()
    with pytest.raises(BadInputError, match="quantised already"):
        quantize_int8(tmp_path / "q.onnx", {"image": images}, host_target(), tmp_path / "r.onnx")


def test_a_real_model_is_read_quantised_and_released(tmp_path: Path) -> None:
    model = shared_model("resnet20_cifar10.onnx")
    before = sha256(model)
    images = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    quantize_int8(model, {"input": images}, host_target(), tmp_path / "q.onnx")
    built = build_release(tmp_path / "q.onnx", host_target(), tmp_path / "r", BuildOptions("r20"), {"input": images})
    built.release.verify()
    assert sha256(model) == before


def test_top_1_counts_what_is_right() -> None:
    scores = np.array([[1, 2], [3, 0], [0, 1]])
    assert top1(scores, np.array([1, 0, 0])) == Accuracy(2, 3)
    with pytest.raises(BadInputError, match="go from 0 to 2"):
        top1(scores, np.array([0, 1, 2]))
    with pytest.raises(BadInputError):
        top1(scores, np.array([0, 1]))


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    # Reference values: Wilson score interval, R's binom.confint(method = "wilson").
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 10, 0.23659, 0.76341), (95, 100, 0.88825, 0.97846)],
)
def test_the_interval_is_wilson_s(correct: int, count: int, low: float, high: float) -> None:
    assert Accuracy(correct, count).interval == pytest.approx((low, high), abs=1e-4)


def test_figures_are_written_with_units_and_words_where_there_is_none() -> None:
    assert [milliseconds(v) for v in (None, 0.0456, 1.234, 12345)] == ["not measured", "45.6 µs", "1.23 ms", "12.3 s"]
    assert [byte_size(v) for v in (None, 0, 999, 904531, 2**40)] == ["unavailable", "0 B", "999 B", "905 kB", "1.1 TB"]
    assert (rate(2310.4), per_cent(0.975), rate(None), per_cent(None)) == (
        "2,310 /s",
        "97.50 %",
        "not measured",
        "not measured",
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("root@10.0.0.1", ("root", "10.0.0.1", 22)),
        ("me@orin.local:2222", ("me", "orin.local", 2222)),
        ("me@[fe80::1]:22", ("me", "fe80::1", 22)),
    ],
)
def test_addresses_are_read(text: str, parts: tuple[str, str, int]) -> None:
    assert parse_address(text) == parts


@pytest.mark.parametrize(
    "text", ["host", "@host", "u@", "u@h:0", "u@h:70000", "u@h:x", "u@::1", "u v@h", "-oA=b@h", "u@-h"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="not an address"):
        parse_address(text)


@pytest.mark.parametrize("key", ["host", "user"])
def test_an_entry_that_would_be_an_option_of_ssh_is_no_device(key: str, tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    entry = {"host": "h", "user": "u", "target": "orin-nano-8gb"} | {key: "-oProxyCommand=id"}
    path.write_text("[d]\n" + "".join(f'{name} = "{value}"\n' for name, value in entry.items()))
    with pytest.raises(BadInputError, match="begins with -"):
        Inventory(path).get("d")


KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEq1b1x5zQ0yqkS9n9d3yM3Zy1cQn6G1mYk0y8e1Wm3v"


def test_the_inventory_remembers_and_keeps_people_s_comments(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text("# the lab's devices\n")
    target = load_target(f"cpu-generic-{platform.machine()}")
    Inventory(path).add("bench1", SshAddress("10.0.0.1", 2222, "me", identity=Path("/k")), target)
    Inventory(path).update("bench1", host_key=KEY, state="/var/lib/kedge")
    device = Inventory(path).get("bench1")
    assert device.address == SshAddress("10.0.0.1", 2222, "me", HostKey.parse(KEY), Path("/k"), "/var/lib/kedge")
    assert path.read_text().startswith("# the lab's devices\n")
    Inventory(path).remove("bench1")
    assert Inventory(path).names() == []


def test_changes_of_the_inventory_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"

    def add(number: int) -> None:
        Inventory(path).add(f"d{number}", SshAddress("h", 22, "u"), host_target())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(16)))
    assert sorted(Inventory(path).names()) == sorted(f"d{number}" for number in range(16))


@pytest.mark.parametrize("name", ["local", "a.b", "A", "", "a b"])
def test_names_a_device_cannot_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="cannot name a device"):
        Inventory(tmp_path / "d.toml").add(name, SshAddress("h", 22, "u"), host_target())


def test_a_name_taken_or_unknown_is_told(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "d.toml")
    inventory.add("one", SshAddress("h", 22, "u"), host_target())
    with pytest.raises(BadInputError, match="already"):
        inventory.add("one", SshAddress("h", 22, "u"), host_target())
    with pytest.raises(BadInputError, match="no device named 'two'") as caught:
        inventory.get("two")
    assert "one" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["[x", "[one]\nhost = 'h'\n", "[one]\nhost='h'\nuser='u'\ntarget='t'\nhost_key='nonsense'\n"]
)
def test_a_damaged_inventory_is_told_not_guessed_at(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.toml"
    path.write_text(text)
    with pytest.raises(BadInputError):
        Inventory(path).get("one")


def test_exit_codes_are_all_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} |" in text, code


def test_the_manifest_on_disk_is_canonical(release: Release) -> None:
    body = json.loads(release.manifest_bytes)
    assert list(body) == sorted(body)
    assert release.manifest_bytes.endswith(b"}\n")
