"""`kedge deploy`: plan, push, and have the device stage, gate, switch and watch it; and the way back."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kedge_agent.formats.manifest import is_digest
from kedge_agent.formats.offer import Offer, Signed

from ..errors import BadInputError, IncompatibleError, IntegrityError, KedgeError, OutcomeUnknownError
from ..release.bundle import Release
from ..transport.base import Deadline, Transport, agent_hint
from ..transport.client import AgentClient
from ..transport.upload import Progress, UploadResult
from .deployed import Deployed, NonsenseError, read_gate, read_parity, read_probation, read_side
from .follow import RUNNING, Event, deploy_state, ended, follow, require_done
from .history import read_history
from .pending import Pending, has_begun
from .rollback import rollback
from .sending import send

__all__ = ["DEVICE_STEPS", "Deployed", "deploy", "rollback"]

DEVICE_STEPS = ("stage", "gate", "switch", "probation")
"""What the device does by itself, also when nobody listens."""

_ANSWER_S = 20.0
_ACTIVATE_S = 600.0
_PATIENCE_S = 60.0

States = Callable[[str], None]


def deploy(
    transport: Transport,
    release: Release,
    *,
    progress: Progress = lambda done, total: None,
    state: States = lambda name: None,
    event: Event = lambda event: None,
    downgrade: Signed | None = None,
    limit_bytes_per_s: int | None = None,
    wait: bool = True,
    remember: bool = True,
    since_s: float | None = None,
    verified: bool = False,
    patience_s: float = _PATIENCE_S,
    deadline: Deadline | None = None,
    client: AgentClient | None = None,
) -> Deployed:
    """Push a release to a device and have it switched to, behind its gates and on probation.

    A deploy of the same release that runs already is joined; one whose end this host has not been told is told.

    Args:
        progress: told of acknowledged bytes during the push.
        state: told of each state as it begins: plan, push, verify, stage, gate, switch, probation, done.
        event: told of what the device says of its gates and of the probation.
        downgrade: a statement that this version is wanted, though the device may have had a later one.
        limit_bytes_per_s: push no faster.
        wait: for the end of the probation; else until it begins, and then no end is owed.
        remember: keep a note on this host until the end was told, so that the next run tells it.
        since_s: in the place of such a note, for whoever knows when this deploy was first asked for, in seconds since
            1970: the end of one that the device began since then is told. By the device's clock, which may be a minute
            ahead of this host's (`deploy.pending.allowing_for_clocks`: and seconds behind); where it is further off,
            the release is deployed anew.
        verified: the release's files have been hashed by the caller.
        patience_s: how long a lost connection is tried to be made again while the device works.
        deadline: by which the end must have been told; None: as long as it takes. What blocks on the transport is ended
            by who closes it then.
        client: of this transport and this deadline, whose connection is used and closed; None: one of its own.

    Raises:
        OutcomeUnknownError: the connection was lost and not made again, or the deadline passed; the device goes on by
            itself.
        GateRefusedError: the device refused the release by a gate, or took it back in its probation.
        KedgeError: the first thing else that went wrong; whatever served before serves on.
    """
    pending = Pending(transport.name, release.digest, kept=remember and since_s is None)
    work = _Deploy(transport, release, progress, state, event, pending, since_s, deadline, client)
    try:
        return work.run(downgrade, limit_bytes_per_s, verified=verified, wait=wait, patience_s=patience_s)
    finally:
        work.client.close()


class _NoDeploysError(BadInputError):
    """The agent is of before there were deploys."""


class _Deploy:
    """One run of it: what it is told, and what it has found out of the device."""

    def __init__(
        self,
        transport: Transport,
        release: Release,
        progress: Progress,
        state: States,
        event: Event,
        pending: Pending,
        since_s: float | None,
        deadline: Deadline | None,
        client: AgentClient | None,
    ) -> None:
        self.transport = transport
        self.release = release
        self.client = client or AgentClient(transport, _ANSWER_S, deadline)
        self._since_s = since_s
        self._deadline = deadline
        self._progress = progress
        self._state = state
        self._step = ""
        self._event = event
        self._served: dict[str, Any] | None = None
        self._pending = pending
        self._gates: list[dict[str, Any]] = []
        self._switched: float | None = None
        self._signed: bool | None = None

    def run(
        self,
        downgrade: Signed | None,
        limit_bytes_per_s: int | None,
        *,
        verified: bool,
        wait: bool,
        patience_s: float,
    ) -> Deployed:
        self._enter("plan")
        if not verified:
            self.release.verify()
        offer = self.release.offer()
        offer = replace(offer, downgrade=downgrade or offer.downgrade)
        self._plan(offer)
        device, digest = self.transport.name, self.release.digest
        pending = self._pending
        known = self._known()
        owed, before = pending.read()
        runs = known is not None and known["state"] == RUNNING
        owed = owed or self._since_s is not None
        joins = runs or (known is not None and owed and self._is_news(known, before))
        self._served = self._serving()
        if joins and self._served is not None and self._served["release"] == digest:
            # That is what came of it.
            self._served = None
        if joins:
            pushed, sent = UploadResult(0, 0, self.release.manifest.total_bytes, 0, 0, 0, 0.0), time.monotonic()
        else:
            pushed = send(
                self.transport,
                self.release,
                offer,
                progress=self._progress,
                state=self._enter,
                limit_bytes_per_s=limit_bytes_per_s,
                patience_s=patience_s,
                deadline=self._deadline,
            )
            sent, before = time.monotonic(), ended(known)
            # The push may have outlasted the connection that this client knows.
            self.client.close()
            pending.write(before)

        def begin() -> None:
            nonlocal joins
            if joins:
                # Only where the device turns out to know nothing of it any more is it asked for anew.
                joins = False
                if runs:
                    self._enter("stage")
                return
            try:
                self.client.post("/kedge/v1/deploys", {"release": digest}, expect=("state",))
            except BadInputError as error:
                # What was pushed is there: it is deploys that this agent does not know.
                raise _NoDeploysError(error.message, hint=error.hint) from error
            except (OutcomeUnknownError, KeyboardInterrupt):
                # The device may have heard it.
                self._enter("stage")
                raise
            self._enter("stage")

        try:
            answer = follow(
                self.client,
                self.transport,
                digest,
                begin=begin,
                before=before,
                event=self._hear,
                until=None if wait else "probation",
                patience_s=patience_s,
                deadline=self._deadline,
            )
        except _NoDeploysError:
            pending.forget()
            return self._on_an_old_agent(pushed, sent)
        except OutcomeUnknownError:
            raise
        except KedgeError:
            # The device has said what is wrong, or was never asked.
            pending.forget()
            raise
        pending.forget()
        if answer["state"] == RUNNING:
            result = {"previous": self._live().get("previous"), "after": self._serving(), "parity": self._parity_told()}
            return self._deployed(pushed, sent, result)
        return self._deployed(pushed, sent, require_done(device, answer))

    def _plan(self, offer: Offer) -> None:
        """What the device says of itself; what it would refuse for certain is refused before anything is sent."""
        info = self.client.get("/kedge/v1/info", expect=("os", "arch"))
        device, manifest = self.transport.name, self.release.manifest
        platform, wanted = (info["os"], info["arch"]), (manifest.platform_os, manifest.platform_arch)
        if platform != wanted:
            raise IncompatibleError(
                f"{device}: the release is for {'/'.join(wanted)}, this device is {'/'.join(map(str, platform))}",
                hint="build it for the device's own target: kedge targets list",
            )
        rules = info.get("signatures")
        if isinstance(rules, dict):
            self._signed = bool(rules.get("required"))
            if self._signed and not offer.signatures and offer.base is None:
                raise IntegrityError(
                    f"{device} takes signed releases only, and this one has no signature",
                    hint="kedge release sign RELEASE --key KEY, with a key that the device knows; "
                    "of an archive, kedge release import it first",
                )

    def _known(self) -> dict[str, Any] | None:
        try:
            return deploy_state(self.client, self.transport.name, self.release.digest)
        except BadInputError:
            return None

    def _is_news(self, known: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
        """Whether an end is the one that is owed: not that of an earlier deploy, nor one that its user knows of."""
        digest = self.release.digest
        if ended(known) == before:
            return False
        if known["state"] == "reverted" or self._since_s is not None:
            timeout_s = _ANSWER_S if self._deadline is None else min(_ANSWER_S, self._deadline.remaining())
            told = read_history(self.transport, self.release.manifest.model, timeout_s=timeout_s)
            entries = [entry for entry in told if entry["release"] == digest]
            if self._since_s is not None and not has_begun(entries, self._since_s):
                return False
            if known["state"] == "reverted":
                return not entries or entries[-1]["step"] != "rolled-back"
        return known["state"] != "done" or self._live().get("release") == digest

    def _live(self) -> dict[str, Any]:
        """What the device's status says of the model."""
        found = self.client.get("/kedge/v1/status", expect=("models",))["models"]
        rows = [row for row in found if isinstance(row, dict) and row.get("model") == self.release.manifest.model]
        return dict(rows[0]) if rows else {}

    def _serving(self) -> dict[str, Any] | None:
        """What serves now, as in a report; None: nothing does, or the device does not tell."""
        with contextlib.suppress(NonsenseError):
            return read_side(self._live())
        return None

    def _enter(self, step: str) -> None:
        """A state begins, unless it has: that the device was asked for the first is known before it says so."""
        if step != self._step:
            self._step = step
            self._state(step)

    def _hear(self, event: Mapping[str, Any]) -> None:
        kind, step = event.get("event"), event.get("step")
        if kind == "step":
            if step in ("probation", "done") and self._switched is None:
                self._switched = time.monotonic()
            self._enter(str(step)[:80])
            return
        # Of what makes no sense nothing is told: the device goes on, and its result is looked at once more.
        with contextlib.suppress(NonsenseError):
            if kind == "gate":
                self._gates.append(read_gate(event))
            elif kind == "probation":
                read_probation(event)
            self._event(event)

    def _on_an_old_agent(self, pushed: UploadResult, sent: float) -> Deployed:
        """An agent of before there were deploys: it switches at once, and watches nothing."""
        self._enter("activate")
        answer = self.client.post(
            f"/kedge/v1/releases/{self.release.digest}/activate",
            timeout_s=_ACTIVATE_S,
            expect=("previous", "parity", "load"),
        )
        return self._deployed(pushed, sent, answer)

    def _parity_told(self) -> list[Any]:
        """The outputs of the parity gate, as the device has told them so far."""
        return next((gate["figures"].get("outputs", []) for gate in self._gates if gate["gate"] == "parity"), [])

    def _deployed(self, pushed: UploadResult, sent: float, result: Mapping[str, Any]) -> Deployed:
        manifest, device = self.release.manifest, self.transport.name

        def of(key: str, kind: type) -> Any:
            value = result.get(key)
            return value if isinstance(value, kind) else None

        def read(key: str, reader: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any] | None:
            return reader(result[key]) if of(key, dict) is not None else None

        previous = of("previous", str)
        try:
            return Deployed(
                device=device,
                model=manifest.model,
                version=manifest.version,
                release=manifest.digest,
                previous=previous if previous is not None and is_digest(previous) else None,
                sent_bytes=pushed.sent_bytes,
                skipped_bytes=pushed.skipped_bytes,
                push_s=pushed.seconds,
                activate_s=(self._switched or time.monotonic()) - sent,
                parity=read_parity(of("parity", list) or []),
                load=of("load", dict) or {},
                wire_bytes=pushed.wire_bytes,
                copied_bytes=pushed.copied_bytes,
                before=read("before", read_side) or self._served,
                after=read("after", read_side),
                gates=[read_gate(gate) for gate in of("gates", list) or []] or self._gates,
                probation=read("probation", read_probation),
                limits=json.loads(self.release.manifest_bytes)["gates"],
                signed=self._signed if of("signed", bool) is None else of("signed", bool),
                size_bytes=manifest.total_bytes,
            )
        except NonsenseError as error:
            raise IncompatibleError(
                f"{device}: the release was deployed, and what the agent tells of it makes no sense: {error}",
                hint=agent_hint(device),
            ) from error
