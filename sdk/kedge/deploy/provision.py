"""`kedge device provision`: bring the agent and its libraries to a device that has Python and SSH.

Nothing is downloaded, compiled or built there: no pip, no virtual environment. The wheels are
unpacked into a folder named by their hashes, and the system's own packages stay visible behind
them, because a Jetson's TensorRT comes with JetPack.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kedge_agent.wire import WireError, parse_json

from ..errors import AgentMissingError, IncompatibleError, IntegrityError, NoSpaceError
from ..targets import Target
from ..transport.base import Deadline
from ..transport.client import AgentClient
from ..transport.ssh import SshTransport
from .agent_bundle import make_bundle
from .identity import require_target
from .wheelhouse import DevicePython, Note, Wheel, resolve

__all__ = ["Probe", "Provisioned", "check_target", "probe", "provision"]

_OLDEST_PYTHON = (3, 10)
_PROBE_S = 60.0
_INSTALL_S = 900.0
_HEALTH_S = 60.0
# Unpacked, wheels take about three times their size; the release store needs room too.
_ROOM_FACTOR = 4

Step = Callable[[str], None]
Sent = Callable[[int, int], None]


@dataclass(frozen=True)
class Probe:
    """What a device says of itself before anything is installed there."""

    python: tuple[int, int, int]
    executable: str
    os: str
    machine: str
    glibc: tuple[int, int]
    uid: int
    state: str
    free_bytes: int
    systemd: bool
    board: str | None
    l4t: str | None
    compatible: tuple[str, ...]
    installed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; null where the device has no such thing."""
        return {
            "python": ".".join(map(str, self.python)),
            "executable": self.executable,
            "os": self.os,
            "arch": self.machine,
            "glibc": ".".join(map(str, self.glibc)),
            "uid": self.uid,
            "state": self.state,
            "free_bytes": self.free_bytes,
            "systemd": self.systemd,
            "board": self.board,
            "l4t": self.l4t,
            "compatible": list(self.compatible),
            "agents": list(self.installed),
        }


@dataclass(frozen=True)
class Provisioned:
    """What provisioning did. started: systemd, background, or already running; reason: why not systemd."""

    state: str
    agent: str
    sent_bytes: int
    started: str
    reason: str | None
    info: dict[str, Any]


def probe(transport: SshTransport, *, python: str = "python3", state: str | None = None) -> Probe:
    """Ask a device what it is; changes nothing there.

    Raises:
        IncompatibleError: no Python 3.10 or newer, not CPython, or not Linux with glibc.
        KedgeError: the device cannot be reached.
    """
    body = _ask(
        transport, python, {"do": "probe", "state": state or ""}, Deadline.after(_PROBE_S, "probing the device")
    )
    try:
        version = tuple(int(part) for part in body["python"])
        glibc = re.fullmatch(r"(\d+)\.(\d+).*", str(body["glibc"]))
        found = Probe(
            python=(version[0], version[1], version[2]),
            executable=str(body["executable"]),
            os=str(body["os"]),
            machine=str(body["machine"]),
            glibc=(int(glibc[1]), int(glibc[2])) if glibc else (0, 0),
            uid=int(body["uid"]),
            state=str(body["state"]),
            free_bytes=int(body["free_bytes"]),
            systemd=bool(body["systemd"]),
            board=body["board"],
            l4t=body["l4t"],
            compatible=tuple(str(entry) for entry in body.get("compatible") or ())[:32],
            installed=tuple(map(str, body["installed"])),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IncompatibleError(f"{transport.name}: its answer to the probe makes no sense: {error}") from error
    if found.python[:2] < _OLDEST_PYTHON or body.get("implementation") != "CPython":
        raise IncompatibleError(
            f"{transport.name}: {python} is {body.get('implementation')} {'.'.join(map(str, found.python))},"
            " the agent needs CPython 3.10 or newer",
            hint=f"name another interpreter: kedge device provision {transport.name} --python /usr/bin/python3.10",
        )
    if found.os != "linux" or found.glibc == (0, 0):
        raise IncompatibleError(f"{transport.name}: the agent runs on Linux with glibc, this is {found.os} without it")
    return found


def check_target(device: str, found: Probe, target: Target) -> None:
    """Compare a probed device with its profile.

    Raises:
        IncompatibleError: they differ; both sides are named.
    """
    facts = {"os": found.os, "arch": found.machine, "compatible": list(found.compatible)}
    require_target(device, facts, target)


def provision(
    transport: SshTransport,
    target: Target,
    *,
    python: str = "python3",
    state: str | None = None,
    wheelhouse: Path | None = None,
    force: bool = False,
    service: bool = True,
    step: Step = lambda name: None,
    sent: Sent = lambda done, total: None,
    note: Note = lambda line: None,
) -> Provisioned:
    """Install or update the agent, start it, and see that it answers.

    Args:
        python: the interpreter on the device.
        state: the state folder there; None takes the default of the SSH user.
        wheelhouse: a folder of wheels for a host without network.
        force: send and unpack everything again, though the device seems to have it.
        service: make it a systemd service where systemd runs; else it is started in the background.
        step: told of each step as it begins: probe, resolve, push, install, health.
        sent: told of bytes sent and to send.
        note: told what the device has to do without (`wheelhouse.resolve`).

    Raises:
        KedgeError: the first thing that went wrong. An agent that ran before is stopped only once
            the new one lies there whole.
    """
    step("probe")
    found = probe(transport, python=python, state=state)
    check_target(transport.name, found, target)
    step("resolve")
    device = DevicePython(found.python[:2], found.machine, found.glibc)
    wheels = resolve(
        device,
        offline=wheelhouse,
        needs_onnxruntime="onnxruntime" in target.runtimes,
        has_gpu=target.gpu is not None,
        note=note,
    )
    bundle = make_bundle(wheels, device)
    sent_bytes = 0
    if force or bundle.digest not in found.installed:
        step("push")
        sent_bytes = _push(transport, found, wheels, sent)
    step("install")
    request = {
        "do": "install",
        "state": found.state,
        "digest": bundle.digest,
        "manifest": bundle.manifest.decode(),
        "force": force,
        "service": service,
        "wheels": [{"sha256": wheel.sha256, "name": wheel.name} for wheel in wheels],
    }
    done = _ask(transport, found.executable, request, Deadline.after(_INSTALL_S, "installing the agent"))
    step("health")
    transport.address = replace(transport.address, state=found.state)
    client = AgentClient(transport, timeout_s=_HEALTH_S)
    try:
        info = client.get("/kedge/v1/info")
    finally:
        client.close()
    reason = done.get("reason")
    return Provisioned(found.state, bundle.digest, sent_bytes, str(done["started"]), reason and str(reason), info)


def _push(transport: SshTransport, found: Probe, wheels: Sequence[Wheel], sent: Sent) -> int:
    sizes = {wheel.sha256: wheel.path.stat().st_size for wheel in wheels}
    total = sum(sizes.values())
    if found.free_bytes < total * _ROOM_FACTOR:
        need = total * _ROOM_FACTOR
        raise NoSpaceError(
            f"{transport.name}: the agent needs {need} bytes, {found.state} has {found.free_bytes} free",
            hint="free disk space on the device, or choose another folder with --state",
        )
    done = 0
    with transport.sftp(Deadline.after(_INSTALL_S, "pushing the agent")) as sftp:
        folder = f"{found.state}/provision"
        make = f"mkdir -p -m 700 {shlex.quote(found.state)} && mkdir -p -m 700 {shlex.quote(folder)}"
        made = transport.run(make, Deadline.after(_PROBE_S, "making a folder"))
        if made.status != 0:
            raise IncompatibleError(
                f"{transport.name}: {made.errors.strip() or 'the state folder cannot be made'}",
                hint="choose another folder with --state",
            )
        for wheel in wheels:
            base = done

            def progress(now: int, _: int, base: int = base) -> None:
                sent(base + now, total)

            sftp.put(str(wheel.path), f"{folder}/{wheel.sha256}.whl", callback=progress, confirm=True)
            done += sizes[wheel.sha256]
    return done


def _ask(transport: SshTransport, python: str, request: dict[str, Any], deadline: Deadline) -> Any:
    program = resources.files("kedge.deploy").joinpath("bootstrap.py").read_text(encoding="utf-8")
    command = f"exec {shlex.quote(python)} -I -c {shlex.quote(program)}"
    done = transport.run(command, deadline, json.dumps(request).encode())
    if done.status in (126, 127):
        raise IncompatibleError(
            f"{transport.name}: there is no {python} there",
            hint=f"install Python 3.10 or newer, or name it: kedge device provision {transport.name} --python PATH",
        )
    # A login shell may print before us; the answer is the last line.
    lines = done.output.strip().splitlines()
    try:
        if done.status == 0 and lines:
            return parse_json(lines[-1])
    except WireError:
        pass
    said = [line for line in done.errors.strip().splitlines() if line.strip()]
    reason = said[-1][:500] if said else f"status {done.status}"
    if any("has other bytes" in line for line in said):
        raise IntegrityError(f"{transport.name}: {reason}", hint="run it again; if this returns, suspect the link")
    if any("No space left" in line for line in said):
        raise NoSpaceError(f"{transport.name}: {reason}", hint="free disk space on the device")
    if any("SyntaxError" in line for line in said):
        raise IncompatibleError(f"{transport.name}: {python} is too old", hint="the agent needs CPython 3.10 or newer")
    raise AgentMissingError(f"{transport.name}: {request['do']} failed: {reason}", hint="log in and look")
