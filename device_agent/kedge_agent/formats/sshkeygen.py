"""`ssh-keygen -Y verify`: whether signatures hold, and if not, why. Used by the device and by the host.

OpenSSH does the cryptography and reads the file of allowed signers; both are its own, documented in ssh-keygen(1).
"""

from __future__ import annotations

import base64
import contextlib
import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .sshsig import Signature, SignatureError, split_signatures

__all__ = ["Finding", "Signers", "keygen", "keygen_problem", "listed", "revocation", "verify_signatures"]

# Not the user's own PATH: which program judges is not for the sender's shell to say.
_PATH = "/usr/bin:/bin:/usr/local/bin:/opt/homebrew/bin"
_TIMEOUT_S = 30.0
_MAX_OUTPUT = 64 * 1024
_YEAR_2020_S = 1577836800
_MAX_REVOKED_BYTES = 1 << 20

_GOOD = re.compile(rb'Good "[^"]*" signature for .* with \S+ key (SHA256:[A-Za-z0-9+/]{43})')


@dataclass(frozen=True)
class Signers:
    """Whose signatures count. revoked: keys that count no more; passed over where the file does not exist."""

    allowed: Path
    revoked: Path | None = None


@dataclass(frozen=True)
class Finding:
    """What came of one signature: problem is None where it holds, else one line that says what is wrong; hint."""

    fingerprint: str
    problem: str | None = None
    hint: str = ""


def keygen() -> str | None:
    """The absolute path of ssh-keygen, or None."""
    return shutil.which("ssh-keygen", path=_PATH)


def keygen_problem() -> tuple[str, str] | None:
    """What keeps ssh-keygen from verifying here, and what to do; None: nothing is known to."""
    if keygen() is None:
        return "ssh-keygen is not installed", "install OpenSSH's client: apt install openssh-client"
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        # Its very first step is to look for its user; without one it does nothing at all.
        return (
            f"ssh-keygen refuses to run for user {os.getuid()}, who has no entry in /etc/passwd",
            "give the user an entry, or run the agent as one who has",
        )
    return None


def verify_signatures(
    document: bytes, signatures: bytes, namespace: str, principal: str, signers: Signers
) -> tuple[Finding, ...]:
    """Verify each signature of a document; which keys count is for the caller to say.

    Args:
        signatures: armoured, one after another.
        principal: who must be allowed to sign: the name of a model.

    Raises:
        SignatureError: the signatures are not readable, or ssh-keygen cannot run.
    """
    return tuple(_judged(document, each, namespace, principal, signers) for each in split_signatures(signatures))


def listed(revoked: Path) -> bool:
    """Whether there is a list of revoked keys. One that cannot even be looked for is there, and so is a dead link.

    What is there and cannot be read makes ssh-keygen refuse every key.
    """
    try:
        revoked.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def revocation(document: bytes, signature: Signature, namespace: str, principal: str, revoked: Path) -> Finding | None:
    """What keeps a signature that held once from counting still: its key is revoked. None: it does count.

    Neither the clock nor a file of allowed signers is asked.

    Raises:
        SignatureError: ssh-keygen cannot run.
    """
    anyone = f"* {signature.key_type} {base64.b64encode(signature.key).decode()}\n".encode()
    with _in_memory(anyone) as handle:
        signers = Signers(Path(f"/dev/fd/{handle}"), revoked)
        asked = ["verify", "-I", principal, "-n", namespace]
        if _run([*asked, "-r", str(revoked)], document, signature, signers, handle).returncode == 0:
            return None
        done = _run(asked, document, signature, signers, handle)
        if done.returncode == 0:
            return _revoked(signature, revoked)
    return Finding(signature.fingerprint, f"the signature by {signature.fingerprint} does not hold any more")


def _judged(document: bytes, signature: Signature, namespace: str, principal: str, signers: Signers) -> Finding:
    key = signature.fingerprint
    if signature.namespace != namespace:
        return Finding(
            key,
            f"the signature by {key} is for {signature.namespace[:60]}, not for {namespace}",
            "a signature holds for what it was made for alone: sign with kedge, or with ssh-keygen -Y sign -n "
            + namespace,
        )
    if not signature.touched:
        # sshd asks for a touch unless it is told otherwise; ssh-keygen -Y verify does not, and a program that has taken
        # over the host could have the token sign without one.
        return Finding(key, f"the token with {key} signed without being touched", "sign again, and touch it")
    asked = ["-I", principal, "-n", namespace]
    revoked = signers.revoked if signers.revoked is not None and listed(signers.revoked) else None
    done = _run(["verify", *asked, *(["-r", str(revoked)] if revoked else [])], document, signature, signers)
    good = _GOOD.search(done.stdout)
    if done.returncode == 0 and good is not None:
        if good.group(1).decode() != key:
            # The same key in two encodings would count as two.
            return Finding(key, "a signature holds its key in an unusual encoding", "sign with ssh-keygen")
        return Finding(key)
    if revoked is not None and _run(["verify", *asked], document, signature, signers).returncode == 0:
        return _revoked(signature, revoked)
    return _explained(signature, done.stderr.decode("utf-8", "replace"), namespace, principal, signers)


def _revoked(signature: Signature, path: Path) -> Finding:
    key = signature.fingerprint
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            data = file.read(_MAX_REVOKED_BYTES)
        if data.startswith(b"SSHKRL\n\0") or base64.b64encode(signature.key) in data:
            return Finding(key, f"the key {key} is revoked ({path})", "sign with another key")
    return Finding(
        key,
        f"{path} cannot be read as a list of revoked keys",
        "mend it on the device: one public key a line, or a key revocation list of ssh-keygen -k",
    )


def _explained(signature: Signature, said: str, namespace: str, principal: str, signers: Signers) -> Finding:
    key = signature.fingerprint
    if "incorrect signature" in said:
        return Finding(
            key,
            f"the signature by {key} is not of these bytes",
            "what was signed was changed since: sign it again, or get it again from whoever signed it",
        )
    if "not permitted for use in signature namespace" in said:
        return Finding(key, f"the key {key} may not sign for {namespace}", f"see its namespaces in {signers.allowed}")
    for phrase, what in (("key has expired", "has expired"), ("not yet valid", "is not valid yet")):
        if phrase in said:
            now = time.time()
            clock = time.strftime("%Y-%m-%d %H:%M", time.gmtime(now))
            hint = f"the clock says {clock} UTC; sign with a key that is valid, or change {signers.allowed}"
            if now < _YEAR_2020_S:
                hint = f"the clock says {clock}, which is surely wrong: set it, then push again"
            return Finding(key, f"the key {key} {what}", hint)
    others = _run(["find-principals"], b"", signature, signers)
    known = b", ".join(others.stdout.split()).decode("utf-8", "replace")[:200] if others.returncode == 0 else ""
    if known:
        return Finding(
            key, f"the key {key} may sign {known}, not {principal}", f"its principals stand in {signers.allowed}"
        )
    line = next((each for each in said.splitlines() if str(signers.allowed) in each), "")
    return Finding(
        key,
        f"the key {key} is not one of {signers.allowed}" + (f" ({line[:200]})" if line else ""),
        f"if it may sign, add the line there: {principal} {signature.key_type} AAAA…, as its .pub file has it",
    )


def _run(
    arguments: list[str], document: bytes, signature: Signature, signers: Signers, *handles: int
) -> subprocess.CompletedProcess[bytes]:
    program = keygen()
    if program is None:
        raise SignatureError("ssh-keygen is not installed")
    operation, *rest = arguments
    with _in_memory(signature.armour) as handle:
        command = [program, "-Y", operation, "-f", str(signers.allowed), "-s", f"/dev/fd/{handle}", *rest]
        try:
            done = subprocess.run(
                command,
                input=document,
                capture_output=True,
                check=False,
                timeout=_TIMEOUT_S,
                pass_fds=(handle, *handles),
                env={**os.environ, "LC_ALL": "C"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SignatureError(f"ssh-keygen cannot be run: {error}"[:300]) from error
    if b"No user exists" in done.stderr:
        raise SignatureError("ssh-keygen refuses to run for a user without an entry in /etc/passwd")
    return subprocess.CompletedProcess(command, done.returncode, done.stdout[:_MAX_OUTPUT], done.stderr[:_MAX_OUTPUT])


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[int]:
    """A file without a name or a disk: a full one must not keep a release from being judged."""
    handle = os.memfd_create("kedge-signature", os.MFD_CLOEXEC)
    try:
        os.write(handle, data)
        os.lseek(handle, 0, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)
