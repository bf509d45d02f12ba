"""A real OpenSSH server on loopback: own configuration, host key and port; stopped by the test.

As root, the server runs in a mount namespace of its own, where /run/sshd exists and one more,
unprivileged user does: the machine itself is not changed. Otherwise the user is whoever runs the tests.

Such a device may also have processes of its own alone, and the files that kedge reads of /sys and /etc may be a
recorded tree's.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.environment import lacks, sshd_path
from tests.support.trees import unfold

USER = "kedge-test"
UID = 54321


@dataclass
class Sshd:
    """environment: of what its user runs, from the next start on. apart: no process of this machine is seen there.

    settings: lines of its sshd_config, which are read first and so win.
    """

    folder: Path
    user: str
    home: Path
    port: int = 0
    mounts: str = ""
    apart: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def key(self) -> Path:
        return self.folder / "user_key"

    @property
    def address(self) -> str:
        return f"{self.user}@127.0.0.1:{self.port}"

    @property
    def host_key(self) -> str:
        """The public one, as a line of known_hosts has it after the names."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def logins(self) -> int:
        """How often somebody has come in with a key since it was made."""
        return (self.folder / "sshd.log").read_text(errors="replace").count("Accepted publickey")

    def fingerprint(self) -> str:
        said = subprocess.run(
            ["ssh-keygen", "-lf", str(self.folder / "host_key.pub")], capture_output=True, text=True, check=True
        )
        return said.stdout.split()[1]

    def new_host_key(self) -> None:
        """As if the device had been set up anew."""
        self.stop()
        (self.folder / "host_key").unlink()
        (self.folder / "host_key.pub").unlink()
        _keygen(self.folder / "host_key")
        self.start()

    def start(self) -> None:
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = probe.getsockname()[1]
        # Where the tests run as a person's own user, that person's agent is not theirs to touch.
        environment = {"XDG_STATE_HOME": f"{self.home}/.local/state", **self.environment}
        (self.folder / "sshd_config").write_text(
            f"""
            {chr(10).join(self.settings)}
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {self.folder}/host_key
            AuthorizedKeysFile {self.folder}/authorized_keys
            PidFile none
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            UseDNS no
            MaxStartups 100
            MaxSessions 100
            SetEnv {" ".join(f"{name}={value}" for name, value in environment.items())}
            Subsystem sftp internal-sftp
            """
        )
        serve = f"exec {sshd_path()} -D -e -f {self.folder}/sshd_config"
        if os.geteuid() == 0:
            own = ("--pid", "--fork", "--kill-child", "--mount-proc") if self.apart else ()
            command = ["unshare", "--mount", "--propagation", "private", *own, "sh", "-ec", f"{self.mounts}\n{serve}"]
        else:
            command = ["sh", "-c", serve]
        log = (self.folder / "sshd.log").open("ab")
        with log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(100):
            if self._listens():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        said = (self.folder / "sshd.log").read_text(errors="replace").strip()
        self.stop()
        lacks("sshd", f"sshd does not start here: {said.splitlines()[-1] if said else 'no reason given'}")

    def stop(self) -> None:
        """Stop the server; one that is apart takes all of its processes with it."""
        if self.process is not None:
            if self.apart:
                # Whoever waits for a child of its own namespace heeds nothing else.
                self.process.kill()
            else:
                self.process.terminate()
            self.process.wait(10)
            self.process = None
            # The server itself, a child of what has ended, may be a moment behind.
            for _ in range(200):
                if not self._listens():
                    break
                time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the device's user, through OpenSSH's own client."""
        return subprocess.run(
            [
                *("ssh", "-p", str(self.port), "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-F", "none"),
                *("-o", f"UserKnownHostsFile={self.folder}/known", "-o", "LogLevel=ERROR"),
                *(f"{self.user}@127.0.0.1", command),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def make_sshd(
    *, tmpfs_state: str | None = None, apart: bool = False, tree: str | None = None, settings: tuple[str, ...] = ()
) -> Sshd:
    """A running server.

    Args:
        settings: lines for its sshd_config, as in `AllowTcpForwarding no`.
        tmpfs_state: as root, mount a tmpfs of this size at HOME/small.
        apart: of this machine's processes none is seen there; needs root.
        tree: what it has in /sys and /etc is of this tree (`tests.support.trees`), which lies in `folder/tree` and may
            be changed there, but for control groups; needs root.
    """
    sshd_path()
    root = os.geteuid() == 0
    if (apart or tree) and not root:
        lacks("root", "only root can give a device processes and files of its own")
    # Not under pytest's own folder, which only root may enter: the server's user must get in.
    folder = Path(tempfile.mkdtemp(prefix="kedge-sshd-", dir="/tmp"))
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    server = Sshd(folder, USER if root else pwd.getpwuid(os.getuid()).pw_name, home, apart=apart, settings=settings)
    _keygen(folder / "host_key")
    _keygen(server.key)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    if root:
        for name in ("passwd", "shadow"):
            shutil.copy(f"/etc/{name}", folder / name)
        with (folder / "passwd").open("a") as out:
            out.write(f"{USER}:x:{UID}:{UID}::{home}:/bin/sh\n")
        with (folder / "shadow").open("a") as out:
            # '*' is a password nobody has; '!' would lock the account for keys too.
            out.write(f"{USER}:*:19000:0:99999:7:::\n")
        os.chown(home, UID, UID)
        if tree is not None:
            unfold(tree, folder / "tree")
            server.mounts = f"""
            mount -t overlay -o lowerdir={folder}/tree/etc:/etc overlay /etc
            mount -t overlay -o lowerdir={folder}/tree/var/lib:/var/lib overlay /var/lib
            mount --bind {folder}/tree/var/lib/nvpmodel /var/lib/nvpmodel
            mkdir -p {folder}/tree/sys/fs/cgroup
            mount --rbind /sys/fs/cgroup {folder}/tree/sys/fs/cgroup
            mount --rbind {folder}/tree/sys /sys
            """
        server.mounts += f"""
            mount -t tmpfs tmpfs /run
            mkdir /run/sshd
            mount --bind {folder}/passwd /etc/passwd
            mount --bind {folder}/shadow /etc/shadow
        """
        if tmpfs_state is not None:
            server.mounts += f"""
            mkdir -p {home}/small
            mount -t tmpfs -o size={tmpfs_state},uid={UID},gid={UID},mode=700 tmpfs {home}/small
            """
    try:
        server.start()
    except BaseException:
        # A skip is an exception too.
        remove_sshd(server)
        raise
    return server


def remove_sshd(server: Sshd) -> None:
    """Stop the server and every process its user left, then remove its folder."""
    if server.process is not None:
        # The agent runs on by design; the test's end is its end.
        server.run(f"for a in $(find {server.home} -path '*/bin/kedge-agent'); do $a stop; done")
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)
