"""Run an ONNX model on this machine: the reference that golden outputs and accuracies come from.

The one module of the SDK that makes onnxruntime sessions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInputError, IncompatibleError, first_line

__all__ = ["ReferenceModel"]


class ReferenceModel:
    """A model in onnxruntime on this machine's CPU.

    Args:
        model: an ONNX file, or its bytes.
        threads: threads of one operator; 0: as many as there are cores.
        optimise: False computes the graph exactly as written: Q/DQ pairs are then rounded and
            clamped one by one, as a runtime would that fuses them in another way.

    Raises:
        IncompatibleError: onnxruntime is not installed.
        BadInputError: onnxruntime refuses the model.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 0, optimise: bool = True) -> None:
        # onnxruntime (seen: 1.32) else keeps an identifier of the machine, and a database of what it tells its maker.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
        except ImportError as error:
            raise IncompatibleError(
                "onnxruntime is needed to run a model on this machine", hint="pip install 'kedge[optimize]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = model if isinstance(model, bytes) else str(model)
        self.runtime_version: str = onnxruntime.__version__
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated classes
            name = "the model" if isinstance(model, bytes) else model
            raise BadInputError(f"onnxruntime refuses {name}: {first_line(error)}") from error

    @property
    def fixed_batch(self) -> int | None:
        """The batch size the model insists on, or None when the first dimension of its inputs is free.

        Raises:
            BadInputError: its inputs insist on different ones: their first axes are not the samples.
        """
        sizes = {value.shape[0] for value in self._session.get_inputs() if value.shape}
        fixed = sorted(size for size in sizes if isinstance(size, int))
        if len(fixed) > 1:
            raise BadInputError(
                f"the model's inputs begin with {fixed[0]} and {fixed[-1]}: they have no common axis of samples",
                hint="models with state between calls cannot be run on independent samples",
            )
        return fixed[0] if fixed else None

    def run(self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name; all of them, or the named ones.

        Raises:
            BadInputError: the inputs do not fit the model.
        """
        wanted = list(names) if names is not None else [output.name for output in self._session.get_outputs()]
        try:
            values = self._session.run(wanted, dict(inputs))
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise BadInputError(f"the model cannot run on these inputs: {first_line(error)}") from error
        return {name: np.asarray(value) for name, value in zip(wanted, values, strict=True)}
