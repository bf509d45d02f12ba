"""What the adapter uses, held against what the bindings have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .bindings import Bindings, Member
from .guards import runtime_of
from .uses import Call, Surface, Use

__all__ = ["faults", "fits", "parameters"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a signature, without the first, self."""

    name: str
    optional: bool


def faults(surface: Surface, all_bindings: Sequence[Bindings], results: Mapping[str, str]) -> list[str]:
    """One line for each thing that is used and not there, or not so.

    Args:
        results: by the path of a method or attribute, the class of what it gives.
    """
    found = list(surface.unresolved)
    for bindings in all_bindings:
        asked = [use for use in surface.uses if _is_asked(use, bindings)]
        found += [f"{bindings.title}: {said} ({use.where})" for use in asked if (said := _fault(use, bindings))]
        found += _wrong_results(results, bindings)
        for path, where in surface.untold.items():
            if (given := _class_given(path, bindings)) is not None:
                found.append(f"{bindings.title}: {path} gives {given}, which RESULTS lacks ({where})")
    never = [use for use in surface.uses if not any(_is_asked(use, bindings) for bindings in all_bindings)]
    found += [f"no version has {use.path} ({use.where})" for use in never]
    return list(dict.fromkeys(found))


def _may_run(use: Use, bindings: Bindings) -> bool:
    return all(runtime_of(need) in (None, bindings.runtime) for need in use.needs)


def _is_asked(use: Use, bindings: Bindings) -> bool:
    """Whether the adapter comes to this use with these bindings."""
    return _may_run(use, bindings) and all(runtime_of(need) or bindings.has(need) for need in use.needs)


def _fault(use: Use, bindings: Bindings) -> str | None:
    member = bindings.classes.get(use.owner, {}).get(use.name)
    if member is None:
        return f"{use.path} is absent"
    if use.written and not member.writable:
        return f"{use.path} cannot be assigned to"
    if use.call is not None:
        member = bindings.classes.get(use.name, {}).get("__init__", Member()) if use.owner == "trt" else member
        if member.signatures and not any(fits(use.call, signature) for signature in member.signatures):
            return f"{use.path} takes {' or '.join(member.signatures)}"
    if use.overrides is not None:
        counts = {len(parameters(signature)) for signature in member.signatures}
        if counts and use.overrides not in counts:
            return f"{use.path} is overridden with {use.overrides} parameters, not {min(counts)}"
    return None


def fits(call: Call, signature: str) -> bool:
    """Whether a call agrees with a signature: how many arguments, and keywords by their names."""
    if call.positional is None:
        return True
    known = parameters(signature)
    rest = known[call.positional :]
    names = {each.name for each in rest if not re.fullmatch(r"arg\d+", each.name)}
    needed = {each.name for each in rest if not each.optional}
    return call.positional <= len(known) and set(call.keywords) <= names and needed <= set(call.keywords)


def parameters(signature: str) -> list[Parameter]:
    """Parameters of "(self: Builder, flags: int = 0) -> INetworkDefinition", without self; of a function, all."""
    depth, part, parts = 0, "", []
    for character in signature.replace("->", "  "):
        depth += (character in "([{<") - (character in ")]}>")
        if depth == 0:
            break
        if depth == 1 and character == ",":
            parts.append(part)
            part = ""
        elif depth > 1 or character != "(":
            part += character
    parts = [each.strip() for each in (*parts, part) if each.strip()]
    found = [Parameter(each.partition(":")[0].strip(), "=" in each) for each in parts]
    return found[1:] if found and found[0].name == "self" else found


def _class_given(path: str, bindings: Bindings) -> str | None:
    """The class of the bindings that a method or attribute gives, as its docstring has it; None for plain Python."""
    owner, _, name = path.rpartition(".")
    member = bindings.classes.get(owner, {}).get(name)
    for signature in member.signatures if member is not None else ():
        given = signature.rpartition(" -> ")[2].strip()
        given = "ParserError" if given == "IParserError" else given
        if given in bindings.classes:
            return given
    return None


def _wrong_results(results: Mapping[str, str], bindings: Bindings) -> list[str]:
    given = {path: _class_given(path, bindings) for path in results if bindings.has(path)}
    return [
        f"{bindings.title}: {path} gives {seen}, not {results[path]} as RESULTS has it"
        for path, seen in given.items()
        if seen != results[path]
    ]
