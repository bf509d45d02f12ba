"""Run an ONNX model on this machine: the reference that golden outputs and accuracies come from.

The one module of the SDK that makes onnxruntime sessions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInputError, IncompatibleError, first_line

__all__ = ["ReferenceModel"]


class ReferenceModel:
    """A model in onnxruntime on this machine's CPU.

    Raises:
        IncompatibleError: onnxruntime is not installed.
        BadInputError: onnxruntime refuses the model.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise IncompatibleError(
                "onnxruntime is needed to run a model on this machine", hint="pip install 'kedge[optimize]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.runtime_version: str = onnxruntime.__version__
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise BadInputError(f"onnxruntime refuses {path}: {first_line(error)}") from error

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name.

        Raises:
            BadInputError: the inputs do not fit the model.
        """
        names = [output.name for output in self._session.get_outputs()]
        try:
            values = self._session.run(names, dict(inputs))
        except Exception as error:  # onnxruntime raises many unrelated classes
            raise BadInputError(f"the model cannot run on these inputs: {first_line(error)}") from error
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
