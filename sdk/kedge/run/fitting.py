"""Whether a kind of device can take what is made for a target: what profiles tell, before anything is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import IncompatibleError
from ..targets import Target, load_target

if TYPE_CHECKING:
    from ..fleet.inventory import Device

__all__ = ["require_fitting", "takes"]


def takes(device: Target, target: Target) -> bool:
    """Whether a device of this profile runs what is made for a target: its platform, and the runtime that is made for.

    That is the target's first (`kedge.build.plan`).
    """
    return (device.os, device.arch) == (target.os, target.arch) and target.runtimes[0] in device.runtimes


def require_fitting(devices: Iterable[Device], target: Target) -> None:
    """Find out before an hour of training, not after it.

    Raises:
        IncompatibleError: a device takes nothing that is made for the target.
    """
    for name, device in {each.target: each.name for each in devices}.items():
        kind = load_target(name)
        if not takes(kind, target):
            raise IncompatibleError(
                f"{device} is {_described(kind)}, the recipe is for {_described(target)}",
                hint=f'target = "{kind.name}" in the recipe, or another device',
            )


def _described(kind: Target) -> str:
    return f"{kind.name} ({kind.os}/{kind.arch}, {', '.join(kind.runtimes)})"
