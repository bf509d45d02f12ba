"""Every command, option, recipe key, exit code and error text that the code has is on a page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tools.docs.errors import CARRIED, find_errors
from tools.docs.errors_explicit import EXPLICIT
from tools.docs.errors_source import read_sources
from tools.docs.reference import pages, write_all
from tools.docs.reference_cli import agent_commands, commands, option_names
from tools.docs.reference_errors import anchors
from tools.docs.reference_passes import pass_keys

from kedge.errors import ExitCode
from kedge.optimize.passes import PASSES
from kedge.optimize.recipe_keys import TABLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def test_every_page_is_written_below_the_folder(tmp_path: Path, made: dict[str, str]) -> None:
    write_all(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")} == set(made)


@pytest.mark.parametrize("words", [words for words, _, _ in commands() if words], ids=" ".join)
def test_every_command_has_its_heading_in_both_its_pages(words: tuple[str, ...], made: dict[str, str]) -> None:
    heading = f"{'#' * len(words)} kedge {' '.join(words)}\n"
    assert heading in made[f"cli/{words[0]}.md"]
    assert heading in (DOCS / "commands" / f"{words[0]}.md").read_text()


def test_every_option_is_in_the_command_s_page(made: dict[str, str]) -> None:
    for words, command, context in commands():
        if words:
            page = made[f"cli/{words[0]}.md"]
            assert all(option in page for option in option_names(command, context)), words


def test_every_row_of_the_command_line_says_something(made: dict[str, str]) -> None:
    rows = [
        row for name, page in made.items() if name.startswith("cli/") for row in page.splitlines() if row[:1] == "|"
    ]
    assert [row for row in rows if re.search(r"\|\s*\|$", row)] == []


def test_every_command_of_the_agent_has_its_heading(made: dict[str, str]) -> None:
    own = (DOCS / "commands" / "kedge-agent.md").read_text()
    for name in agent_commands():
        if name:
            assert f"## kedge-agent {name}\n" in made["cli/kedge-agent.md"]
            assert f"## kedge-agent {name}\n" in own


def test_a_page_of_a_command_that_is_gone_is_gone_too() -> None:
    known = {words[0] for words, _, _ in commands() if words} | {"kedge-agent"}
    assert {path.stem for path in (DOCS / "commands").glob("*.md")} == known
    every = {" ".join(("kedge", *words)) for words, _, _ in commands()}
    every |= {f"kedge-agent {name}".strip() for name in agent_commands()}
    for path in (DOCS / "commands").glob("*.md"):
        assert set(re.findall(r"^#+ (kedge(?:-agent)? .*)$", path.read_text(), re.MULTILINE)) <= every


def test_every_key_of_a_recipe_is_in_the_reference(made: dict[str, str]) -> None:
    sections = dict(
        re.findall(r"^\(recipe-([\w-]+)\)=\n(.*?)(?=^\(recipe-|\Z)", made["recipe.md"], re.MULTILINE | re.DOTALL)
    )
    for name, keys in TABLES.items():
        section = sections[name.replace(".", "-") or "top"]
        assert all(f"| `{key}` |" in section and row.what.split("|")[0] in section for key, row in keys.items()), name
    for kind in PASSES:
        section = sections[f"pass-{kind.replace(':', '-')}"]
        assert all(f"| `{key}` |" in section for key in pass_keys(kind)), kind


def test_every_pass_and_table_is_in_the_guide_to_recipes() -> None:
    guide = (DOCS / "recipe.md").read_text()
    assert all(f"| `{kind}` |" in guide for kind in PASSES)
    assert all(f"[{name}" in guide for name in TABLES if name)


def test_every_exit_code_has_its_row_and_its_heading(made: dict[str, str]) -> None:
    written = (DOCS / "exit-codes.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} | `{code.name}` |" in written
        assert f"(exit-code-{int(code)})=\n## {int(code)} {code.name}\n" in made["exit-codes.md"]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", written, re.MULTILINE)} == {
        int(code) for code in ExitCode
    }


def test_the_walk_over_the_errors_follows_every_one_of_them() -> None:
    found = find_errors()
    assert not found.unknown, (
        "say in tools/docs/errors_explicit.py what is said there, and why the walk does not see it"
    )
    assert len(found.entries) > 1000


def test_every_error_text_has_its_anchor_and_its_exit_code(made: dict[str, str]) -> None:
    every = "\n".join(text for name, text in made.items() if name.startswith("errors/"))
    known = anchors()
    assert len(set(known.values())) == len(known)
    for (_, text), anchor in known.items():
        assert f"({anchor})=\n### `" in every
        assert text in every
    passed_on = {entry.error for entry in find_errors().entries if entry.code is None}
    assert {name for name in passed_on if name not in CARRIED} <= {"AgentError"}


def test_what_is_said_of_an_error_by_hand_is_in_the_sources() -> None:
    places = {
        f"{function.module.name}:{function.name}" for module in read_sources().modules for function in module.functions
    }
    assert set(EXPLICIT) <= places
    sources = "\n".join(path.read_text() for side in ("sdk", "device_agent") for path in (ROOT / side).rglob("*.py"))
    for place, said in EXPLICIT.items():
        for message in said.messages:
            parts = [part.strip() for part in re.split(r"\{[^}]*\}", message)]
            assert all(part in sources for part in parts), f"{place}: {message}"


def test_carried_names_no_class_that_is_gone() -> None:
    assert set(CARRIED) <= read_sources().exceptions


SOURCE = '''
"""A module."""
from .errors import BadInputError

_WHY = {"a": "the first is wrong", "b": "the second is wrong"}


def plain(name):
    raise BadInputError(f"no device named {name!r}", hint="add one")


def told(what, *, hint):
    return BadInputError(f"{what}: refused", hint=hint)


def asks(name):
    raise told("the way there" if name else f"what {name} is", hint="look")


def looked_up(key):
    message = _WHY[key]
    raise BadInputError(message)


def passed(work):
    try:
        work()
    except BadInputError as error:
        raise BadInputError(error.message) from error


def lost(work):
    raise BadInputError(work.answer.upper())
'''


def test_the_walk_finds_what_is_said_through_helpers_tables_and_conditions(tmp_path: Path) -> None:
    folder = tmp_path / "sdk" / "kedge" / "fleet"
    folder.mkdir(parents=True)
    (folder / "made.py").write_text(SOURCE)
    (folder / "errors.py").write_text("class BadInputError(Exception):\n    pass\n")
    ast.parse(SOURCE)
    found = find_errors(read_sources(tmp_path))
    assert [(entry.text, entry.hint, entry.code, entry.function) for entry in found.entries] == [
        ("no device named {name}", "add one", 3, "plain"),
        ("the first is wrong", "", 3, "looked_up"),
        ("the second is wrong", "", 3, "looked_up"),
        ("the way there: refused", "look", 3, "asks"),
        ("what {name} is: refused", "look", 3, "asks"),
    ]
    assert [entry.function for entry in found.carried] == ["passed"]
    assert found.unknown == ["kedge.fleet.made:lost: BadInputError: work.answer.upper()"]
