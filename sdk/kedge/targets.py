"""Target profiles: what a kind of device can do, read from `kedge_targets`."""

from __future__ import annotations

import difflib
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from .errors import BadInputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Int8Scheme", "Target", "host_target", "list_targets", "load_target"]


_INTEGERS = ("int8", "uint8")
_BIASES = ("int32", "float")
_PLACEMENTS = ("tensor", "tensorrt")


@dataclass(frozen=True)
class Int8Scheme:
    """How this target's runtime wants static INT8; one model's QDQ nodes serve one scheme.

    activations, weights: element types, "int8" or "uint8".
    symmetric: activations have zero point 0 (weights always do).
    bias: "int32", quantised with scale s_input · s_weight; or "float", left as it is.
    placement: where Q/DQ pairs stand. "tensor": at every input and output of a quantised operator, so that the
        runtime replaces DQ → operator → Q by one integer kernel. "tensorrt": at the inputs of convolutions and
        matrix products, and on that one branch of a residual Add that no convolution feeds directly; the compiler
        moves them and fuses the rest.
    reduced_range_without: a CPU feature without which weights keep to 7 bits, or None.
    """

    activations: str
    weights: str
    symmetric: bool
    bias: str
    placement: str
    reduced_range_without: str | None = None

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("activations", self.activations, _INTEGERS),
            ("weights", self.weights, _INTEGERS),
            ("bias", self.bias, _BIASES),
            ("placement", self.placement, _PLACEMENTS),
        ):
            if value not in allowed:
                raise BadInputError(f"int8.{what} is {value!r}", hint=f"one of: {', '.join(allowed)}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the profile's own keys."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """One profile.

    runtimes: in order of preference; the first one decides the INT8 scheme.
    channel_multiple: widths of pruned layers are rounded to it, because the runtime's kernels compute whole blocks.
    compute_capability: of the GPU that the runtime compiles for, as "8.9"; None where it runs on the CPU.
    """

    name: str
    description: str
    os: str
    arch: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    int8: Int8Scheme
    channel_multiple: int
    compute_capability: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the profile's own keys."""
        return {
            "name": self.name,
            "description": self.description,
            "os": self.os,
            "arch": self.arch,
            "runtimes": list(self.runtimes),
            "precisions": list(self.precisions),
            "channel_multiple": self.channel_multiple,
            "compute_capability": self.compute_capability,
            "int8": self.int8.to_json(),
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
    return Target(
        name=body["name"],
        description=body["description"],
        os=body["os"],
        arch=body["arch"],
        runtimes=tuple(body["runtimes"]),
        precisions=tuple(body["precisions"]),
        int8=Int8Scheme(**body["int8"]),
        channel_multiple=body["channel_multiple"],
        compute_capability=body.get("compute_capability"),
    )


def host_target() -> Target:
    """The generic CPU profile of the machine this runs on.

    Raises:
        BadInputError: there is no profile for this architecture.
    """
    return load_target(f"cpu-generic-{platform.machine()}")
