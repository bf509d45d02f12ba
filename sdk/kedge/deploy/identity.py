"""Is this device what its profile says? Both sides are named where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import IncompatibleError
from ..targets import Target, list_targets, load_target

__all__ = ["match_modules", "require_target"]


def match_modules(compatible: Iterable[str]) -> Target | None:
    """The profile of a board by what its device tree says it is compatible with, the most specific first."""
    by_module = {module: profile for profile in map(load_target, list_targets()) for module in profile.compatible}
    return next((by_module[module] for module in compatible if module in by_module), None)


def require_target(device: str, found: Mapping[str, Any], target: Target) -> None:
    """Compare what a device says of itself with its profile: platform, module, compute capability.

    Args:
        found: os, arch; compatible (a list) and gpu (a compute capability) where they are known.

    Raises:
        IncompatibleError: they differ.
    """
    hint = f"kedge device remove {device}, then add it with the right --target"
    platform = (str(found.get("os")), str(found.get("arch")))
    if platform != (target.os, target.arch):
        raise IncompatibleError(
            f"{device} is {'/'.join(platform)}, its target {target.name} is {target.os}/{target.arch}", hint=hint
        )
    stated = found.get("compatible")
    modules = [str(module) for module in stated][:32] if isinstance(stated, list) else []
    # A generic profile claims no module: a Jetson's CPU is such a machine too.
    if target.compatible and modules and not set(modules) & set(target.compatible):
        known = match_modules(modules)
        what = f"{known.name} ({modules[0]})" if known is not None else modules[0]
        raise IncompatibleError(
            f"{device} is {what}, its target {target.name} is {' or '.join(target.compatible)}", hint=hint
        )
    gpu = found.get("gpu")
    if isinstance(gpu, str) and target.compute_capability is not None and gpu != target.compute_capability:
        raise IncompatibleError(
            f"{device} has a GPU of compute capability {gpu[:8]}, its target {target.name} one of "
            f"{target.compute_capability}",
            hint=hint,
        )
