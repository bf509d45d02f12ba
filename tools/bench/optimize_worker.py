"""Quantise one model with one tool, in a process of its own: python optimize_worker.py REQUEST.json ANSWER.json

Run by tools/bench/optimize.py, for ModelOpt in an environment without kedge: so nothing of kedge is imported here
but by the tool `kedge`. REQUEST: tool, model, input, calibration (.npy), batch, out, options. ANSWER: seconds of the
call alone (imports and the reading of data are outside), versions, notes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


def kedge(request: dict[str, Any], data: Any) -> dict[str, Any]:
    from kedge.optimize.quick import quantize_int8
    from kedge.targets import load_target

    target = load_target(request["options"]["target"])
    begin = time.perf_counter()
    done = quantize_int8(Path(request["model"]), {request["input"]: data}, target, Path(request["out"]))
    return {"seconds": time.perf_counter() - begin, "notes": [f"calibrator chosen: {done.calibrator}"]}


def onnxruntime(request: dict[str, Any], data: Any) -> dict[str, Any]:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: Iterator[Any] = iter(
                [data[start : start + request["batch"]] for start in range(0, len(data), request["batch"])]
            )

        def get_next(self) -> dict[str, Any] | None:
            step = next(self.steps, None)
            return None if step is None else {request["input"]: step}

    options = dict(request["options"])
    for key in ("activation_type", "weight_type"):
        if key in options:
            options[key] = QuantType[options[key]]
    prepared, notes = str(Path(request["out"]).with_suffix(".pre.onnx")), []
    begin = time.perf_counter()
    try:
        quant_pre_process(request["model"], prepared)
    except Exception as error:  # symbolic shape inference raises many unrelated classes
        quant_pre_process(request["model"], prepared, skip_symbolic_shape=True)
        notes.append(f"symbolic shape inference was left out: {type(error).__name__}")
    try:
        quantize_static(prepared, request["out"], Reader(), **options)
    except ValueError as error:
        # onnxruntime 1.32, per channel: it compares an array of scales with one number when a bias's scale is tiny.
        extra = {"QDQDisableWeightAdjustForInt32Bias": True}
        quantize_static(prepared, request["out"], Reader(), **options, extra_options=extra)
        notes.append(f"run again without its adjustment of weights to biases, which fails: {error}")
    return {"seconds": time.perf_counter() - begin, "notes": notes}


def modelopt(request: dict[str, Any], data: Any) -> dict[str, Any]:
    from modelopt.onnx.quantization import quantize

    shape = "x".join(map(str, (request["batch"], *data.shape[1:])))
    begin = time.perf_counter()
    quantize(
        request["model"],
        quantize_mode="int8",
        calibration_data={request["input"]: data},
        calibration_shapes=f"{request['input']}:{shape}",
        calibration_eps=["cpu"],
        output_path=request["out"],
        log_level="WARNING",
        **request["options"],
    )
    return {"seconds": time.perf_counter() - begin, "notes": []}


def main() -> int:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    data = np.load(request["calibration"], allow_pickle=False)
    answer = {"kedge": kedge, "onnxruntime": onnxruntime, "modelopt": modelopt}[request["tool"]](request, data)
    answer["versions"] = {}
    for name in ("nvidia-modelopt", "onnx", "onnxruntime", "onnxslim", "numpy", "torch"):
        try:
            answer["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
