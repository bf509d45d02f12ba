"""The agent's settings: one JSON file, read strictly, at the start and again at SIGHUP.

Whoever wrote the file is told what is wrong with it, and where; nothing in it is guessed or passed over.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import AgentError
from .formats.manifest import is_model_name
from .serving.limits import Limits
from .store.files import read_bounded, translate_os_error, write_atomic
from .store.layout import SYSTEM_STATE
from .store.rules import OFF, REQUIRED, ReleaseRules
from .wire import WireError, parse_json

if TYPE_CHECKING:
    from .runtime.pool import PoolRules

__all__ = [
    "SYSTEM_SETTINGS",
    "RecorderRules",
    "Settings",
    "parse_settings",
    "read_settings",
    "remember_config",
    "settings_file",
    "settings_of",
    "settings_path",
]

SYSTEM_SETTINGS = Path("/etc/kedge/agent.json")

_CONFIG_NOTE = "agent.config"
_MAX_PATH_BYTES = 4096
_MAX_BYTES = 256 * 1024
_PREFIX = re.compile(r"/[A-Za-z0-9._-]{2,199}")
T = TypeVar("T")

_HINT = "docs/agent.md lists every setting and its bounds"


@dataclass(frozen=True)
class RecorderRules:
    """Whether the flight recorder records, and the megabytes (10^6 bytes) that it may take of the disk."""

    enabled: bool = True
    mb: int = 32

    @property
    def limit_bytes(self) -> int:
        """Of the disk, in bytes."""
        return self.mb * 1_000_000


@dataclass(frozen=True)
class Settings:
    """How the agent serves.

    tcp_port: of localhost, for inference alone; None: no TCP.
    threads: intra-operator threads of each model; 0 takes every core this process may use.
    shared_memory_prefix: names of the shared memory that clients may register begin with it; None: there is none.
    limits: of each door.
    releases: what may be deployed, and for how long it is watched.
    models: rules by model name; `*` stands for every other model.
    recorder: what the flight recorder keeps.
    drain_s: how long requests inside may take to finish when the agent stops.
    stuck_s: how long a request may compute until systemd's watchdog is fed no more.
    """

    tcp_port: int | None = None
    threads: int = 0
    shared_memory_prefix: str | None = None
    limits: Limits = field(default_factory=Limits)
    releases: ReleaseRules = field(default_factory=ReleaseRules)
    models: Mapping[str, PoolRules] = field(default_factory=dict)
    recorder: RecorderRules = field(default_factory=RecorderRules)
    drain_s: float = 20.0
    stuck_s: float = 300.0

    def rules_of(self, model: str) -> PoolRules:
        """How this model is to be served when it is next loaded."""
        from .runtime.pool import PoolRules

        return self.models.get(model) or self.models.get("*") or PoolRules()


def settings_path(state: Path, config: Path | None) -> Path:
    """The file that is read: the one that was named, else the system's for the system's state folder, else STATE's."""
    if config is not None:
        return config
    return SYSTEM_SETTINGS if state == SYSTEM_STATE else state / "agent.json"


def remember_config(state: Path, config: Path | None) -> None:
    """Leave the file that the daemon was told to read where `settings_of` finds it; None: it was told none.

    Raises:
        OSError: as the file system says.
    """
    note = state / _CONFIG_NOTE
    if config is None:
        note.unlink(missing_ok=True)
        return
    path = str(config).encode("utf-8", "surrogateescape")
    with contextlib.suppress(AgentError, OSError):
        # What is there already needs no room on a full disk.
        if read_bounded(note, _MAX_PATH_BYTES) == path:
            return
    write_atomic(note, path, mode=0o600)


def settings_of(state: Path) -> Settings:
    """The settings that the daemon on this state folder reads, or would: what comes by itself obeys the same rules.

    Raises:
        AgentError: as `read_settings`.
    """
    try:
        config = _noted(state)
    except OSError as error:
        raise translate_os_error(error, f"reading {state / _CONFIG_NOTE}") from error
    return read_settings(settings_path(state, config), must_exist=config is not None)


def settings_file(state: Path) -> Path:
    """The file that `settings_of` reads, whatever is in it; where no note can be read, the usual one."""
    config = None
    with contextlib.suppress(OSError, AgentError):
        config = _noted(state)
    return settings_path(state, config)


def _noted(state: Path) -> Path | None:
    try:
        return Path(read_bounded(state / _CONFIG_NOTE, _MAX_PATH_BYTES).decode("utf-8", "surrogateescape"))
    except FileNotFoundError:
        return None


def read_settings(path: Path, *, must_exist: bool = False) -> Settings:
    """Read a file of settings. Where there is none, everything is as it is by default.

    Args:
        must_exist: somebody named this file; that it is not there is then an error.

    Raises:
        AgentError: it cannot be read, or something in it is wrong (bad_input); the line names file and setting.
    """
    try:
        data = read_bounded(path, _MAX_BYTES)
    except FileNotFoundError:
        if must_exist:
            raise AgentError(f"there is no file of settings {path}", hint="name another with --config") from None
        return _named(Settings(), path)
    except OSError as error:
        raise translate_os_error(error, f"reading {path}") from error
    try:
        return _named(parse_settings(data), path)
    except AgentError as error:
        raise AgentError(f"{path}: {error.message}", hint=error.hint or _HINT) from error


def _named(settings: Settings, path: Path) -> Settings:
    """With the file that says what may be deployed: whoever may write it decides that."""
    return replace(settings, releases=replace(settings.releases, settings=path))


def parse_settings(data: bytes) -> Settings:
    """Settings from their JSON.

    Raises:
        AgentError: something in it is wrong (bad_input); the line names the setting.
    """
    try:
        body = parse_json(data, floats=True, limit=_MAX_BYTES)
    except WireError as error:
        raise AgentError(str(error)) from error
    return Settings(**_each(body, "", _SETTINGS))


_Reader = Callable[[Any, str], Any]


def _each(body: Any, where: str, readers: Mapping[str, _Reader]) -> dict[str, Any]:
    """The values of an object whose keys are known, each read by its reader; `where` begins their names."""
    if not isinstance(body, dict):
        raise AgentError(f"{where.rstrip('.') or 'the whole'} is not an object")
    _refuse_unknown(body, readers, where)
    return {key: readers[key](value, f"{where}{key}") for key, value in body.items()}


def _refuse_unknown(body: Collection[str], known: Collection[str], where: str) -> None:
    for key in body:
        if key not in known:
            import difflib

            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {where}{close[0]}?" if close else f"known here: {', '.join(known)}"
            raise AgentError(f"there is no setting {where}{key[:80]}", hint=hint)


def _whole(least: int, most: int) -> _Reader:
    def read(value: Any, name: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise AgentError(f"{name} is {_shown(value)}; it is a whole number from {least} to {most}")
        return value

    return read


def _seconds(least: float, most: float) -> _Reader:
    def read(value: Any, name: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
            raise AgentError(f"{name} is {_shown(value)}; it is a number from {least:g} to {most:g}")
        return float(value)

    return read


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise AgentError(f"{name} is {_shown(value)}; it is true or false")
    return value


def _or_null(reader: _Reader) -> _Reader:
    return lambda value, name: None if value is None else reader(value, name)


def _prefix(value: Any, name: str) -> str:
    if not isinstance(value, str) or _PREFIX.fullmatch(value) is None:
        raise AgentError(
            f"{name} is {_shown(value)}; it is null, or / and two to 199 letters, digits, dots, dashes or underscores",
            hint="clients may register the shared memory whose name begins so, for instance /kedge_",
        )
    return value


def _models(value: Any, name: str) -> dict[str, PoolRules]:
    return _by_model(value, name, _rules, also="*", hint="* stands for the others")


def _by_model(
    value: Any, name: str, reader: Callable[[Any, str], T], *, also: str = "", hint: str = ""
) -> dict[str, T]:
    if not isinstance(value, dict):
        raise AgentError(f"{name} is {_shown(value)}; it is an object")
    for model in value:
        if model != also and not is_model_name(model):
            raise AgentError(f"{name} has {model[:80]!r}, which is no model's name", hint=hint)
    return {model: reader(rules, f"{name}.{model}") for model, rules in value.items()}


def _rules(value: Any, name: str) -> PoolRules:
    # Whoever receives a push reads settings too, and waits for no import that it has no use for.
    from .runtime.pool import PoolRules

    options = _each(value, f"{name}.", _RULES)
    try:
        return PoolRules(**options)
    except AgentError as error:
        raise AgentError(f"{name}.{error.message}") from error


def _signatures(value: Any, name: str) -> str:
    if value not in (REQUIRED, OFF):
        raise AgentError(f'{name} is {_shown(value)}; it is "{REQUIRED}", "{OFF}" or null')
    return str(value)


def _absolute_path(value: Any, name: str) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise AgentError(f"{name} is {_shown(value)}; it is an absolute path")
    return Path(value)


def _shown(value: Any) -> str:
    return repr(value)[:80]


_ANY_WHOLE = _whole(-(1 << 53), 1 << 53)

_RULES: Mapping[str, _Reader] = {
    # PoolRules knows the bounds of its own.
    "workers": _ANY_WHOLE,
    "queue": _ANY_WHOLE,
    "deadline_ms": _ANY_WHOLE,
    "drop_stale": _truth,
    "max_batch": _ANY_WHOLE,
    "max_delay_us": _ANY_WHOLE,
}

_LIMITS: Mapping[str, _Reader] = {
    "connections": _whole(1, 4096),
    "header_bytes": _whole(1024, 1 << 20),
    "body_bytes": _whole(1024, 1 << 40),
    "idle_s": _seconds(1, 86400),
    "slowest_bytes_per_s": _whole(1, 1 << 40),
    "grace_s": _seconds(1, 3600),
}

_THRESHOLD = _whole(1, 16)

_RELEASES: Mapping[str, _Reader] = {
    "signatures": _or_null(_signatures),
    "allowed_signers": _absolute_path,
    "revoked_keys": _absolute_path,
    "threshold": _THRESHOLD,
    "thresholds": lambda value, name: _by_model(value, name, _THRESHOLD),
    "keep": _whole(0, 1000),
    "probation_s": _whole(0, 86400),
}

_RECORDER: Mapping[str, _Reader] = {
    "enabled": _truth,
    "mb": _whole(4, 64),
}

_SETTINGS: Mapping[str, _Reader] = {
    "tcp_port": _or_null(_whole(1, 65535)),
    "threads": _whole(0, 1024),
    "shared_memory_prefix": _or_null(_prefix),
    "limits": lambda value, name: Limits(**_each(value, f"{name}.", _LIMITS)),
    "releases": lambda value, name: ReleaseRules(**_each(value, f"{name}.", _RELEASES)),
    "models": _models,
    "recorder": lambda value, name: RecorderRules(**_each(value, f"{name}.", _RECORDER)),
    "drain_s": _seconds(0, 3600),
    "stuck_s": _seconds(1, 86400),
}
