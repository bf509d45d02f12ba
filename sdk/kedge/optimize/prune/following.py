"""Bounds on how far torch-pruning follows channels, and the way back from what it has done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Bounded", "Budget", "RunawayError", "Saved"]

_MAX_FOLLOWED = 10_000_000


class RunawayError(Exception):
    """torch-pruning follows more channels than the model has."""


@dataclass
class Budget:
    """widest: the longest dimension of any weight. left: how many channels may be followed in all."""

    widest: int
    left: int = _MAX_FOLLOWED

    def renew(self) -> None:
        """Start anew, for another group."""
        self.left = _MAX_FOLLOWED


class Bounded(list[Any]):
    """The dependencies of a node, with an end: torch-pruning goes round some models (Reshape, Concat) for ever."""

    def __init__(self, dependencies: list[Any], budget: Budget) -> None:
        super().__init__(dependencies)
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for dependency in super().__iter__():
            mappings = dependency.index_mapping
            mappings[:] = [
                entry if entry is None or isinstance(entry, _Mapping) else _Mapping(entry, self._budget)
                for entry in mappings
            ]
            self._budget.left -= 1
            yield dependency


class _Mapping:
    """An index mapping that refuses more channels than any weight has."""

    def __init__(self, mapping: Callable[[list[Any]], list[Any]], budget: Budget) -> None:
        self._mapping = mapping
        self._budget = budget

    def __call__(self, indices: list[Any]) -> list[Any]:
        found = self._mapping(indices)
        self._budget.left -= len(found)
        if len(found) > self._budget.widest or self._budget.left < 0:
            raise RunawayError
        return found


class Saved:
    """The modules and parameters of a group as they were."""

    def __init__(self, group: Any) -> None:
        self._modules: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        self._parameters: list[tuple[str, nn.Parameter]] = []
        for item in group:
            module = item.dep.target.module
            if isinstance(module, nn.Parameter):
                self._parameters.append((group._DG._param_to_name[module], module))  # noqa: SLF001  torch-pruning has no other way
            else:
                held = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
                plain = {key: value for key, value in vars(module).items() if isinstance(value, int | tuple)}
                self._modules.append((module, held, plain))

    def restore(self, view: nn.Module) -> None:
        """Put all back."""
        for module, held, plain in self._modules:
            vars(module).update(plain)
            for key, value in held.items():
                setattr(module, key, value)
        for name, parameter in self._parameters:
            parent, _, attribute = name.rpartition(".")
            setattr(view.get_submodule(parent), attribute, parameter)
