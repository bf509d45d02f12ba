"""Which versions of ONNX the installed onnxruntime runs: asked of it with a model of one node."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BadInputError
from .onnx_io import ModelSpec
from .session import ReferenceModel

__all__ = ["require_runnable"]

_PLAIN_IR = 8
_PLAIN_OPSET = 13


def require_runnable(spec: ModelSpec, name: str) -> None:
    """Refuse a model whose opset or IR version the installed onnxruntime does not know.

    Args:
        name: the model's, for messages.

    Raises:
        BadInputError: it is too new; both numbers are named.
        IncompatibleError: onnxruntime is not installed.
    """
    _require(name, "opset", spec.opset, _PLAIN_OPSET, lambda version: _runs(version, _PLAIN_IR))
    _require(name, "IR version", spec.ir_version, _PLAIN_IR, lambda version: _runs(_PLAIN_OPSET, version))


def _require(name: str, what: str, asked: int, least: int, accepts: Callable[[int], bool]) -> None:
    if asked > least and not accepts(asked):
        newest = next((version for version in range(asked - 1, least, -1) if accepts(version)), least)
        raise BadInputError(
            f"{name} has {what} {asked}; the installed onnxruntime runs up to {newest}",
            hint=f"update onnxruntime, or export the model with {what} {newest} or older",
        )


def _runs(opset: int, ir_version: int) -> bool:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    try:
        ReferenceModel(model.SerializeToString())
    except BadInputError:
        return False
    return True
