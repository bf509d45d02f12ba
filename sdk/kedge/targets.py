"""Target profiles: what a kind of device can do, read from `kedge_targets`."""

from __future__ import annotations

import difflib
import platform
import sys
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .errors import BadInputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Int8Scheme", "Target", "host_target", "list_targets", "load_target"]


@dataclass(frozen=True)
class Int8Scheme:
    """How this target's runtime wants static INT8: types of activations and weights.

    reduced_range_without: a CPU feature without which weights keep to 7 bits, or None.
    """

    activations: str
    weights: str
    reduced_range_without: str | None


@dataclass(frozen=True)
class Target:
    """One profile."""

    name: str
    description: str
    os: str
    arch: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    int8: Int8Scheme

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the profile's own keys."""
        return {
            "name": self.name,
            "description": self.description,
            "os": self.os,
            "arch": self.arch,
            "runtimes": list(self.runtimes),
            "precisions": list(self.precisions),
            "int8": {
                "activations": self.int8.activations,
                "weights": self.int8.weights,
                "reduced_range_without": self.int8.reduced_range_without,
            },
        }


def list_targets() -> list[str]:
    """Names of all profiles, sorted."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in resources.files("kedge_targets").iterdir()
        if entry.name.endswith(".toml")
    )


def load_target(name: str) -> Target:
    """Read one profile.

    Raises:
        BadInputError: there is none of this name.
    """
    names = list_targets()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise BadInputError(
            f"no target named {name!r}",
            hint=f"did you mean {close[0]}?" if close else "see: kedge targets list",
        )
    body = tomllib.loads(resources.files("kedge_targets").joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    int8 = body["int8"]
    return Target(
        name=body["name"],
        description=body["description"],
        os=body["os"],
        arch=body["arch"],
        runtimes=tuple(body["runtimes"]),
        precisions=tuple(body["precisions"]),
        int8=Int8Scheme(int8["activations"], int8["weights"], int8.get("reduced_range_without")),
    )


def host_target() -> Target:
    """The generic CPU profile of the machine this runs on.

    Raises:
        BadInputError: there is no profile for this architecture.
    """
    return load_target(f"cpu-generic-{platform.machine()}")
