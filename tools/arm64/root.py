"""A root of Debian for aarch64, made from Debian's own packages and kept in the user's cache.

debootstrap unpacks the packages; their scripts run under qemu's user emulation, which the kernel starts by binfmt_misc
for every program of another processor. Nothing of kedge is in it, and no secret: every device gets a host key of its
own.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kedge.config import cache_dir

__all__ = ["PACKAGES", "USER", "UnavailableError", "cached_root", "make_root", "roots", "why_not"]

USER = "kedge"
PACKAGES = ("python3", "openssh-server")
"""What kedge asks of a device, and no more."""
_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_UID = 1000
# Read with the packages: a root that was made by other rules is another root.
_LAYOUT = "1"
# Debian's own keys: nothing that they have not signed is unpacked.
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_RULES = (Path("/usr/lib/binfmt.d/qemu-aarch64.conf"), Path("/usr/share/qemu/binfmt.d/qemu-aarch64-static.conf"))
# Debian's postinst starts what it installs, where nobody forbids it: the kernel's network is the host's here.
_NO_SERVICES = "#!/bin/sh\nexit 101\n"
# PAM would ask files that root has set up for people; a device has one user, with a key. The first value counts.
_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
X11Forwarding no
MaxStartups 100
MaxSessions 100
"""

Note = Callable[[str], None]


class UnavailableError(Exception):
    """This machine cannot make or start such a device; the text says what it lacks."""


def roots() -> Path:
    """Where roots are kept."""
    return cache_dir() / "arm64"


def why_not() -> str | None:
    """What this machine lacks, and how to get it; None where it can. Registers qemu with the kernel where it is not."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root can make mounts, namespaces and a network for an emulated device"
    for tool, package in (
        ("debootstrap", "debootstrap"),
        ("gpgv", "gpgv"),
        ("unshare", "util-linux"),
        ("ip", "iproute2"),
        ("ssh-keygen", "openssh-client"),
    ):
        if shutil.which(tool) is None:
            return f"no {tool} on this machine (Debian: {package})"
    if not _KEYRING.is_file():
        return "no keys of Debian's packages on this machine (Debian: debian-archive-keyring)"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode != 0:
        return f"no namespaces of one's own on this machine: {tried.stderr.strip()[:200]}"
    if os.uname().machine == "aarch64":
        return None
    return _why_not_emulated()


def _why_not_emulated() -> str | None:
    try:
        if not (_BINFMT / "status").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "none", str(_BINFMT)], check=True, capture_output=True)
        if not any(_BINFMT.glob("qemu-aarch64*")):
            rule = next((path for path in _RULES if path.is_file()), None)
            if rule is None:
                return "no rule that starts qemu for programs of aarch64 (Debian: qemu-user-static)"
            (_BINFMT / "register").write_text(rule.read_text(encoding="ascii").strip(), encoding="ascii")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the kernel cannot be told to start qemu for programs of aarch64: {error}"
    entry = next(_BINFMT.glob("qemu-aarch64*")).read_text(encoding="ascii")
    # Opened when it was registered (F), the interpreter is found in every root, which has no qemu in it.
    if not entry.startswith("enabled") or "F" not in _flags(entry):
        return "qemu-aarch64 is registered without the flag F, or disabled (Debian: reinstall qemu-user-static)"
    return None


def _flags(entry: str) -> str:
    return next((line.partition(":")[2] for line in entry.splitlines() if line.startswith("flags:")), "")


def cached_root(packages: Sequence[str] = PACKAGES, folder: Path | None = None) -> Path | None:
    """The root with these packages, if it was made before."""
    found = _place(packages, folder)
    return found if found.is_dir() else None


def make_root(packages: Sequence[str] = PACKAGES, folder: Path | None = None, note: Note = lambda line: None) -> Path:
    """The root with these packages, made where there is none yet; takes minutes then.

    Args:
        folder: where roots are kept; None: `roots()`.
        note: told of each step.

    Raises:
        UnavailableError: this machine cannot make it, or a package cannot be had.
    """
    lacking = why_not()
    if lacking is not None:
        raise UnavailableError(lacking)
    place = _place(packages, folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():
            return place
        partial = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
        try:
            root = partial / "root"
            _bootstrap(root, packages, partial / "log", note)
            _settle(root)
            root.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return place


def _place(packages: Sequence[str], folder: Path | None) -> Path:
    key = hashlib.sha256("\n".join([_LAYOUT, _SUITE, _SSHD, *sorted(packages)]).encode()).hexdigest()[:16]
    return (folder or roots()) / f"{_SUITE}-{key}"


def _bootstrap(root: Path, packages: Sequence[str], log: Path, note: Note) -> None:
    """debootstrap in its two stages: packages are fetched and unpacked here, and set up in their own root."""
    note("fetching Debian's packages")
    more = f"--include={','.join(packages)}"
    checked = ["--force-check-gpg", f"--keyring={_KEYRING}"]
    first = ["debootstrap", *checked, "--arch=arm64", "--variant=minbase", more, "--foreign"]
    _run([*first, _SUITE, str(root), _MIRROR], log)
    (root / "usr/sbin/policy-rc.d").write_text(_NO_SERVICES)
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    # Nobody needs a root that a power cut left half made: it is made anew.
    (root / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    note("setting them up, under emulation")
    # In a mount namespace: what the scripts mount ends with them. In a network one: they fetch nothing.
    second = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "chroot", str(root)]
    _run([*second, "/debootstrap/debootstrap", "--second-stage"], log)


def _run(command: Sequence[str], log: Path) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    with log.open("ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, env=environment)
    if done.returncode != 0:
        said = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise UnavailableError(f"{command[0]} failed: {' / '.join(said)}")


def _settle(root: Path) -> None:
    """One user with a key to come, an sshd for it, and nothing that is to be a device's own."""
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/ssh/sshd_config.d/kedge.conf").write_text(_SSHD)
    (root / "etc/resolv.conf").write_text("")
    for name, line in (
        ("passwd", f"{USER}:x:{_UID}:{_UID}::/home/{USER}:/bin/sh"),
        ("group", f"{USER}:x:{_UID}:"),
        # '*' is a password nobody has; '!' would lock the account for keys too.
        ("shadow", f"{USER}:*:19000:0:99999:7:::"),
    ):
        with (root / "etc" / name).open("a") as out:
            out.write(f"{line}\n")
    home = root / "home" / USER
    home.mkdir(mode=0o755)
    os.chown(home, _UID, _UID)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
