"""Whatever the documents tell people to type exists: commands, options, their values; and messages with their codes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tools.docs.errors import find_errors
from tools.docs.reference_cli import agent_commands, commands, option_names

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for path in (ROOT / "docs").rglob("*.md") if "generated" not in path.parts),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
    ]
)
_BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?.*?^\1$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`((?:kedge|kedge-agent) [^`]+)`")
_MESSAGE = re.compile(r"^(?:\||###) `([^`]+)` \((\d+)\)", re.MULTILINE)
_ENDS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "(", ")", "2>"}
_COMMANDS = {words: (command, context) for words, command, context in commands()}


def _typed(text: str) -> Iterator[list[str]]:
    """Every call of kedge or kedge-agent in lines of a shell, as its words."""
    text = _HEREDOC.sub("", text).replace("\\\n", " ")
    for line in text.splitlines():
        for inner in re.findall(r"\$\(((?:kedge|kedge-agent) [^()]*)\)", line):
            yield from _typed(inner)
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        call: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _ENDS:
                call.append(word)
                continue
            while call and (call[0] in ("sudo", "!", "{", "do", "then", "time") or re.match(r"^\w+=", call[0])):
                call = call[1:]
            if call and call[0].rpartition("/")[2] in ("kedge", "kedge-agent"):
                yield [call[0].rpartition("/")[2], *call[1:]]
            call = []


def _check(call: list[str], *, whole: bool) -> str | None:
    """What is wrong with a call; whole: all that it needs must be there, and values must be such as it takes."""
    return (_check_agent if call[0] == "kedge-agent" else _check_host)(call[1:], whole=whole)


def _check_agent(words: list[str], *, whole: bool) -> str | None:
    known = agent_commands()
    given = [word for word in words if not word.startswith("-") and word in known]
    if given[:1] == ["diagnose"]:  # which has words of its own
        words = words[: words.index("diagnose")]
    if whole and not given and "--version" not in words:
        return "no command"
    names = {
        option for name in ("", *given[:1]) for action in [known[name]] for option in action._option_string_actions
    }
    wrong = [word for word in words if word.startswith("--") and word.partition("=")[0] not in names]
    return f"no option {wrong[0]}" if wrong else None


def _check_host(words: list[str], *, whole: bool) -> str | None:
    path: tuple[str, ...] = ()
    rest = list(words)
    while rest and isinstance(_COMMANDS[path][0], click.Group) and (*path, rest[0]) in _COMMANDS:
        path = (*path, rest.pop(0))
    command, context = _COMMANDS[path]
    if not path and rest and not rest[0].startswith("-"):
        return f"no command {rest[0]}"
    names = option_names(command, context)
    wrong = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in names]
    if wrong:
        return f"{' '.join(path)} has no option {wrong[0]}"
    if not whole or isinstance(command, click.Group):
        return None
    try:
        values, _, _ = command.make_parser(context).parse_args(args=rest)
        for parameter in command.get_params(context):
            given = values.get(parameter.name or "")
            if given in (None, ()) and parameter.required:
                return f"{' '.join(path)} lacks {parameter.name}"
            if isinstance(parameter.type, click.Choice) and isinstance(given, str):
                parameter.type.convert(given, parameter, context)
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_that_a_document_shows_is_one_that_kedge_takes(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    found = [(call, "…" not in call and "..." not in call) for block in _BLOCK.findall(text) for call in _typed(block)]
    found += [(span.split(), False) for span in _SPAN.findall(_BLOCK.sub("", text))]
    wrong = [f"{' '.join(call)}: {problem}" for call, whole in found if (problem := _check(call, whole=whole))]
    if document.name != "CHANGELOG.md":  # which tells of options that were
        assert not wrong


def test_a_call_of_an_option_that_is_not_there_is_found() -> None:
    assert [_check(call, whole=True) for call in _typed("kedge status --on local --verbose\nkedge stats\n")] == [
        "status has no option --verbose",
        "no command stats",
    ]
    assert [_check(call, whole=True) for call in _typed("A=1 sudo kedge status | tee x; (kedge-agent unit --hot)")] == [
        "status lacks device",
        "no option --hot",
    ]


def _same(told: str, pattern: str) -> bool:
    """Whether a message, with … for what is left out, is of this pattern."""
    there = re.sub(r"\{[^}]*\}", "…", pattern)
    at = 0
    for part in (part.strip() for part in told.split("…")):
        found = there.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return any(letter.isalpha() for letter in told)


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.parent.name == "commands" or path.name == "troubleshooting.md"],
    ids=lambda path: path.stem,
)
def test_every_message_that_is_explained_is_one_that_there_is_with_its_code(document: Path) -> None:
    entries = find_errors().entries
    for message, code in _MESSAGE.findall(document.read_text(encoding="utf-8")):
        codes = {str(entry.code) for entry in entries if _same(message, entry.text)}
        assert code in codes or "None" in codes, f"{message} ({code}): {codes or 'nothing says so'}"


def test_every_example_of_an_exit_code_is_a_message_with_that_code() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| `([^`]+)` \|$", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    entries = find_errors().entries
    for code, example in rows:
        said = example.removeprefix("nano: ").rstrip("… ")
        alike = [
            entry
            for entry in entries
            if str(entry.code) == code
            and any(
                re.match(re.sub(r"\\{.*?\\}", ".*", re.escape(text)), said)
                for text in (entry.text, re.sub(r"^\{[^}]*\}: ", "", entry.text))
            )
        ]
        assert alike or example in ("interrupted", "Missing argument 'MODEL'."), f"{example} ({code})"
