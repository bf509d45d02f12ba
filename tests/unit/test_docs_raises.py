"""Whatever is raised is in the reference of errors: read here by itself, without the walk that writes the reference."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.docs.errors import find_errors
from tools.docs.errors_explicit import UNSAID
from tools.docs.errors_source import read_sources

ROOT = Path(__file__).parents[2]
SHIPPED = [
    path
    for side in ("sdk/kedge", "device_agent/kedge_agent", "targets/kedge_targets")
    for path in (ROOT / side).rglob("*.py")
]

NOT_WALKED = {
    "kedge/fleet/entries.py: wrong": "a parameter: each caller gives a lambda, and errors_explicit has the words",
}
"""Callees of what is raised that are neither a class nor a function of these sources: why their words are not lost."""

_HINT = "a hint at a place of errors_explicit, which has the messages alone"
NOT_SAID = {
    "kedge/model/gates.py: docs/release-format.md has the bounds of every gate": "of another's message, passed on",
    "kedge/build/serving.py: as in --threads 4 --provider CUDAExecutionProvider:device_id=0 --provider "
    "CPUExecutionProvider": _HINT,
    "kedge_agent/runtime/tensorrt_engine.py: send such a shape, or build the engine with other profiles: kedge build "
    "--shapes": _HINT,
    "kedge_agent/serving/repository.py: load it, or deploy a release of it": _HINT,
    "kedge_agent/serving/staging.py: rebuild with: kedge build … --target ": _HINT,
    "kedge_agent/serving/infer_request.py: see the model's metadata: GET /v2/models/NAME": _HINT,
}
"""Words in the place where an error is raised that the reference has not, and why."""


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """Every module that is shipped, by its path without the folder of its side."""
    return {path.relative_to(ROOT).as_posix().partition("/")[2]: ast.parse(path.read_text("utf-8")) for path in SHIPPED}


def _raised(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield node.exc


def _name(callee: ast.expr) -> str:
    return callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", ast.unparse(callee))


def test_all_that_is_called_to_raise_it_is_a_class_or_function_whose_calls_are_walked(
    trees: dict[str, ast.Module],
) -> None:
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    walked = read_sources().exceptions
    strange = {
        f"{path}: {_name(call.func)}"
        for path, tree in trees.items()
        for raised in _raised(tree)
        for call in ([raised] if isinstance(raised, ast.Call) else [])
        if _name(call.func) not in walked and _name(call.func) not in functions
    }
    assert strange == set(NOT_WALKED)


def test_what_is_raised_otherwise_is_an_error_that_was_made_elsewhere(trees: dict[str, ast.Module]) -> None:
    others = {
        ast.unparse(raised)
        for tree in trees.values()
        for raised in _raised(tree)
        if not isinstance(raised, ast.Call | ast.Name | ast.Attribute | ast.Subscript)
    }
    # Both sides of each are one of those.
    assert all(isinstance(ast.parse(each, mode="eval").body, ast.BoolOp) for each in others), others


def _words(node: ast.expr) -> Iterator[str]:
    """Texts of a message or hint in what is raised, as far as they are written there."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (str(part.value) for part in node.values if isinstance(part, ast.Constant))
    elif isinstance(node, ast.Call):
        for argument in (*node.args, *(each.value for each in node.keywords if each.arg in ("message", "hint"))):
            yield from _words(argument)
    elif isinstance(node, ast.IfExp):
        yield from (*_words(node.body), *_words(node.orelse))
    elif isinstance(node, ast.BoolOp):
        yield from (text for value in node.values for text in _words(value))


def test_each_word_that_is_written_where_an_error_is_made_and_raised_is_in_the_reference(
    trees: dict[str, ast.Module],
) -> None:
    found = find_errors()
    said = "\n".join(f"{entry.text}\n{entry.hint}" for entry in (*found.entries, *found.carried))
    made = read_sources().exceptions - {*UNSAID}
    lost = {
        f"{path}: {text}"
        for path, tree in trees.items()
        for raised in _raised(tree)
        if isinstance(raised, ast.Call) and _name(raised.func) in made
        for text in _words(raised)
        if re.search(r"[^\W\d_]{2}", text) and " ".join(text.split()) not in said
    }
    assert lost == set(NOT_SAID)


OTHERWISE = """
import sys
from .errors import BadInputError, OwnError, Refused
from .errors import BadInputError as Bad

TABLE = {"x": BadInputError}


def by_another_name():
    raise Bad("by another name")


def one_of_two(c):
    raise (BadInputError if c else OwnError)("one of two")


def in_a_variable(c):
    kind = BadInputError if c else OwnError
    raise kind("in a variable")


def of_a_table(c):
    raise TABLE[c]("of a table")


def without_error_in_its_name():
    raise Refused("without error in its name")


def handed_over(kind):
    raise kind("handed over")


def hands_over():
    handed_over(BadInputError)


async def later():
    raise BadInputError("later")


def of_a_library(response):
    raise http.client.HTTPException("of a library")


def of_the_system(path):
    raise OSError(22, "of the system", path)


def ends():
    sys.exit("ends")


def by_number() -> int:
    sys.exit(by_number())


def put_in_later(e):
    e.message = "put in later"
    raise e


def by_a_method(p):
    raise p.error.with_hint("by a method")
"""
CLASSES = """
class BadInputError(Exception): pass
class OwnError(BadInputError): pass
class Refused(ValueError): pass
"""


def test_a_class_that_is_not_called_by_its_own_name_is_found_or_told_to_be_unknown(tmp_path: Path) -> None:
    folder = tmp_path / "sdk" / "kedge" / "fleet"
    folder.mkdir(parents=True)
    (folder / "made.py").write_text(OTHERWISE)
    (folder / "errors.py").write_text(CLASSES)
    found = find_errors(read_sources(tmp_path))
    assert {(entry.text, entry.error, entry.code) for entry in found.entries} == {
        ("by another name", "BadInputError", 3),
        ("one of two", "BadInputError", 3),
        ("one of two", "OwnError", 3),
        ("in a variable", "BadInputError", 3),
        ("in a variable", "OwnError", 3),
        ("of a table", "BadInputError", 3),
        ("without error in its name", "Refused", None),
        ("handed over", "BadInputError", 3),
        ("later", "BadInputError", 3),
        ("of a library", "HTTPException", None),
        ("of the system", "OSError", None),
        ("ends", "SystemExit", None),
    }
    assert [each.split(":")[1] for each in found.unknown] == ["by_a_method", "put_in_later"]
