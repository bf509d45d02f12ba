"""Keys of a recipe's passes: fields of their classes, with the sentences of the docstrings that describe them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from kedge.optimize.passes import PASSES
from kedge.optimize.prune.blocks import PruneBlocks
from kedge.optimize.prune.channels import PruneChannels
from kedge.optimize.prune.outputs import ERRORS
from kedge.optimize.quantize.awq import AWQ
from kedge.optimize.quantize.calibrate import CALIBRATOR_NAMES
from kedge.optimize.quantize.static import StaticSettings
from kedge.optimize.quantize.step import PRECISIONS, Quantize
from kedge.optimize.recipe_keys import Key

__all__ = ["pass_keys", "pass_sentence"]

# Where a docstring says that a field is another class's.
_ELSEWHERE: Mapping[str, tuple[type, ...]] = {
    "Quantize": (StaticSettings,),
    "QuantizationAwareTraining": (Quantize, StaticSettings),
    "Shrink": (PruneBlocks, PruneChannels),
}
# Names that say it all have no sentence in a docstring; others lean on what stands around them there.
_PLAIN = {
    "adversarial_steps": "Steps of pgd.",
    "batch": "Samples of one step.",
    "calibrator": 'How ranges of activations are found; "auto" tries them and takes the one closest to FP32.',
    "epochs": "How often training goes through the training data.",
    "label_smoothing": "How much of a label is spread over all classes, 0 to 1 (Szegedy et al. 2016).",
    "learning_rate": "Largest learning rate of the schedule.",
    "momentum": "Momentum of sgd.",
    "nesterov": "Whether sgd's momentum is Nesterov's.",
    "percentile": 'For the calibrator "percentile": share of the values that the range holds, in per cent.',
    "precision": "What it is quantised to.",
    "prune-magnitude.threshold": "When above 0, in place of the ratio: all weights with |w| below it go.",
    "prune-structured.macs": "Share of the multiply-accumulates to get down to.",
    "prune-structured.speedup": "When above 0, candidates this many times as fast as the unpruned model, by more "
    "than the measurement's noise, are enough, "
    "and the one of them whose outputs changed least is taken: the fastest is often the hardest to recover.",
    "schedule": "How the learning rate falls over the steps.",
    "seed": "Seeds this pass alone; without it the recipe's does.",
    "temperature": "Divides the logits before they are compared in distillation (Hinton et al. 2015).",
}
# A test holds that each is taken, and that nothing else is.
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "adversarial": ("none", "fgsm", "pgd"),
    "augment": ("none", "flip-crop"),
    "calibrator": ("auto", *CALIBRATOR_NAMES),
    "epoch_kept": ("best", "last"),
    "error": ERRORS,
    "importance": ("data-free", "l1", "l2", "taylor"),
    "keep_zeros": ("auto", "yes", "no"),
    "optimizer": ("adam", "adamw", "sgd"),
    "precision": tuple(PRECISIONS),
    "prune-heads.importance": ("auto", "output", "data-free"),
    "qat.precision": ("int8", "w4a8"),
    "reduced_range": ("auto", "yes", "no"),
    "rounding": ("nearest", "adaround", AWQ),
    "schedule": ("constant", "cosine", "step", "onecycle"),
    "scope": ("global", "layer"),
}
_UNITS = {"samples": "samples", "batch": "samples"}
_TYPES: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple[str, ...]: "a list of texts",
    tuple[float, ...]: "a list of numbers",
}


def pass_sentence(kind: str) -> str:
    """What a pass does: the first paragraph of its class's docstring."""
    paragraph = (inspect.getdoc(_class(kind)) or "").split("\n\n")[0]
    sentence = " ".join(paragraph.split()).removeprefix("Pass: ")
    return sentence[:1].upper() + sentence[1:]


def pass_keys(kind: str) -> dict[str, Key]:
    """What a `[[pass]]` of this kind may state beside its kind.

    Raises:
        LookupError: a field has no sentence in any docstring that describes it.
    """
    found = _class(kind)
    hints = typing.get_type_hints(found)
    keys = {}
    for field in dataclasses.fields(found):
        types = [item for item in typing.get_args(hints[field.name]) or (hints[field.name],) if item is not type(None)]
        if typing.get_origin(hints[field.name]) is tuple:
            types = [hints[field.name]]
        keys[field.name] = Key(
            tuple(_TYPES[item] for item in types),
            _sentence(kind, found, field.name),
            field.default,
            _UNITS.get(field.name, ""),
            choices=_CHOICES.get(f"{kind}.{field.name}", _CHOICES.get(field.name, ())),
        )
    return keys


def _class(kind: str) -> Any:
    module, name = PASSES[kind]
    return getattr(importlib.import_module(f"kedge.optimize.{module}"), name)


def _sentence(kind: str, found: Any, field: str) -> str:
    if plain := _PLAIN.get(f"{kind}.{field}", _PLAIN.get(field)):
        return plain
    for owner in (*found.__mro__, *_ELSEWHERE.get(found.__name__, ())):
        text = _described(owner, field)
        if text and not text.startswith(("see ", "as for ")):
            return text[:1].upper() + text[1:]
    raise LookupError(f"{found.__name__}.{field} is described in no docstring")


def _described(owner: Any, field: str) -> str:
    """What follows "field: " in the docstring, as far as the next field's name or the end of the paragraph."""
    if not dataclasses.is_dataclass(owner):
        return ""
    names = "|".join(item.name for item in dataclasses.fields(owner))
    begins = re.compile(rf"(?<![\w\"`])((?:{names})(?:, (?:{names}))*)(?: of [\w -]+)?: ")
    for paragraph in (owner.__doc__ or "").split("\n\n"):
        text = " ".join(paragraph.split())
        starts = list(begins.finditer(text))
        for number, match in enumerate(starts, 1):
            if field in match[1].split(", "):
                end = starts[number].start() if number < len(starts) else len(text)
                return text[match.end() : end].strip(" ;.") + "."
    return ""
