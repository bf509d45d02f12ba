"""The seam between serving and a runtime: load a file, bind buffers to shapes, hand over, wait.

A run has two halves, because a GPU works while its caller prepares the next request: `Binding.submit` returns when the
work is queued, `Binding.wait` when the results are in the outputs. On the CPU the first does all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from ..formats.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Binding",
    "Buffers",
    "LayerTime",
    "LoadOptions",
    "LoadedModel",
    "MemoryItem",
    "Provider",
    "Runtime",
    "Shapes",
    "Slot",
    "Split",
    "Transfer",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Concrete shape of every input, by name."""

Buffers: TypeAlias = "Mapping[str, NDArray[Any]]"
"""Tensors by name, each a view of memory that stays where it is while the binding lives."""

Transfer = Literal["auto", "copy", "mapped", "managed"]
"""How a tensor gets to the GPU and back: by copies, in place over mapped or managed memory, or as measured best."""


@dataclass(frozen=True)
class Provider:
    """An execution provider of onnxruntime, and its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadOptions:
    """How a model is to be loaded.

    threads: intra-operator threads, on the CPU. workers: requests that may compute at a time.
    providers: of onnxruntime, in order of preference; those that are not here are passed over; empty: the CPU's.
    transfer: on a GPU. cache: folder in which a runtime may keep what it learnt of this model, or None.
    most_samples: of one run, where the first dimension of every tensor is free and counts them; None: any number.
    """

    threads: int = 1
    workers: int = 1
    providers: tuple[Provider, ...] = ()
    transfer: Transfer = "auto"
    cache: Path | None = None
    most_samples: int | None = None


@dataclass(frozen=True)
class Split:
    """Where one run's time went, in nanoseconds. None: this runtime has no such part, or could not time it.

    by_events: compute_ns is of the GPU's own clock, and of its kernels alone.
    """

    compute_ns: int
    h2d_ns: int | None = None
    d2h_ns: int | None = None
    by_events: bool = False


@dataclass(frozen=True)
class MemoryItem:
    """One line of a memory ledger.

    what: weights, activations, context, pinned, managed, buffers or scratch. bytes: None where it cannot be had.
    method: where the figure comes from, for people.
    """

    what: str
    bytes: int | None
    method: str


@dataclass(frozen=True)
class LayerTime:
    """What one layer, or node, took in each of the runs that were profiled, in milliseconds."""

    name: str
    kind: str
    times_ms: tuple[float, ...]


class Binding(Protocol):
    """Buffers bound to one set of input shapes: fill `inputs`, `submit()`, `wait()`, read `outputs`.

    `outputs` is valid until the next `submit()` of any binding of the same slot. Outputs whose shapes follow from the
    inputs' are in it before anything has run.
    """

    @property
    def inputs(self) -> Buffers:
        """Memory to fill before a run."""
        ...

    @property
    def outputs(self) -> Buffers:
        """Results of the last run."""
        ...

    @property
    def copied(self) -> tuple[str, ...]:
        """Tensors that the runtime does not read from, or write to, the slot's own memory."""
        ...

    def submit(self) -> None:
        """Hand the inputs over; they must not be touched until `wait` has returned.

        Raises:
            AgentError: the runtime refused or failed (kind bad_input or internal); nothing is to be waited for.
        """
        ...

    def wait(self) -> Split:
        """Wait until the results are in the outputs.

        Raises:
            AgentError: the run failed (kind internal).
        """
        ...


class Slot(Protocol):
    """The memory of one request in flight; bindings of a slot share it."""

    def bind(self, shapes: Shapes) -> Binding:
        """A binding for concrete input shapes, reused when the same shapes return.

        Raises:
            AgentError: the model cannot take these shapes (kind bad_input or too_large).
        """
        ...

    def close(self) -> None:
        """Give the memory back; idempotent. No binding of this slot may be in use."""
        ...


class LoadedModel(Protocol):
    """A model in memory."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives."""
        ...

    @property
    def in_flight(self) -> int:
        """How many runs may be between `submit` and `wait` at a time: workers, times two where copies overlap."""
        ...

    def slot(self) -> Slot:
        """Fresh buffers, for one more request in flight.

        Raises:
            AgentError: the model has been closed (kind busy), or there is no memory left (kind space).
        """
        ...

    def ledger(self) -> tuple[MemoryItem, ...]:
        """The memory this model takes, as far as its runtime can tell."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the runtime chose at load, as plain JSON: providers, transfers and their measurements, graphs."""
        ...

    def close(self) -> None:
        """Release everything that no slot holds; idempotent."""
        ...


class Runtime(Protocol):
    """Something that can load models."""

    @property
    def name(self) -> str:
        """As artefacts name it in the manifest."""
        ...

    def version(self) -> str | None:
        """Version of the library behind it, or None when it is not installed here."""
        ...

    def load(self, path: Path, options: LoadOptions) -> LoadedModel:
        """Load a model file.

        Raises:
            AgentError: the runtime is missing, or refuses the file (kind incompatible).
        """
        ...

    def layers(self, path: Path, options: LoadOptions, inputs: Buffers, runs: int) -> tuple[LayerTime, ...]:
        """Load the file once more, run it `runs` times on `inputs`, and tell what each layer took.

        Profiled runs are slower than others; the sum of layers is not the latency.

        Raises:
            AgentError: as `load` and `Binding.submit`; or this runtime cannot profile (kind incompatible).
        """
        ...
