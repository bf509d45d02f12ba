"""Emulated devices of aarch64: Debian's root, a real sshd in it, and a network of each device's own.

A device has its own mounts, processes, host name and network. It is reached over a cable (a veth pair) whose one end is
on this machine: nothing listens on an address that anybody else could reach, and it has no route anywhere else. When
its first process ends, everything of it ends, the cable included. Its files stay, as those of a device that is off.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.arm64.root import USER, UnavailableError, make_root, why_not

from kedge.config import state_dir

__all__ = ["EmulatedDevice", "devices_folder", "find", "remove", "start", "stop"]

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
# Reserved for measurements between machines (RFC 2544): no network of anybody's is shadowed by it.
_NETWORK = "198.18"
_MOST = 16384
_UID = 1000
_START_S = 60.0
_STOP_S = 10.0
_TIED = ("setpriv", "--pdeathsig", "KILL")
# Those that this process started itself, and has to see the end of.
_started: dict[int, subprocess.Popen[bytes]] = {}
# It sees nothing of /sys: what is there are another machine's sensors, and with the caches of an x86 processor the
# library by which onnxruntime looks for those of an ARM one (cpuinfo) crashes.
_INIT = """
mount -t {disk} root
cd root
mount -t proc proc proc
mount -t tmpfs -o mode=555,ro tmpfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do touch dev/$each; mount --bind /dev/$each dev/$each; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/sshd
mount -t tmpfs -o mode=1777 tmpfs tmp
echo {name} > /proc/sys/kernel/hostname
echo begun
read -r cable
ip link set lo up
ip addr add {address}/30 dev eth0
ip link set eth0 up
exec chroot . /usr/sbin/sshd -D -e > ../log 2>&1
"""


@dataclass(frozen=True)
class EmulatedDevice:
    """One device. pid: of the process whose end is its end."""

    name: str
    folder: Path
    address: str
    pid: int

    @property
    def key(self) -> Path:
        """The private key of its user."""
        return self.folder / "user_key"

    @property
    def user(self) -> str:
        """Who logs in there."""
        return USER

    @property
    def ssh(self) -> str:
        """As `kedge device add` takes it."""
        return f"{self.user}@{self.address}"

    def fingerprint(self) -> str:
        """Of its host key, as read on the device itself."""
        return _run(["ssh-keygen", "-lf", str(self.folder / "host_key.pub")]).split()[1]

    def first_process(self) -> int:
        """The process that is number 1 there, by its number here."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def inside(self, *command: str) -> list[str]:
        """A command line that runs a command there as root, without SSH."""
        ours = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wdns=/")
        return ["nsenter", "--target", str(self.first_process()), *ours, *command]


def devices_folder() -> Path:
    """Where devices' files are kept."""
    return state_dir() / "arm64"


def start(name: str, folder: Path | None = None, roots: Path | None = None, *, tied: bool = False) -> EmulatedDevice:
    """Start a device, a new one or one that was stopped; one that runs is left as it is.

    Args:
        folder: where devices' files are; None: `devices_folder()`.
        roots: where roots are kept; the root is made where there is none yet.
        tied: it ends with the thread that starts it, however that ends.

    Raises:
        UnavailableError: this machine cannot, or its sshd does not answer.
    """
    place = _place(name, folder)
    lacking = why_not()
    if lacking is not None:
        raise UnavailableError(lacking)
    root = make_root(folder=roots)
    place.mkdir(parents=True, exist_ok=True, mode=0o755)
    with _alone(place):
        running = _running(place)
        return running if running is not None else _start(name, place, root, _TIED if tied else ())


def _place(name: str, folder: Path | None) -> Path:
    """Where a device's files are: below the folder of devices, whatever it is called."""
    if not _NAME.fullmatch(name):
        raise UnavailableError(f"{name!r} cannot name a device: lower-case letters, digits and -")
    return (folder or devices_folder()) / name


def _start(name: str, place: Path, root: Path, before: Sequence[str]) -> EmulatedDevice:
    disk = _disk(place, root)
    files = place / ("upper" if disk.startswith("overlay") else "root")
    if not (place / "host_key").exists():
        _equip(place, files)
    with _cable() as number:
        host, address = (f"{_NETWORK}.{number // 64}.{number % 64 * 4 + end}" for end in (1, 2))
        child = subprocess.Popen(
            [
                *(*before, "unshare", "--mount", "--propagation", "private", "--pid", "--net", "--uts", "--ipc"),
                *("--fork", "--kill-child", "sh", "-ec", _INIT.format(disk=disk, name=name, address=address)),
            ],
            cwd=place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            if child.stdout.readline() != b"begun\n":
                child.wait(_STOP_S)
                raise UnavailableError(f"{name} does not begin: {child.stderr.read().decode(errors='replace').strip()}")
            plug = f"kedge-a{number}"
            ends = ["ip", "link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", str(child.pid)]
            for command in (
                ends,
                ["ip", "addr", "add", f"{host}/30", "dev", plug],
                ["ip", "link", "set", plug, "up"],
            ):
                _run(command)
            child.stdin.write(b"cable\n")
            child.stdin.close()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            child.stdout.close()
            child.stderr.close()
    _started[child.pid] = child
    made = EmulatedDevice(name, place, address, child.pid)
    (place / "device.json").write_text(json.dumps({"address": address, "pid": child.pid, "since": _since(child.pid)}))
    try:
        _wait(made, child)
    except BaseException:
        _kill(made.pid)
        raise
    return made


def _disk(place: Path, root: Path) -> str:
    """How its files are mounted: over the root that all share; or as a copy, where overlays find no ground."""
    for each in ("root", "upper", "work"):
        (place / each).mkdir(exist_ok=True)
    overlay = f"overlay -o lowerdir={root},upperdir={place}/upper,workdir={place}/work overlay"
    if not any((place / "root").iterdir()):
        tried = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f"mount -t {overlay} {place}/root"], capture_output=True, check=False
        )
        if tried.returncode == 0:
            return overlay
        # A container's own file system is an overlay already, and those do not stand on each other.
        partial = place / "root.partial"
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(mode=0o755)
        _run(["cp", "-a", "--reflink=auto", f"{root}/.", str(partial)])
        partial.rename(place / "root")
    return f"none -o bind {place}/root"


def _equip(place: Path, files: Path) -> None:
    """What is the device's own: its host key, and its user's authorised key. The host key gets its name last: until
    then the device is equipped anew.
    """
    for each in ("user_key", "host_key.new"):
        (place / each).unlink(missing_ok=True)
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / each)])
    ssh, home = files / "etc/ssh", files / "home" / USER
    for folder in (files / "etc", ssh, files / "home", home, home / ".ssh"):
        folder.mkdir(exist_ok=True, mode=0o755)
    shutil.copy2(place / "host_key.new", ssh / "ssh_host_ed25519_key")
    shutil.copy2(place / "host_key.new.pub", ssh / "ssh_host_ed25519_key.pub")
    shutil.copy2(place / "user_key.pub", home / ".ssh/authorized_keys")
    for path in (home, home / ".ssh", home / ".ssh/authorized_keys"):
        os.chown(path, _UID, _UID)
    (place / "host_key.new.pub").rename(place / "host_key.pub")
    (place / "host_key.new").rename(place / "host_key")


@contextmanager
def _cable() -> Iterator[int]:
    """The number of a cable that is not in use; nobody else takes one meanwhile."""
    with Path("/run/kedge-arm64.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = set(os.listdir("/sys/class/net"))
        yield next(number for number in range(_MOST) if f"kedge-a{number}" not in names)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _wait(device: EmulatedDevice, child: subprocess.Popen[bytes]) -> None:
    """Until its sshd says what it is."""
    end = time.monotonic() + _START_S
    while time.monotonic() < end and child.poll() is None:
        try:
            with socket.create_connection((device.address, 22), timeout=5) as tried:
                if tried.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    log = device.folder / "log"
    said = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
    raise UnavailableError(f"the sshd of {device.name} does not answer: {' / '.join(said) or 'no reason given'}")


def stop(name: str, folder: Path | None = None) -> bool:
    """End every process of a device; False where none ran. Its files stay. Raises as `start`, of its name."""
    place = _place(name, folder)
    if not place.is_dir():
        return False
    with _alone(place):
        running = _running(place)
        if running is not None:
            _kill(running.pid)
        return running is not None


def remove(name: str, folder: Path | None = None) -> bool:
    """Stop a device and remove its files; False where there is none. Raises as `start`, of its name."""
    place = _place(name, folder)
    if not place.is_dir():
        return False
    stop(name, folder)
    shutil.rmtree(place)
    return True


def find(name: str, folder: Path | None = None) -> EmulatedDevice | None:
    """A device that runs. Raises as `start`, of its name."""
    return _running(_place(name, folder))


def _running(place: Path) -> EmulatedDevice | None:
    try:
        body: Any = json.loads((place / "device.json").read_text())
        pid = int(body["pid"])
        # A number is given again; with the moment of its start it is one process.
        if _since(pid) != body["since"]:
            return None
        return EmulatedDevice(place.name, place, str(body["address"]), pid)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _since(pid: int) -> str:
    """The clock tick at which a process began: the 22nd field, the 20th after its name (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]


def _kill(pid: int) -> None:
    """End the device's first process; the kernel ends the others with it."""
    os.kill(pid, signal.SIGKILL)
    child = _started.pop(pid, None)
    if child is not None:
        child.wait(_STOP_S)
    end = time.monotonic() + _STOP_S
    with suppress(OSError):
        while _since(pid) and time.monotonic() < end:
            time.sleep(0.02)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One command at a time on a device."""
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
