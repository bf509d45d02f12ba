"""`kedge device upgrade`: push an agent to a device, and have the one that runs there hand over to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kedge_agent.formats.offer import AGENT, Offer
from kedge_agent.formats.sshsig import AGENT_NAMESPACE

from ..errors import (
    AgentMissingError,
    BadInputError,
    GateRefusedError,
    IncompatibleError,
    IntegrityError,
    OutcomeUnknownError,
    UnreachableError,
)
from ..release.signing import sign_document
from ..targets import Target
from ..transport.base import Deadline, Transport
from ..transport.client import AgentClient
from ..transport.upload import Progress, UploadResult, upload
from .agent_bundle import Bundle, make_bundle
from .identity import require_target
from .wheelhouse import DevicePython, Note, resolve

__all__ = ["Upgraded", "upgrade"]

_CONNECT_S = 30.0
_ANSWER_S = 30.0
# The device gives up by itself before: 300 s of silence, and three times as long to take over as to prepare.
_HANDOVER_S = 1800.0
_LOST_S = 60.0
_POLL_S = 0.25

Step = Callable[[str], None]


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did.

    state: "committed", or "current" where this very agent ran there already. doors_ms: for how long nobody listened;
    models_ms: until every model served again; None: nothing was handed over, or the device did not measure it.
    sent_bytes: of content that the device lacked. wire_bytes: that travelled for it. skipped_bytes: that it had.
    """

    device: str
    state: str
    from_version: str
    to_version: str
    bundle: str
    previous: str | None
    signed: bool
    sent_bytes: int = 0
    wire_bytes: int = 0
    skipped_bytes: int = 0
    doors_ms: float | None = None
    models_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def upgrade(
    transport: Transport,
    target: Target,
    *,
    key: Path | None = None,
    wheelhouse: Path | None = None,
    step: Step = lambda name: None,
    sent: Progress = lambda done, total: None,
    note: Note = lambda line: None,
) -> Upgraded:
    """Bring the agent of a device to this version of kedge, while it serves.

    Args:
        key: signs the bundle (`release.signing.sign_document`); None: devices that ask for signatures refuse it.
        wheelhouse: a folder of wheels for a host without network.
        step: told of each step as it begins: probe, resolve, push, and the device's own: standby, rehearse, drain,
            takeover.
        sent: told of acknowledged bytes.
        note: told what the device has to do without.

    Raises:
        GateRefusedError: the device has not taken the new agent, or has gone back; the old one serves.
        OutcomeUnknownError: the connection was lost and not made again; the device goes on by itself.
        KedgeError: the first thing else that went wrong; the agent that ran runs on.
    """
    client = AgentClient(transport, _ANSWER_S)
    try:
        step("probe")
        agent = _agent(client, transport.name)
        info = client.get("/kedge/v1/info")
        require_target(transport.name, info, target)
        signatures = info.get("signatures") or {}
        if signatures.get("required") and key is None:
            raise IntegrityError(
                f"{transport.name} takes signed agents only",
                hint=f"kedge device upgrade {transport.name} --key KEY, with a key of {signatures.get('file')} there",
            )
        step("resolve")
        device = _device_python(agent, transport.name)
        bundle = make_bundle(
            resolve(
                device,
                offline=wheelhouse,
                needs_onnxruntime="onnxruntime" in target.runtimes,
                has_gpu=target.gpu is not None,
                note=note,
            ),
            device,
        )
        if agent["bundle"] == bundle.digest:
            return _upgraded(transport.name, "current", agent, bundle, agent, signed=False)
        step("push")
        pushed = _push(transport, bundle, key, sent)
        client.post("/kedge/v1/agent/upgrade", {"bundle": bundle.digest}, expect=("state",))
        after = _follow(client, transport, bundle.digest, step)
        return _upgraded(transport.name, "committed", agent, bundle, after, pushed, signed=key is not None)
    finally:
        client.close()


def _agent(client: AgentClient, device: str) -> Mapping[str, Any]:
    try:
        agent: Mapping[str, Any] = client.get(
            "/kedge/v1/agent", expect=("version", "bundle", "previous", "python", "arch", "glibc", "upgrade", "last")
        )
    except BadInputError as error:
        raise IncompatibleError(
            f"{device}: its agent is of before agents could replace themselves",
            hint=f"once more by hand: kedge device provision {device}",
        ) from error
    if agent["bundle"] is None:
        raise IncompatibleError(
            f"{device}: its agent was not installed by kedge device provision, and cannot replace itself",
            hint="upgrade it in the way it was installed",
        )
    return agent


def _device_python(agent: Mapping[str, Any], device: str) -> DevicePython:
    try:
        major, minor, *_ = (int(part) for part in str(agent["python"]).split(".")[:2])
        libc, release, *_ = (int(part) for part in str(agent["glibc"]).split(".")[:2])
    except ValueError as error:
        raise IncompatibleError(
            f"{device}: Python {agent['python']}, glibc {agent['glibc']}: not known here"
        ) from error
    return DevicePython((major, minor), str(agent["arch"]), (libc, release))


def _push(transport: Transport, bundle: Bundle, key: Path | None, sent: Progress) -> UploadResult:
    signatures = b"" if key is None else sign_document(bundle.manifest, key, AGENT_NAMESPACE)
    channel, protocol = transport.open_receive(Deadline.after(_CONNECT_S, f"reaching {transport.name}"))
    offer = Offer(AGENT, signatures)
    return upload(channel, transport.name, bundle.manifest, bundle.files, sent, offer=offer, protocol=protocol)


def _follow(client: AgentClient, transport: Transport, bundle: str, step: Step) -> Mapping[str, Any]:
    """Wait until the upgrade has ended, across the moments in which nobody answers; what the device says then."""
    device, told = transport.name, ""
    end = time.monotonic() + _HANDOVER_S
    heard = time.monotonic()
    while time.monotonic() < end:
        try:
            said: Mapping[str, Any] = client.get("/kedge/v1/agent", expect=("upgrade", "last", "version"))
        except (AgentMissingError, UnreachableError) as error:
            if time.monotonic() - heard > _LOST_S:
                raise _unknown(device) from error
            if isinstance(error, UnreachableError):
                # Another connection is made for the next question.
                transport.close()
            time.sleep(_POLL_S)
            continue
        heard = time.monotonic()
        now, last = said["upgrade"], said["last"]
        if now is None:
            if not isinstance(last, dict) or last.get("bundle") != bundle:
                raise _unknown(device)
            if last.get("state") != "committed":
                raise GateRefusedError(
                    f"{device}: the agent of before serves on: {last.get('reason')}",
                    hint=f"nothing has changed there; its log has more: {device}:STATE/agent.log",
                )
            return said
        if str(now.get("step")) != told:
            told = str(now.get("step"))
            step(told)
        time.sleep(_POLL_S)
    raise _unknown(device)


def _unknown(device: str) -> OutcomeUnknownError:
    return OutcomeUnknownError(
        f"{device}: it does not say how the upgrade ended; it goes on, or back, by itself",
        hint=f"the same command says how it ended: kedge device upgrade {device}",
    )


def _upgraded(
    device: str,
    state: str,
    before: Mapping[str, Any],
    bundle: Bundle,
    after: Mapping[str, Any],
    pushed: UploadResult | None = None,
    *,
    signed: bool,
) -> Upgraded:
    last = after["last"] if state == "committed" else None
    return Upgraded(
        device=device,
        state=state,
        from_version=str(before["version"]),
        to_version=str(after["version"]),
        bundle=bundle.digest,
        previous=after.get("previous"),
        signed=signed,
        sent_bytes=pushed.sent_bytes if pushed else 0,
        wire_bytes=pushed.wire_bytes if pushed else 0,
        skipped_bytes=pushed.skipped_bytes if pushed else bundle.total_bytes,
        doors_ms=last["doors_ms"] if last else None,
        models_ms=last["models_ms"] if last else None,
    )
