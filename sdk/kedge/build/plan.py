"""Which runtime a target gets for a model, where its engine is built, whether it fits, and why. A pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kedge_agent.formats.passport import Passport

from ..errors import IncompatibleError, NoSpaceError
from ..model.onnx_io import ModelSpec
from ..targets import Target
from .memory import MemoryEstimate
from .shapes import Profiles

__all__ = ["OLDEST_TENSORRT", "Host", "Plan", "plan", "require_room", "usable_versions"]

OLDEST_TENSORRT = (10, 3)
"""Name-based I/O, strong typing and execute_async_v3 are what the adapter uses; JetPack 6.1 carries this version."""

_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Host:
    """What can compile on this host: by runtime the passport that an engine built here would get."""

    builders: Mapping[str, Passport] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The choice, and the sentence that explains it.

    where: "nowhere" (nothing is compiled), "host" or "device".
    compute_capabilities: that the engine is compiled for. profiles: of the inputs with free dimensions.
    tensorrt: the versions that the target's software carries, the newest first; empty where it is not known.
    lacks: what this host would need to build what it should, as an instruction; empty: nothing.
    """

    runtime: str
    precision: str
    where: str
    reason: str
    compute_capabilities: tuple[str, ...] = ()
    profiles: Profiles = field(default_factory=dict)
    tensorrt: tuple[str, ...] = ()
    lacks: str = ""
    memory: MemoryEstimate | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "where": self.where,
            "reason": self.reason,
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": {name: [list(shape) for shape in shapes] for name, shapes in self.profiles.items()},
            "tensorrt": list(self.tensorrt),
            "lacks": self.lacks or None,
            "memory": None if self.memory is None else self.memory.to_json(),
        }


def plan(
    model: ModelSpec,
    target: Target,
    *,
    host: Host | None = None,
    runtime: str | None = None,
    profiles: Profiles | None = None,
    compute_capabilities: tuple[str, ...] = (),
    memory: MemoryEstimate | None = None,
    on_device: bool = False,
) -> Plan:
    """Choose the runtime of a model on a target, and where what it runs is built.

    Args:
        host: what this host can compile; None: nothing.
        runtime: the one to take among the target's; None: the first that takes the model.
        compute_capabilities: to compile for besides the target's own; tensorrt-rtx alone.
        memory: the estimate to record.
        on_device: leave the compilation to a device, also where this host could do it: its version is then the one
            that will run.

    Raises:
        IncompatibleError: the target has no runtime or precision for this model.
    """
    if model.precision not in target.precisions:
        raise IncompatibleError(
            f"the model is {model.precision}, {target.name} runs {', '.join(target.precisions)}",
            hint="choose another target, or export the model in one of these precisions",
        )
    chosen = _runtime(model, target, runtime)
    if compute_capabilities and chosen != "tensorrt-rtx":
        raise IncompatibleError(
            f"engines of {_TITLES[chosen]} are for one compute capability", hint="several: TensorRT for RTX alone"
        )
    if chosen == "onnxruntime":
        reason = f"{target.name} runs onnxruntime, which takes the optimised ONNX as it is: nothing is compiled"
        return Plan(chosen, model.precision, "nowhere", reason, memory=memory)
    wide = [tensor.name for tensor in (*model.inputs, *model.outputs) if tensor.datatype == "FP64"]
    if wide:
        raise IncompatibleError(
            f"{_TITLES[chosen]} has no FP64: {', '.join(wide)} would be FP32 in the engine",
            hint="export the model with FP32 inputs and outputs",
        )
    own = target.compute_capability
    assert own is not None, "a profile that runs TensorRT states its GPU"
    builder = (host or Host()).builders.get(chosen)
    if on_device:
        lacks = ""
        where, reason = "device", f"a device builds it with its own {_TITLES[chosen]}, as was asked for"
    elif chosen == "tensorrt-rtx" and builder is not None and not _same_platform(target, builder):
        lacks = ""
        where = "device"
        reason = (
            f"an engine is for the platform of its compiler: {target.name} is {target.os}/{target.arch}, this host "
            f"{builder.os}/{builder.arch}; the first {target.name} that it is deployed to builds it"
        )
    elif chosen == "tensorrt-rtx":
        where, lacks = "host", "" if builder is not None else "pip install 'kedge[tensorrt]'"
        reason = f"TensorRT for RTX compiles for compute capability {own} on any host, with or without a GPU"
    else:
        lacks = ""
        where, reason = _tensorrt(target, own, builder)
    return Plan(
        runtime=chosen,
        precision=model.precision,
        where=where,
        reason=reason,
        compute_capabilities=tuple(dict.fromkeys((own, *compute_capabilities))),
        profiles=dict(profiles or {}),
        tensorrt=() if chosen == "tensorrt-rtx" else tuple(dict.fromkeys(each.tensorrt for each in target.software)),
        lacks=lacks,
        memory=memory,
    )


def require_room(choice: Plan, target: Target) -> None:
    """Refuse what cannot fit.

    Raises:
        NoSpaceError: the estimate is above what the target can give.
    """
    memory = choice.memory
    if memory is not None and memory.fits is False:
        assert memory.usable is not None
        raise NoSpaceError(
            f"the model needs about {_gib(memory.needed)} GiB, {target.name} has {_gib(memory.usable)} GiB to give",
            hint="quantise it, build for a smaller batch (--shapes), or choose a larger target",
        )


def usable_versions(target: Target) -> list[str]:
    """The versions of TensorRT that a target carries and kedge builds with, the newest first."""
    carried = dict.fromkeys(each.tensorrt for each in target.software)
    return [version for version in carried if _version(version) >= OLDEST_TENSORRT]


def _runtime(model: ModelSpec, target: Target, wanted: str | None) -> str:
    if wanted is not None and wanted not in target.runtimes:
        raise IncompatibleError(f"{target.name} runs {', '.join(target.runtimes)}, not {wanted}")
    for runtime in (wanted,) if wanted is not None else target.runtimes:
        if runtime != "onnxruntime":
            if runtime == "tensorrt" and target.software and not usable_versions(target):
                raise IncompatibleError(
                    f"{target.name} carries TensorRT {target.software[0].tensorrt}; kedge builds with "
                    f"{'.'.join(map(str, OLDEST_TENSORRT))} and newer",
                    hint="its profile serves preflight alone",
                )
            return runtime
        if target.runtimes[0] == "onnxruntime" or model.precision != "int8":
            return runtime
        raise IncompatibleError(
            f"INT8 on {target.name} is in the scheme of {target.runtimes[0]}, which onnxruntime runs slowly",
            hint=f"leave --runtime out, or optimise for cpu-generic-{target.arch}",
        )
    raise IncompatibleError(f"{target.name} runs {', '.join(target.runtimes)}, none of which takes this model")


def _tensorrt(target: Target, own: str, builder: Passport | None) -> tuple[str, str]:
    if builder is not None and _serves(target, own, builder):
        return "host", f"this host has the GPU and the {builder.describe()} of {target.name}"
    reason = (
        "an engine of TensorRT is built on a GPU of its compute capability, by the version that will run it: here the "
        f"first {target.name} that it is deployed to builds it, and shares it with all of the same passport"
    )
    return "device", reason


def _serves(target: Target, own: str, builder: Passport) -> bool:
    if not _same_platform(target, builder) or builder.compute_capabilities != (own,):
        return False
    carried = {_version(each.tensorrt) for each in target.software}
    return not carried or _version(builder.runtime_version) in carried


def _same_platform(target: Target, builder: Passport) -> bool:
    return (builder.os, builder.arch) == (target.os, target.arch)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3])


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f}"
