"""`kedge build`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Output, inventory_option, long_output_options, path_type, read_inventory, shapes_option
from .units import parse_size

if TYPE_CHECKING:
    from ..build.release import Built
    from ..targets import Target

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
@click.option("--reference", type=path_type, help="The model whose outputs are golden.  [default: MODEL itself]")
@click.option("--min-cosine", help="Parity gate: least cosine similarity.  [default: 0.999]")
@click.option("--max-relative-error", help="Parity gate: largest error over largest output.  [default: 0.02]")
@click.option("--max-abs-error", help="Parity gate: largest error, in the output's own unit.  [default: any]")
@click.option("--p99-ms", help="Latency gate: 99th percentile of compute on the device, in ms.  [default: any]")
@click.option("--p99-ratio", help="Latency gate: the same over the live release's, as 1.2.  [default: any]")
@click.option(
    "--peak-memory",
    type=parse_size,
    metavar="SIZE",
    help="Memory gate: what a process that runs it takes of its own, as 512MiB.  [default: any]",
)
@click.option(
    "--probation",
    type=click.IntRange(0, 86400),
    metavar="SECONDS",
    help="How long the device watches it after the switch.  [default: the device's own]",
)
@click.option("--max-error-share", help="Share of requests that may fail meanwhile.  [default: 0.01]")
@click.option(
    "--pack/--no-pack",
    default=None,
    help="Pack the model for the way to the device.  [default: where it saves a quarter of it]",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be built, where and why; build nothing.")
@click.option("--runtime", help="One of the target's.  [default: the first that takes the model]")
@shapes_option
@click.option(
    "--also-for",
    multiple=True,
    metavar="CC",
    help="Compile for this compute capability too, in one engine (TensorRT for RTX); may be repeated.",
)
@click.option("--sparse", is_flag=True, help="Use 2:4 sparse kernels where the weights are.")
@click.option("--workspace-mib", type=click.IntRange(1, 1 << 20), help="Scratch memory that the engine may take.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Threads of onnxruntime.  [default: the target's, or the device's own]",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME[:KEY=VALUE,…]",
    help="An execution provider of onnxruntime, in order of preference; may be repeated.  [default: the CPU's]",
)
@click.option("--require-engine", is_flag=True, help="Exit 7 where the engine can only be built on a device.")
@click.option("--on", "device", metavar="DEVICE", help="Build the engine on this device now, and pull it back.")
@inventory_option
@long_output_options
def build(
    model: Path,
    target: str,
    folder: Path | None,
    only_plan: bool,
    golden: Path | None,
    reference: Path | None,
    device: str | None,
    inventory_path: Path | None,
    out: Output,
    **options: Any,
) -> None:
    """Make a release of an ONNX MODEL for a target: engine or model, golden inputs and outputs, a manifest.

    Where the target's runtime takes engines, one is compiled here if that is possible (TensorRT for RTX: always,
    also without a GPU), taken from the cache if it was built before, or left to the first device.
    Gates come from these options, else from the recipe that the model was optimised by, else the defaults stand.
    Beside the release, FOLDER.build.json and .build.html say what was built.
    """
    from ..build.gates import GateOptions
    from ..build.release import BuildOptions, build_release, model_name_for, plan_model
    from ..build.report import write_build_report
    from ..build.serving import parse_serving
    from ..build.shapes import parse_shapes
    from ..model.inputs import load_tensors
    from ..model.onnx_io import read_model
    from ..targets import load_target

    profile = load_target(target)
    spec = read_model(model)
    asked = BuildOptions(
        name=options["name"] or model_name_for(model),
        version=options["model_version"],
        gates=GateOptions(
            cosine_min=options["min_cosine"],
            relative_error_max=options["max_relative_error"],
            max_abs_error_max=options["max_abs_error"],
            p99_ms=options["p99_ms"],
            p99_ratio_max=options["p99_ratio"],
            memory_peak_bytes=options["peak_memory"],
            probation_s=options["probation"],
            error_share_max=options["max_error_share"],
        ),
        pack=options["pack"],
        runtime=options["runtime"],
        compute_capabilities=tuple(options["also_for"]),
        shapes=parse_shapes(options["shapes"]),
        require_engine=options["require_engine"] and device is None,
        sparse_weights=options["sparse"],
        workspace_bytes=options["workspace_mib"] and options["workspace_mib"] << 20,
        on_device=device is not None,
        serving=parse_serving(options["threads"], options["providers"]),
    )
    if only_plan:
        _, choice = plan_model(model, profile, asked)
        document = {"model": str(model), "target": profile.name, **choice.to_json()}
        out.result(document, lambda: _render_plan(document))
        return
    destination = folder or Path(f"{asked.name}-{spec.precision}.release")
    with out.progress() as progress, tempfile.TemporaryDirectory(prefix="kedge-build-") as temporary:
        tensors = load_tensors(golden, spec.inputs) if golden is not None else None
        # What a device has yet to compile is no release yet: the user's folder is written once, when it is whole.
        first = destination if device is None else Path(temporary) / "planned"
        built = build_release(model, profile, first, asked, tensors, reference=reference, progress=progress.share)
        if device is not None:
            inventory = read_inventory(inventory_path)
            built = _compiled_on(device, inventory, profile, built, destination, progress.share)
    report = write_build_report(model, profile, built, destination)
    if built.golden_made_up:
        out.say("golden inputs are made up: the parity gate then compares noise; give real ones with --golden")
    if options["pack"] and report["encoding"] == "raw":
        out.say("packing would make this model no smaller: it is released as it is")
    out.result(report, lambda: _render(report))


def _compiled_on(device: str, inventory: Any, profile: Target, built: Built, destination: Path, progress: Any) -> Built:
    """Have a device compile what was built for it, and write the whole release."""
    from ..deploy.engines import engine_on_device, with_engine
    from ..errors import BadInputError, IncompatibleError
    from ..fleet.inventory import open_device

    if built.plan.where != "device":
        raise BadInputError(f"for {built.plan.runtime} nothing is compiled on a device", hint="leave --on out")
    with open_device(device, inventory) as (transport, kind):
        # A generic profile says nothing of the GPU: what the device itself says decides.
        if kind.name != profile.name and kind.family != "cpu":
            raise IncompatibleError(
                f"{device} is {kind.name}, the release is for {profile.name}", hint=f"use --target {kind.name}"
            )
        engine, compiled = engine_on_device(transport, profile, built.release, progress)
    return with_engine(built, engine, destination, compiled=compiled)


def _render(report: dict[str, Any]) -> None:
    from ..report.tables import key_values
    from ..report.text import byte_size, model_size

    rows = [
        ("release", report["release"]),
        ("folder", report["folder"]),
        ("model", f"{report['model']}, version {report['version']}, {report['precision']}"),
        ("runtime", report["reason"]),
    ]
    engine = report["engine"]
    if engine is not None:
        how = "from the cache" if engine["from_cache"] else f"built in {engine['report']['seconds']:.2f} s"
        size = f"{byte_size(engine['bytes'])}, of {byte_size(report['model_bytes'])} ONNX"
        rows.append(("engine", f"{size}, {how}, {_passport(engine['passport'])}"))
    else:
        rows.append(("model file", model_size(report["encoding"], report["stored_model_bytes"], report["model_bytes"])))
    if report["plan"]["where"] == "device" and engine is None:
        rows.append(("engine", "none yet: the first device that this is deployed to builds it"))
    key_values([*rows, ("size", byte_size(report["bytes"])), ("report", report["report"])])


def _passport(passport: dict[str, Any]) -> str:
    return (
        f"{passport['runtime']} {passport['runtime_version']}, CC {', '.join(passport['compute_capabilities'])}, "
        f"{passport['os']}/{passport['arch']}"
    )


def _render_plan(document: dict[str, Any]) -> None:
    from ..report.memory import activation_rows, memory_sentence
    from ..report.tables import key_values
    from ..report.text import byte_size

    where = {"nowhere": "nothing is compiled", "host": "on this host", "device": "on the first device"}
    rows = [
        ("model", f"{document['model']}, {document['precision']}"),
        ("target", document["target"]),
        ("runtime", document["runtime"]),
        ("engine", where[document["where"]]),
        ("because", document["reason"]),
    ]
    if document["compute_capabilities"]:
        rows.append(("compute capability", ", ".join(document["compute_capabilities"])))
    if document["tensorrt"]:
        rows.append(("TensorRT there", ", ".join(document["tensorrt"])))
    for name, shapes in document["profiles"].items():
        rows.append((f"shapes of {name}", " : ".join("x".join(map(str, shape)) for shape in shapes)))
    memory = document["memory"]
    if memory is not None:
        rows.append(("weights", byte_size(memory["weights_bytes"])))
        rows += [(label, f"about {byte_size(size)}") for label, size in activation_rows(memory) if size is not None]
        rows.append(("memory", memory_sentence(memory)))
    if document["lacks"]:
        rows.append(("missing here", document["lacks"]))
    key_values(rows)
