"""An agent at half of its capacity for a long time, its model switched again and again: does a request ever fail?

    python -m tools.soak [--minutes 30] [--model MODEL.onnx] [--out FILE.json]

A real agent runs as a child. Two releases of a real model (the second one's weights are scaled, so that its answers
are others) are pushed; four clients on the Unix socket first measure how many requests a second it can serve, then ask
at half of that rate, at times that are set beforehand: a request's latency counts from when it was due. Every 10 s the
other release is activated. Each answer is compared with what onnxruntime says of the release that the answer names.

It fails, with exit code 1, when a request fails or is answered wrongly, when an activation fails, or when the agent's
resident memory has grown by 1 % or more: the median of the last fifth of the time over that of the second fifth.
The model is ResNet-20 in `shared/models` beside the checkout, or in the folder that KEDGE_SHARED names, unless --model
names another whose first dimension is the batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tools.soak.run import Edition, Rules, soak, verdict

from kedge.build.release import BuildOptions, build_release
from kedge.model.onnx_io import read_model
from kedge.model.session import ReferenceModel
from kedge.targets import host_target
from kedge.transport.base import Deadline
from kedge.transport.local import LocalAgent

SHARED = Path(os.environ.get("KEDGE_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="under load (default: 30)")
    parser.add_argument(
        "--model", type=Path, default=SHARED / "models" / "resnet20_cifar10.onnx", help="what is served"
    )
    parser.add_argument("--out", type=Path, help="write what was found to this file")
    arguments = parser.parse_args()
    if not arguments.model.is_file():
        parser.error(f"{arguments.model} is not there: a real model is needed")
    with tempfile.TemporaryDirectory(prefix="kedge-soak-") as name:
        editions, inputs = editions_of(Path(name), arguments.model)
        agent = LocalAgent(Path(name) / "state", threads=1)
        try:
            agent.start(Deadline.after(60, "starting the agent"))
            report = soak(
                agent,
                editions,
                inputs,
                Rules(seconds=arguments.minutes * 60),
                lambda text: print(text, file=sys.stderr, flush=True),
            )
        finally:
            agent.close()
    if arguments.out is not None:
        arguments.out.write_text(
            json.dumps({"model": arguments.model.stem} | report, indent=1) + "\n", encoding="utf-8"
        )
    print(verdict(report))
    return 0 if report["passed"] else 1


def editions_of(folder: Path, model: Path) -> tuple[list[Edition], dict[str, NDArray[Any]]]:
    """Two releases of a model, and an input of batch 1."""
    other = folder / "other.onnx"
    changed = onnx.load(model)
    for tensor in changed.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and values.ndim >= 2:
            tensor.CopyFrom(numpy_helper.from_array(values * values.dtype.type(1.02), tensor.name))
    onnx.save(changed, other)
    draw = np.random.default_rng(0)
    inputs = {
        spec.name: draw.uniform(-1, 1, [1 if dim < 0 else dim for dim in spec.shape]).astype(spec.dtype)
        for spec in read_model(model).inputs
    }
    editions = []
    for version, path in enumerate((model, other), 1):
        options = BuildOptions("soak", version)
        release = build_release(path, host_target(), folder / f"{version}.release", options, inputs).release
        editions.append(Edition(release, ReferenceModel(path, threads=1).run(inputs)))
    return editions, inputs


if __name__ == "__main__":
    sys.exit(main())
