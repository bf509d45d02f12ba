"""Target profiles: what a kind of device can do, read from `kedge_targets`.

docs/targets.md states the keys, docs/schemas/target.schema.json checks them. What a profile does not know is absent,
and None here: never 0, never a guess.
"""

from __future__ import annotations

import difflib
import platform
import sys
from dataclasses import asdict, dataclass, fields
from importlib import resources
from typing import Any

from .errors import BadInputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Dla",
    "Gpu",
    "Int8Scheme",
    "Memory",
    "PowerMode",
    "Software",
    "Target",
    "host_target",
    "list_targets",
    "load_target",
    "parse_target",
]


FAMILIES = ("jetson", "rtx", "datacenter", "cpu")
ARCHITECTURES = ("x86_64", "aarch64")
RUNTIMES = ("onnxruntime", "tensorrt-rtx", "tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4", "fp4")

_MAX_THREADS = 1024
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
    float_below_channels: convolutions with fewer input channels than this stay FP32, because the integer kernels pad
        them and take longer than the float ones; None: all are quantised.
    """

    activations: str
    weights: str
    symmetric: bool
    bias: str
    placement: str
    reduced_range_without: str | None = None
    float_below_channels: int | None = None

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
class Gpu:
    """architecture: NVIDIA's name. compute_capability: as "8.7". TOPS: of the GPU alone, at its highest power mode."""

    architecture: str
    compute_capability: str
    cuda_cores: int | None = None
    tensor_cores: int | None = None
    int8_tops_dense: float | None = None
    int8_tops_sparse: float | None = None


@dataclass(frozen=True)
class Dla:
    """Deep learning accelerators beside the GPU; kedge builds nothing for them yet. TOPS of all of them together."""

    count: int
    version: str | None = None
    int8_tops_dense: float | None = None
    int8_tops_sparse: float | None = None


@dataclass(frozen=True)
class Memory:
    """size_gib: of the memory that models live in. unified: CPU and GPU share it, so nothing is counted twice."""

    size_gib: float
    unified: bool
    bandwidth_gb_per_s: float | None = None


@dataclass(frozen=True)
class Software:
    """What one JetPack carries. Versions as NVIDIA writes them; l4t is that of Jetson Linux."""

    jetpack: str
    l4t: str
    tensorrt: str
    cuda: str
    python: str
    ubuntu: str


@dataclass(frozen=True)
class PowerMode:
    """name: as `nvpmodel -q` shows it. watts: its budget; None where the mode has no limit of its own."""

    name: str
    watts: float | None = None


@dataclass(frozen=True)
class Target:
    """One profile.

    family: "jetson", "rtx", "datacenter" or "cpu".
    compatible: what `/proc/device-tree/compatible` holds on such a module, the most specific first; empty elsewhere.
    runtimes: in order of preference; the first one decides the INT8 scheme.
    channel_multiple: widths of pruned layers are rounded to it, because the runtime's kernels compute whole blocks.
    software: JetPack's, the newest first; empty where there is no JetPack.
    threads: with which onnxruntime computes one request there; None: as many as the agent is set to, all cores mostly.
    onnx_opset_max, onnx_ir_max: the newest that the target's onnxruntime reads; None: no limit is known.
    """

    name: str
    description: str
    family: str
    os: str
    arch: str
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    int8: Int8Scheme
    channel_multiple: int
    memory: Memory | None = None
    gpu: Gpu | None = None
    dla: Dla | None = None
    compatible: tuple[str, ...] = ()
    software: tuple[Software, ...] = ()
    power_modes: tuple[PowerMode, ...] = ()
    threads: int | None = None
    onnx_opset_max: int | None = None
    onnx_ir_max: int | None = None

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("family", self.family, FAMILIES),
            ("os", self.os, ("linux",)),
            ("arch", self.arch, ARCHITECTURES),
        ):
            if value not in allowed:
                raise BadInputError(f"{what} is {value!r}", hint=f"one of: {', '.join(allowed)}")
        lists: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
            ("runtimes", self.runtimes, RUNTIMES),
            ("precisions", self.precisions, PRECISIONS),
        )
        for what, values, known in lists:
            unknown = [value for value in values if value not in known]
            if unknown or not values or len(set(values)) != len(values):
                raise BadInputError(
                    f"{what} are {', '.join(values) or 'none'}", hint=f"some of: {', '.join(known)}, each once"
                )
        if self.gpu is None and any(runtime.startswith("tensorrt") for runtime in self.runtimes):
            raise BadInputError(f"{self.name} runs TensorRT and states no GPU", hint="add [gpu]")
        if self.channel_multiple < 1:
            raise BadInputError(f"channel_multiple is {self.channel_multiple}", hint="1 or more")
        if self.threads is not None and not 1 <= self.threads <= _MAX_THREADS:
            raise BadInputError(f"threads is {self.threads}", hint=f"1 to {_MAX_THREADS}, or leave it out")

    @property
    def compute_capability(self) -> str | None:
        """Of the GPU that the runtime compiles for, as "8.9"; None where it runs on the CPU."""
        return None if self.gpu is None else self.gpu.compute_capability

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, the profile's own keys; what it does not state is left out."""
        body: dict[str, Any] = _stated(asdict(self))
        return body


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
    return parse_target(resources.files("kedge_targets").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def parse_target(text: str) -> Target:
    """A profile from TOML.

    Raises:
        BadInputError: it is not TOML, or not a profile; the message names the key.
    """
    try:
        body: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f"the profile is not TOML: {error}") from error
    parts: dict[str, tuple[type[Any], str]] = {
        "int8": (Int8Scheme, "one"),
        "memory": (Memory, "one"),
        "gpu": (Gpu, "one"),
        "dla": (Dla, "one"),
        "software": (Software, "many"),
        "power_modes": (PowerMode, "many"),
    }
    for key, (kind, count) in parts.items():
        if key in body:
            value = body[key]
            body[key] = tuple(_made(kind, each, key) for each in value) if count == "many" else _made(kind, value, key)
    for name in ("runtimes", "precisions", "compatible"):
        if name in body:
            body[name] = tuple(body[name])
    made: Target = _made(Target, body, "the profile")
    return made


def host_target() -> Target:
    """The generic CPU profile of the machine this runs on.

    Raises:
        BadInputError: there is no profile for this architecture.
    """
    return load_target(f"cpu-generic-{platform.machine()}")


def _made(kind: type[Any], body: Any, where: str) -> Any:
    if not isinstance(body, dict):
        raise BadInputError(f"{where} is not a table")
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(body) - known)
    if unknown:
        raise BadInputError(f"{where} has unknown keys: {', '.join(unknown)}", hint="see docs/targets.md")
    try:
        return kind(**body)
    except TypeError as error:
        raise BadInputError(f"{where} lacks a key: {error}", hint="see docs/targets.md") from error


def _stated(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stated(item) for key, item in value.items() if item is not None and item != ()}
    if isinstance(value, (list, tuple)):
        return [_stated(item) for item in value]
    return value
