"""Which library does this documentation belong to? Docstrings of the installed packages, and a small transformer.

The recipe beside this file refers to `make`, `train` and `held_out`. Nothing is downloaded: the text is in the
environment that runs this, so another version of a package is another data set.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kedge.config import cache_dir

LIBRARIES = ("matplotlib", "networkx", "numpy", "scipy", "skimage", "sklearn", "sympy", "torch")
"""The classes, by the name each is imported by."""

LONGEST = 256
"""Words that are read of a text; what follows is left out."""

_BUCKETS = 4_096
_PADDING = 0
_PER_LIBRARY = 600
_PER_MODULE = 10
_LEAST_WORDS = 12
_HELD_OUT = 0.25
_STRETCH = 48
# What a library is called is no hint of what it does: names, short names that examples import them by, and makers.
_NAMES = (*LIBRARIES, "np", "plt", "mpl", "nx", "sp", "scikit", "image", "learn", "pyplot", "pytorch", "pydata")
_MASK = "library"
_WORD = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]")

Labelled = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Text:
    """A docstring, the index of its library in LIBRARIES, and the module it stands in."""

    text: str
    label: int
    module: str

    @property
    def words(self) -> int:
        """How many words, digits and signs it has."""
        return len(_WORD.findall(self.text))

    @property
    def held_out(self) -> bool:
        """Whether training never sees it. The module decides, so that neighbours are not torn apart."""
        return _share(f"held out? {self.module}") < _HELD_OUT


def words(text: str) -> list[str]:
    """The words, digits and signs of a text in lower case; what names a library is masked."""
    found = (word.lower() for word in _WORD.findall(text))
    return [_MASK if word in _NAMES else word for word in found]


def tokens(text: str) -> NDArray[np.int64]:
    """A text as bucket numbers 1 to 4095, one a word, digit or sign, at most LONGEST of them.

    Words are hashed (CRC-32), so there is no vocabulary to keep: words that nobody has seen have a bucket too.
    """
    masked = words(text)[:LONGEST]
    return np.array([1 + zlib.crc32(word.encode()) % (_BUCKETS - 1) for word in masked], np.int64)


def train() -> Labelled:
    """Training texts: tokens [n, 256], padded with 0, and labels [n]."""
    return _padded([text for text in corpus() if not text.held_out])


def held_out() -> Labelled:
    """Texts of modules that training has not seen."""
    return _padded([text for text in corpus() if text.held_out])


@functools.cache
def corpus() -> tuple[Text, ...]:
    """Up to 600 different docstrings a library, at most ten a module, read from its source; nothing of it is imported.

    Modules are taken in an order that depends on their names alone. A docstring that stands in two places is taken
    once, so that none is both learnt and asked.
    """
    seen: set[str] = set()
    found: list[Text] = []
    for label, library in enumerate(LIBRARIES):
        taken = 0
        for path, module in _modules(library):
            new = {" ".join(text.split()).lower(): text for text in _docstrings(path)}
            kept = [key for key in new if key not in seen][: min(_PER_MODULE, _PER_LIBRARY - taken)]
            seen.update(kept)
            found += [Text(new[key], label, module) for key in kept]
            taken += len(kept)
            if taken == _PER_LIBRARY:
                break
    return tuple(found)


def _modules(library: str) -> list[tuple[Path, str]]:
    """A library's modules but for its tests, in the order of their names' hashes."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{library} is not installed; make .venv/.examples sets it up")
    root = Path(spec.submodule_search_locations[0])
    paths = [path for path in root.rglob("*.py") if not {"tests", "testing", "externals"} & set(path.parts)]
    named = [(path, str(path.relative_to(root.parent))) for path in paths]
    return sorted(named, key=lambda item: _share(item[1]))


def _docstrings(path: Path) -> Iterator[str]:
    source = path.read_text(encoding="utf-8", errors="replace")
    if source.count('"""') < 4 or len(source) > 100_000:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text and len(_WORD.findall(text)) >= _LEAST_WORDS:
                yield text


def _share(name: str) -> float:
    """A number from 0 to 1 that a name alone decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def _padded(texts: Sequence[Text]) -> Labelled:
    out = np.full((len(texts), LONGEST), _PADDING, np.int64)
    for row, text in zip(out, texts, strict=True):
        found = tokens(text.text)
        row[: found.size] = found
    return out, np.array([text.label for text in texts], np.int64)


class Attention(nn.Module):
    """Self-attention over the words that are there (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """x [n, words, width], absent [n, 1, 1, words]: 0, or a large negative number at padding."""
        batch, words, width = x.shape
        q, k, v = self.read(x).reshape(batch, words, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) * self.scale + absent, dim=3)
        return self.write((weights @ v).transpose(1, 2).reshape(batch, words, width))


class Layer(nn.Module):
    """Attention and two dense layers, each normalised before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        """[n, words, width] → the same."""
        x = x + self.attention(self.before_attention(x), absent)
        return x + self.dense(self.before_dense(x))


class Classifier(nn.Module):
    """Two layers of width 128 with four heads, over hashed words and their places."""

    def __init__(self, width: int = 128, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        # The second axis stays free in the ONNX file: a request is as long as its text.
        self.example_input = torch.ones(2, 16, dtype=torch.int64)
        self.dynamic_axes = {"tokens": {1: "words"}}
        self.words = nn.Embedding(_BUCKETS, width, padding_idx=_PADDING)
        # Small at first: in a few hundred steps a word's vector has to become what training says of it.
        nn.init.normal_(self.words.weight, std=0.05)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("places", 0.05 * _sines(LONGEST, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.scores = nn.Linear(width, len(LIBRARIES))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n, words] int64, 0 where there is no word → scores [n, libraries]."""
        there = (tokens != _PADDING).to(torch.float32)
        absent = (1 - there)[:, None, None, :] * -1e4
        x = self.drop(self.words(tokens)) + self.places[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, absent)
        x = self.last(x) * there[:, :, None]
        return self.scores(x.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1.0))


def make() -> nn.Module:
    """The trained network. Its weights are kept in kedge's cache: the recipes beside this file need them too."""
    torch.manual_seed(0)
    # One thread: what waits for a second one on a busy machine waits for long, and the network is small.
    torch.set_num_threads(1)
    network = Classifier()
    kept = cache_dir() / "examples" / f"text-classification-{_key()}.pt"
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network
    fit(network)
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), kept)
    return network


def _key() -> str:
    """Other code, texts or torch make other weights."""
    texts = "\n".join(text.text for text in corpus())
    return hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode() + texts.encode()).hexdigest()[:16]


def fit(network: nn.Module, epochs: int = 6) -> None:
    """Train on `train()`, each time on another stretch of at most 48 words of each text; seeded."""
    inputs, labels = (torch.from_numpy(each) for each in train())
    lengths = (inputs != _PADDING).sum(dim=1)
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            first = (torch.rand(len(batch)) * (lengths[batch] - _STRETCH + 1).clamp(min=1)).long()
            given = inputs[batch].gather(1, first[:, None] + torch.arange(_STRETCH))
            loss = nn.functional.cross_entropy(network(given), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _sines(places: int, width: int) -> torch.Tensor:
    """Where a word stands, as sines of many wavelengths (Vaswani et al. 2017, section 3.5): [places, width]."""
    angle = torch.arange(places)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)
