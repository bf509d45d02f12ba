"""`kedge build`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, long_output_options, path_type

__all__ = ["build"]


@click.command()
@click.argument("model", type=path_type)
@click.option("--target", required=True, help="The kind of device; see: kedge targets list.")
@click.option("-o", "--out", "folder", type=path_type, help="The release folder.  [default: NAME-PRECISION.release]")
@click.option("--name", help="The model's name on the device.  [default: from the file name]")
@click.option(
    "--model-version", type=click.IntRange(min=1), default=1, show_default=True, help="The model's integer version."
)
@click.option("--golden", type=path_type, help="Real inputs (.npy or .npz) to record for the parity gate.")
@click.option("--min-cosine", default="0.999", show_default=True, help="Parity gate: least cosine similarity.")
@click.option(
    "--max-relative-error", default="0.02", show_default=True, help="Parity gate: largest error over largest output."
)
@click.option(
    "--pack/--no-pack",
    default=None,
    help="Pack the model for the way to the device.  [default: where it saves a quarter of it]",
)
@long_output_options
def build(
    model: Path,
    target: str,
    folder: Path | None,
    name: str | None,
    model_version: int,
    golden: Path | None,
    min_cosine: str,
    max_relative_error: str,
    pack: bool | None,
    out: Output,
) -> None:
    """Make a release of an ONNX MODEL for a target: the model, golden inputs and outputs, a manifest."""
    from ..build.release import BuildOptions, build_release, model_name_for
    from ..model.inputs import load_tensors
    from ..model.onnx_io import read_model
    from ..targets import load_target

    profile = load_target(target)
    spec = read_model(model)
    options = BuildOptions(name or model_name_for(model), model_version, min_cosine, max_relative_error, pack=pack)
    destination = folder or Path(f"{options.name}-{spec.precision}.release")
    with out.progress() as progress:
        progress.step("recording golden outputs")
        tensors = load_tensors(golden, spec.inputs) if golden is not None else None
        built = build_release(model, profile, destination, options, tensors)
    release = built.release
    artefact = release.manifest.artefacts[0]
    stored_bytes = release.manifest.file(artefact.file).size_bytes
    document = {
        "release": release.digest,
        "folder": str(destination),
        "model": options.name,
        "version": options.version,
        "target": profile.name,
        "runtime": built.plan.runtime,
        "precision": built.plan.precision,
        "reason": built.plan.reason,
        "golden_made_up": built.golden_made_up,
        "encoding": artefact.encoding,
        "model_bytes": built.model_bytes,
        "stored_model_bytes": stored_bytes,
        "bytes": release.manifest.total_bytes,
    }

    def render() -> None:
        from ..report.tables import key_values
        from ..report.text import byte_size, model_size

        key_values(
            [
                ("release", release.digest),
                ("folder", str(destination)),
                ("model", f"{options.name}, version {options.version}, {built.plan.precision}"),
                ("runtime", built.plan.reason),
                ("model file", model_size(artefact.encoding, stored_bytes, built.model_bytes)),
                ("size", byte_size(release.manifest.total_bytes)),
            ]
        )

    if built.golden_made_up:
        out.say("golden inputs are made up: the parity gate then compares noise; give real ones with --golden")
    if pack and artefact.encoding == "raw":
        out.say("packing would make this model no smaller: it is released as it is")
    out.result(document, render)
