"""Every error that kedge and its agent can report, found in the sources: message, hint, exit code, where it comes from.

Nothing is left out silently: what the walk cannot follow is in `EXPLICIT`, with the reason, or a test fails.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

import kedge.errors
from kedge.errors import ExitCode, KedgeError
from kedge_agent.wire import FAULTS

from .errors_classes import alternatives, is_read, made_by
from .errors_explicit import EXPLICIT, UNSAID
from .errors_source import Function, Sources, last_name, read_sources
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
_OF_SYSTEM = {
    found.__name__ for found in vars(builtins).values() if isinstance(found, type) and issubclass(found, OSError)
}

CARRIED: Mapping[str, str] = {
    "ArgumentTypeError": "by `kedge-agent`, after the option's name; exit code 2",
    "AuthenticationException": 'after "the device accepts none of our keys"; exit code 9',
    "BrokenPipeError": "as the reason why the agent, or the device, stopped answering; exit code 4",
    "EOFError": "as the reason why a device cannot be reached (exit code 4), or a snapshot cannot be read (3)",
    "FileNotFoundError": "nowhere: a key or certificate that is not there is told by its name; exit code 9",
    "HTTPException": 'after "the agent stopped answering"; exit code 4',
    "OSError": "after the name of the file, the folder or the device whose it is, as what the system says is",
    "SSHException": 'after "cannot be reached" (exit code 4), or after "there is no usable private key" (9)',
    "ValueError": "after the name of what was read, where that came from elsewhere; else kedge's own defect (1)",
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
        for name in sorted(self.sources.exceptions - {*UNSAID}):
            for function, call in self.sources.calls.get(name, []):
                self._construction(name, call, Scope(self.sources, function))
        for function in (function for module in self.sources.modules for function in module.functions):
            for node in function.own():
                self._otherwise(node, function)

    def _construction(self, name: str, call: ast.Call, scope: Scope) -> None:
        init = next((each for each in self.sources.functions.get("__init__", []) if each.owner == name), None)
        parts = _places(call, self.sources.line(name), [] if init is None else init.parameters)
        if parts[0] is not None and not (name == "SystemExit" and _is_status(parts[0], self.sources)):
            self._say(name, parts, scope, 0, scope.function)

    def _otherwise(self, node: ast.AST, function: Function) -> None:
        """What is said without the name of a class before it."""
        if isinstance(node, ast.Call):
            looked_up = isinstance(node.func, ast.Call) and _places(node)[1] is not None
            made = sorted(made_by(node.func, function, self.sources) - {*UNSAID})
            if looked_up or (made and _place(function) in EXPLICIT):
                self._lost("a class that is looked up", function, ast.unparse(node.func))
                return
            for name in made:
                self._construction(name, node, Scope(self.sources, function))
            if ast.unparse(node.func) == "sys.exit":
                self._construction("SystemExit", node, Scope(self.sources, function))
        elif isinstance(node, ast.Raise) and node.exc is not None:
            for raised in alternatives(node.exc):
                if isinstance(raised, ast.Call):
                    found = is_read(raised.func, function, self.sources) or made_by(raised.func, function, self.sources)
                else:  # made elsewhere, or a class without a word
                    found = isinstance(raised, ast.Name | ast.Attribute | ast.Subscript)
                if not found:
                    self._lost("a class that is looked up", function, ast.unparse(raised))
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and function.name != "__init__":
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and target.attr in ("message", "args"):
                    self._lost("a message put in later", function, ast.unparse(node))

    def _lost(self, name: str, said: Function, what: str) -> None:
        place = _place(said)
        if place not in EXPLICIT:
            self.unknown.append(f"{place}: {name}: {what}")
            return
        explicit = EXPLICIT[place]
        for text in explicit.messages:
            self.entries.append(self._entry(explicit.error or name, text, "", explicit.kind, said))

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


def _place(function: Function) -> str:
    return f"{function.module.name}:{function.name}"


def _places(
    call: ast.Call, line: Iterable[str] = (), parameters: Iterable[str] = ()
) -> tuple[ast.expr | None, ast.expr | None, ast.expr | None]:
    """Message, hint and kind in a call of a class of this line, whose parameters by position are these."""
    by_name: dict[str | None, ast.expr] = dict(zip(parameters, call.args, strict=False))
    by_name |= {keyword.arg: keyword.value for keyword in call.keywords}
    # Python's own are made of a number, words and a file's name.
    place = 1 if len(call.args) > 1 and {*line} & _OF_SYSTEM else 0
    message = call.args[place] if call.args else by_name.get("message")
    return message, by_name.get("hint"), by_name.get("kind")


def _is_status(node: ast.expr, sources: Sources) -> bool:
    """Whether what a program ends with is a number, and no text."""
    if isinstance(node, ast.Constant):
        return not isinstance(node.value, str)
    named = sources.functions.get(last_name(node.func), []) if isinstance(node, ast.Call) else []
    returned = [each.node.returns for each in named if not isinstance(each.node, ast.Module)]
    return bool(returned) and all(each is not None and ast.unparse(each) in ("int", "None") for each in returned)


def _safe(node: ast.expr, scope: Scope) -> list[str]:
    try:
        return patterns(node, scope)
    except NeedsCallers:
        if scope.asks:
            raise
        return []
    except (Carried, Unknown):
        return []
