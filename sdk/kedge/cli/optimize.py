"""`kedge optimize`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, output_options, path_type

__all__ = ["optimize"]


@click.command()
@click.argument("model", type=path_type)
@click.option("--target", required=True, help="The kind of device; see: kedge targets list.")
@click.option("--quantize", type=click.Choice(["int8"]), default="int8", show_default=True, help="Precision to reach.")
@click.option(
    "--calibration", type=path_type, required=True, help="A few hundred real inputs (.npy or .npz) from training data."
)
@click.option("-o", "--out", "destination", type=path_type, help="The model to write.  [default: MODEL-int8.onnx]")
@output_options
def optimize(model: Path, target: str, quantize: str, calibration: Path, destination: Path | None, out: Output) -> None:
    """Quantise an ONNX MODEL with the scheme its target's runtime wants."""
    from ..errors import BadInputError
    from ..model.inputs import load_tensors
    from ..model.onnx_io import read_model
    from ..optimize.quantize import quantize_int8
    from ..targets import load_target

    profile = load_target(target)
    result = destination or model.with_name(f"{model.stem}-{quantize}.onnx")
    if result.resolve() == model.resolve():
        raise BadInputError("the model given may not be overwritten", hint="give another path with -o")
    with out.progress() as progress:
        progress.step("calibrating and quantising")
        tensors = load_tensors(calibration, read_model(model).inputs)
        done = quantize_int8(model, tensors, profile, result)
    before, after = model.stat().st_size, result.stat().st_size
    document = {
        "model": str(result),
        "target": profile.name,
        "precision": quantize,
        "activations": done.activations,
        "weights": done.weights,
        "reduced_range": done.reduced_range,
        "calibration_batches": done.calibration_batches,
        "bytes_before": before,
        "bytes_after": after,
    }

    def render() -> None:
        from ..report.tables import key_values
        from ..report.text import NOT_MEASURED, byte_size

        key_values(
            [
                ("model", str(result)),
                ("scheme", f"static INT8, activations {done.activations}, weights {done.weights} per channel"),
                ("calibrated on", f"{done.calibration_batches} batches"),
                ("size", f"{byte_size(before)} → {byte_size(after)}"),
                ("accuracy", NOT_MEASURED),
            ]
        )

    out.result(document, render)
