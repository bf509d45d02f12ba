"""Every error that kedge and its agent can report, found in the sources: message, hint, exit code, where it comes from.

Nothing is left out silently: what the walk cannot follow is in `EXPLICIT`, with the reason, or a test fails.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import kedge.errors
from kedge.errors import ExitCode, KedgeError
from kedge_agent.wire import FAULTS

from .errors_explicit import EXPLICIT
from .errors_source import Function, Sources, read_sources
from .errors_text import Carried, NeedsCallers, Scope, Unknown, arguments_of, patterns

__all__ = ["CARRIED", "Entry", "Found", "find_errors"]

_CALLERS_DEPTH = 4
_CODES: Mapping[str, ExitCode] = {
    **{
        found.__name__: found.exit_code
        for found in vars(kedge.errors).values()
        if isinstance(found, type) and issubclass(found, KedgeError)
    },
    "UsageError": ExitCode.USAGE,
    "BadParameter": ExitCode.USAGE,
    "ClickException": ExitCode.BAD_INPUT,
}
_FOREIGN = ("UsageError", "BadParameter", "ClickException", "SystemExit")

CARRIED: Mapping[str, str] = {
    "ArchiveError": 'after the archive\'s name, or after "import refused"; exit code 6',
    "DeltaError": "nowhere: the frame is asked for again, whole",
    "EngineError": "by the compiler of engines, here or on a device; exit code 7 where it refuses the model or falls, "
    "8 where memory is short, 3 for what is no ONNX",
    "HeadError": "by a client of the agent's HTTP server, with status 400, 413, 415, 417, 431 or 501",
    "LateError": "in a snapshot, of what is not in it",
    "LeftOutError": "in a snapshot, of what is not in it",
    "ManifestError": "after the name of what was read: exit code 6 for a release, 3 for gates of a recipe or an option",
    "NonsenseError": 'after "the release was deployed, and what the agent tells of it makes no sense"; exit code 7',
    "PackedError": 'after "cannot be unpacked" and the file\'s name; exit code 6',
    "PassportError": "after the name of the engine, statement or device whose it is; exit code 6 or 7",
    "PlanHeaderError": "after the engine's file; exit code 6",
    "RunawayError": "in a report, of channels that stay",
    "SignatureError": "of a release's signatures; exit code 6",
    "SystemExit": "by the program that unpacks the agent on a device: after the device's name, exit code 6, 8 or 14",
    "UnavailableError": "in facts, snapshots and `kedge doctor`, as the reason why something is not known",
    "UnclearError": "in a report of `kedge optimize`, of attention heads that stay",
    "UnreadableError": "after the rollout's ledger (exit code 6), its options (3), or what a worker answered (7)",
    "WireError": "after the device's name: one side said what the protocol does not allow; exit code 7, or 3 for data",
    "_ResultError": "after what CUDA was asked to do; exit code 1, or 8 where memory is short",
    "_TooLongError": "by `kedge snapshot`, after the file's name; exit code 3",
}
"""Errors without an exit code of their own: where a user meets their words."""


@dataclass(frozen=True, order=True)
class Entry:
    """One message. text, hint: with {name} for what is filled in. error: the class. code: None for one of `CARRIED`.

    module, path, function: where it is said.
    """

    text: str
    hint: str
    error: str
    code: int | None
    module: str
    path: str
    function: str


@dataclass(frozen=True)
class Found:
    """entries: all messages. carried: places that pass another's words on, with what they pass.

    unknown: places that could not be followed, as "module:function: expression".
    """

    entries: list[Entry]
    carried: list[Entry]
    unknown: list[str]


@cache
def find_errors(sources: Sources | None = None) -> Found:
    """Walk over everything that is shipped."""
    walk = _Walk(sources or read_sources())
    walk.go()
    return Found(sorted(set(walk.entries)), sorted(set(walk.carried)), sorted(set(walk.unknown)))


class _Walk:
    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.entries: list[Entry] = []
        self.carried: list[Entry] = []
        self.unknown: list[str] = []

    def go(self) -> None:
        for name in sorted({*self.sources.bases, *_FOREIGN}):
            for function, call in self.sources.calls.get(name, []):
                self._construction(name, call, Scope(self.sources, function))
        for function in (function for module in self.sources.modules for function in module.functions):
            for node in function.own():
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Call) and _places(node)[1] is not None:
                    self._lost("a class that is looked up", function, ast.unparse(node.func))

    def _construction(self, name: str, call: ast.Call, scope: Scope) -> None:
        parts = _places(call)
        if parts[0] is not None:
            self._say(name, parts, scope, 0, scope.function)

    def _lost(self, name: str, said: Function, what: str) -> None:
        place = f"{said.module.name}:{said.name}"
        if place not in EXPLICIT:
            self.unknown.append(f"{place}: {name}: {what}")
            return
        for text in EXPLICIT[place].messages:
            self.entries.append(self._entry(name, text, "", EXPLICIT[place].kind, said))

    def _say(self, name: str, parts: tuple[ast.expr | None, ...], scope: Scope, depth: int, said: Function) -> None:
        message, hint, kind = parts
        assert message is not None
        try:
            texts = patterns(message, scope)
            kinds = [""] if kind is None else _safe(kind, scope) or ["{kind}"]
            hints = [] if hint is None else _safe(hint, scope)
        except NeedsCallers as needs:
            self._callers(needs.function, (name, parts), scope, depth)
            return
        except Carried as carried:
            self.carried.append(self._entry(name, "{" + str(carried) + "}", "", "", said))
            return
        except Unknown as unknown:
            self._lost(name, said, str(unknown))
            return
        for text in texts:
            own = re.search(r"[^\W\d_]", re.sub(r"\{[^}]*\}", "", text))
            for word in kinds:
                entry = self._entry(name, text, " / ".join(each for each in hints if each), word, said)
                (self.entries if own else self.carried).append(entry)

    def _callers(
        self, function: Function, what: tuple[str, tuple[ast.expr | None, ...]], scope: Scope, depth: int
    ) -> None:
        name, parts = what
        calls = self.sources.callers(function)
        if depth >= _CALLERS_DEPTH or not calls:
            if scope.asks:  # it may be said without them, as far as it goes
                self._say(name, parts, replace(scope, asks=False), depth, function)
                return
            self._lost(name, function, "nobody calls it by name")
            return
        for where, call in calls:
            bound = arguments_of(call, function, Scope(self.sources, where))
            self._say(name, parts, replace(scope, bound={**scope.bound, **bound}), depth + 1, where)

    def _entry(self, name: str, text: str, hint: str, kind: str, said: Function) -> Entry:
        function = f"{said.owner}.{said.name}".strip(".")
        one_line = " ".join(text.split())
        return Entry(one_line, hint, name, self._code(name, kind), said.module.name, said.module.path, function)

    def _code(self, name: str, kind: str) -> int | None:
        for base in self.sources.line(name):
            if base == "AgentError":
                return FAULTS[kind or "bad_input"].exit_code if (kind or "bad_input") in FAULTS else None
            if base in _CODES:
                return int(_CODES[base])
        return None


def _places(call: ast.Call) -> tuple[ast.expr | None, ast.expr | None, ast.expr | None]:
    by_name = {keyword.arg: keyword.value for keyword in call.keywords}
    message = call.args[0] if call.args else by_name.get("message")
    return message, by_name.get("hint"), by_name.get("kind")


def _safe(node: ast.expr, scope: Scope) -> list[str]:
    try:
        return patterns(node, scope)
    except NeedsCallers:
        if scope.asks:
            raise
        return []
    except (Carried, Unknown):
        return []
