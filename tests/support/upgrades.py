"""A device whose agent lies in a slot, as provisioning leaves it, and bundles of other agents for it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedge.deploy import bootstrap
from kedge.deploy.agent_bundle import Bundle, make_bundle
from kedge.deploy.agent_wheel import agent_wheel
from kedge.deploy.wheelhouse import DevicePython, Wheel
from kedge.release.bundle import Release
from kedge_agent.formats.offer import AGENT, Offer
from kedge_agent.store.agents import AgentParcel
from kedge_agent.store.layout import Layout, socket_directory
from kedge_agent.store.models import ModelState, write_state
from kedge_agent.store.rules import OFF, ReleaseRules
from tests.unit.test_store import deliver

HERE = DevicePython(sys.version_info[:2], platform.machine(), (2, 17))


def altered_wheel(folder: Path, version: str, files: Mapping[str, str | None] | None = None) -> Wheel:
    """The agent's wheel, of another version, with text put at the end of some of its files; None: without that file."""
    _, data = agent_wheel()
    name = f"kedge_agent-{version}-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / name
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for entry in source.infolist():
            text = source.read(entry).decode()
            if entry.filename == "kedge_agent/__init__.py":
                text += f'\n__version__ = "{version}"\n'
            more = (files or {}).get(entry.filename, "")
            if more is not None:
                target.writestr(zipfile.ZipInfo(entry.filename), text + more)
    return Wheel(name, hashlib.sha256(out.read_bytes()).hexdigest(), out)


def bundle_of(folder: Path, version: str, files: Mapping[str, str | None] | None = None) -> Bundle:
    """A bundle of the agent alone: numpy and onnxruntime are the interpreter's own."""
    return make_bundle([altered_wheel(folder / version, version, files)], HERE)


def take_agent(layout: Layout, bundle: Bundle, signatures: bytes = b"", rules: ReleaseRules | None = None) -> None:
    """Accept a bundle, as a push does when all of it has arrived; unsigned where there are no rules."""
    staging = layout.staging(bundle.digest)
    staging.mkdir(parents=True)
    for entry, path in bundle.files:
        (staging / entry.sha256).write_bytes(path.read_bytes())
    offer = Offer(AGENT, signatures=signatures)
    parcel = AgentParcel(layout, rules or ReleaseRules(signatures=OFF), bundle.manifest, offer)
    parcel.judge()
    with parcel.lock():
        parcel.accept(staging)


class Slotted:
    """A device: the launcher, an agent in a slot behind it, and whatever process serves at the moment."""

    def __init__(self, state: Path, first: Bundle, **environment: str) -> None:
        self.state = state
        self.layout = Layout(state)
        self.first = first
        self.environment = {**os.environ, **environment}
        self.launcher = state / "bin" / "kedge-agent"
        self.sockets = socket_directory(state)
        self._children: list[subprocess.Popen[bytes]] = []
        (state / "bin").mkdir(parents=True)
        self.accept(first)
        (state / "agent" / "current").symlink_to(first.digest)
        python, folder = bootstrap._quote(sys.executable), bootstrap._quote(str(state))
        bootstrap._write(self.launcher, bootstrap.LAUNCHER.format(python=python, state=folder), 0o755)

    def accept(self, bundle: Bundle) -> None:
        """Take a bundle into the store, as a push does when all of it has arrived."""
        take_agent(self.layout, bundle)

    def start(self, *options: str, failpoints: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Serve through the launcher, and wait until somebody answers."""
        with (self.state / "stderr").open("ab") as errors:
            child = subprocess.Popen(
                [str(self.launcher), "serve", *options],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**self.environment, "KEDGE_FAILPOINTS": failpoints, **environment},
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def request(self, method: str, path: str, body: Any = None, door: str = "control") -> tuple[int, Any]:
        """Status and JSON of one request; OSError where nobody answers."""
        import socket

        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        connection = http.client.HTTPConnection("agent", timeout=30)
        connection.sock = client
        with contextlib.closing(connection):
            client.connect(str(self.sockets / f"{door}.sock"))
            connection.request(method, path, b"" if body is None else json.dumps(body).encode())
            with connection.getresponse() as answer:
                return answer.status, json.loads(answer.read() or b"null")

    def answers(self, timeout_s: float = 30, *, ready: bool = True) -> float:
        """Wait until the agent answers (and has loaded its models); how long that took, in seconds."""
        begin = time.monotonic()
        while time.monotonic() < begin + timeout_s:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, said = self.request("GET", "/kedge/v1/status")
                if status == 200 and (said["ready"] or not ready):
                    return time.monotonic() - begin
            time.sleep(0.02)
        raise AssertionError(f"nobody answers within {timeout_s} s: {self._last_words()}")

    def agent(self) -> dict[str, Any]:
        """What the agent says of itself."""
        status, said = self.request("GET", "/kedge/v1/agent")
        assert status == 200, said
        return dict(said)

    def upgrade(self, bundle: Bundle) -> tuple[int, Any]:
        """Ask for an upgrade."""
        return self.request("POST", "/kedge/v1/agent/upgrade", {"bundle": bundle.digest})

    def outcome(self, bundle: Bundle, timeout_s: float = 60) -> dict[str, Any]:
        """How the upgrade to a bundle ended; waits for it, and for an agent that answers."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                said = self.agent()
                last = said["last"]
                if said["upgrade"] is None and last is not None and last["bundle"] == bundle.digest:
                    return dict(last)
            time.sleep(0.02)
        raise AssertionError(f"the upgrade did not end: {self._last_words()}")

    def install(self, release: Release) -> None:
        """Have the agent find a live release at its start."""
        deliver(self.layout, release)
        write_state(self.layout, release.manifest.model, ModelState(release.digest, None))

    def serving(self) -> dict[str, str]:
        """Release by model, of those that are served."""
        status, said = self.request("GET", "/kedge/v1/status")
        assert status == 200, said
        return {row["model"]: row["release"] for row in said["models"] if row["state"] == "serving"}

    def processes(self) -> list[int]:
        """Every process of an agent of this device."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if str(self.state).encode() in words and b"serve" in words:
                        found.append(int(entry.name))
        return found

    def gone(self, timeout_s: float = 30) -> bool:
        """Whether every agent of this device ends in time."""
        end = time.monotonic() + timeout_s
        while self.processes() and time.monotonic() < end:
            self._reap()
            time.sleep(0.02)
        return not self.processes()

    def kill(self) -> None:
        """SIGKILL to every agent of this device, as when the power goes."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self.gone()

    def _last_words(self) -> str:
        """Where every thread of every agent stands; it is their end."""
        for pid in self.processes():
            os.kill(pid, signal.SIGABRT)
        self.gone()
        return (self.state / "stderr").read_text()[-6000:] + (self.state / "agent.log").read_text()[-2000:]

    def _reap(self) -> None:
        for child in self._children:
            child.poll()

    def close(self) -> None:
        """End everything."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in self._children:
            child.wait(30)
