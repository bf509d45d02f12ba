"""From an accepted release to a live one: staged, gated, and switched by one rename. Until then nothing has changed."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from typing import Any

from ..errors import AgentError
from ..failpoints import reached
from ..formats.latency import LEAST_REQUESTS
from ..formats.manifest import Manifest
from ..measure.memory import read_memory
from ..store.models import ModelState, go_back, prepare_back, prepare_switch, switch
from ..store.releases import Acceptance, read_acceptance
from ..store.signatures import require_standing
from .gating import Gated, describe_live, judge_parity, needs_bytes, run_gates
from .loading import LiveModel, check_parity
from .probation import SUPERSEDED, Watch
from .repository import Repository
from .reverting import back_of, put_back
from .room import Job, Room
from .site import Site, fault_of, known_state, note, state_of
from .staging import Staged

__all__ = ["Activated", "activate", "committed_state"]

_LOG = logging.getLogger("kedge.activation")


@dataclass(frozen=True)
class Activated:
    """A release that was switched to.

    parity: of each golden output, in this process. gates: as events tell them; empty: none were tried. before: what
    served until then, and its 99th percentile; None where nothing did. before_traffic_p99_ms: of what clients sent it.
    """

    live: LiveModel
    previous: str | None
    parity: list[dict[str, Any]]
    gates: tuple[dict[str, Any], ...]
    before: dict[str, Any] | None
    before_traffic_p99_ms: float | None


def activate(site: Site, manifest: Manifest, job: Job, watch: Watch | None) -> Activated:
    """Verify, gate and load a release, then switch its model to it. The caller holds the locks.

    Args:
        watch: over the release before, where that is on probation still: it ends with the switch.

    Raises:
        AgentError: it was refused, and whatever served before serves on.
    """
    model, digest = manifest.model, manifest.digest
    try:
        site.write_down(model, digest, "begun", version=manifest.version)
        reached("deploy.begun")
        return _to_the_switch(site, manifest, job, watch)
    except Exception as error:
        fault = fault_of(error, f"deploying {model}")
        if fault.kind == "internal":
            _LOG.exception("%s release %s", model, digest[:12])
        note(site, model, digest, "refused", reason=fault.message, kind=fault.kind)
        raise fault from error


def _to_the_switch(site: Site, manifest: Manifest, job: Job, watch: Watch | None) -> Activated:
    model, digest = manifest.model, manifest.digest
    repository = site.repository
    state = known_state(site, model)
    _permit(site, manifest, state)
    staged = repository.stage(model, digest)
    reached("deploy.verified")

    job.enter("gate")
    live = repository.serving(model)
    before = None if live is None else describe_live(live, site.journal)
    traffic = None if live is None else live.statistics.recent_p99_ms(LEAST_REQUESTS)
    gated: Gated | None = None
    with Room(repository, model, job) as room:
        if repository.rehearses:
            compared = _staged_live(site, live, staged)
            gated = room.tried(lambda: run_gates(site.layout, staged, compared, job.tell))
            if before is not None and gated.live_p99_ms is not None:
                before["p99_ms"] = gated.live_p99_ms
            need, available = needs_bytes(gated.trial), read_memory().available_bytes
            if need is not None and available is not None and need > available:
                room.make(f"the model takes {need} bytes, and there are {available}")
        gates = () if gated is None else gated.gates
        site.write_down(model, digest, "gated", gates=[_summary(gate) for gate in gates])
        reached("deploy.gated")
        candidate = room.tried(lambda: _load(repository, staged, gated))
        try:
            reached("deploy.loaded")
            parity = check_parity(site.layout, candidate)
            judge_parity(digest, manifest.gates.parity, parity)
            job.enter("switch")
            new, back = _states(*_trusted(site, watch, state, live), digest)
            prepare_switch(site.layout, model, new, back)
            reached("deploy.prepared")
            site.write_down(model, digest, "switching", before_p99_ms=traffic)
            _switch(site, model, digest, state)
        except BaseException:
            candidate.pool.retire()
            raise
        repository.swap(candidate)
    note(site, model, digest, "switched")
    if watch is not None:
        _supersede(site, watch, digest)
    with contextlib.suppress(OSError):
        reached("deploy.switched")
    return Activated(candidate, new.previous, [each.to_json() for each in parity.values()], gates, before, traffic)


def _permit(site: Site, manifest: Manifest, state: ModelState | None) -> None:
    """Refuse what the owner does not want live; the version of a way back is not asked.

    Raises:
        AgentError: its version is below the floor, or it is not signed as it has to be now (integrity).
    """
    acceptance = read_acceptance(site.layout, manifest.digest)
    require_standing(site.layout, site.rules(), manifest, acceptance, state)
    if state is None or manifest.digest in (state.current, state.previous) or manifest.version >= state.floor:
        return
    if not acceptance.lowers(state.floor, state.downgrade):
        raise AgentError(
            f"version {manifest.version} of {manifest.model} is below {state.floor}, which this device has had",
            kind="integrity",
            hint="deploy a newer version, or the older one on purpose: kedge deploy --allow-downgrade",
        )


def committed_state(state: ModelState, manifest: Manifest, acceptance: Acceptance) -> ModelState:
    """The state of a model whose release has proven itself: its version is the floor, or one that is wanted lower."""
    if acceptance.downgrade_floor is not None and acceptance.lowers(state.floor, state.downgrade):
        return replace(state, floor=acceptance.downgrade_floor, downgrade=acceptance.downgrade_serial)
    return replace(state, floor=max(state.floor, manifest.version))


def _supersede(site: Site, watch: Watch, digest: str) -> None:
    """End the probation of the release before, which raises no floor; what it was found not to keep to is told."""
    watch.cut(SUPERSEDED)
    release = watch.manifest.digest
    if release == digest:
        return
    if watch.broken is None:
        note(site, watch.manifest.model, release, "committed", superseded=True)
    else:
        note(site, watch.manifest.model, release, "reverted", reason=watch.broken, kind="gate")


def _trusted(
    site: Site, watch: Watch | None, state: ModelState | None, live: LiveModel | None
) -> tuple[ModelState | None, str | None]:
    """The state and the release that serves, as a way back may name them; of one that broke its promises, its own."""
    # What serves is known to work; what the state names may have been found damaged.
    serving = live.manifest.digest if live is not None else state.current if state is not None else None
    if watch is None or watch.broken is None or state is None or state.current != watch.manifest.digest:
        return state, serving
    back = back_of(site.layout, watch.manifest.model, state)
    return (state, None) if back is None else (back, back.current)


def _states(state: ModelState | None, serving: str | None, digest: str) -> tuple[ModelState, ModelState | None]:
    """The state that is to come, and the one to return to if it does not work out."""
    floor, downgrade = (0, 0) if state is None else (state.floor, state.downgrade)
    if state is not None and state.current == digest:
        back = state.previous and ModelState(state.previous, None, floor, downgrade)
        return state, back or None
    if serving is None or serving == digest:
        return ModelState(digest, None, floor, downgrade), None
    older = state.previous if state is not None and state.previous not in (serving, digest) else None
    return ModelState(digest, serving, floor, downgrade), ModelState(serving, older, floor, downgrade)


def _switch(site: Site, model: str, digest: str, before: ModelState | None) -> None:
    layout = site.layout
    way = None if before is None else back_of(layout, model, before)
    try:
        switch(layout, model)
    except OSError as error:
        if before is not None and before.current == digest:
            raise
        # Where it was renamed, and may not be durable, it is taken back, so that disk and memory say the same.
        with contextlib.suppress(OSError):
            if _stands(site, model, digest):
                _restore(site, model, before, way)
        if not _stands(site, model, digest):
            raise
        _LOG.error("%s was switched, and that may not outlive a power cut: %s", model, error)


def _stands(site: Site, model: str, digest: str) -> bool:
    state = state_of(site.layout, model)
    return state is not None and state.current == digest


def _restore(site: Site, model: str, before: ModelState | None, way: ModelState | None) -> None:
    """The state as it was, with its way back; at the least the release that served, which needs no room."""
    try:
        if before is not None:
            put_back(site, model, before)
            prepare_back(site.layout, model, way)
            return
    except OSError as error:
        _LOG.error("the state of %s cannot be restored as it was: %s", model, error)
        if state_of(site.layout, model) == before:
            return
    go_back(site.layout, model)


def _load(repository: Repository, staged: Staged, gated: Gated | None) -> LiveModel:
    if gated is None:
        return repository.bring_staged(staged)
    trial = gated.trial.trial
    return repository.bring_staged(staged, vars(trial), gated.trial.latency.p99_ms)


def _staged_live(site: Site, live: LiveModel | None, staged: Staged) -> Staged | None:
    """What serves, to be timed beside a release that is to be compared with it."""
    limits = staged.manifest.gates.latency
    if live is None or limits is None or limits.p99_ratio_max is None:
        return None
    with contextlib.suppress(AgentError):
        return site.repository.stage(live.manifest.model, live.manifest.digest)
    return None


def _summary(gate: dict[str, Any]) -> dict[str, Any]:
    """A gate as the journal keeps it: parity of hundreds of outputs would not fit there."""
    kept = {} if gate["gate"] == "parity" else {"figures": gate["figures"], "limits": gate["limits"]}
    return {"gate": gate["gate"], "passed": gate["passed"], **kept}
