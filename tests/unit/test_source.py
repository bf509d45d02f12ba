from __future__ import annotations

import hashlib
import io
import logging
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from kedge.errors import BadInputError, IncompatibleError
from kedge.model.session import ReferenceModel
from kedge.optimize.source import Source, load_source
from tests.support import models

torch = pytest.importorskip("torch")

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.bn1.running_mean.fill_(0.25)
        self.bn1.running_var.fill_(2.0)

    def forward(self, pixels):
        x = torch.relu(self.bn2(self.conv1(pixels)))
        x = torch.relu(self.bn1(x))
        x = self.drop(x.mean((2, 3))).view(pixels.size(0), -1)
        return self.head(x)

def make():
    print('making')
    torch.manual_seed(0)
    return Block().train()

def with_example():
    return make(), torch.randn(1, 3, 8, 8)

def carrying():
    module = make()
    module.example_input = torch.randn(2, 3, 8, 8)
    return module
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe")
    (path / "source_network.py").write_text(NETWORK)
    return path


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return load_source("source_network:with_example", tmp_path_factory.mktemp("scratch"), base=folder)


def network(folder: Path) -> torch.nn.Module:
    sys.path.insert(0, str(folder))
    try:
        import source_network
    finally:
        sys.path.remove(str(folder))
    return source_network.make().eval()


def made(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{body}\n")
    return f"{name}:make"


def test_an_onnx_file_is_taken_as_it_is(tmp_path: Path) -> None:
    path = models.classifier(tmp_path / "m.onnx")
    source = load_source("m.onnx", tmp_path / "unused", base=tmp_path)
    assert (source.kind, source.path, source.sha256) == ("onnx", path, sha256(path))
    assert [node.op_type for node in source.graph.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "MatMul"]
    assert source.spec.inputs[0].name == "image"


def test_weights_in_a_file_beside_the_model_are_read(tmp_path: Path) -> None:
    whole = onnx.load(models.classifier(tmp_path / "m.onnx"))
    path = tmp_path / "e.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = sha256(path), sha256(tmp_path / "weights.bin")
    source = load_source(str(path), tmp_path)
    one = tmp_path / "one.onnx"
    source.graph.write(one)
    (tmp_path / "weights.bin").rename(tmp_path / "elsewhere.bin")
    inputs = {"image": models.images(2)}
    got, want = (ReferenceModel(each).run(inputs)["logits"] for each in (one, tmp_path / "m.onnx"))
    np.testing.assert_array_equal(got, want)
    assert (sha256(path), sha256(tmp_path / "elsewhere.bin")) == before
    # Other weights in the same graph are another model.
    (tmp_path / "weights.bin").write_bytes(bytes(reversed((tmp_path / "elsewhere.bin").read_bytes())))
    assert load_source(str(path), tmp_path).sha256 != source.sha256


def test_a_module_becomes_a_graph_that_keeps_its_batch_normalisation(exported: Source, folder: Path) -> None:
    ops = Counter(node.op_type for node in exported.graph.nodes)
    assert ops["BatchNormalization"] == 2
    assert ops["Conv"] == ops["Gemm"] == 1
    assert not {"Shape", "Constant", "Expand", "CastLike", "Dropout", "Identity"} & set(ops)
    assert exported.kind == "module"
    assert exported.path is None
    assert exported.spec.inputs[0].shape == (-1, 3, 8, 8)
    assert exported.spec.inputs[0].symbols[0] == exported.spec.outputs[0].symbols[0] == "batch"
    assert (exported.graph.input_names, exported.graph.output_names) == (["pixels"], ["output"])
    pixels = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    got = ReferenceModel(exported.graph.proto.SerializeToString()).run({"pixels": pixels})["output"]
    want = network(folder)(torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_layers_are_named_as_in_the_module(exported: Source) -> None:
    assert {"conv1", "bn1", "bn2", "head"} <= set(exported.graph.by_name)


def test_layers_that_begin_with_equal_weights_keep_their_own(exported: Source) -> None:
    read = [name for node in exported.graph.nodes for name in node.input if name in exported.graph.initializers]
    assert {"bn1.weight", "bn1.bias", "bn2.weight", "bn2.bias"} <= set(read)
    assert max(Counter(read).values()) == 1


def test_an_export_is_silent_holds_no_paths_and_is_the_same_each_time(
    exported: Source, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = load_source("source_network:carrying", tmp_path, base=folder)
    assert capfd.readouterr() == ("", "making\n")
    assert logging.getLogger("torch.onnx").level != logging.CRITICAL
    assert again.sha256 == exported.sha256
    written = exported.graph.proto.SerializeToString()
    assert str(folder).encode() not in written
    assert b"source_network" not in written


def test_a_module_without_an_example_takes_the_recipe_s_shape(folder: Path, tmp_path: Path) -> None:
    source = load_source("source_network:make", tmp_path, base=folder, input_shape=[1, 3, 8, 8])
    assert source.spec.inputs[0].shape == (-1, 3, 8, 8)
    for shape, reason in ((None, "no example input"), ([1, 3.5], "input_shape is"), ([1, 0], "input_shape is")):
        with pytest.raises(BadInputError, match=reason):
            load_source("source_network:make", tmp_path, base=folder, input_shape=shape)


def test_a_module_that_insists_on_its_batch_is_exported_with_it(folder: Path, tmp_path: Path) -> None:
    body = "class M(nn.Linear):\n    def forward(self, x, y):\n        return super().forward(x.reshape(6)), y + 1"
    reference = made(
        folder, "source_fixed", f"{body}\ndef make():\n    return M(6, 2), (torch.ones(1, 6), torch.ones(1))"
    )
    source = load_source(reference, tmp_path, base=folder)
    assert [tensor.shape for tensor in source.spec.inputs] == [(1, 6), (1,)]
    assert source.graph.output_names == ["output_0", "output_1"]


def test_axes_that_a_module_calls_dynamic_stay_free(folder: Path, tmp_path: Path) -> None:
    body = (
        "class M(nn.Embedding):\n"
        "    dynamic_axes = {'tokens': {1: 'words'}}\n"
        "    example_input = torch.ones(1, 6, dtype=torch.int64)\n"
        "    def forward(self, tokens):\n"
        "        return torch.softmax(super().forward(tokens), dim=1).sum(1)\n"
        "def make():\n    torch.manual_seed(0)\n    return M(9, 4)"
    )
    source = load_source(made(folder, "source_words", body), tmp_path, base=folder)
    assert source.spec.inputs[0].shape == (-1, -1)
    assert source.spec.inputs[0].symbols == ("batch", "words")
    model = ReferenceModel(source.graph.proto.SerializeToString())
    for words in (1, 2, 40):
        (got,) = model.run({"tokens": np.ones((3, words), np.int64)}).values()
        np.testing.assert_allclose(got.sum(axis=1), got[0].sum(), rtol=1e-5)
        assert got.shape == (3, 4)


@pytest.mark.parametrize(
    ("axes", "words", "reason"),
    [
        ({"text": {1: "words"}}, 6, "no input 'text'"),
        ({"tokens": {2: "words"}}, 6, "give 2 of 'tokens'"),
        ({"tokens": {0: "batch"}}, 6, "give 0 of 'tokens'"),
        ({"tokens": {1: "how many"}}, 6, "the name 'how many'"),
        ({"tokens": {1: "words"}}, 1, "one entry along axis 1"),
        (["tokens"], 6, "dynamic_axes of .* are"),
    ],
)
def test_dynamic_axes_that_do_not_fit_the_example_are_refused(
    folder: Path, tmp_path: Path, axes: object, words: int, reason: str
) -> None:
    body = f"def make():\n    m = M()\n    m.dynamic_axes = {axes!r}\n    return m, torch.ones(2, {words})"
    network = "class M(nn.Module):\n    def forward(self, tokens):\n        return tokens.sum(1)\n"
    name = f"source_axes_{abs(hash((str(axes), words)))}"
    with pytest.raises(BadInputError, match=reason):
        load_source(made(folder, name, network + body), tmp_path, base=folder)


@pytest.fixture(scope="module")
def program(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(network(folder), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},)), path
    )
    return path


def test_a_torch_export_program_becomes_the_same_graph_as_its_module(
    program: Path, exported: Source, tmp_path: Path
) -> None:
    before = sha256(program)
    source = load_source(str(program), tmp_path)
    assert (source.kind, source.sha256, source.path) == ("exported", before, None)
    assert sha256(program) == before
    assert Counter(n.op_type for n in source.graph.nodes) == Counter(n.op_type for n in exported.graph.nodes)
    pixels = {"pixels": np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)}
    got, want = (ReferenceModel(each.graph.proto.SerializeToString()).run(pixels) for each in (source, exported))
    np.testing.assert_allclose(got["output"], want["output"], atol=1e-5)


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_program_with_a_pickle_in_it_is_refused_unopened(program: Path, tmp_path: Path) -> None:
    sprung, pickled = tmp_path / "sprung", io.BytesIO()
    torch.save((Trap(sprung),), pickled)
    trapped = tmp_path / "t.pt2"
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(trapped, "w") as new:
        for entry in old.infolist():
            inputs = "sample_inputs" in entry.filename
            new.writestr(entry.filename, pickled.getvalue() if inputs else old.read(entry))
    with pytest.raises(BadInputError, match="pickled objects"):
        load_source(str(trapped), tmp_path)
    assert not sprung.exists()


def test_a_program_that_is_none_or_still_trains_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(network(folder).train(), (torch.randn(2, 3, 8, 8),)), path)
    with pytest.raises(BadInputError, match="training mode") as caught:
        load_source(str(path), tmp_path)
    assert "eval()" in caught.value.hint
    shutil.copy(models.classifier(tmp_path / "m.onnx"), path)
    with pytest.raises(BadInputError, match=r"not a torch\.export program"):
        load_source(str(path), tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.txt", "none")
    with pytest.raises(BadInputError, match=r"not a torch\.export program"):
        load_source(str(path), tmp_path)


BRANCHES = """
class M(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1

def make():
    return M(), torch.ones(2, 2)
"""


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("number", "def make():\n    return 3", "gives a int, not an nn.Module"),
        ("text", "def make():\n    return nn.Linear(2, 2), 'x'", "example of source_text:make is a str"),
        ("misfit", "def make():\n    return nn.Linear(2, 2), torch.ones(1, 3)", "failed: RuntimeError"),
        ("raises", "def make():\n    raise OSError('no checkpoint')", "no checkpoint"),
        ("branches", BRANCHES, "cannot export"),
    ],
)
def test_a_factory_that_makes_no_usable_module_is_refused(
    folder: Path, tmp_path: Path, name: str, body: str, reason: str
) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        load_source(made(folder, f"source_{name}", body), tmp_path, base=folder)
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message
    assert caught.value.hint


def test_a_module_that_computes_something_else_each_time_is_refused(folder: Path, tmp_path: Path) -> None:
    body = "class M(nn.Module):\n    def forward(self, x):\n        return x + torch.rand_like(x)"
    reference = made(folder, "source_random", f"{body}\ndef make():\n    return M(), torch.ones(2, 2)")
    with pytest.raises(IncompatibleError, match="something else"):
        load_source(reference, tmp_path, base=folder)


def test_a_checkpoint_is_answered_with_what_to_give_instead(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pth")
    with pytest.raises(BadInputError, match="holds weights, not a model") as caught:
        load_source("m.pth", tmp_path, base=tmp_path)
    assert "package.module:factory" in caught.value.hint
