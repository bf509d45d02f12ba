"""The reference of the command line, from click's own tables and, for the agent, from argparse's."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator

import click

from kedge.cli.app import _COMMANDS, root
from kedge_agent.cli import _parser

__all__ = ["agent_commands", "cli_pages", "commands", "option_names"]

_INDEX = """# Command line

Every command and option, as the program itself has them (`kedge COMMAND --help`). When one wants which, with cases and
output, is in [the commands' own pages](../how-to.md).

```{toctree}
:hidden:
:glob:

cli/*
```

| command | what |
|---|---|"""
_AGENT = "The agent on a device: what a person runs there, and what the host does."


def commands() -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    """Every command of kedge, groups before what they hold: its words after `kedge`, itself, and a context for it."""
    yield from _below((), root, click.Context(root, info_name="kedge", **root.context_settings))


def agent_commands() -> dict[str, argparse.ArgumentParser]:
    """Commands of kedge-agent by name, those included that the host runs; "" is what stands before a command."""
    parser = _parser()
    choices = next(action.choices for action in _actions(parser) if isinstance(action.choices, dict))
    return {"": parser, **choices}


def option_names(command: click.Command, context: click.Context) -> set[str]:
    """All spellings of a command's options, `--help` included."""
    return {
        name
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def cli_pages() -> dict[str, str]:
    """Pages by path below docs/generated: cli.md, and one a top-level command, the agent's among them."""
    found = list(commands())
    names = list(dict.fromkeys(words[0] for words, _, _ in found if words))
    rows = [f"| [`kedge {name}`](cli/{name}.md) | {_cell(_COMMANDS[name][2])} |" for name in names]
    rows.append(f"| [`kedge-agent`](cli/kedge-agent.md) | {_AGENT} |")
    pages = {"cli.md": "\n".join([_INDEX, *rows])}
    for name in names:
        parts = [_command(words, command, context) for words, command, context in found if words[:1] == (name,)]
        pages[f"cli/{name}.md"] = "\n".join(parts)
    pages["cli/kedge-agent.md"] = _agent_page()
    return pages


def _below(
    words: tuple[str, ...], command: click.Command, context: click.Context
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    yield words, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _below((*words, name), inner, click.Context(inner, info_name=name, parent=context))


def _command(words: tuple[str, ...], command: click.Command, context: click.Context) -> str:
    path = " ".join(("kedge", *words))
    guide = "" if len(words) == 1 else f"#{'-'.join(('kedge', *words))}"
    options = [
        (record[0].replace(" / ", ", "), record[1])
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) and _is_told(isinstance(parameter, click.Argument), record[1])
    ]
    return "\n".join(
        (
            f"{'#' * len(words)} {path}",
            "",
            _prose(command.help or command.short_help or ""),
            "",
            f"```sh\n{path} {' '.join(command.collect_usage_pieces(context))}\n```",
            "",
            *_table("option", options),
            "",
            f"When one wants it, and examples: [{path}](../../commands/{words[0]}.md{guide}).",
            "",
        )
    )


def _agent_page() -> str:
    lines = [
        "# kedge-agent",
        "",
        f"{_AGENT} When one wants which: [kedge-agent](../../commands/kedge-agent.md).",
        "",
    ]
    for name, parser in agent_commands().items():
        if name:
            lines += [f"## kedge-agent {name}", ""]
        usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
        lines += [f"```sh\n{usage}\n```", ""]
        actions = [
            action
            for action in _actions(parser)
            if action.help != argparse.SUPPRESS
            and not isinstance(action.choices, dict)
            and _is_told(not action.option_strings, action.help or "")
        ]
        lines += [*_table("option", [(_spelled(action), action.help or "") for action in actions]), ""]
    return "\n".join(lines)


def _is_told(is_argument: bool, text: str) -> bool:
    """Whether it has a row: an argument of which nothing more is said stands in the usage line alone."""
    return bool(text) or not is_argument


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001  argparse has no other list of them


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return ", ".join(action.option_strings) + value


def _table(what: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"| {what} | what |", "|---|---|", *(f"| {_code(name)} | {_cell(text)} |" for name, text in rows)]


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _prose(text: str) -> str:
    """Click's help as Markdown: blocks that it is told to leave as they are become code."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```text\n{paragraph[1:].strip()}\n```" if paragraph.startswith("\b") else _escaped(paragraph)
        for paragraph in paragraphs
    )


def _escaped(text: str) -> str:
    return re.sub(r"([<>*_\[\]])", r"\\\1", text)
