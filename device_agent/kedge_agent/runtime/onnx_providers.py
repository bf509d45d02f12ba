"""Which execution providers of onnxruntime a model gets, of those that its release asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import AgentError
from ..formats.providers import CPU, refusal
from .base import Provider

__all__ = ["chosen", "require_allowed"]

_MAX_PROVIDERS = 8


def require_allowed(providers: Sequence[Provider]) -> None:
    """Refuse what the tables of `formats.providers` do not have.

    Raises:
        AgentError: a provider or an option is not in them, or a value is not one (kind bad_input).
    """
    if len(providers) > _MAX_PROVIDERS:
        raise AgentError(f"{len(providers)} execution providers are too many", hint=f"name {_MAX_PROVIDERS} at most")
    for provider in providers:
        refused = refusal(provider.name, provider.options)
        if refused is not None:
            raise AgentError(refused[0], hint=refused[1])


def chosen(asked: Sequence[Provider], available: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Those asked for that are here, in their order, and the CPU's last: as `InferenceSession` takes them.

    Raises:
        AgentError: as of `require_allowed`.
    """
    require_allowed(asked)
    here = {each.name: dict(each.options) for each in asked if each.name in available and each.name != CPU}
    return [*here.items(), (CPU, {})]
