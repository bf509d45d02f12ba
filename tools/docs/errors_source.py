"""The project's sources as the walk over its errors reads them: modules, functions, constants, classes of errors."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

__all__ = ["Function", "Module", "Sources", "last_name", "read_sources"]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("sdk/kedge", "device_agent/kedge_agent", "targets/kedge_targets")
_BUILT_IN = frozenset(
    name for name, found in vars(builtins).items() if isinstance(found, type) and issubclass(found, BaseException)
)
_OF_LIBRARIES = ("Error", "Exception", "BadParameter")

_AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class Function:
    """A function, method or, where `node` is the module, what runs on import. outer: the function around it.

    owner: the class it is a method of, "" for none.
    """

    module: Module
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Module
    owner: str = ""
    outer: Function | None = None

    @property
    def name(self) -> str:
        """As it is called."""
        return "" if isinstance(self.node, ast.Module) else self.node.name

    @property
    def parameters(self) -> list[str]:
        """By position, without self and cls; those by keyword alone come last."""
        if isinstance(self.node, ast.Module):
            return []
        given = self.node.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
        skip = 1 if names[:1] in (["self"], ["cls"]) else 0
        return names[skip:] + [argument.arg for argument in given.kwonlyargs]

    def default(self, name: str) -> ast.expr | None:
        """What a parameter is where no argument is given."""
        assert isinstance(self.node, _AnyFunction)
        given = self.node.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
        by_name: dict[str, ast.expr | None] = dict(
            zip(names[len(names) - len(given.defaults) :], given.defaults, strict=True)
        )
        by_name |= {argument.arg: value for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
        return by_name.get(name)

    def own(self) -> tuple[ast.AST, ...]:
        """Every node inside, but for those of functions and of classes' methods inside."""
        return _own(self)


@dataclass(eq=False)
class Module:
    """One file. name: dotted. path: from the repository's root. constants: module-level names by their values.

    imports: names that it takes from other modules. aliases: those that it calls otherwise, by what it calls them.
    """

    name: str
    path: str
    functions: list[Function] = field(default_factory=list)
    constants: dict[str, ast.expr] = field(default_factory=dict)
    imports: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def true_name(self, name: str) -> str:
        """A name as its own module has it."""
        return self.aliases.get(name, name)


@dataclass(eq=False)
class Sources:
    """All modules, and over them: functions by name, names of classes of exceptions with their base's.

    foreign: classes of exceptions of Python's and of libraries that are made here. calls: every call that has a name,
    by that name, with the function in which it stands.
    """

    modules: list[Module]
    functions: dict[str, list[Function]]
    bases: dict[str, str]
    foreign: frozenset[str]
    calls: dict[str, list[tuple[Function, ast.Call]]]

    @cached_property
    def exceptions(self) -> set[str]:
        """Every class of exceptions that is made somewhere, one's own and others'."""
        return {*self.bases, *self.foreign}

    def callers(self, function: Function) -> list[tuple[Function, ast.Call]]:
        """Calls of a function by name: in its module, and where it is imported. A class is called by its own name."""
        made = function.name == "__init__"
        name = function.owner if made else function.name
        return [
            (where, call)
            for where, call in self.calls.get(name, [])
            if where.module is function.module or (name in where.module.imports and (made or not function.owner))
        ]

    def line(self, name: str) -> list[str]:
        """A class of exceptions and those that it is a kind of, itself first."""
        found = [name]
        while found[-1] in self.bases:
            found.append(self.bases[found[-1]])
        return found


@cache
def read_sources(root: Path = _ROOT) -> Sources:
    """Read everything that is shipped; once in a process."""
    modules = []
    classes: list[ast.ClassDef] = []
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            parts = relative.with_suffix("").parts[1:]
            tree = ast.parse(path.read_text(encoding="utf-8"))
            nodes = list(ast.walk(tree))
            name = ".".join(part for part in parts if part != "__init__")
            modules.append(_module(tree, nodes, name, str(relative)))
            classes += [node for node in nodes if isinstance(node, ast.ClassDef)]
    every = [function for module in modules for function in module.functions]
    functions: dict[str, list[Function]] = {}
    calls: dict[str, list[tuple[Function, ast.Call]]] = {}
    for function in every:
        functions.setdefault(function.name, []).append(function)
        for node in function.own():
            if isinstance(node, ast.Call) and (name := function.module.true_name(last_name(node.func))):
                calls.setdefault(name, []).append((function, node))
    bases = _exceptions(classes)
    own = {*functions, *(each.name for each in classes)}
    foreign = {name for name in calls if name not in own and (name in _BUILT_IN or name.endswith(_OF_LIBRARIES))}
    return Sources(modules, functions, bases, frozenset(foreign), calls)


def _exceptions(classes: list[ast.ClassDef]) -> dict[str, str]:
    """Classes that come, at the end, from one of Python's or a library's exceptions; each with its base."""
    found: dict[str, str] = {}
    while True:
        more = {
            each.name: base
            for each in classes
            if each.name not in found
            for base in map(last_name, reversed(each.bases))
            if base in found or base in _BUILT_IN or base.endswith(_OF_LIBRARIES)
        }
        if not more:
            return found
        found |= more


def _module(tree: ast.Module, nodes: Iterable[ast.AST], name: str, path: str) -> Module:
    module = Module(name, path)
    module.functions = [Function(module, tree), *_functions(module, tree, "", None)]
    taken = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    module.imports = frozenset(alias.name for alias in taken)
    module.aliases = {alias.asname: alias.name for alias in taken if alias.asname}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            module.constants[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            module.constants[node.target.id] = node.value
    return module


def _functions(module: Module, node: ast.AST, owner: str, outer: Function | None) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _AnyFunction):
            function = Function(module, child, owner, outer)
            yield function
            yield from _functions(module, child, "", function)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(module, child, child.name, outer)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _functions(module, child, owner, outer)


@cache
def _own(function: Function) -> tuple[ast.AST, ...]:
    return tuple(_shallow(function.node))


def _shallow(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _AnyFunction):
            continue
        if isinstance(child, ast.ClassDef):
            # A class's own body runs where it stands; its methods do not.
            yield from _shallow(child)
            continue
        yield child
        yield from _shallow(child)


def last_name(node: ast.expr) -> str:
    """`a.b.c` and `c` are both c; "" for what is neither."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
