"""PyTorch → ONNX. The one module of the SDK, beside the demo's training, that imports torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInputError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["OPSET", "export_onnx"]

OPSET = 18


def export_onnx(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    *,
    input_name: str = "input",
    output_names: Sequence[str] = ("output",),
) -> None:
    """Export a module of one input to one ONNX file whose batch dimension is free.

    Args:
        example: an input of the right shape, at least two samples: torch.export takes a batch of
            one for a constant.

    Raises:
        BadInputError: torch cannot export the module.
    """
    import torch

    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                (example,),
                path,
                dynamo=True,
                external_data=False,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=list(output_names),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own and torch's classes
        raise BadInputError(
            f"torch cannot export this module: {first_line(error)}",
            hint="try torch.onnx.export on it directly for the whole report",
        ) from error
    finally:
        chatter.setLevel(level)
