"""The fingerprint under which an engine is valid, and the rule by which it fits a machine.

Hard keys refuse: runtime and version (an engine runs under the very version that wrote it: NVIDIA, "Engine
Compatibility", of TensorRT and of TensorRT for RTX; kedge sets no VERSION_COMPATIBLE), compute capability, operating
system and processor. Soft keys warn: module, Jetson Linux, CUDA, power mode, driver; another of these changes speed,
not validity.

Compute capability: an engine of TensorRT for RTX names all that it was compiled for, and the machine's must be among
them. One of TensorRT proper was built on one GPU and names that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .plan_header import PlanHeader

__all__ = ["Fit", "Passport", "PassportError", "contradiction", "fit", "parse_passport", "same_version"]

_RUNTIMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
_VERSION = re.compile(r"\d{1,4}(\.\d{1,5}){2,3}")
_CAPABILITY = re.compile(r"\d{1,2}\.\d")
_PLAIN = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,127}")
_MAX_CAPABILITIES = 16


class PassportError(Exception):
    """A passport that was received is malformed; the message says where."""


@dataclass(frozen=True)
class Passport:
    """What an engine was built for, or what a machine is.

    runtime_version: four parts, as "10.3.0.30"; three where the machine does not tell the fourth.
    compute_capabilities: of the engine, or the one of the machine; empty where it is not known (no GPU). The others
    are None where they do not apply or were not found.
    """

    runtime: str
    runtime_version: str
    os: str
    arch: str
    compute_capabilities: tuple[str, ...] = ()
    module: str | None = None
    l4t: str | None = None
    cuda: str | None = None
    driver: str | None = None
    power_mode: str | None = None

    def describe(self) -> str:
        """For messages: "TensorRT 10.3.0.30, CC 8.7"."""
        for_gpus = f", CC {', '.join(self.compute_capabilities)}" if self.compute_capabilities else ""
        return f"{_RUNTIMES[self.runtime]} {self.runtime_version}{for_gpus}"

    def hard(self) -> dict[str, Any]:
        """The keys that must fit, in plain JSON: part of a cache's key."""
        return {
            "runtime": self.runtime,
            "runtime_version": self.runtime_version,
            "os": self.os,
            "arch": self.arch,
            "compute_capabilities": list(self.compute_capabilities),
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; what is not known is left out."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None
        }


@dataclass(frozen=True)
class Fit:
    """refusals: hard keys that differ. warnings: soft keys that differ. Each a sentence naming both sides."""

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing refuses."""
        return not self.refusals


def fit(engine: Passport, here: Passport) -> Fit:
    """Whether an engine built under one passport runs under another."""
    refusals = []
    same_runtime = engine.runtime == here.runtime and same_version(engine.runtime_version, here.runtime_version)
    known = set(here.compute_capabilities)
    if not same_runtime or not known <= set(engine.compute_capabilities):
        refusals.append(_both(engine.describe(), here.describe()))
    if (engine.os, engine.arch) != (here.os, here.arch):
        refusals.append(_both(f"{engine.os}/{engine.arch}", f"{here.os}/{here.arch}"))
    warnings = []
    if not here.compute_capabilities:
        warnings.append(f"the device's compute capability is not known; the engine is for {engine.describe()}")
    for key, what in _SOFT.items():
        built, now = getattr(engine, key), getattr(here, key)
        if built is not None and now is not None and built != now:
            warnings.append(f"{what}: built on {built}, this is {now}")
    return Fit(tuple(refusals), tuple(warnings))


_SOFT = {"module": "module", "l4t": "Jetson Linux", "cuda": "CUDA", "driver": "driver", "power_mode": "power mode"}


def parse_passport(body: Any) -> Passport:
    """A passport from JSON that was received.

    Raises:
        PassportError: it is not one.
    """
    if not isinstance(body, Mapping):
        raise PassportError("a passport is an object")
    known = {field.name for field in fields(Passport)}
    if not set(body) <= known:
        raise PassportError(f"unknown keys: {', '.join(sorted(map(str, set(body) - known)))[:200]}")
    if body.get("runtime") not in _RUNTIMES:
        raise PassportError(f"runtime is {str(body.get('runtime'))[:40]!r}")
    version, capabilities = body.get("runtime_version"), body.get("compute_capabilities", [])
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise PassportError(f"runtime_version is {str(version)[:40]!r}")
    if not isinstance(capabilities, list) or len(capabilities) > _MAX_CAPABILITIES:
        raise PassportError("compute_capabilities is no short list")
    if not all(isinstance(entry, str) and _CAPABILITY.fullmatch(entry) for entry in capabilities):
        raise PassportError("compute_capabilities holds something else")
    rest = {key: value for key, value in body.items() if key not in ("runtime", "runtime_version")}
    rest.pop("compute_capabilities", None)
    for key, value in rest.items():
        if not isinstance(value, str) or not _PLAIN.fullmatch(value):
            raise PassportError(f"{key} is not a short text")
    if "os" not in rest or "arch" not in rest:
        raise PassportError("os or arch is missing")
    return Passport(body["runtime"], version, compute_capabilities=tuple(capabilities), **rest)


def contradiction(header: PlanHeader, passport: Passport) -> str | None:
    """What an engine's header says against its passport, naming both; None where they agree."""
    same = (
        header.runtime == passport.runtime
        and same_version(header.version, passport.runtime_version)
        and (
            header.compute_capabilities is None
            or set(header.compute_capabilities) == set(passport.compute_capabilities)
        )
    )
    return None if same else f"an engine of {header.describe()}, its passport says {passport.describe()}"


def same_version(engine: str, here: str) -> bool:
    """Whether two versions are one, as far as both are stated: JetPack's Python package names three parts of four."""
    ours, theirs = engine.split("."), here.split(".")
    return all(a == b for a, b in zip(ours, theirs, strict=False))


def _both(engine: str, device: str) -> str:
    return f"engine: {engine}; device: {device}"
