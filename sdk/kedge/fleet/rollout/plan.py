"""The plan of a rollout: which devices, in which waves, within which limits. It is written once and never changes."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kedge_agent.formats.manifest import is_model_name

from ...errors import BadInputError, IncompatibleError
from ..inventory import Limit
from .options import MAX_WAVES, Options, parse_canary
from .reading import Fields, UnreadableError

__all__ = ["MAX_DEVICES", "Options", "Plan", "Planned", "is_rollout_id", "make_plan", "parse_canary"]

FORMAT = 1
MAX_DEVICES = 100_000
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Planned:
    """A device of the plan: its target's name, its way as plain JSON (`fleet.way`), and its wave, the first being 1."""

    name: str
    target: str
    way: Mapping[str, Any]
    wave: int


class Selected(Protocol):
    """What a plan needs of a device: `inventory.Device` has it."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str: ...

    def way(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Plan:
    """A rollout as it was asked for.

    release: {"digest", "source"}: an absolute folder, or a URL that every worker can read. waves: how many devices have
    been reached when a wave has ended. limits: of groups. downgrade: the statement that allows an older version.
    """

    id: str
    created_s: float
    model: str
    version: int
    release: Mapping[str, str]
    devices: tuple[Planned, ...]
    waves: tuple[int, ...]
    limits: tuple[Limit, ...]
    options: Options
    downgrade: Mapping[str, Any] | None = None

    def of_wave(self, wave: int) -> range:
        """Indices of a wave's devices."""
        return range(self.waves[wave - 2] if wave > 1 else 0, self.waves[wave - 1])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "kedge_rollout_plan": FORMAT,
            "id": self.id,
            "created_s": self.created_s,
            "model": self.model,
            "version": self.version,
            "release": dict(self.release),
            "devices": [
                {"name": each.name, "target": each.target, "way": dict(each.way), "wave": each.wave}
                for each in self.devices
            ],
            "waves": list(self.waves),
            "limits": [
                {"group": each.group, "devices": sorted(each.devices), "concurrency": each.concurrency}
                for each in self.limits
            ],
            "options": self.options.to_json(),
            "downgrade": None if self.downgrade is None else dict(self.downgrade),
        }

    @classmethod
    def from_json(cls, document: Any) -> Plan:
        """As `to_json` writes it.

        Raises:
            UnreadableError: it is none. IncompatibleError: a later kedge wrote it.
        """
        told = Fields(document, "the plan")
        if told.count("kedge_rollout_plan", 1) > FORMAT:
            raise IncompatibleError(
                "the rollout was begun by a later kedge", hint="go on with that one, or begin the rollout anew"
            )
        release = told.fields("release")
        devices = tuple(_planned(each) for each in told.items("devices", MAX_DEVICES))
        plan = cls(
            id=told.exact("id"),
            created_s=told.number("created_s"),
            model=told.exact("model"),
            version=told.count("version", 1),
            release={"digest": release.digest("digest"), "source": release.exact("source")},
            devices=devices,
            waves=tuple(told.items("waves", MAX_WAVES)),
            limits=tuple(_limit(each) for each in told.items("limits", MAX_DEVICES)),
            options=Options.from_json(told.object("options")),
            downgrade=told.maybe("downgrade", told.object),
        )
        plan.check()
        return plan

    def check(self) -> None:
        """That its parts fit together.

        Raises:
            UnreadableError: they do not.
        """
        names = {each.name for each in self.devices}
        if not is_rollout_id(self.id) or not is_model_name(self.model):
            raise UnreadableError("the plan's id or model is no name")
        if not self.devices or len(names) != len(self.devices):
            raise UnreadableError("the plan has no devices, or one twice")
        rising = all(type(count) is int for count in self.waves) and list(self.waves) == sorted(set(self.waves))
        if not self.waves or not rising or self.waves[0] < 1 or self.waves[-1] != len(self.devices):
            raise UnreadableError("the plan's waves do not cover its devices")
        for wave in range(1, len(self.waves) + 1):
            if any(self.devices[index].wave != wave for index in self.of_wave(wave)):
                raise UnreadableError(f"the plan's devices are not in the order of wave {wave}")
        if any(not limit.devices <= names for limit in self.limits):
            raise UnreadableError("the plan limits devices that it does not have")


def make_plan(
    devices: Sequence[Selected],
    *,
    model: str,
    version: int,
    digest: str,
    source: str,
    options: Options,
    limits: Iterable[Limit] = (),
    downgrade: Mapping[str, Any] | None = None,
    created_s: float | None = None,
) -> Plan:
    """Plan a rollout: the devices in their order, cut into waves.

    Args:
        source: an absolute folder, or a URL that the workers can read.
        limits: of groups; what they say of other devices is left out.
        created_s: wall clock; None: now.

    Raises:
        BadInputError: there are no devices, or too many, or the waves make no sense, or a name is too long.
    """
    if not 1 <= len(devices) <= MAX_DEVICES:
        raise BadInputError(f"{len(devices)} devices: 1 to {MAX_DEVICES:,} can be rolled out to")
    names = frozenset(each.name for each in devices)
    waves = parse_canary(",".join(options.canary), len(devices))
    wave, planned = 1, []
    for index, each in enumerate(devices):
        if index == waves[wave - 1]:
            wave += 1
        planned.append(Planned(each.name, each.target, dict(each.way()), wave))
    now = time.time() if created_s is None else created_s
    plan = Plan(
        id=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(3)}",
        created_s=now,
        model=model,
        version=version,
        release={"digest": digest, "source": source},
        devices=tuple(planned),
        waves=waves,
        limits=tuple(
            Limit(each.group, each.devices & names, each.concurrency) for each in limits if each.devices & names
        ),
        options=options,
        downgrade=downgrade,
    )
    try:
        # What cannot be read back could not be driven on, and would be noticed once devices have begun.
        return Plan.from_json(plan.to_json())
    except UnreadableError as error:
        raise BadInputError(str(error)) from error


def is_rollout_id(text: str) -> bool:
    """Whether this can be a rollout's name, which is a folder's as well."""
    return _ID.fullmatch(text) is not None


def _planned(value: Any) -> Planned:
    told = Fields(value, "a device of the plan")
    return Planned(told.exact("name", 64), told.exact("target", 64), told.object("way"), told.count("wave", 1))


def _limit(value: Any) -> Limit:
    told = Fields(value, "a limit of the plan")
    names = told.items("devices", MAX_DEVICES)
    if not all(isinstance(name, str) for name in names):
        raise UnreadableError("a limit of devices without names")
    return Limit(told.text("group"), frozenset(names), told.count("concurrency", 1))
