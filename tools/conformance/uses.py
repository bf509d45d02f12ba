"""What can be used of TensorRT, and on what condition."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["MODULE", "Call", "Surface", "Use"]

MODULE = "trt"
"""The owner of what the module itself holds."""


@dataclass(frozen=True)
class Call:
    """How something is called; positional: None where a star stands in the call, and nothing can be told."""

    positional: int | None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Use:
    """One use of an attribute, an enum's member or a method.

    owner: a class, or MODULE. where: file and line. needs: conditions under which alone it is reached, as `guards`
    writes them. call: how it is called. written: it is assigned to. overrides: with so many parameters, besides self.
    """

    owner: str
    name: str
    where: str
    needs: frozenset[str] = frozenset()
    call: Call | None = None
    written: bool = False
    overrides: int | None = None

    @property
    def path(self) -> str:
        """As it stands in the table."""
        return f"{self.owner}.{self.name}"


@dataclass
class Surface:
    """All that is used.

    unresolved: a line for each use that cannot be told from the sources.
    untold: where the result of a method is used further whose class no table tells, by the method's path. No fault
    where the result is plain Python, which the bindings tell.
    """

    uses: list[Use] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)
    untold: dict[str, str] = field(default_factory=dict)
