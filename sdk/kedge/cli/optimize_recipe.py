"""A recipe from the options of `kedge optimize MODEL`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..optimize.proof.limits import ClassLimits
    from ..optimize.recipe import Recipe

__all__ = ["recipe_of"]


def recipe_of(model: str, options: dict[str, Any], given: list[str]) -> Recipe:
    """The recipe that the options state.

    Args:
        options: by their names. given: those that the command line has, whatever their values.

    Raises:
        BadInputError: no target, nothing to do, or an option that says nothing without another.
    """
    from ..errors import BadInputError
    from ..optimize.passes import make_pass
    from ..optimize.recipe import Data, Recipe, RobustnessSettings

    if not options["target"]:
        raise BadInputError("no target was named", hint="give --target; see: kedge targets list")
    for name, needed, value in (
        ("qat", "quantize", None),
        ("keep", "quantize", None),
        ("max-time", "quantize", "auto"),
        ("max-size", "quantize", "auto"),
        ("trials", "quantize", "auto"),
    ):
        if name in given and (options[needed] is None or value not in (None, options[needed])):
            raise BadInputError(f"--{name} says nothing without --{needed}", hint=f"add --{needed} {value or 'int8'}")
    passes = [make_pass(kind, parameters) for kind, parameters in _steps(options)]
    if not passes:
        raise BadInputError("nothing was asked for", hint="give --quantize, --prune, --cluster or a recipe")
    shape = options["input_shape"]
    try:
        dims = tuple(int(dim) for dim in shape.split(",")) if shape else None
    except ValueError as error:
        raise BadInputError(f"{shape!r} is no shape", hint="whole numbers, as in 1,3,224,224") from error
    return Recipe(
        source=model,
        target=options["target"],
        passes=tuple(passes),
        data=Data(options["calibration"], options["train"], options["evaluate"]),
        seed=options["seed"],
        input_shape=dims,
        max_drop=options["max_drop"],
        robustness=RobustnessSettings(options["robustness"], min(options["robustness"], 200)),
        max_calibration_error=options["max_calibration_error"],
        class_limits=_class_limits(options),
    )


def _class_limits(options: dict[str, Any]) -> dict[str, ClassLimits]:
    from ..optimize.proof.limits import ClassLimits

    stated: dict[str, dict[str, float]] = {}
    for key in ("min_sensitivity", "min_specificity"):
        for name, share in options[key]:
            stated.setdefault(name, {})[key] = share
    return {name: ClassLimits(**limits) for name, limits in stated.items()}


def _steps(options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    steps: list[tuple[str, dict[str, Any]]] = []
    if options["prune"]:
        steps.append(_pruning(options["prune"]))
    if options["recover"]:
        steps.append(("recover", {"epochs": options["recover"], "distil": 0.7}))
    if options["cluster"]:
        steps.append(("cluster", {"bits": options["cluster"]}))
    if options["quantize"]:
        parameters: dict[str, Any] = {
            "precision": options["quantize"],
            "keep": list(options["keep"]),
            "calibrator": options["calibrator"],
            "rounding": options["rounding"],
        }
        if options["qat"]:
            del parameters["rounding"]  # is learnt
            steps.append(("qat", {**parameters, "epochs": options["qat"]}))
        else:
            if options["quantize"] == "auto":
                parameters |= {key: options[key] for key in ("max_time", "max_size", "trials")}
                if options["max_drop"] is not None:
                    parameters["max_drop"] = options["max_drop"]
            steps.append(("quantize", parameters))
    return steps


def _pruning(text: str) -> tuple[str, dict[str, Any]]:
    from ..errors import BadInputError

    kind, _, amount = text.partition("=")
    keys = {"magnitude": "ratio", "channels": "macs", "blocks": "macs", "heads": "ratio", "structured": "macs"}
    if kind == "2:4" and not amount:
        return "prune-2:4", {}
    try:
        return f"prune-{kind}", {keys[kind]: float(amount)}
    except (KeyError, ValueError) as error:
        raise BadInputError(
            f"--prune {text} is not known",
            hint="magnitude=0.5, 2:4, channels=0.5, blocks=0.5, heads=0.25 or structured=0.5",
        ) from error
