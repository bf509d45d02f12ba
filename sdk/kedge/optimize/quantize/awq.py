"""Four-bit weights whose clips follow the activations that meet them: AWQ, by NVIDIA's ModelOpt.

Of the method (Lin et al. 2023, "AWQ: Activation-aware Weight Quantization") this is the search of each block's clip
by the error of the layer's output, ModelOpt's `awq_clip`; its search of scales, `awq_lite`, ends in an error without
a GPU (0.47). ModelOpt runs in a process of its own, on a copy: it sets up logging for the whole process, and some of
its modes write over the file they are given.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ...errors import IncompatibleError
from ...model.graph import Graph
from ...model.samples import Samples
from ...model.tap import graph_batch
from ..work import Work
from .blocks import TENSORRT_BLOCKS, Stored

__all__ = ["AWQ", "awq_weights"]

AWQ = "awq"

_CHILD = (
    "import json, sys; from pathlib import Path; sys.path[:] = json.loads(sys.argv[1]); "
    "from kedge.optimize.quantize.awq import _child; _child(Path(sys.argv[2]))"
)
_SAMPLES = 32
_MOST = 0.9
_TIMEOUT_S = 3600


def awq_weights(graph: Graph, layers: Sequence[str], samples: Samples, work: Work) -> dict[str, Stored]:
    """Weights of matrix products in blocks along the input channels, symmetric.

    Args:
        graph: of an operator set that knows blocks (21). layers: names of its layers with weights.
        samples: the first 32 are used.

    Returns:
        What ModelOpt quantised of the layers: products whose input channels a block divides.

    Raises:
        IncompatibleError: ModelOpt is not installed, or fails on this model.
    """
    if importlib.util.find_spec("modelopt") is None:
        raise IncompatibleError("AWQ needs ModelOpt", hint="pip install 'kedge[modelopt]', or leave --rounding out")
    widths = [graph.initializers[graph.by_name[name].input[1]].dims[0] for name in layers if _is_product(graph, name)]
    fitting = Counter(size for width in widths for size in TENSORRT_BLOCKS if width % size == 0)
    if max(fitting.values(), default=0) < _MOST * len(widths) or not widths:
        return {}
    # ModelOpt takes one size for all; what it does not fit is left to the caller.
    size = max(each for each in fitting if fitting[each] >= _MOST * len(widths))
    with tempfile.TemporaryDirectory(prefix="kedge-awq-") as temporary:
        folder = Path(temporary)
        graph.write(folder / "given.onnx")
        batch = graph_batch(graph) or 1
        some = samples.first(max(_SAMPLES, batch))
        for index, name in enumerate(graph.input_names):
            np.save(folder / f"{index}.npy", some.inputs[name])
        request = {"block": size, "batch": batch, "inputs": graph.input_names}
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        work.progress("searching clips with ModelOpt", 0.0)
        _run(folder)
        made = Graph.read(folder / "made.onnx")
    return {name: found for name in layers if (found := _stored(made, name, size)) is not None}


def _is_product(graph: Graph, name: str) -> bool:
    return graph.by_name[name].op_type == "MatMul"


def _run(folder: Path) -> None:
    # The child sees the packages that this process sees, in whatever way it came to see them.
    path = json.dumps([entry for entry in (str(Path(__file__).parents[3]), *sys.path) if entry])
    command = [sys.executable, "-c", _CHILD, path, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, timeout=_TIMEOUT_S, errors="replace"
        )
    except subprocess.TimeoutExpired as error:
        raise IncompatibleError(f"ModelOpt was not done after {_TIMEOUT_S} s") from error
    if done.returncode or not (folder / "made.onnx").is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].strip()[:300] if lines else f"it ended with {done.returncode}"
        raise IncompatibleError(f"ModelOpt cannot quantise this model: {said}", hint="leave --rounding awq out")


def _stored(made: Graph, name: str, size: int) -> Stored | None:
    """The weights that ModelOpt put behind a DequantizeLinear, or None where it left the layer alone."""
    node = made.by_name.get(name)
    source = None if node is None else made.producer.get(node.input[1])
    if source is None or source.op_type != "DequantizeLinear" or len(source.input) != 2:
        return None
    q = numpy_helper.to_array(made.initializers[source.input[0]]).astype(np.int8)
    scale = made.array(source.input[1]).astype(np.float32)
    expected = (q.shape[0] // size, *q.shape[1:])
    if q.shape[0] % size or scale.shape != expected or not np.all(np.isfinite(scale)):
        return None
    return Stored(q, scale, None, 0, size)


def _child(folder: Path) -> None:
    """What ModelOpt's process does."""
    from modelopt.onnx.quantization.int4 import quantize
    from onnxruntime.quantization import CalibrationDataReader

    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    arrays = {
        name: np.load(folder / f"{index}.npy", allow_pickle=False) for index, name in enumerate(request["inputs"])
    }

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batch = request["batch"]
            whole = len(next(iter(arrays.values()))) // batch
            self._steps: Iterator[dict[str, Any]] = iter(
                [
                    {name: values[step * batch : (step + 1) * batch] for name, values in arrays.items()}
                    for step in range(whole)
                ]
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self._steps, None)

    made = quantize(
        str(folder / "given.onnx"),
        calibration_method="awq_clip",
        calibration_data_reader=Reader(),
        calibration_eps=["cpu"],
        use_external_data_format=False,
        block_size=request["block"],
        nodes_to_exclude=[],
        log_level="WARNING",
    )
    onnx.save(made, folder / "made.onnx")
