"""The seam between serving and a runtime: load a file, bind buffers to shapes, run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ..formats.tensors import TensorSpec

__all__ = ["Binding", "Buffers", "LoadedModel", "Runtime", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Concrete shape of every input, by name."""

Buffers = Mapping[str, NDArray[Any]]
"""Tensors by name, each a view of memory that stays where it is while the binding lives."""


class Binding(Protocol):
    """Buffers bound to one set of input shapes: fill `inputs`, `run()`, read `outputs`.

    `outputs` is valid until the next `run()` of any binding of the same slot.
    """

    @property
    def inputs(self) -> Buffers:
        """Memory to fill before a run."""
        ...

    @property
    def outputs(self) -> Buffers:
        """Results of the last run."""
        ...

    def run(self) -> None:
        """Execute once.

        Raises:
            AgentError: the runtime refused or failed (kind bad_input).
        """
        ...


class Slot(Protocol):
    """The memory of one request in flight; bindings of a slot share it."""

    def bind(self, shapes: Shapes) -> Binding:
        """A binding for concrete input shapes, reused when the same shapes return.

        Raises:
            AgentError: the model cannot take these shapes (kind bad_input).
        """
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

    def slot(self) -> Slot:
        """Fresh buffers, for one more request in flight."""
        ...

    def close(self) -> None:
        """Release everything; idempotent."""
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

    def load(self, path: Path, threads: int) -> LoadedModel:
        """Load a model file.

        Raises:
            AgentError: the runtime is missing, or refuses the file (kind incompatible).
        """
        ...
