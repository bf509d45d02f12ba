"""`kedge deploy`: plan, push, and have the device stage, gate, switch and watch it; and the way back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kedge_agent.formats.offer import Offer, Signed

from ..errors import BadInputError, IncompatibleError, IntegrityError, KedgeError, OutcomeUnknownError
from ..release.bundle import Release
from ..transport.base import Transport
from ..transport.client import AgentClient
from ..transport.upload import Progress, UploadResult
from .follow import RUNNING, Event, deploy_state, ended, follow, require_done
from .pending import Pending
from .sending import send

__all__ = ["DEVICE_STEPS", "Deployed", "deploy", "rollback"]

DEVICE_STEPS = ("stage", "gate", "switch", "probation")
"""What the device does by itself, also when nobody listens."""

_ANSWER_S = 20.0
_ACTIVATE_S = 600.0
_PATIENCE_S = 60.0

States = Callable[[str], None]


@dataclass(frozen=True)
class Deployed:
    """What a deploy did (docs/deploy-report.md).

    previous: the release a rollback would return to. parity: the gate's findings per output. load: time and memory of
    loading on the device (docs/bench-report.md, `memory.load`). activate_s: from the end of the push to the switch.
    before, after: what served until then, and what serves now; None: nothing did, or the device does not tell.
    gates: what each gate found. probation: how it went; None: there was none, or it has not ended. limits: the
    manifest's gates. signed: the device verified signatures; None: it does not tell. size_bytes: of all files.
    sent_bytes: of content that the device lacked. wire_bytes: that travelled for it. skipped_bytes: that were in their
    place. copied_bytes: that the device had elsewhere.
    """

    device: str
    model: str
    version: int
    release: str
    previous: str | None
    sent_bytes: int
    skipped_bytes: int
    push_s: float
    activate_s: float
    parity: list[dict[str, Any]]
    load: dict[str, Any]
    wire_bytes: int = 0
    copied_bytes: int = 0
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    gates: list[dict[str, Any]] = field(default_factory=list)
    probation: dict[str, Any] | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    signed: bool | None = None
    size_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


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
    patience_s: float = _PATIENCE_S,
) -> Deployed:
    """Push a release to a device and have it switched to, behind its gates and on probation.

    A deploy of the same release that runs already is joined; one whose end this host has not been told is told.

    Args:
        progress: told of acknowledged bytes during the push.
        state: told of each state as it begins: plan, push, verify, stage, gate, switch, probation, done.
        event: told of what the device says of its gates and of the probation.
        downgrade: a statement that this version is wanted, though the device may have had a later one.
        limit_bytes_per_s: push no faster.
        wait: for the end of the probation; else until it begins.
        remember: keep a note on this host until the end was told, so that the next run tells it.
        patience_s: how long a lost connection is tried to be made again while the device works.

    Raises:
        OutcomeUnknownError: the connection was lost and not made again; the device goes on by itself.
        GateRefusedError: the device refused the release by a gate, or took it back in its probation.
        KedgeError: the first thing else that went wrong; whatever served before serves on.
    """
    work = _Deploy(transport, release, progress, state, event, Pending(transport.name, release.digest, kept=remember))
    try:
        return work.run(downgrade, limit_bytes_per_s, wait=wait, patience_s=patience_s)
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
    ) -> None:
        self.transport = transport
        self.release = release
        self.client = AgentClient(transport, _ANSWER_S)
        self._progress = progress
        self._state = state
        self._event = event
        self._pending = pending
        self._gates: list[dict[str, Any]] = []
        self._switched: float | None = None
        self._signed: bool | None = None

    def run(
        self, downgrade: Signed | None, limit_bytes_per_s: int | None, *, wait: bool, patience_s: float
    ) -> Deployed:
        self._state("plan")
        self.release.verify()
        offer = self.release.offer()
        offer = replace(offer, downgrade=downgrade or offer.downgrade)
        self._plan(offer)
        device, digest = self.transport.name, self.release.digest
        pending = self._pending
        known = self._known()
        owed, before = pending.read()
        joins = known is not None and (known["state"] == RUNNING or (owed and self._is_news(known, before)))
        if joins:
            pushed, sent = UploadResult(0, 0, self.release.manifest.total_bytes, 0, 0, 0, 0.0), time.monotonic()
        else:
            pushed = send(
                self.transport,
                self.release,
                offer,
                progress=self._progress,
                state=self._state,
                limit_bytes_per_s=limit_bytes_per_s,
                patience_s=patience_s,
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
                return
            try:
                self.client.post("/kedge/v1/deploys", {"release": digest}, expect=("state",))
            except BadInputError as error:
                # What was pushed is there: it is deploys that this agent does not know.
                raise _NoDeploysError(error.message, hint=error.hint) from error

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
            )
        except _NoDeploysError:
            pending.forget()
            return self._on_an_old_agent(pushed, sent)
        except OutcomeUnknownError:
            raise
        except KedgeError:
            # The device has said what is wrong, and it was told.
            pending.forget()
            raise
        if answer["state"] == RUNNING:
            live = self._live()
            return self._deployed(
                pushed, sent, {"previous": live.get("previous"), "after": live, "parity": self._parity_told()}
            )
        pending.forget()
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
                    hint=f"kedge release sign {self.release.folder} --key KEY, with a key that the device knows",
                )

    def _known(self) -> dict[str, Any] | None:
        try:
            return deploy_state(self.client, self.transport.name, self.release.digest)
        except BadInputError:
            return None

    def _is_news(self, known: Mapping[str, Any], before: Mapping[str, Any] | None) -> bool:
        """Whether an end is the one that is owed: not that of an earlier deploy, nor of one long replaced."""
        if ended(known) == before:
            return False
        return known["state"] != "done" or self._live().get("release") == self.release.digest

    def _live(self) -> dict[str, Any]:
        """What the device's status says of the model."""
        found = self.client.get("/kedge/v1/status", expect=("models",))["models"]
        rows = [row for row in found if isinstance(row, dict) and row.get("model") == self.release.manifest.model]
        return dict(rows[0]) if rows else {}

    def _hear(self, event: Mapping[str, Any]) -> None:
        kind, step = event.get("event"), event.get("step")
        if kind == "step":
            if step in ("probation", "done") and self._switched is None:
                self._switched = time.monotonic()
            self._state(str(step)[:80])
        else:
            if kind == "gate":
                self._gates.append({key: value for key, value in event.items() if key != "event"})
            self._event(event)

    def _on_an_old_agent(self, pushed: UploadResult, sent: float) -> Deployed:
        """An agent of before there were deploys: it switches at once, and watches nothing."""
        self._state("activate")
        answer = self.client.post(
            f"/kedge/v1/releases/{self.release.digest}/activate",
            timeout_s=_ACTIVATE_S,
            expect=("previous", "parity", "load"),
        )
        return self._deployed(pushed, sent, answer)

    def _parity_told(self) -> list[Any]:
        """The outputs of the parity gate, as the device has told them so far."""
        figures = next((gate.get("figures") for gate in self._gates if gate.get("gate") == "parity"), None)
        outputs = figures.get("outputs") if isinstance(figures, dict) else None
        return outputs if isinstance(outputs, list) else []

    def _deployed(self, pushed: UploadResult, sent: float, result: Mapping[str, Any]) -> Deployed:
        manifest = self.release.manifest

        def of(key: str, kind: type) -> Any:
            value = result.get(key)
            return value if isinstance(value, kind) else None

        return Deployed(
            device=self.transport.name,
            model=manifest.model,
            version=manifest.version,
            release=manifest.digest,
            previous=of("previous", str),
            sent_bytes=pushed.sent_bytes,
            skipped_bytes=pushed.skipped_bytes,
            push_s=pushed.seconds,
            activate_s=(self._switched or time.monotonic()) - sent,
            parity=of("parity", list) or [],
            load=of("load", dict) or {},
            wire_bytes=pushed.wire_bytes,
            copied_bytes=pushed.copied_bytes,
            before=of("before", dict),
            after=of("after", dict),
            gates=of("gates", list) or self._gates,
            probation=of("probation", dict),
            limits=json.loads(self.release.manifest_bytes)["gates"],
            signed=self._signed if of("signed", bool) is None else of("signed", bool),
            size_bytes=manifest.total_bytes,
        )


def rollback(transport: Transport, model: str) -> dict[str, Any]:
    """Switch a model back to the release it served before; the agent's report of it.

    Raises:
        KedgeError: there is nothing to go back to, or the device says why not.
    """
    client = AgentClient(transport)
    try:
        answer: dict[str, Any] = client.post(
            f"/kedge/v1/models/{model}/rollback",
            timeout_s=_ACTIVATE_S,
            expect=("model", "version", "release", "previous"),
        )
    finally:
        client.close()
    return answer
