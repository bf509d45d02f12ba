"""Keys, files of allowed signers and signatures as people make them: by ssh-keygen."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kedge.release.bundle import Release
from kedge_agent.formats.offer import Offer, Signed
from tests.support.environment import lacks

RELEASE, DOWNGRADE, ENGINE, AGENT = "kedge-release", "kedge-downgrade", "kedge-engine", "kedge-agent"
"""Namespaces of signatures."""


def ssh_keygen() -> str:
    """Skips where there is none."""
    found = shutil.which("ssh-keygen")
    if found is None:
        lacks("sshd", "no ssh-keygen on this machine (Debian: openssh-client)")
    return found


@dataclass(frozen=True)
class Key:
    """A key pair without a passphrase. public: as in the file, `ssh-ed25519 AAAA… comment`."""

    path: Path
    public: str

    @property
    def fingerprint(self) -> str:
        """`SHA256:…`."""
        said = subprocess.run([ssh_keygen(), "-lf", f"{self.path}.pub"], capture_output=True, text=True, check=True)
        return said.stdout.split()[1]


def make_key(folder: Path, name: str, kind: str = "ed25519") -> Key:
    path = folder / name
    subprocess.run([ssh_keygen(), "-q", "-t", kind, "-N", "", "-C", name, "-f", path], check=True)
    return Key(path, Path(f"{path}.pub").read_text().strip())


def allow(path: Path, signers: Iterable[tuple[str, Key] | tuple[str, Key, str]]) -> Path:
    """Write a file of allowed signers: principals, key, and options as ssh-keygen(1) has them."""
    lines = []
    for principals, key, *options in signers:
        lines.append(" ".join([principals, *options, key.public]))
    path.write_text("\n".join(lines) + "\n")
    return path


def sign(key: Key, document: bytes, namespace: str = RELEASE) -> bytes:
    """An armoured signature."""
    return subprocess.run(
        [ssh_keygen(), "-Y", "sign", "-q", "-f", key.path, "-n", namespace],
        input=document,
        capture_output=True,
        check=True,
    ).stdout


def signed(document: bytes, keys: Sequence[Key], namespace: str) -> Signed:
    return Signed(document, b"".join(sign(key, document, namespace) for key in keys))


def offer_of(
    release: Release, *keys: Key, namespace: str = RELEASE, downgrade: Signed | None = None, document: bytes = b""
) -> Offer:
    """An offer with the release's manifest signed by each key; `document`: signed in its place."""
    document = document or release.manifest_bytes
    return Offer(signatures=signed(document, keys, namespace).signatures, downgrade=downgrade)


def downgrade_of(
    release: Release,
    serial: int,
    *keys: Key,
    floor: int | None = None,
    from_floor: int = 100,
    namespace: str = DOWNGRADE,
) -> Signed:
    """The statement that this release is wanted though the device has had a later one, up to `from_floor`."""
    body = {
        "kedge": "downgrade",
        "model": release.manifest.model,
        "release": release.digest,
        "floor": release.manifest.version if floor is None else floor,
        "from": from_floor,
        "serial": serial,
    }
    return signed(json.dumps(body).encode(), keys, namespace)


def revoke(path: Path, *keys: Key) -> Path:
    """Write a key revocation list."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "keys"
        listed.write_text("".join(f"{key.public}\n" for key in keys))
        subprocess.run([ssh_keygen(), "-q", "-k", "-f", path, listed], check=True)
    return path
