"""Vibration of a rolling bearing, computed from a physical model, and a 1-D network that names the fault.

The recipes beside this file refer to `make`, `train` and `held_out`. Formulas and their sources:

- rates at which a defect is struck, from the bearing's geometry and the shaft's speed: `fault_rates_hz`
  (Randall & Antoni 2011, "Rolling element bearing diagnostics: a tutorial", eq. 1 to 4);
- the train of impulses, its slip, and what the load does to it: `_strikes`;
- the structure that rings at each impulse: a damped oscillator of one degree of freedom, `_ringing`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kedge.config import cache_dir

RATE_HZ = 12_000
WINDOW = 2_048
HOP = 1_024
"""A window begins each 85 ms and spans 171 ms: 3 to 5 turns of the shaft."""

CLASSES = ("healthy", "outer race", "inner race", "ball")

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Bearing:
    """A deep-groove ball bearing 6205: balls, their and the pitch diameter in mm, contact angle in degrees."""

    balls: int = 9
    ball_mm: float = 7.94
    pitch_mm: float = 39.04
    contact_deg: float = 0.0


@dataclass(frozen=True)
class Conditions:
    """Where a machine runs. speeds_hz: ranges of the shaft's speed. snrs_db: impulses over noise, by power.

    loads: multiples of the nominal one: they set how far round the loaded zone reaches, and the noise.
    """

    speeds_hz: tuple[tuple[float, float], ...]
    snrs_db: tuple[float, ...]
    loads: tuple[float, ...]


SEEN = Conditions(((18.0, 21.0), (23.5, 26.0), (28.5, 32.0)), (6.0, 2.0, -2.0, -6.0), (0.5, 1.0, 2.0))
"""What training and calibration see."""
UNSEEN = Conditions(((21.5, 23.0), (26.5, 28.0)), (4.0, 0.0, -4.0), (0.75, 1.5))
"""What the proof is on: no speed, ratio or load of these is among those seen."""


def fault_rates_hz(bearing: Bearing, shaft_hz: float) -> dict[str, float]:
    """How often a defect is struck: BPFO, BPFI, twice BSF (a ball strikes both races), and the cage's turns, FTF."""
    ratio = bearing.ball_mm / bearing.pitch_mm * np.cos(np.deg2rad(bearing.contact_deg))
    return {
        "outer race": bearing.balls * shaft_hz / 2 * (1 - ratio),
        "inner race": bearing.balls * shaft_hz / 2 * (1 + ratio),
        "ball": bearing.pitch_mm / bearing.ball_mm * shaft_hz * (1 - ratio**2),
        "cage": shaft_hz / 2 * (1 - ratio),
    }


def train() -> Labelled:
    """2,000 windows under the conditions SEEN: float32 [n, 1, 2048] in g, and labels [n]."""
    return windows(2_000, SEEN, seed=1)


def held_out() -> Labelled:
    """1,200 windows under the conditions UNSEEN."""
    return windows(1_200, UNSEEN, seed=2)


def windows(count: int, conditions: Conditions, seed: int) -> Labelled:
    """Independent windows, all four classes alike."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    made = [record(CLASSES[label], WINDOW / RATE_HZ, conditions, random) for label in labels]
    return np.stack(made)[:, None], labels.astype(np.int64)


def record(
    fault: str, seconds: float, conditions: Conditions, random: np.random.Generator, onset_s: float = 0.0
) -> NDArray[np.float32]:
    """Acceleration in g, 12,000 values a second, of a machine that keeps to one speed and load.

    Args:
        onset_s: the fault is there from this moment on.
    """
    count = round(seconds * RATE_HZ)
    shaft_hz = random.uniform(*conditions.speeds_hz[random.integers(len(conditions.speeds_hz))])
    load = float(random.choice(conditions.loads))
    noise = _noise(count, random) * 0.25 * np.sqrt(load) * random.uniform(0.7, 1.4)
    signal = noise + _shaft(count, shaft_hz, random) + _knocks(count, random)
    if fault != CLASSES[0]:
        impulses = _ringing(_strikes(fault, count, shaft_hz, load, random), random)
        wanted = np.mean(noise**2) * 10 ** (random.choice(conditions.snrs_db) / 10)
        impulses *= np.sqrt(wanted / np.mean(impulses**2))
        impulses[: round(onset_s * RATE_HZ)] = 0
        signal += impulses
    return signal.astype(np.float32)


def _strikes(fault: str, count: int, shaft_hz: float, load: float, random: np.random.Generator) -> NDArray[np.float64]:
    """The train of impulses, [count + one window that comes before, so that its ringing is already there].

    Each interval slips by 1 % at random and the slips add up, so the train is not strictly periodic (Randall & Antoni
    2011, section 3.1). A defect is struck as hard as the ball is loaded where it lies: always alike on the outer
    race, which stands still; on the inner race it turns with the shaft, on a ball with the cage, through the loaded
    zone of Stribeck's distribution, (1 - (1 - cos a) / 2e)^1.5 (Harris 2001; McFadden & Smith 1984).
    """
    bearing = Bearing()
    rates = fault_rates_hz(bearing, shaft_hz)
    seconds = (count + WINDOW) / RATE_HZ
    number = int(seconds * rates[fault] * 1.2) + 4
    intervals = (1 + 0.01 * random.standard_normal(number)) / rates[fault]
    times = np.cumsum(intervals) - random.uniform(0, 1) / rates[fault]
    times = times[(times >= 0) & (times < seconds - 1 / RATE_HZ)]
    force = np.exp(0.15 * random.standard_normal(times.size))
    turns = {"inner race": shaft_hz, "ball": rates["cage"]}
    if fault in turns:
        reach = 0.35 + 0.1 * load
        angle = 2 * np.pi * (turns[fault] * times + random.uniform())
        force *= np.clip(1 - (1 - np.cos(angle)) / (2 * reach), 0, None) ** 1.5 + 0.05
    train = np.zeros(count + WINDOW)
    place = times * RATE_HZ
    first = place.astype(int)
    # An impulse between two samples is shared by them.
    np.add.at(train, first, force * (1 - place + first))
    np.add.at(train, first + 1, force * (place - first))
    return train


def _ringing(train: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """What the sensor sees of impulses: each sets off a resonance at 2.5 to 4 kHz that dies away."""
    natural_hz, damping = random.uniform(2_500, 4_000), random.uniform(0.02, 0.06)
    t = np.arange(WINDOW // 2) / RATE_HZ
    decay = np.exp(-2 * np.pi * damping * natural_hz * t)
    response = decay * np.sin(2 * np.pi * natural_hz * np.sqrt(1 - damping**2) * t)
    size = train.size + response.size
    rung = np.fft.irfft(np.fft.rfft(train, size) * np.fft.rfft(response, size), size)
    return rung[WINDOW : train.size]


def _noise(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Noise of variance 1: two thirds white, one third falling with frequency, as flow and structure make it."""
    white = random.standard_normal(count)
    spectrum = np.fft.rfft(random.standard_normal(count))
    spectrum /= np.sqrt(np.maximum(np.arange(spectrum.size), 1))
    coloured = np.fft.irfft(spectrum, count)
    return np.sqrt(2 / 3) * white + np.sqrt(1 / 3) * coloured / coloured.std()


def _shaft(count: int, shaft_hz: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Imbalance and misalignment: the shaft's speed and its first multiples, in every class alike."""
    t = np.arange(count) / RATE_HZ
    return sum(
        random.uniform(0.02, 0.15) * np.sin(2 * np.pi * (order * shaft_hz * t + random.uniform()))
        for order in (1, 2, 3)
    )


def _knocks(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Single knocks from elsewhere, two a second, in every class alike: an impulse alone is no fault."""
    train = np.zeros(count + WINDOW)
    for place in random.integers(0, train.size, random.poisson(2 * train.size / RATE_HZ)):
        train[place] = random.uniform(0.5, 3.0)
    return _ringing(train, random)


class Network(nn.Module):
    """Four convolutions over time, the average of what they found, and a wide head, as it came from a workstation.

    99 % of the 9.7 million weights are in the head's dense layers.
    """

    def __init__(self, width: int = 3_072) -> None:
        super().__init__()
        self.example_input = torch.zeros(2, 1, WINDOW)
        self.features = nn.Sequential(
            *_layer(1, 32, kernel=65, stride=8),
            *_layer(32, 32, kernel=9, stride=2),
            *_layer(32, 64, kernel=9, stride=1),
            *_layer(64, 64, kernel=9, stride=2),
        )
        self.head = nn.Sequential(
            nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(CLASSES))
        )

    def forward(self, vibration: torch.Tensor) -> torch.Tensor:
        """[n, 1, 2048] in g → scores [n, 4]."""
        return self.head(self.features(vibration).mean(dim=2))


def _layer(inputs: int, outputs: int, *, kernel: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm1d(outputs),
        nn.ReLU(),
    ]


def make() -> nn.Module:
    """The trained network. Its weights are kept in kedge's cache: the recipes beside this file need them too."""
    torch.manual_seed(0)
    # One thread: what waits for a second one on a busy machine waits for long, and the network is small.
    torch.set_num_threads(1)
    network = Network()
    key = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    kept = cache_dir() / "examples" / f"industrial-monitoring-{key}.pt"
    if kept.exists():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network
    fit(network)
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), kept)
    return network


def fit(network: nn.Module, epochs: int = 4) -> None:
    """Train on `train()`."""
    # What a converged network has for gradients is too small for a processor to multiply fast.
    torch.set_flush_denormal(True)
    inputs, labels = (torch.from_numpy(each) for each in train())
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(network(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
