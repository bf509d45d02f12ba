"""`kedge optimize`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import Output, inventory_option, long_output_options, path_type, read_inventory
from .optimize_recipe import recipe_of

if TYPE_CHECKING:
    from ..fleet.executor import Workers
    from ..optimize.recipe import Recipe

__all__ = ["optimize"]

_PRECISIONS = ("int8", "int8-dynamic", "w4a8", "int4", "fp16", "bf16", "fp8", "auto")


def _bits_or_scheduler(text: str) -> int | str:
    """How many bits index shared weights, or where the scheduler of a dask cluster is."""
    if "://" in text:
        return text
    if text not in tuple("12345678"):
        raise click.BadParameter(f"{text!r} is neither 1 to 8 bits nor an address as tcp://scheduler:8786")
    return int(text)


def _class_and_share(text: str) -> tuple[str, float]:
    """A class by its name or number, and a share between 0 and 1."""
    name, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if not name or not 0 <= value <= 1:
        raise click.BadParameter(f"{text!r} is not as in malignant=0.95: a class, and a share between 0 and 1")
    return name, value


@click.command()
@click.argument("model", metavar="MODEL|RECIPE")
@click.option("--target", help="The kind of device; see: kedge targets list. A recipe names its own.")
@click.option("--quantize", type=click.Choice(_PRECISIONS), help="Precision to reach; auto mixes several.")
@click.option(
    "--calibrator",
    type=click.Choice(("auto", "min-max", "percentile", "entropy", "mse", "output")),
    default="auto",
    show_default=True,
    help="How activation ranges are chosen; output: by what the layers that read them make of it.",
)
@click.option(
    "--rounding",
    type=click.Choice(("nearest", "adaround", "awq")),
    default="adaround",
    show_default=True,
    help="Of 4-bit weights; awq: int4 for TensorRT, by ModelOpt.",
)
@click.option("--keep", multiple=True, metavar="PATTERN", help="Layers that stay FP32; may be repeated.")
@click.option(
    "--prune",
    metavar="KIND=AMOUNT",
    help="magnitude=0.5, 2:4, heads=0.25 (share taken); channels=0.5, blocks=0.5, structured=0.5 (of MACs kept).",
)
@click.option(
    "--cluster",
    "cluster_or_workers",
    multiple=True,
    type=_bits_or_scheduler,
    metavar="BITS|URL",
    help="BITS: share weights, 2^BITS values a layer. tcp://scheduler:8786: judge mixes there. Both: give it twice.",
)
@click.option(
    "--recover",
    type=click.IntRange(min=1),
    metavar="EPOCHS",
    help="Fine-tune after pruning, taught by the model as given.",
)
@click.option(
    "--qat", type=click.IntRange(min=1), metavar="EPOCHS", help="Train with quantisation in the loop (int8, w4a8)."
)
@click.option(
    "--calibration",
    default="",
    metavar="DATA",
    help="A few hundred inputs: .npz, .npy, a folder of images, or module:callable.",
)
@click.option("--train", default="", metavar="DATA", help="Labelled training data.")
@click.option("--evaluate", default="", metavar="DATA", help="Labelled data that nothing else uses: the proof.")
@click.option(
    "--max-drop", type=click.FloatRange(0, 1), help="Gate: accuracy that may be lost, as a share (0.01: 1 point)."
)
@click.option(
    "--min-sensitivity",
    multiple=True,
    type=_class_and_share,
    metavar="CLASS=SHARE",
    help="Gate: share of the class's samples that must be found (recall); may be repeated.",
)
@click.option(
    "--min-specificity",
    multiple=True,
    type=_class_and_share,
    metavar="CLASS=SHARE",
    help="Gate: share of the other samples that must not be taken for the class; may be repeated.",
)
@click.option(
    "--max-calibration-error",
    type=click.FloatRange(0, 1),
    help="Gate: expected calibration error of the result's confidence (0.05: 5 points).",
)
@click.option(
    "--max-time",
    type=click.FloatRange(0, 10),
    default=0.0,
    help="With auto: most time, as a share of FP32's; accuracy is maximised.",
)
@click.option(
    "--max-size", type=click.FloatRange(0, 10), default=0.0, help="With auto: most weight bytes, as a share of FP32's."
)
@click.option(
    "--trials", type=click.IntRange(1, 10_000), default=24, show_default=True, help="With auto: mixes to try."
)
@click.option("--measure-on", metavar="DEVICE", help="With auto: rank mixes by what this device measures.")
@click.option(
    "--robustness",
    type=click.IntRange(min=0),
    default=0,
    metavar="SAMPLES",
    help="Also measure accuracy under noise, blur, contrast, JPEG and attacks.",
)
@click.option("--input-shape", metavar="1,3,224,224", help="For a PyTorch module without an example input.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every draw of random numbers.")
@click.option(
    "-o",
    "--out",
    "destination",
    type=path_type,
    help="The model to write; its report lies beside it.  [default: NAME-optimized.onnx]",
)
@inventory_option
@long_output_options
def optimize(
    model: str,
    measure_on: str | None,
    destination: Path | None,
    inventory_path: Path | None,
    cluster_or_workers: tuple[int | str, ...],
    out: Output,
    **options: Any,
) -> None:
    """Make a model smaller and faster for a target, and prove what accuracy it kept.

    MODEL is an ONNX file, a torch.export program (.pt2) or package.module:factory; a RECIPE is a .toml file,
    which states everything the options do and more. Beside the model, OUT.json and OUT.html report what was
    done. Exit 5 when a gate does not hold (--max-drop, --min-sensitivity, …).
    """
    from ..errors import BadInputError
    from ..optimize.pipeline import optimise
    from ..optimize.recipe import read_recipe
    from ..optimize.written import refusal, refuse_overwriting, write_report

    bits = [each for each in cluster_or_workers if isinstance(each, int)]
    schedulers = [each for each in cluster_or_workers if isinstance(each, str)]
    if len(bits) > 1 or len(schedulers) > 1:
        raise BadInputError("--cluster says the same twice", hint="once with BITS, once with the scheduler's address")
    given = _given(options) + ["cluster"] * len(bits)
    options["cluster"] = bits[0] if bits else None
    if model.endswith(".toml") and given:
        raise BadInputError(f"a recipe states its own {given[0]}", hint="change the recipe, or give a model")
    recipe = read_recipe(Path(model)) if model.endswith(".toml") else recipe_of(model, options, given)
    result = destination or Path(f"{_stem(recipe, model)}-optimized.onnx")
    if result.suffix != ".onnx":
        raise BadInputError(f"{result} is no name for a model", hint="end it in .onnx; the report lies beside it")
    refuse_overwriting(result, recipe, model)
    with out.progress() as progress, ExitStack() as stack:
        probe = None
        if measure_on is not None:
            from ..fleet.probe import device_probe

            probe = stack.enter_context(device_probe(measure_on, recipe.target, read_inventory(inventory_path)))
        helpers = stack.enter_context(_helpers(schedulers[0], out)) if schedulers else None
        done = optimise(recipe, result, progress.share, probe, helpers)
        progress.step("writing the report")
        page = write_report(result, done.document)

    def render() -> None:
        from ..report.optimize_text import show
        from ..report.tables import key_values

        show(done.document)
        key_values([("model", str(result)), ("report", str(page))])

    out.result({**done.document, "artefact": str(result), "report": str(page)}, render)
    if done.passed is False:
        raise refusal(done.document)


@contextmanager
def _helpers(scheduler: str, out: Output) -> Iterator[Workers]:
    """A cluster's workers that judge as this host does."""
    from ..fleet.executor import open_executor
    from ..optimize.spread import judging_facts

    with open_executor(scheduler, 1) as workers:
        for note in workers.notes:
            out.say(note)
        workers.require_alike(judging_facts)
        yield workers


def _given(options: dict[str, Any]) -> list[str]:
    """What the command line states of the optimisation, whatever the values."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return [name.replace("_", "-") for name in options if context.get_parameter_source(name) is not default]


def _stem(recipe: Recipe, model: str) -> str:
    if recipe.name:
        return recipe.name
    return model.rsplit(":", 1)[-1] if ":" in model else Path(model).stem
