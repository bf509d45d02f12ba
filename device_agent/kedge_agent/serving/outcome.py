"""How a deploy ends: the release is committed, taken back by the device, or rolled back by its user."""

from __future__ import annotations

import contextlib
import logging

from ..errors import AgentError
from ..failpoints import reached
from ..store.files import translate_os_error
from ..store.models import ModelState, prepare_switch, write_state
from ..store.releases import read_acceptance
from .activation import committed_state
from .loading import LiveModel
from .reverting import back_of, put_back, taken_back
from .room import Job, Unwatched, load_beside
from .site import Site, note, state_of

__all__ = ["commit", "revert", "roll_back"]

_LOG = logging.getLogger("kedge.outcome")


def commit(site: Site, live: LiveModel) -> str | None:
    """Record that the live release has proven itself: the floor rises to its version, and a way back is prepared.

    Returns:
        What kept it from being recorded, in one line; the release is then watched once more after the next start.
    """
    model, digest = live.manifest.model, live.manifest.digest
    state = state_of(site.layout, model)
    try:
        reached("deploy.passed")
        site.require_open()
        if state is not None and state.current == digest:
            new = committed_state(state, live.manifest, read_acceptance(site.layout, digest))
            write_state(site.layout, model, new, _other_way(new))
        site.write_down(model, digest, "committed")
        reached("deploy.committed")
    except (OSError, AgentError) as error:
        _LOG.error("%s release %s passed, and that cannot be recorded: %s", model, digest[:12], error)
        return str(error)
    return None


def revert(site: Site, live: LiveModel, reason: str, job: Job) -> AgentError:
    """Go back to the release before, because the live one has not kept to its rules.

    Where there is none that can be loaded, the live one serves on, if anything it is asked succeeds.

    Returns:
        What to tell of it: kind gate, where the release before serves now, else what kept it from that.
    """
    model, digest = live.manifest.model, live.manifest.digest
    state = state_of(site.layout, model)
    back = None if state is None else back_of(site.layout, model, state)
    if back is None:
        return _kept(site, live, f"{reason}; there is no release to go back to")
    note(site, model, digest, "reverting", reason=reason)
    with contextlib.suppress(OSError):
        reached("revert.begun")
    try:
        before = load_beside(site.repository, model, back.current, job)
        site.require_open()
    except (OSError, AgentError) as error:
        return _kept(site, live, f"{reason}; the release before cannot be loaded: {error}")
    try:
        put_back(site.layout, model, back)
    except OSError as error:
        # What works serves, whatever the disk says: the next start finds "reverting" and renames.
        _LOG.error("%s is taken back, and that cannot be recorded: %s", model, error)
        site.repository.swap(before)
        return AgentError(f"{reason}; taken back, which the disk did not take: {error}", kind="gate")
    site.repository.swap(before)
    note(site, model, digest, "reverted", reason=reason, kind="gate")
    with contextlib.suppress(OSError):
        reached("revert.done")
    return AgentError(
        taken_back(digest, reason),
        kind="gate",
        hint=f"release {back.current[:12]} serves again; kedge history --on DEVICE tells more",
    )


def roll_back(site: Site, model: str) -> tuple[LiveModel, ModelState]:
    """Switch a model back to the release it served before. The caller holds the lock.

    Where the way back was prepared, it takes no room on the disk.

    Raises:
        AgentError: there is nothing to go back to (not_found), or it is damaged (integrity).
    """
    state = state_of(site.layout, model)
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
        candidate = load_beside(site.repository, model, back.current, Unwatched())
        try:
            put_back(site.layout, model, back)
        except BaseException:
            candidate.pool.retire()
            raise
    except OSError as error:
        raise translate_os_error(error, f"switching {model}") from error
    site.repository.swap(candidate)
    with contextlib.suppress(OSError):
        reached("rollback.renamed")
    note(site, model, state.current, "rolled-back", to=back.current)
    with contextlib.suppress(OSError):
        # For the next rollback; without room on the disk it is made then.
        prepare_switch(site.layout, model, back, _other_way(back))
        reached("rollback.done")
    return candidate, back


def _other_way(state: ModelState) -> ModelState | None:
    if state.previous is None:
        return None
    return ModelState(state.previous, state.current, state.floor, state.downgrade)


def _kept(site: Site, live: LiveModel, why: str) -> AgentError:
    model = live.manifest.model
    answered, failed = live.statistics.outcomes()
    error = AgentError(f"release {live.manifest.digest[:12]}: {why}", kind="gate", hint="deploy another release")
    if failed and not answered:
        site.repository.take_out(model, error)
    else:
        site.repository.blame(model, error)
    note(site, model, live.manifest.digest, "refused", reason=why, kind="gate")
    return error
