"""What tools/bench/push.py compares: each way brings a file to the same sshd, and tells the seconds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from kedge.release.bundle import Release, write_release
from kedge.transport.base import Deadline
from kedge.transport.hostkeys import HostKey
from kedge.transport.ssh import SshAddress, SshTransport
from kedge.transport.upload import Progress, UploadResult, upload

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import make_release
from tests.support.sshd import Sshd, _keygen

__all__ = ["KEDGE", "WAYS", "Bench", "bench", "sha256_of", "versions"]

KEDGE = "kedge"
_WEIGHTS = "weights.bin"
_HERE = Path(__file__).resolve().parent
_PATIENCE_S = 600.0


@dataclass
class Bench:
    """A real sshd, an agent behind it, and a small release that the file which travels is a part of."""

    folder: Path
    server: Sshd
    small: Release
    asyncssh_python: str | None
    made: int = 0

    def empty(self) -> None:
        """Forget all that was pushed, here and there."""
        for name in ("objects", "releases", "incoming"):
            shutil.rmtree(self.state / name, ignore_errors=True)
        for path in self.folder.glob("release-*"):
            shutil.rmtree(path)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        self.target.unlink(missing_ok=True)

    @property
    def state(self) -> Path:
        """The agent's state folder."""
        return self.folder / "state"

    @property
    def target(self) -> Path:
        """Where the others put the file."""
        return self.folder / "arrived.bin"

    def release(self, source: Path) -> Release:
        """The file as a release; it is linked into it."""
        self.made += 1
        body = json.loads(self.small.manifest_bytes) | {"version": self.made}
        del body["files"]
        sources: dict[str, Path | bytes] = {entry.name: path for entry, path in self.small.files()}
        return write_release(self.folder / f"release-{self.made}", sources | {_WEIGHTS: source}, body)

    def kedge(
        self, release: Release, port: int, progress: Progress = lambda done, total: None
    ) -> tuple[float, UploadResult]:
        """Connect and push; the seconds of all of it."""
        key = HostKey.parse((self.folder / "host_key.pub").read_text())
        address = SshAddress("127.0.0.1", port, self.server.user, key, self.server.key, str(self.state))
        begin = time.perf_counter()
        transport = SshTransport("device", address)
        try:
            channel, protocol = transport.open_receive(Deadline.after(_PATIENCE_S, "the push"))
            done = upload(
                channel,
                "device",
                release.manifest_bytes,
                release.files(),
                progress,
                protocol=protocol,
                open_more=transport.open_receive,
            )
            return time.perf_counter() - begin, done
        finally:
            transport.close()

    def options(self, port_flag: str, port: int) -> list[str]:
        """What OpenSSH's programs need to know."""
        known = f"UserKnownHostsFile={self.folder}/known"
        quiet = ("-o", "LogLevel=ERROR", "-o", "StrictHostKeyChecking=no", "-o", known, "-F", "none")
        return [*quiet, "-o", "IdentitiesOnly=yes", "-i", str(self.server.key), port_flag, str(port)]

    def rsync(self, source: Path, port: int, *options: str) -> float:
        """The seconds of `rsync`, whole or as a difference to what lies there."""
        shell = shlex.join(["ssh", *self.options("-p", port)])
        return _timed(["rsync", *options, "-e", shell, str(source), f"{self._there()}:{self.target}"])

    def arrived(self, release: Release) -> Path:
        """Where the agent keeps the file of a release."""
        sha256 = release.manifest.file(_WEIGHTS).sha256
        return self.state / "objects" / "sha256" / sha256[:2] / sha256[2:]

    def _there(self) -> str:
        return f"{self.server.user}@127.0.0.1"


def _timed(command: Sequence[str], data: str | None = None) -> float:
    begin = time.perf_counter()
    subprocess.run(command, input=data, text=True, check=True, capture_output=True, timeout=_PATIENCE_S)
    return time.perf_counter() - begin


def _kedge(bench: Bench, source: Path, port: int) -> tuple[float, Path]:
    release = bench.release(source)
    seconds, _ = bench.kedge(release, port)
    return seconds, bench.arrived(release)


def _scp(bench: Bench, source: Path, port: int) -> tuple[float, Path]:
    there = f"{bench.server.user}@127.0.0.1:{bench.target}"
    return _timed(["scp", "-q", *bench.options("-P", port), str(source), there]), bench.target


def _sftp(bench: Bench, source: Path, port: int) -> tuple[float, Path]:
    command = ["sftp", "-q", "-b", "-", *bench.options("-P", port), f"{bench.server.user}@127.0.0.1"]
    return _timed(command, f"put {source} {bench.target}\n"), bench.target


def _rsync(bench: Bench, source: Path, port: int) -> tuple[float, Path]:
    return bench.rsync(source, port, "-W"), bench.target


def _paramiko(bench: Bench, source: Path, port: int) -> tuple[float, Path]:
    begin = time.perf_counter()
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect(
            "127.0.0.1",
            port,
            bench.server.user,
            key_filename=str(bench.server.key),
            allow_agent=False,
            look_for_keys=False,
        )
        with client.open_sftp() as sftp:
            sftp.put(str(source), str(bench.target))
    return time.perf_counter() - begin, bench.target


def _asyncssh(bench: Bench, source: Path, port: int) -> tuple[float, Path]:
    assert bench.asyncssh_python is not None
    words = (str(port), bench.server.user, str(bench.server.key), str(source), str(bench.target))
    said = subprocess.run(
        [bench.asyncssh_python, str(_HERE / "push_asyncssh.py"), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE_S,
    )
    return float(said.stdout), bench.target


WAYS: dict[str, Callable[[Bench, Path, int], tuple[float, Path]]] = {
    KEDGE: _kedge,
    "scp": _scp,
    "sftp": _sftp,
    "rsync -W": _rsync,
    "paramiko put": _paramiko,
    "asyncssh put": _asyncssh,
}
"""Each brings a file through a port: the seconds, and where it lies then."""


@contextlib.contextmanager
def bench(asyncssh_python: str | None) -> Iterator[Bench]:
    """An sshd on loopback for the user that runs this, and an agent's state folder; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kedge-push-") as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        server = Sshd(folder, pwd.getpwuid(os.getuid()).pw_name, folder)
        for key in (folder / "host_key", server.key):
            _keygen(key)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        # OpenSSH's server wants a folder that a system without one does not have; only this mount namespace gets it.
        server.mounts = "mount -t tmpfs tmpfs /run\nmkdir /run/sshd"
        # What this machine's shell does at its start is no device's; and sftp, which runs in sshd here, has no shell.
        start_up = Path(pwd.getpwuid(os.getuid()).pw_dir, ".bashrc")
        if start_up.exists():
            server.mounts += f"\nmount --bind /dev/null {shlex.quote(str(start_up))}"
        made = Bench(folder, server, make_release(folder, version=1, name="push"), asyncssh_python)
        launcher = made.state / "bin" / "kedge-agent"
        launcher.parent.mkdir(parents=True)
        # A device keeps what Python compiled, whatever the environment says here.
        command = f"env -u PYTHONDONTWRITEBYTECODE {sys.executable} -m kedge_agent --state {made.state}"
        launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        launcher.chmod(0o755)
        server.start()
        try:
            yield made
        finally:
            server.stop()


def sha256_of(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def versions(asyncssh_python: str | None) -> dict[str, str | None]:
    """What is compared, by what it says of itself."""

    def said(*command: str) -> str:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return (found.stdout + found.stderr).splitlines()[0].strip()

    script = "import asyncssh; print(asyncssh.__version__)"
    return {
        "OpenSSH": said("ssh", "-V").removeprefix("OpenSSH_"),
        "rsync": said("rsync", "--version").split()[2],
        "paramiko": paramiko.__version__,
        "asyncssh": None if asyncssh_python is None else said(asyncssh_python, "-c", script),
    }
