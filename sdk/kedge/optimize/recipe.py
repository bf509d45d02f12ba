"""A recipe: what is to be done to a model, as one TOML file or as command-line options state it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BadInputError, first_line
from ..model.gates import GateOptions
from ..model.preprocess import Preprocess
from .passes import make_pass
from .proof.limits import ClassLimits, MetricLimits, class_number, metric_reference
from .recipe_keys import read_table
from .work import Pass

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Data", "Recipe", "RobustnessSettings", "read_recipe"]

_MAX_BYTES = 1 << 20
# What is written is called NAME.release.build.html, and a file system takes 255 bytes.
_MAX_NAME_BYTES = 200
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# numpy, torch and optuna take these alike.
_MAX_SEED = 2**32 - 1
_L = TypeVar("_L", ClassLimits, MetricLimits)


@dataclass(frozen=True)
class Data:
    """References to data (kedge.model.data), and how many samples of each are used (0: all).

    calibration: inputs like those the model will meet; without it the first of `train` serve.
    metrics: functions of the user's, as package.module:callable(outputs, labels) -> float.
    classes: names of the labels, from 0, where the data bring none.
    """

    calibration: str = ""
    train: str = ""
    evaluation: str = ""
    calibration_samples: int = 512
    train_samples: int = 0
    evaluation_samples: int = 0
    metrics: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(reference, str) for reference in self.metrics):
            raise BadInputError(f"data.metrics is {list(self.metrics)}", hint="package.module:function, as text")
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise BadInputError(f"data.classes is {list(self.classes)}", hint="one name a class, each of its own")
        for name in ("calibration_samples", "train_samples", "evaluation_samples"):
            if getattr(self, name) < 0:
                raise BadInputError(f"data.{name} is negative", hint="give a number of samples, 0 for all")


@dataclass(frozen=True)
class RobustnessSettings:
    """samples: how many evaluation samples are damaged; attacked: how many are attacked. 0 and 0: not measured."""

    samples: int = 0
    attacked: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0 or self.attacked < 0:
            raise BadInputError(
                f"robustness asks for {min(self.samples, self.attacked)} samples",
                hint="a number of samples, 0 for none",
            )


@dataclass(frozen=True)
class Recipe:
    """One model's way through optimisation.

    base: the folder that references are relative to.
    max_drop, max_calibration_error, class_limits, metric_limits: the gate on the result's accuracy: the top-1 accuracy
        that may be lost, as a share of samples; the expected calibration error it may have; limits by the name of a
        class or its number; limits by the name of a metric of `data.metrics`. None and nothing: no gate.
    gates: that a device is to check of the result; None: nothing is stated.
    name: of the result, where no path is given: no folders in it. sha256: of the recipe's file; None: there is none.
    """

    source: str
    target: str
    passes: tuple[Pass, ...]
    data: Data = field(default_factory=Data)
    preprocess: Preprocess | None = None
    name: str = ""
    seed: int = 0
    input_shape: tuple[Any, ...] | None = None
    max_drop: float | None = None
    robustness: RobustnessSettings = field(default_factory=RobustnessSettings)
    base: Path | None = None
    gates: GateOptions | None = None
    sha256: str | None = None
    max_calibration_error: float | None = None
    class_limits: Mapping[str, ClassLimits] = field(default_factory=dict)
    metric_limits: Mapping[str, MetricLimits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name and not _is_plain(self.name):
            raise BadInputError(f"the recipe's name is {self.name!r}", hint="a plain name: letters, digits, dashes")
        if not 0 <= self.seed <= _MAX_SEED:
            raise BadInputError(f"the seed is {self.seed}", hint=f"a whole number from 0 to {_MAX_SEED}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise BadInputError(f"max_drop is {self.max_drop}", hint="a share of samples: 0.01 allows 1 point")
        error = self.max_calibration_error
        if error is not None and not 0 <= error <= 1:
            raise BadInputError(f"max_calibration_error is {error}", hint="between 0 and 1: 0.05 is 5 points")
        if self.data.classes:
            for name in self.class_limits:
                class_number(name, self.data.classes)
        for name in self.metric_limits:
            metric_reference(name, self.data.metrics)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file (docs/recipe.md).

    Raises:
        BadInputError: it cannot be read, or states something that is not known.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInputError(f"{path} is too large for a recipe", hint="see the recipes under examples/")
        content = path.read_bytes()
        body = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}", hint="give the path of a recipe") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, and so is text that is not UTF-8
        raise BadInputError(
            f"{path} is not TOML: {first_line(error)}", hint="see the recipes under examples/"
        ) from error
    top = read_table("", body)
    model = read_table("model", top["model"])
    data = read_table("data", top.get("data", {}))
    gate = _gate(top)
    robustness = read_table("robustness", top.get("robustness", {}))
    for key in ("metrics", "classes"):
        if key in data:
            data[key] = tuple(data[key])
    return Recipe(
        source=model["source"],
        target=top["target"],
        passes=tuple(_pass(path, table) for table in top["pass"]),
        data=Data(**data),
        preprocess=Preprocess.from_mapping(top["preprocess"]) if "preprocess" in top else None,
        name=_name(top.get("name", path.stem)),
        seed=top.get("seed", 0),
        input_shape=tuple(model["input_shape"]) if "input_shape" in model else None,
        max_drop=float(gate["max_drop"]) if "max_drop" in gate else None,
        robustness=RobustnessSettings(**robustness),
        base=path.resolve().parent,
        gates=GateOptions.from_mapping(top["gates"], f"{path}: gates") if "gates" in top else None,
        sha256=hashlib.sha256(content).hexdigest(),
        max_calibration_error=float(gate["max_calibration_error"]) if "max_calibration_error" in gate else None,
        class_limits=_limits(ClassLimits, "gate.classes", gate.get("classes", {})),
        metric_limits=_limits(MetricLimits, "gate.metrics", gate.get("metrics", {})),
    )


def _name(stated: str) -> str:
    # A recipe without a file has none; one with a file would write `.onnx`.
    if not stated:
        raise BadInputError("the recipe's name is empty", hint="a plain name: letters, digits, dashes")
    return stated


def _is_plain(name: str) -> bool:
    """Whether a name can be that of files, and is seen whole where it is shown."""
    folders = Path(name).name != name or "\\" in name or name in (".", "..")
    seen = name.isprintable() and name == name.strip()
    return not folders and seen and len(name.encode()) <= _MAX_NAME_BYTES


def _gate(top: Mapping[str, Any]) -> dict[str, Any]:
    """One that limits nothing would hold always, and was hardly meant."""
    gate = read_table("gate", top.get("gate", {}))
    empty = ["gate"] if "gate" in top and not gate else [f"gate.{key}" for key, value in gate.items() if value == {}]
    if empty:
        raise BadInputError(f"[{empty[0]}] states no limit", hint="state one, or leave the table out")
    return gate


def _limits(kind: type[_L], where: str, tables: Mapping[str, Any]) -> dict[str, _L]:
    limits = {}
    for name, body in tables.items():
        called = f"{where}.{name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)}"
        table = read_table(where, body, called)
        try:
            limits[name] = kind.from_mapping(table)
        except BadInputError as error:
            raise BadInputError(f"[{called}]: {error.message}", hint=error.hint) from error
    return limits


def _pass(path: Path, table: Any) -> Pass:
    if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
        raise BadInputError(f"{path}: each [[pass]] needs a kind", hint='kind = "quantize"')
    return make_pass(table["kind"], {key: value for key, value in table.items() if key != "kind"})
