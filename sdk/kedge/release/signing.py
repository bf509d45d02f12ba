"""Sign releases and statements with SSH keys that people have already, through ssh-keygen; verify them on the host."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from kedge_agent.formats.manifest import MANIFEST_NAME, ManifestError
from kedge_agent.formats.offer import MAX_SIGNATURES_BYTES, Signed
from kedge_agent.formats.sshkeygen import Finding, Signers, keygen, keygen_problem, verify_signatures
from kedge_agent.formats.sshsig import (
    DOWNGRADE_NAMESPACE,
    MAX_SIGNATURES,
    RELEASE_NAMESPACE,
    Signature,
    SignatureError,
    split_signatures,
)
from kedge_agent.formats.statements import Downgrade, parse_downgrade, statement_bytes

from ..errors import BadInputError, IntegrityError
from .bundle import DOWNGRADE, Release, write_side

__all__ = ["check_signatures", "downgrade", "sign", "sign_document", "signatures_of", "state_downgrade"]

# A passphrase and a touch take the time that they take.
_TIMEOUT_S = 600.0
_KEY = re.compile(rb"-----BEGIN |(ssh|ecdsa|sk)-")


def sign_document(document: bytes, key: Path, namespace: str, signatures: bytes = b"") -> bytes:
    """Sign a document; returns its signatures, armoured: those that there were, and this one in the place of the key's.

    Args:
        key: a private key file, or the .pub file of a key that ssh-agent or a FIDO token holds. Its passphrase, or a
            touch of the token, is asked for on the terminal.
        signatures: that the document has already.

    Raises:
        BadInputError: ssh-keygen could not sign; where standard error is a terminal it has said why there.
        IntegrityError: the signatures that were there cannot be read.
    """
    own = _split(_signed_by(document, key, namespace))
    if len(own) != 1 or own[0].namespace != namespace:
        raise BadInputError(
            f"ssh-keygen made no signature with {key}", hint="give a plain key: no certificate is taken"
        )
    others = [each for each in _split(signatures) if (each.key, each.namespace) != (own[0].key, namespace)]
    if len(others) + 1 > MAX_SIGNATURES:
        raise BadInputError(f"there are {MAX_SIGNATURES} signatures already", hint="remove some that nobody needs")
    together = b"".join(each.armour for each in (*others, own[0]))
    if len(together) > MAX_SIGNATURES_BYTES:
        raise BadInputError(f"the signatures take more than {MAX_SIGNATURES_BYTES} bytes", hint="sign with fewer keys")
    return together


def sign(release: Release, key: Path) -> Signature:
    """Sign a release: its manifest, which covers every byte. The signature is added beside it; the digest stays.

    Returns:
        The signature that was added.

    Raises:
        KedgeError: as `sign_document`; the folder cannot be written.
    """
    signatures_of(release)
    signatures = sign_document(release.manifest_bytes, key, RELEASE_NAMESPACE, release.signatures)
    write_side(release.folder, MANIFEST_NAME, Signed(release.manifest_bytes, signatures))
    return _split(signatures)[-1]


def signatures_of(release: Release) -> tuple[Signature, ...]:
    """The signatures of a release, not verified.

    Raises:
        IntegrityError: they cannot be read.
    """
    return _split(release.signatures, _signatures_path(release))


def check_signatures(release: Release, signers: Path, revoked: Path | None = None) -> tuple[Finding, ...]:
    """Verify the signatures of a release as a device with these signers does.

    Raises:
        IntegrityError: they cannot be read, or ssh-keygen cannot run.
    """
    if not signers.is_file():
        raise BadInputError(f"{signers} is no file of allowed signers", hint="docs/signing.md shows one")
    try:
        return verify_signatures(
            release.manifest_bytes,
            release.signatures,
            RELEASE_NAMESPACE,
            release.manifest.model,
            Signers(signers.absolute(), revoked),
        )
    except SignatureError as error:
        raise _unreadable(error, _signatures_path(release)) from error


def downgrade(release: Release, key: Path | None, from_floor: int, last_serial: int = 0) -> Signed:
    """State that this release is wanted although a device may have had a later version; it counts once on each.

    Args:
        key: signs the statement; None leaves it unsigned, which does for devices that ask for no signatures.
        from_floor: the version that a device may have been at. One that has been further does not take the statement,
            so that it is worth little once it is old.
        last_serial: of the last downgrade that the device took. The serial is the clock's, and higher than this one.

    Raises:
        KedgeError: as `sign_document`.
    """
    manifest = release.manifest
    highest = max(from_floor, manifest.version)
    serial = max(int(time.time()), last_serial + 1)
    document = statement_bytes(Downgrade(manifest.model, release.digest, manifest.version, highest, serial))
    if key is None:
        return Signed(document)
    return Signed(document, sign_document(document, key, DOWNGRADE_NAMESPACE))


def state_downgrade(release: Release, key: Path, from_floor: int) -> Signed:
    """Put a signed `downgrade` beside a release; one that lies there for it already gets this signature too.

    Raises:
        BadInputError: the one that lies there is from another version, or is none.
        KedgeError: as `sign_document`; the folder cannot be written.
    """
    there = release.offer().downgrade
    if there is None:
        signed = downgrade(release, key, from_floor)
    else:
        _require_same(release, there, from_floor)
        _split(there.signatures, release.folder / f"{DOWNGRADE}.sig")
        signatures = sign_document(there.document, key, DOWNGRADE_NAMESPACE, there.signatures)
        signed = Signed(there.document, signatures)
    write_side(release.folder, DOWNGRADE, signed)
    return signed


def _require_same(release: Release, there: Signed, from_floor: int) -> None:
    anew = f"to state it anew, remove {DOWNGRADE} and {DOWNGRADE}.sig"
    try:
        stated = parse_downgrade(there.document)
    except ManifestError as error:
        raise BadInputError(f"{release.folder / DOWNGRADE}: {error}", hint=anew) from error
    if stated.from_floor != max(from_floor, release.manifest.version):
        raise BadInputError(
            f"{release.folder / DOWNGRADE} is from version {stated.from_floor}, not {from_floor}", hint=anew
        )


def _signatures_path(release: Release) -> Path:
    return release.folder / f"{MANIFEST_NAME}.sig"


def _split(data: bytes, path: Path | None = None) -> tuple[Signature, ...]:
    try:
        return split_signatures(data)
    except SignatureError as error:
        raise _unreadable(error, path) from error


def _unreadable(error: SignatureError, path: Path | None) -> IntegrityError:
    if path is None:
        return IntegrityError(str(error), hint="sign again: kedge release sign")
    return IntegrityError(f"{path}: {error}", hint="remove that file, and sign again: kedge release sign")


def _signed_by(document: bytes, key: Path, namespace: str) -> bytes:
    program, problem = keygen(), keygen_problem()
    if program is None or problem is not None:
        what, hint = problem or ("ssh-keygen is not installed", "")
        raise BadInputError(what, hint=hint)
    if not key.is_file():
        raise BadInputError(f"there is no key {key}", hint="make one: ssh-keygen -t ed25519 -f KEY")
    with key.open("rb") as file:
        if _KEY.match(file.read(64)) is None:
            raise BadInputError(
                f"{key} is no SSH key", hint="give the file of a key, or make one: ssh-keygen -t ed25519 -f KEY"
            )
    command = [program, "-q", "-Y", "sign", "-f", str(key), "-n", namespace]
    try:
        # A terminal stays its error output: it asks there for a touch.
        said = None if os.isatty(2) else subprocess.PIPE
        done = subprocess.run(
            command, input=document, stdout=subprocess.PIPE, stderr=said, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInputError(f"ssh-keygen could not sign with {key}: {error}") from error
    if done.returncode != 0:
        raise _not_signed(key, done.stderr or b"")
    return done.stdout


def _not_signed(key: Path, said: bytes) -> BadInputError:
    """Why ssh-keygen did not sign; `said` is empty where it has said so on a terminal."""
    if b"incorrect passphrase" in said:
        return BadInputError(f"the passphrase is not that of {key}", hint="run the command again")
    if b"UNPROTECTED" in said:
        return BadInputError(f"{key} is a file that others may read: it is not used", hint=f"chmod 600 {key}")
    lines = said.decode("utf-8", "replace").strip().splitlines()
    hint = "of a key in ssh-agent give the .pub file, and see that ssh-add -L lists it"
    if key.suffix != ".pub":
        hint = f"see whether it is a key that can be used: ssh-keygen -y -f {key}"
    return BadInputError(f"ssh-keygen could not sign with {key}" + (f": {lines[-1][:200]}" if lines else ""), hint=hint)
