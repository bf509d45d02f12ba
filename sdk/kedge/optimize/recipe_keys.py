"""Every key of a recipe: its types, what it says, its default and its unit. The parser reads these tables, and so does
what is generated from them: docs/schemas/recipe.schema.json and the reference of recipes.

The keys of a `[[pass]]` are the fields of its class (kedge.optimize.passes).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import BadInputError

__all__ = ["TABLES", "Key", "read_table"]

_HINT = "see the recipes under examples/"
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "a whole number": lambda value: type(value) is int,
    "a number": lambda value: type(value) in (int, float),
    "true or false": lambda value: type(value) is bool,
    "a list": lambda value: isinstance(value, list),
    "a list of texts": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "a list of numbers": lambda value: isinstance(value, list) and all(type(item) in (int, float) for item in value),
    "a table": lambda value: isinstance(value, dict),
    "a list of tables": lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
}


@dataclass(frozen=True)
class Key:
    """One key of a recipe.

    types: what it takes, any of them, as an error's hint says it. what: one sentence.
    default: what stands where it is absent, None: nothing does. unit: of a number, "" where it has none.
    required: a recipe without it is refused. choices: the texts it takes; (): any.
    """

    types: tuple[str, ...]
    what: str
    default: Any = None
    unit: str = ""
    required: bool = False
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.types if name not in _TYPES]
        if unknown or not self.types:
            raise ValueError(f"no type of a key is called {', '.join(unknown) or 'nothing'}")

    def takes(self, value: Any) -> bool:
        """Whether the value has one of the types. What a value must be beside that, whoever uses it checks."""
        return any(_TYPES[name](value) for name in self.types)


_TEXT, _WHOLE, _NUMBER = ("text",), ("a whole number",), ("a number",)
_DECIMAL = ("a number", "text")

_PARITY = {
    "cosine_min": Key(_DECIMAL, "Least cosine similarity of each output with its golden one.", 0.999),
    "relative_error_max": Key(_DECIMAL, "Largest error over the largest golden value.", 0.02),
    "max_abs_error_max": Key(_DECIMAL, "Largest error of a value.", unit="the output's own"),
}
TABLES: Mapping[str, Mapping[str, Key]] = {
    "": {
        "name": Key(_TEXT, "Name of the files that are written, without folders; absent: the recipe's file name."),
        "target": Key(_TEXT, "The profile that the model is made for, one of `kedge targets list`.", required=True),
        "seed": Key(_WHOLE, "Seeds every draw of random numbers; 0 to 4,294,967,295.", 0),
        "model": Key(("a table",), "Which model.", required=True),
        "data": Key(("a table",), "Which data calibrate, train and judge."),
        "preprocess": Key(
            ("a table",), "How a picture becomes the model's input; carried into the release's manifest."
        ),
        "pass": Key(("a list of tables",), "What is done to the model, in this order.", required=True),
        "gate": Key(("a table",), "What must hold of the result's accuracy; exit code 5 when it does not."),
        "gates": Key(("a table",), "What every device checks before it switches to the release, and watches after."),
        "robustness": Key(("a table",), "How the result is damaged and attacked, to see how it takes that."),
        "run": Key(("a table",), "Where `kedge run` takes the result; `kedge optimize` does not read it."),
    },
    "model": {
        "source": Key(
            _TEXT, "An ONNX file, a torch.export program (`.pt2`), or `package.module:factory`.", required=True
        ),
        "input_shape": Key(("a list",), "Shape of the input, for a module without an example input."),
    },
    "data": {
        "calibration": Key(_TEXT, "Inputs like those the model will meet; without it the first of `train` serve.", ""),
        "train": Key(_TEXT, "Labelled samples, for passes that train or search.", ""),
        "evaluation": Key(_TEXT, "Labelled samples that before and after are judged on; no pass sees them.", ""),
        "calibration_samples": Key(_WHOLE, "How many samples of `calibration` are used; 0: all.", 512, "samples"),
        "train_samples": Key(_WHOLE, "How many samples of `train` are used; 0: all.", 0, "samples"),
        "evaluation_samples": Key(_WHOLE, "How many samples of `evaluation` are used; 0: all.", 0, "samples"),
        "metrics": Key(
            ("a list of texts",),
            "Functions of the user's, `package.module:callable(outputs, labels) -> float`, reported before and after.",
            (),
        ),
        "classes": Key(("a list of texts",), "Names of the labels, from 0, where the data bring none.", ()),
    },
    "preprocess": {
        "resize": Key(
            ("a whole number", "a list of numbers"), "Short side, or exactly [height, width].", unit="pixels"
        ),
        "crop": Key(("a whole number", "a list of numbers"), "[height, width] cut from the centre.", unit="pixels"),
        "scale": Key(_DECIMAL, 'Factor of the 8-bit pixel; text may be a fraction, "1/255".', 1.0),
        "mean": Key(("a number", "text", "a list"), "Taken off the scaled pixel: one number, or one a channel.", ()),
        "std": Key(("a number", "text", "a list"), "Divides what is left: one number, or one a channel.", ()),
        "layout": Key(_TEXT, "Order of the axes of the model's input.", "NCHW", choices=("NCHW", "NHWC")),
        "mode": Key(_TEXT, "Colours of the model's input.", "RGB", choices=("RGB", "BGR", "grayscale")),
    },
    "gate": {
        "max_drop": Key(_NUMBER, "How much top-1 accuracy may be lost.", unit="share of samples"),
        "max_calibration_error": Key(
            _NUMBER, "Largest expected calibration error of the result, over 15 equal bins.", unit="0 to 1"
        ),
        "classes": Key(("a table",), "Limits by class: a table `[gate.classes.NAME]` each, by its name or number."),
        "metrics": Key(
            ("a table",),
            "Limits by metric: a table `[gate.metrics.NAME]` each, by what follows the colon in `[data] metrics`.",
        ),
    },
    "gate.classes": {
        "min_sensitivity": Key(_NUMBER, "Least share of the class's samples that is found: recall.", unit="share"),
        "min_specificity": Key(_NUMBER, "Least share of the other samples that is not taken for it.", unit="share"),
        "max_sensitivity_drop": Key(
            _NUMBER, "How much sensitivity may be lost against the model as given.", unit="share"
        ),
        "max_specificity_drop": Key(
            _NUMBER, "How much specificity may be lost against the model as given.", unit="share"
        ),
    },
    "gate.metrics": {
        "min": Key(_NUMBER, "Least value of the result.", unit="the metric's own"),
        "max": Key(_NUMBER, "Largest value of the result, of a metric that is an error.", unit="the metric's own"),
        "max_drop": Key(_NUMBER, "How far the result may lie below the model as given.", unit="the metric's own"),
        "max_rise": Key(_NUMBER, "How far it may lie above, of a metric that is an error.", unit="the metric's own"),
    },
    "gates": {
        **_PARITY,
        "outputs": Key(("a table",), "By an output's name, a table `[gates.outputs.NAME]` each."),
        "p99_ms": Key(_DECIMAL, "99th percentile of a request's compute time on the device.", unit="ms"),
        "p99_ratio_max": Key(_DECIMAL, "The same over that of the live release, measured just before."),
        "memory_peak_bytes": Key(
            _WHOLE, "What a process that loads and runs the model takes of its own at its peak.", unit="bytes"
        ),
        "probation_s": Key(
            _WHOLE,
            "How long the device watches the release after the switch; 0: not at all; absent: its own settings say.",
            unit="s",
        ),
        "error_share_max": Key(
            _DECIMAL, "Of the requests in the probation, those that may fail in the runtime.", 0.01, "share of requests"
        ),
    },
    "gates.outputs": {name: replace(key, default=None) for name, key in _PARITY.items()},
    "robustness": {
        "samples": Key(_WHOLE, "Evaluation samples that get noise, blur, contrast, JPEG; 0: none.", 0, "samples"),
        "attacked": Key(_WHOLE, "Evaluation samples that FGSM and PGD attack; 0: none.", 0, "samples"),
    },
    "run": {
        "to": Key(_TEXT, "Devices, as `--to` takes them, which goes before: `bench1`, `cam-1,cam-2`, `@berlin`."),
        "version": Key(_WHOLE, "The model's version in the release; a device takes none below the one it has had.", 1),
    },
}
"""Tables of a recipe by name, "" for what stands above them; keys in the order in which the reference shows them. A
name with a point is that of tables by a name of the user's: "gate.classes" has the keys of each `[gate.classes.NAME]`.
"""


def read_table(name: str, body: Any, called: str | None = None) -> dict[str, Any]:
    """What the table of this name states, once every key and type is known to be right.

    Args:
        called: how a recipe writes it, where that is not the name: "gate.classes.cat".

    Raises:
        BadInputError: it is no table, has a key that is not known, a value of another type, or lacks a key.
    """
    where = f"[{called or name}]" if name else "the recipe"
    known = TABLES[name]
    if not isinstance(body, dict):
        raise BadInputError(f"{where} is not a table", hint=_HINT)
    for key, value in body.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
            raise BadInputError(f"{where} has no key {key!r}", hint=hint)
        if not known[key].takes(value):
            raise BadInputError(f"{where}: {key} is {value!r}", hint=f"it takes {' or '.join(known[key].types)}")
    for key, wanted in known.items():
        if wanted.required and key not in body:
            raise BadInputError(f"the recipe lacks {f'{where} ' if name else ''}{key}", hint=_HINT)
    return dict(body)
