"""Where agents lie, which of them runs, and what became of the last attempt to replace it.

STATE/agent/<digest>/    an unpacked bundle: site/, run.py, and manifest.json where it was pushed
STATE/agent/current      → the one that the launcher starts: replaced by one rename, it is the truth
STATE/agent/previous     → the one before it
STATE/agent/trial.json   an upgrade is under way; gone when it has ended, in whatever way
STATE/agent/upgrade.json how the last one ended
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import AgentError
from ..formats.bundle import AgentBundle, parse_bundle
from ..formats.manifest import MANIFEST_NAME, ManifestError, is_digest
from ..wire import MAX_JSON_BYTES, WireError, parse_json
from .files import exclusive_lock, fsync_directory, make_directory, read_bounded, write_atomic
from .layout import Layout

__all__ = [
    "COMMITTED",
    "FALLEN_BACK",
    "REFUSED",
    "Outcome",
    "Trial",
    "agent_objects",
    "agents_folder",
    "aside",
    "begin_trial",
    "changing_agents",
    "clean_slots",
    "commit_trial",
    "end_trial",
    "has_slot",
    "own_slot",
    "read_bundle",
    "read_outcome",
    "read_trial",
    "retire_slots",
    "settle",
    "slot",
    "slot_named",
]

COMMITTED = "committed"
FALLEN_BACK = "fallen-back"
REFUSED = "refused"
"""The new agent serves; it was to, and the old one serves again; it never was to."""

_MAX_BYTES = 64 * 1024
_REASON_CHARACTERS = 1000
_POLL_S = 0.05
_INTERRUPTED = "the agents ended before the new one was proven: power failed, or somebody ended them"


@dataclass(frozen=True)
class Trial:
    """An upgrade that is under way: to `bundle`, from `former`; version: of the agent that began it."""

    bundle: str
    former: str
    version: str


@dataclass(frozen=True)
class Outcome:
    """How an upgrade ended.

    from_version: of the agent that it began with. reason: None where it was committed. at_s: seconds since 1970 by the
    device's clock. doors_ms, models_ms: for how long nobody listened, and until every model served; None: not measured.
    """

    bundle: str
    former: str
    from_version: str
    state: str
    reason: str | None = None
    at_s: int = 0
    doors_ms: float | None = None
    models_ms: float | None = None


def slot(layout: Layout, digest: str) -> Path:
    """The folder of a bundle."""
    if not is_digest(digest):
        raise AgentError(f"not a bundle: {digest[:80]!r}")
    return agents_folder(layout) / digest


def has_slot(layout: Layout, digest: str) -> bool:
    """Whether this bundle has been unpacked here."""
    return (slot(layout, digest) / "run.py").is_file()


def slot_named(layout: Layout, link: str) -> str | None:
    """The bundle that `current` or `previous` names; None where there is no such link."""
    try:
        name = os.readlink(agents_folder(layout) / link)
    except OSError:
        return None
    return name if is_digest(name) else None


def own_slot(layout: Layout) -> str | None:
    """The bundle that this very process was started from; None where the agent was installed otherwise."""
    # site/kedge_agent/store/slots.py, below the slot
    mine = Path(__file__).resolve().parents[3]
    inside = mine.parent == agents_folder(layout).resolve() and is_digest(mine.name)
    return mine.name if inside else None


@contextlib.contextmanager
def changing_agents(layout: Layout, wait_s: float = 0.0) -> Iterator[None]:
    """One push of a bundle, upgrade or provisioning at a time.

    Args:
        wait_s: for how long to wait for somebody who is at it.

    Raises:
        AgentError: somebody else is at it (busy).
    """
    make_directory(agents_folder(layout), mode=0o755)
    end = time.monotonic() + wait_s
    with contextlib.ExitStack() as stack:
        while True:
            lock = exclusive_lock(agents_folder(layout) / ".lock", "somebody else is changing the agent of this device")
            try:
                stack.enter_context(lock)
                break
            except AgentError:
                if time.monotonic() >= end:
                    raise
            time.sleep(_POLL_S)
        yield


def read_trial(layout: Layout) -> Trial | None:
    """The upgrade that is under way. A mark that cannot be read is none: the old agent then serves on."""
    try:
        body = parse_json(read_bounded(_mark(layout), _MAX_BYTES))
        trial = Trial(**body)
        if not (is_digest(trial.bundle) and is_digest(trial.former) and isinstance(trial.version, str)):
            raise WireError("not an upgrade")
    except (OSError, AgentError, WireError, TypeError):
        return None
    return trial


def begin_trial(layout: Layout, trial: Trial) -> None:
    """Mark, durably, that an upgrade is under way."""
    write_atomic(_mark(layout), json.dumps(asdict(trial)).encode(), mode=0o600)


def commit_trial(layout: Layout, trial: Trial) -> None:
    """Have the launcher start the new agent from now on; durable when this returns.

    Raises:
        AgentError: somebody has removed it meanwhile (not_found).
        OSError: as the file system says.
    """
    if not slot(layout, trial.bundle).is_dir():
        raise AgentError(f"agent {trial.bundle[:12]} is not on this device any more", kind="not_found")
    _point(layout, "previous", trial.former)
    _point(layout, "current", trial.bundle)


def end_trial(layout: Layout, outcome: Outcome) -> None:
    """Record how it ended, then take the mark away."""
    reason = outcome.reason and outcome.reason[:_REASON_CHARACTERS]
    body = {**asdict(outcome), "reason": reason, "at_s": int(time.time())}
    write_atomic(agents_folder(layout) / "upgrade.json", json.dumps(body).encode(), mode=0o600)
    _mark(layout).unlink(missing_ok=True)
    fsync_directory(agents_folder(layout))


def read_outcome(layout: Layout) -> Outcome | None:
    """How the last upgrade ended; None where there was none that one could read of."""
    try:
        return Outcome(**parse_json(read_bounded(agents_folder(layout) / "upgrade.json", _MAX_BYTES), floats=True))
    except (OSError, AgentError, WireError, TypeError):
        return None


def settle(layout: Layout, reason: str = _INTERRUPTED) -> Outcome | None:
    """End what a power cut, or the end of both agents, left under way; whoever calls holds the state folder's lock.

    `current` alone says how: only a proven agent is ever put there, so nothing is tried again.

    Args:
        reason: why the new agent was not proven, where it was not.

    Raises:
        OSError: as the file system says.
    """
    if not _mark(layout).exists():
        return None
    trial = read_trial(layout)
    if trial is None:
        _mark(layout).unlink(missing_ok=True)
        return None
    if slot_named(layout, "current") == trial.bundle:
        outcome = Outcome(trial.bundle, trial.former, trial.version, COMMITTED)
    else:
        outcome = Outcome(trial.bundle, trial.former, trial.version, FALLEN_BACK, reason)
    end_trial(layout, outcome)
    return outcome


def retire_slots(layout: Layout, keep: Collection[str] = ()) -> list[Path]:
    """Put every slot aside but the current one, the one before it and those of an upgrade under way; and what an
    unpacking left. The caller holds `changing_agents`.

    Args:
        keep: digests of others that stay.

    Returns:
        Folders that are to be removed; removing them takes a while.

    Raises:
        OSError: as the file system says.
    """
    folder = agents_folder(layout)
    current, trial = slot_named(layout, "current"), read_trial(layout)
    # Where nothing is known to run, nothing is known to be old.
    if current is not None:
        kept = {current, slot_named(layout, "previous"), *keep}
        if trial is not None:
            kept |= {trial.bundle, trial.former}
        for entry in list(folder.iterdir()):
            left = entry.name.startswith(".") and entry.name.endswith((".partial", ".damaged"))
            if (is_digest(entry.name) and entry.name not in kept) or left:
                entry.rename(aside(entry))
    return sorted(folder.glob(".*.removed"))


def clean_slots(layout: Layout) -> None:
    """Remove what `retire_slots` puts aside, while nobody waits for it.

    Raises:
        AgentError: somebody else is changing agents (busy).
        OSError: as the file system says.
    """
    with changing_agents(layout):
        retired = retire_slots(layout)
    for each in retired:
        shutil.rmtree(each, ignore_errors=True)


def aside(path: Path) -> Path:
    """A name beside a slot under which it is none any more, and is removed one day."""
    return path.with_name(f".{time.monotonic_ns()}.removed")


def agents_folder(layout: Layout) -> Path:
    """Where the slots are."""
    return layout.root / "agent"


def _mark(layout: Layout) -> Path:
    return agents_folder(layout) / "trial.json"


def _point(layout: Layout, link: str, digest: str) -> None:
    partial = agents_folder(layout) / f".{link}.new"
    partial.unlink(missing_ok=True)
    partial.symlink_to(digest)
    partial.replace(agents_folder(layout) / link)
    fsync_directory(agents_folder(layout))


def read_bundle(folder: Path) -> AgentBundle:
    """What the bundle in a slot says of itself.

    Raises:
        ManifestError: its manifest is malformed.
        AgentError: its manifest is too long (integrity).
        OSError: it has none, or it cannot be read.
    """
    return parse_bundle(read_bounded(folder / MANIFEST_NAME, MAX_JSON_BYTES))


def agent_objects(layout: Layout) -> set[str]:
    """Objects that the agents of this device were unpacked from, by their sha256: the collector leaves them."""
    found: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in agents_folder(layout).iterdir():
            with contextlib.suppress(OSError, AgentError, ManifestError):
                found |= {wheel.sha256 for wheel in read_bundle(entry).files}
    return found
