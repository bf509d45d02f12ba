"""How a deploy ends: the release is committed, taken back by the device, or rolled back by its user."""

from __future__ import annotations

import contextlib
import logging

from ..errors import AgentError
from ..failpoints import reached
from ..formats.manifest import Manifest
from ..store.files import translate_os_error
from ..store.models import ModelState, prepare_back, prepare_switch, switch
from ..store.releases import read_acceptance
from .activation import committed_state
from .loading import LiveModel
from .probation import Findings
from .reverting import back_of, put_back, take_back, taken_back
from .room import Job, Room, Unwatched
from .site import Site, is_unloaded, known_state, note

__all__ = ["commit", "revert", "roll_back"]

_LOG = logging.getLogger("kedge.outcome")


def commit(site: Site, manifest: Manifest) -> str | None:
    """Record that the live release has proven itself: the floor rises to its version, and a way back is prepared.

    Returns:
        What kept it from being recorded, in one line; the release is then watched once more after the next start.
    """
    model, digest = manifest.model, manifest.digest
    state = known_state(site, model)
    try:
        reached("deploy.passed")
        site.require_open()
        if state is not None and state.current == digest:
            new = committed_state(state, manifest, read_acceptance(site.layout, digest))
            prepare_switch(site.layout, model, new, _other_way(new))
            site.require_open()
            switch(site.layout, model)
        site.write_down(model, digest, "committed")
        reached("deploy.committed")
    except (OSError, AgentError) as error:
        _LOG.error("%s release %s passed, and that cannot be recorded: %s", model, digest[:12], error)
        return str(error)
    return None


def revert(site: Site, manifest: Manifest, reason: str, found: Findings, job: Job) -> AgentError:
    """Go back to the release before, because the live one has not kept to its rules. The caller holds the lock.

    Where there is none that can be loaded, the live one serves on, if anything it is asked succeeds.

    Args:
        found: of the live one.

    Returns:
        What to tell of it: kind gate, where the release before is the live one now, else what kept it from that.
    """
    model, digest = manifest.model, manifest.digest
    state = known_state(site, model)
    back = None if state is None else back_of(site.layout, model, state)
    if back is None:
        return _kept(site, manifest, found, f"{reason}; there is no release to go back to")
    if is_unloaded(site, model):
        # Whoever unloaded it wants neither of them in memory.
        if take_back(site, model, digest, reason):
            return _taken_back(manifest, back, reason, "would serve, once the model is loaded")
        return AgentError(f"{reason}; the release before cannot be put in force", kind="gate")
    note(site, model, digest, "reverting", reason=reason)
    with contextlib.suppress(OSError):
        reached("revert.begun")
    unrecorded = None
    try:
        with Room(site.repository, model, job) as room:
            before = room.tried(lambda: site.repository.bring(model, back.current))
            try:
                put_back(site, model, back)
            except OSError as error:
                # What works serves, whatever the disk says: the next start finds "reverting" and renames.
                _LOG.error("%s is taken back, and that cannot be recorded: %s", model, error)
                unrecorded = error
            except BaseException:
                before.pool.retire()
                raise
            site.repository.swap(before)
    except (OSError, AgentError) as error:
        return _kept(site, manifest, found, f"{reason}; the release before cannot be loaded: {error}")
    if unrecorded is not None:
        return AgentError(f"{reason}; taken back, which the disk did not take: {unrecorded}", kind="gate")
    note(site, model, digest, "reverted", reason=reason, kind="gate")
    with contextlib.suppress(OSError):
        reached("revert.done")
    return _taken_back(manifest, back, reason, "serves again")


def roll_back(site: Site, model: str) -> tuple[LiveModel, ModelState]:
    """Switch a model back to the release it served before. The caller holds the lock.

    Where the way back was prepared, it takes no room on the disk.

    Raises:
        AgentError: there is nothing to go back to (not_found), it is damaged (integrity), or this agent makes way for
            another (busy).
    """
    state = known_state(site, model)
    if state is None:
        raise AgentError(f"no model named {model!r} here", kind="not_found", hint="see: kedge status --on DEVICE")
    back = back_of(site.layout, model, state)
    if back is None:
        raise AgentError(
            f"{model} has served one release only; there is nothing to roll back to",
            kind="not_found",
            hint="deploy another release first",
        )
    try:
        reached("rollback.begun")
        with Room(site.repository, model, Unwatched()) as room:
            candidate = room.tried(lambda: site.repository.bring(model, back.current))
            try:
                put_back(site, model, back)
            except BaseException:
                candidate.pool.retire()
                raise
            site.repository.swap(candidate)
    except OSError as error:
        raise translate_os_error(error, f"switching {model}") from error
    with contextlib.suppress(OSError):
        reached("rollback.renamed")
    note(site, model, state.current, "rolled-back", to=back.current)
    with contextlib.suppress(OSError, AgentError):
        # For the next rollback; without room on the disk it is made then.
        site.require_open()
        prepare_back(site.layout, model, _other_way(back))
        reached("rollback.done")
    return candidate, back


def _other_way(state: ModelState) -> ModelState | None:
    if state.previous is None:
        return None
    return ModelState(state.previous, state.current, state.floor, state.downgrade)


def _taken_back(manifest: Manifest, back: ModelState, reason: str, what: str) -> AgentError:
    return AgentError(
        taken_back(manifest.digest, reason),
        kind="gate",
        hint=f"release {back.current[:12]} {what}; kedge history --on DEVICE tells more",
    )


def _kept(site: Site, manifest: Manifest, found: Findings, why: str) -> AgentError:
    model = manifest.model
    error = AgentError(f"release {manifest.digest[:12]}: {why}", kind="gate", hint="deploy another release")
    if found.errors and found.errors == found.requests:
        site.repository.take_out(model, error)
    else:
        site.repository.blame(model, error)
    note(site, model, manifest.digest, "refused", reason=why, kind="gate")
    return error
