"""Signatures by real ssh-keygen: made on the host, judged as a device judges them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import pty
import re
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from kedge.errors import BadInputError, IntegrityError
from kedge.release.bundle import Release, open_release
from kedge.release.signing import check_signatures, downgrade, sign, sign_document, signatures_of, state_downgrade
from kedge_agent.errors import AgentError
from kedge_agent.formats.offer import AGENT, Offer, Signed
from kedge_agent.formats.reader import ManifestError
from kedge_agent.formats.sshsig import (
    AGENT_NAMESPACE,
    DOWNGRADE_NAMESPACE,
    ENGINE_NAMESPACE,
    MAX_SIGNATURES,
    RELEASE_NAMESPACE,
    SignatureError,
    fingerprint,
    split_signatures,
)
from kedge_agent.formats.statements import Downgrade, parse_downgrade, parse_engine_statement, statement_bytes
from kedge_agent.store.import_archive import import_archive
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, write_state
from kedge_agent.store.releases import read_acceptance
from kedge_agent.store.rules import OFF, ReleaseRules
from kedge_agent.store.signatures import describe, require_standing, signers_binding, signing_problem, verify
from kedge_agent.store.signers import Verdict, judge, judge_agent
from tests.support import keys as support
from tests.support.environment import lacks
from tests.support.keys import Key, allow, make_key, revoke
from tests.unit.test_archive import archived, released

KINDS = ("ed25519", "ecdsa", "rsa")
DOCUMENT = b'{"any": "document"}\n'


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return {kind: make_key(folder, kind, kind) for kind in KINDS} | {"other": make_key(folder, "other")}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return released(tmp_path / "net.release")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


def rules(tmp_path: Path, *allowed: tuple[str, Key] | tuple[str, Key, str], **options: Any) -> ReleaseRules:
    """What a device with these allowed signers asks for."""
    path = allow(tmp_path / "allowed_signers", allowed)
    return ReleaseRules(allowed_signers=path, revoked_keys=tmp_path / "revoked", **options)


def refusal(asked: ReleaseRules, signatures: bytes, namespace: str = RELEASE_NAMESPACE) -> AgentError:
    with pytest.raises(AgentError) as caught:
        verify(asked, DOCUMENT, signatures, namespace, "net")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


# --- the format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_signature_tells_its_key_and_what_it_is_for(keys: dict[str, Key], kind: str) -> None:
    data = sign_document(DOCUMENT, keys[kind].path, RELEASE_NAMESPACE)
    (found,) = split_signatures(data)
    assert found.fingerprint == keys[kind].fingerprint
    assert found.namespace == RELEASE_NAMESPACE
    assert found.armour == data
    assert base64.b64encode(found.key).decode() in keys[kind].public


def test_blocks_may_stand_apart_and_nothing_else_may_stand_between(keys: dict[str, Key]) -> None:
    data = sign_document(DOCUMENT, keys["ed25519"].path, RELEASE_NAMESPACE)
    assert len(split_signatures(b"\n \n" + data + b"\r\n\n" + data.replace(b"\n", b"\r\n"))) == 2
    assert split_signatures(b"") == split_signatures(b" \n") == ()
    for wrong in (b"x" + data, data + b"x", data[:-20], data + b"\0", data.replace(b"SSH", b"PGP")):
        with pytest.raises(SignatureError):
            split_signatures(wrong)
    with pytest.raises(SignatureError, match="more than 16"):
        split_signatures(data * (MAX_SIGNATURES + 1))
    with pytest.raises(SignatureError, match="limit"):
        split_signatures(data * 1000)


def armoured(data: bytes) -> bytes:
    return (
        b"-----BEGIN SSH SIGNATURE-----\n"
        + base64.encodebytes(data).replace(b"\n", b"")
        + b"\n-----END SSH SIGNATURE-----\n"
    )


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def blob(
    *,
    magic: bytes = b"SSHSIG",
    version: int = 1,
    key: bytes = string(b"ssh-ed25519") + string(b"k" * 32),
    namespace: bytes = b"kedge-release",
    algorithm: bytes = b"sha512",
    signature: bytes = string(b"ssh-ed25519") + string(b"s" * 64),
    rest: bytes = b"",
) -> bytes:
    parts = (key, namespace, b"", algorithm, signature)
    return magic + struct.pack(">I", version) + b"".join(map(string, parts)) + rest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (blob(magic=b"SSHSIX"), "not SSHSIG"),
        (blob(version=2), "version 2"),
        (blob(algorithm=b"md5"), "neither sha256 nor sha512"),
        (blob(signature=b""), "as long as"),
        (blob(rest=b"x"), "as long as"),
        (blob()[:-1], "truncated"),
        (blob()[:12], "truncated"),
        (blob(key=b"\xff\xff\xff\xff"), "truncated"),
        (blob(namespace=b""), "unreadably"),
        (blob(namespace="ü".encode()), "unreadably"),
        (blob(key=string(b"ssh-ed25519-cert-v01@openssh.com") + string(b"k")), "certificate"),
        (b"", "no armoured|not SSHSIG"),
    ],
)
def test_a_structure_that_is_none_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        split_signatures(armoured(data))


def test_the_structure_that_those_are_made_of_is_read() -> None:
    (found,) = split_signatures(armoured(blob()))
    assert found.fingerprint == fingerprint(string(b"ssh-ed25519") + string(b"k" * 32))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), at=st.integers(0, 120), value=st.integers(0, 255))
def test_whatever_arrives_is_read_or_refused(data: bytes, at: int, value: int) -> None:
    changed = bytearray(blob())
    changed[at % len(changed)] = value
    for each in (data, armoured(data), armoured(bytes(changed)), armoured(blob())[: at * 2]):
        try:
            found = split_signatures(each)
        except SignatureError:
            continue
        assert len(found) <= MAX_SIGNATURES


# --- signing on the host ---------------------------------------------------------------------------------------------


def test_signing_changes_neither_the_digest_nor_what_is_verified(release: Release, keys: dict[str, Key]) -> None:
    for kind in KINDS:
        assert sign(release, keys[kind].path).fingerprint == keys[kind].fingerprint
    again = open_release(release.folder)
    again.verify()
    assert again.digest == release.digest
    assert [each.fingerprint for each in signatures_of(again)] == [keys[kind].fingerprint for kind in KINDS]
    assert again.offer().signatures == again.signatures


def test_a_key_signs_once_and_its_older_signature_goes(release: Release, keys: dict[str, Key]) -> None:
    for name in ("ed25519", "other", "ed25519"):
        sign(release, keys[name].path)
    assert [each.fingerprint for each in signatures_of(release)] == [
        keys["other"].fingerprint,
        keys["ed25519"].fingerprint,
    ]


def test_what_cannot_sign_is_told_and_leaves_the_signatures(
    release: Release, keys: dict[str, Key], tmp_path: Path
) -> None:
    sign(release, keys["ed25519"].path)
    before = release.signatures
    (tmp_path / "rubbish").write_text("no key")
    for path, message in ((tmp_path / "none", "there is no key"), (tmp_path / "rubbish", "is no SSH key")):
        with pytest.raises(BadInputError, match=message):
            sign(release, path)
    assert release.signatures == before
    (release.folder / "manifest.json.sig").write_text("these are no signatures")
    with pytest.raises(IntegrityError):
        sign(release, keys["ed25519"].path)


@pytest.fixture
def ssh_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    try:
        said = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        lacks("sshd", "no ssh-agent on this machine (Debian: openssh-client)")
    found = dict(re.findall(r"(SSH_\w+)=([^;]+)", said))
    monkeypatch.setenv("SSH_AUTH_SOCK", found["SSH_AUTH_SOCK"])
    try:
        yield
    finally:
        os.kill(int(found["SSH_AGENT_PID"]), signal.SIGTERM)


@pytest.mark.usefixtures("ssh_agent")
def test_a_key_that_only_ssh_agent_has_signs_by_its_public_half(release: Release, tmp_path: Path) -> None:
    key = make_key(tmp_path, "held")
    subprocess.run(["ssh-add", "-q", key.path], check=True, stderr=subprocess.DEVNULL)
    key.path.unlink()
    public = tmp_path / "held.pub"
    assert sign(release, public).fingerprint == key.fingerprint
    subprocess.run(["ssh-add", "-q", "-d", public], check=True, stderr=subprocess.DEVNULL)
    with pytest.raises(BadInputError, match="could not sign") as caught:
        sign(release, public)
    assert "ssh-add -L" in caught.value.hint


def test_a_passphrase_is_asked_for_on_the_terminal(release: Release, tmp_path: Path) -> None:
    key = make_key(tmp_path, "locked")
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", key.path], check=True, stdout=subprocess.DEVNULL
    )
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("SSH_AUTH_SOCK", None)
        try:
            sign(release, key.path)
            os._exit(0)
        finally:
            os._exit(1)
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        said = b""
        while b"passphrase" not in said:
            said += screen.read(1024)
        screen.write(b"open sesame\n")
        with contextlib.suppress(OSError):
            while screen.read(1024):
                pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [each.fingerprint for each in signatures_of(release)] == [key.fingerprint]


def test_a_signature_of_a_fido_token_holds_where_somebody_touched_it(tmp_path: Path) -> None:
    """As a token makes it (PROTOCOL.u2f of OpenSSH): of the application, flags, a counter, the hash of the message."""
    token = Ed25519PrivateKey.generate()
    public = token.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    kind, application = b"sk-ssh-ed25519@openssh.com", b"ssh:"
    key = string(kind) + string(public) + string(application)
    message = b"SSHSIG" + b"".join(
        map(string, (RELEASE_NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(DOCUMENT).digest()))
    )
    touched = b"\x01" + struct.pack(">I", 7)
    told = hashlib.sha256(application).digest() + touched + hashlib.sha256(message).digest()
    signature = armoured(blob(key=key, signature=string(kind) + string(token.sign(told)) + touched))
    line = Key(tmp_path, f"{kind.decode()} {base64.b64encode(key).decode()} token")
    assert verify(rules(tmp_path, ("net", line)), DOCUMENT, signature, RELEASE_NAMESPACE, "net") == (fingerprint(key),)
    told = told[:32] + b"\x00" + told[33:]
    untouched = armoured(blob(key=key, signature=string(kind) + string(token.sign(told)) + b"\x00" + touched[1:]))
    assert "without being touched" in refusal(rules(tmp_path, ("net", line)), untouched).message
    claimed = armoured(blob(key=key, signature=string(kind) + string(token.sign(told)) + touched))
    assert "not of these bytes" in refusal(rules(tmp_path, ("net", line)), claimed).message


def test_a_certificate_is_not_taken(keys: dict[str, Key], tmp_path: Path) -> None:
    key = make_key(tmp_path, "certified")
    authority = keys["other"]
    subprocess.run(["ssh-keygen", "-q", "-s", authority.path, "-I", "me", "-n", "net", f"{key.path}.pub"], check=True)
    (tmp_path / "plain.pub").write_text(key.public)
    # ssh-keygen signs with the certificate where it is named; a device that trusts its authority takes it for no key.
    done = subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", f"{key.path}-cert.pub", "-n", RELEASE_NAMESPACE],
        input=DOCUMENT,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        with pytest.raises(SignatureError, match="certificate"):
            split_signatures(done.stdout)
    asked = rules(tmp_path, ("net", authority, "cert-authority"))
    assert "is not one of" in refusal(asked, support.sign(key, DOCUMENT)).message


def test_the_host_verifies_as_a_device_does(release: Release, keys: dict[str, Key], tmp_path: Path) -> None:
    sign(release, keys["rsa"].path)
    sign(release, keys["other"].path)
    found = check_signatures(release, allow(tmp_path / "signers", [("net", keys["rsa"])]))
    assert [each.problem is None for each in found] == [True, False]
    with pytest.raises(BadInputError, match="no file of allowed signers"):
        check_signatures(release, tmp_path / "none")


# --- judging on the device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_with_a_good_signature_is_taken_and_it_is_recorded_whose(
    release: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path, kind: str
) -> None:
    sign(release, keys[kind].path)
    asked = rules(tmp_path, ("net", keys[kind]), ("other-*", keys["other"]))
    verdict = judge(layout, asked, release.manifest_bytes, release.offer())
    assert verdict == Verdict(signed=True, keys=(keys[kind].fingerprint,), threshold=1)
    assert json.loads(json.dumps(verdict.to_json()))["keys"] == [keys[kind].fingerprint]


def test_keys_are_counted_and_not_names_lines_or_signatures(keys: dict[str, Key], tmp_path: Path) -> None:
    one, two = support.sign(keys["ed25519"], DOCUMENT), support.sign(keys["rsa"], DOCUMENT)
    asked = rules(tmp_path, ("net", keys["ed25519"]), ("n*", keys["ed25519"]), ("net", keys["rsa"]), threshold=2)
    assert "1 of the 2 distinct keys" in refusal(asked, one + one).message
    assert len(verify(asked, DOCUMENT, one + two + one, RELEASE_NAMESPACE, "net")) == 2
    assert "asks for 2" in refusal(asked, b"").message


def test_a_model_may_ask_for_more_than_others(keys: dict[str, Key], tmp_path: Path) -> None:
    one = support.sign(keys["ed25519"], DOCUMENT)
    asked = rules(tmp_path, ("*", keys["ed25519"]), thresholds={"net": 2})
    assert "1 of the 2" in refusal(asked, one).message
    assert verify(asked, DOCUMENT, one, RELEASE_NAMESPACE, "another")


def test_one_key_in_two_encodings_does_not_count_twice(keys: dict[str, Key], tmp_path: Path) -> None:
    """OpenSSH takes an RSA key whose numbers begin with superfluous zeros; its fingerprint as sent is another one."""
    plain = support.sign(keys["rsa"], DOCUMENT)
    (found,) = split_signatures(plain)
    kind, rest = found.key[: 4 + 7], found.key[4 + 7 :]
    exponent = struct.unpack(">I", rest[:4])[0]
    longer = kind + string(b"\0" * 3 + rest[4 : 4 + exponent]) + rest[4 + exponent :]
    assert longer != found.key
    whole = base64.b64decode(b"".join(plain.split(b"\n")[1:-2]))
    forged = armoured(whole.replace(string(found.key), string(longer)))
    (other,) = split_signatures(forged)
    assert other.fingerprint != found.fingerprint
    asked = rules(tmp_path, ("net", keys["rsa"]), threshold=2)
    error = refusal(asked, plain + forged)
    assert "unusual encoding" in error.message


def test_each_refusal_says_which_it_is(keys: dict[str, Key], tmp_path: Path) -> None:
    key, other = keys["ed25519"], keys["other"]
    good = support.sign(key, DOCUMENT)
    told = {
        "missing": refusal(rules(tmp_path, ("net", key)), b""),
        "wrong": refusal(rules(tmp_path, ("net", key)), support.sign(key, b"another document")),
        "namespace": refusal(rules(tmp_path, ("net", key)), support.sign(key, DOCUMENT, ENGINE_NAMESPACE)),
        "not for this": refusal(rules(tmp_path, ("net", key, f'namespaces="{ENGINE_NAMESPACE}"')), good),
        "other model": refusal(rules(tmp_path, ("speech", key)), good),
        "nobody": refusal(rules(tmp_path, ("net", other)), good),
        "expired": refusal(rules(tmp_path, ("net", key, 'valid-before="20200101"')), good),
        "early": refusal(rules(tmp_path, ("net", key, 'valid-after="21000101"')), good),
        "few": refusal(rules(tmp_path, ("net", key), threshold=2), good),
    }
    assert {each.kind for each in told.values()} == {"integrity"}
    for name, part in {
        "missing": "no signature came",
        "wrong": "not of these bytes",
        "namespace": "is for kedge-engine, not for kedge-release",
        "not for this": "may not sign for kedge-release",
        "other model": "may sign speech, not net",
        "nobody": "is not one of",
        "expired": "has expired",
        "early": "is not valid yet",
        "few": "1 of the 2",
    }.items():
        assert part in told[name].message
    assert len({each.message for each in told.values()}) == len(told)
    assert "clock" in told["early"].hint


def test_a_clock_before_2020_is_named_as_the_cause(
    keys: dict[str, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 3600.0)
    asked = rules(tmp_path, ("net", keys["ed25519"], 'valid-after="21000101"'))
    error = refusal(asked, support.sign(keys["ed25519"], DOCUMENT))
    assert "1970-01-01" in error.hint
    assert "surely wrong" in error.hint


def test_a_revoked_key_signs_nothing(keys: dict[str, Key], tmp_path: Path) -> None:
    asked = rules(tmp_path, ("net", keys["ed25519"]), ("net", keys["rsa"]))
    good = support.sign(keys["ed25519"], DOCUMENT)
    assert verify(asked, DOCUMENT, good, RELEASE_NAMESPACE, "net")
    revoke(asked.revoked_keys, keys["ed25519"])
    assert "is revoked" in refusal(asked, good).message
    asked.revoked_keys.write_text(keys["ed25519"].public + "\n")
    assert "is revoked" in refusal(asked, good).message
    assert verify(asked, DOCUMENT, good + support.sign(keys["rsa"], DOCUMENT), RELEASE_NAMESPACE, "net") == (
        keys["rsa"].fingerprint,
    )
    asked.revoked_keys.write_text("rubbish")
    assert "cannot be read" in refusal(asked, good).message


def test_without_the_mode_nothing_is_verified_and_nothing_is_called_signed(
    release: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    sign(release, keys["ed25519"].path)
    for asked in (
        ReleaseRules(allowed_signers=tmp_path / "none"),
        rules(tmp_path, ("net", keys["other"]), signatures=OFF),
    ):
        for offer in (release.offer(), Offer(), Offer(signatures=b"rubbish")):
            assert judge(layout, asked, release.manifest_bytes, offer) == Verdict(signed=False)
        assert signing_problem(asked) is None
        assert signers_binding(asked) is None


def test_what_is_offered_as_something_else_is_refused(
    release: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    asked = rules(tmp_path, ("*", keys["ed25519"]))
    as_agent = Offer(AGENT, support.sign(keys["ed25519"], release.manifest_bytes, AGENT_NAMESPACE))
    with pytest.raises(AgentError, match="no release"):
        judge(layout, asked, release.manifest_bytes, as_agent)
    assert judge_agent(asked, release.manifest_bytes, as_agent).keys == (keys["ed25519"].fingerprint,)
    as_release = Offer(signatures=support.sign(keys["ed25519"], release.manifest_bytes))
    with pytest.raises(AgentError, match="no agent"):
        judge_agent(asked, release.manifest_bytes, as_release)
    with pytest.raises(AgentError, match="not for kedge-agent"):
        judge_agent(asked, release.manifest_bytes, replace(as_release, kind=AGENT))
    assert judge_agent(ReleaseRules(signatures=OFF), b"{}", Offer(AGENT)) == Verdict(signed=False)


# --- what keeps signatures from being verified, or from binding anybody ----------------------------------------------


def test_signers_that_cannot_be_read_let_nobody_in(keys: dict[str, Key], tmp_path: Path) -> None:
    asked = ReleaseRules(signatures="required", allowed_signers=tmp_path / "none")
    error = refusal(asked, support.sign(keys["ed25519"], DOCUMENT))
    assert error.kind == "incompatible"
    assert "cannot be read" in error.message
    (tmp_path / "folder").mkdir()
    assert "cannot be read" in str(signing_problem(ReleaseRules(allowed_signers=tmp_path / "folder")))


def test_a_missing_ssh_keygen_is_found_before_anything_is_verified(
    keys: dict[str, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kedge_agent.formats import sshkeygen

    asked = rules(tmp_path, ("net", keys["ed25519"]))
    good = support.sign(keys["ed25519"], DOCUMENT)
    monkeypatch.setattr(sshkeygen, "_PATH", str(tmp_path))
    error = refusal(asked, good)
    assert (error.kind, "not installed" in error.message) == ("incompatible", True)
    assert describe(asked)["problem"] == signing_problem(asked)
    with pytest.raises(SignatureError, match="not installed"):
        sshkeygen.verify_signatures(DOCUMENT, good, RELEASE_NAMESPACE, "net", sshkeygen.Signers(asked.allowed_signers))


def test_a_user_without_an_entry_is_told_so(keys: dict[str, Key], tmp_path: Path) -> None:
    if os.getuid() != 0:
        lacks("root", "only root can become another user")
    asked = rules(tmp_path, ("net", keys["ed25519"]))
    child = os.fork()
    if child == 0:
        try:
            os.setuid(234567)
            os._exit(0 if "/etc/passwd" in str(signing_problem(asked)) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_signatures_do_not_bind_whoever_may_write_the_signers(keys: dict[str, Key], tmp_path: Path) -> None:
    asked = rules(tmp_path, ("net", keys["ed25519"]))
    found = describe(asked)
    assert (found["required"], found["threshold"], found["problem"]) == (True, 1, None)
    assert found["file"] == str(asked.allowed_signers)
    assert found["binding"] is not None
    if os.getuid() != 0:
        return
    tmp_path.chmod(0o755)
    cases = {0o644: None, 0o666: str(asked.allowed_signers)}
    for mode, named in cases.items():
        asked.allowed_signers.chmod(mode)
        assert (named or "None") in _binding_for_nobody(asked)
    asked.allowed_signers.chmod(0o644)
    os.chown(asked.allowed_signers, 65534, -1)
    assert str(asked.allowed_signers) in _binding_for_nobody(asked)
    os.chown(asked.allowed_signers, 0, -1)
    for name in ("revoked", "agent.json"):
        own = tmp_path / f"his-{name}"
        own.mkdir()
        os.chown(own, 65534, -1)
        changed = {"revoked": {"revoked_keys": own / name}, "agent.json": {"settings": own / name}}[name]
        assert str(own) in _binding_for_nobody(replace(asked, **changed))


def _binding_for_nobody(asked: ReleaseRules) -> str:
    """What a process of the user nobody finds; it may read the folders above, as it may those of /etc."""
    opened = []
    for folder in asked.allowed_signers.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & stat.S_IXOTH or (mode & stat.S_IWOTH and mode & stat.S_ISVTX):
            opened.append((folder, mode))
            folder.chmod(0o755)
    source, sink = os.pipe()
    try:
        if os.fork() == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.write(sink, str(signers_binding(asked)).encode())
            finally:
                os._exit(0)
        os.close(sink)
        with os.fdopen(source, "rb") as pipe:
            found = pipe.read().decode()
        os.wait()
        return found
    finally:
        for folder, mode in opened:
            folder.chmod(mode)


# --- the floor of versions -------------------------------------------------------------------------------------------


UNSIGNED = ReleaseRules(signatures=OFF)


@pytest.fixture
def old(tmp_path: Path, layout: Layout) -> Release:
    """Version 1 of a model that has been at version 5."""
    write_state(layout, "net", ModelState("c" * 64, "d" * 64, floor=5, downgrade=100))
    return released(tmp_path / "old.release", version=1)


def test_an_older_version_is_refused_in_every_mode(
    old: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    sign(old, keys["ed25519"].path)
    for asked in (UNSIGNED, rules(tmp_path, ("net", keys["ed25519"]))):
        with pytest.raises(AgentError, match="has been at version 5") as caught:
            judge(layout, asked, old.manifest_bytes, old.offer())
        assert caught.value.kind == "integrity"
        assert "--allow-downgrade" in caught.value.hint
    newer = released(tmp_path / "newer.release", version=5)
    assert judge(layout, UNSIGNED, newer.manifest_bytes, Offer()) == Verdict(signed=False)


def test_what_is_live_and_what_was_before_may_come_again(old: Release, layout: Layout) -> None:
    for state in (ModelState(old.digest, None, floor=5), ModelState("c" * 64, old.digest, floor=5)):
        write_state(layout, "net", state)
        assert judge(layout, UNSIGNED, old.manifest_bytes, Offer()) == Verdict(signed=False)


def test_a_signed_downgrade_lowers_the_floor_once(
    old: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    sign(old, keys["ed25519"].path)
    asked = rules(tmp_path, ("net", keys["ed25519"]))
    wanted = downgrade(old, keys["ed25519"].path, 7)
    verdict = judge(layout, asked, old.manifest_bytes, replace(old.offer(), downgrade=wanted))
    stated = parse_downgrade(wanted.document)
    assert (verdict.downgrade_floor, verdict.downgrade_serial) == (1, stated.serial)
    assert abs(stated.serial - time.time()) < 3600
    write_state(layout, "net", ModelState("e" * 64, "c" * 64, floor=7, downgrade=stated.serial))
    used = f"its serial {stated.serial} is not higher than the last one's, {stated.serial}"
    with pytest.raises(AgentError, match=used):
        judge(layout, asked, old.manifest_bytes, replace(old.offer(), downgrade=wanted))


def test_a_downgrade_lowers_no_floor_that_is_higher_than_it_says(
    old: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    sign(old, keys["ed25519"].path)
    asked = rules(tmp_path, ("net", keys["ed25519"]))
    offer = replace(old.offer(), downgrade=downgrade(old, keys["ed25519"].path, 5))
    verdict = judge(layout, asked, old.manifest_bytes, offer)
    assert (verdict.downgrade_floor, verdict.downgrade_from) == (1, 5)
    assert verdict.downgrade_keys == (keys["ed25519"].fingerprint,)
    write_state(layout, "net", ModelState("c" * 64, None, floor=6, downgrade=100))
    with pytest.raises(AgentError, match="is from version 5 at most"):
        judge(layout, asked, old.manifest_bytes, offer)
    # Where it is not needed it does no harm, and lowers nothing.
    write_state(layout, "net", ModelState(old.digest, None, floor=6, downgrade=100))
    assert judge(layout, asked, old.manifest_bytes, offer).downgrade_floor is None


def test_a_downgrade_outdoes_the_last_one_whatever_the_clock_of_its_host_said(old: Release, layout: Layout) -> None:
    last = int(time.time()) + 10_000_000_000
    write_state(layout, "net", ModelState("c" * 64, None, floor=5, downgrade=last))
    with pytest.raises(AgentError, match=f"not higher than the last one's, {last}"):
        judge(layout, UNSIGNED, old.manifest_bytes, Offer(downgrade=downgrade(old, None, 5)))
    higher = downgrade(old, None, 5, last)
    assert judge(layout, UNSIGNED, old.manifest_bytes, Offer(downgrade=higher)).downgrade_serial == last + 1


def test_an_unsigned_downgrade_is_enough_where_nothing_is_signed_and_nowhere_else(
    old: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    wanted = downgrade(old, None, 5)
    assert judge(layout, UNSIGNED, old.manifest_bytes, Offer(downgrade=wanted)).downgrade_floor == 1
    sign(old, keys["ed25519"].path)
    asked = rules(tmp_path, ("net", keys["ed25519"]))
    for bad, message in (
        (wanted, "no signature came"),
        (support.signed(wanted.document, [keys["ed25519"]], RELEASE_NAMESPACE), "not for kedge-downgrade"),
        (support.signed(wanted.document, [keys["other"]], DOWNGRADE_NAMESPACE), "is not one of"),
    ):
        with pytest.raises(AgentError, match=message):
            judge(layout, asked, old.manifest_bytes, replace(old.offer(), downgrade=bad))


@pytest.mark.parametrize(
    "change",
    [{"model": "another"}, {"release": "a" * 64}, {"floor": 2}, {"floor": 2, "from_floor": 9}],
)
def test_a_downgrade_of_something_else_is_worth_nothing(old: Release, layout: Layout, change: dict[str, Any]) -> None:
    stated = replace(Downgrade("net", old.digest, 1, 5, 200), **change)
    with pytest.raises(AgentError, match="for another release"):
        judge(layout, UNSIGNED, old.manifest_bytes, Offer(downgrade=Signed(statement_bytes(stated))))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b'{"kedge": "downgrade"}',
        b'{"kedge": "engine", "model": "net"}',
        b'{"kedge": "downgrade", "x": 1.5}',
    ],
)
def test_a_downgrade_that_is_none_is_refused(old: Release, layout: Layout, document: bytes) -> None:
    with pytest.raises(AgentError, match="refused"):
        judge(layout, UNSIGNED, old.manifest_bytes, Offer(downgrade=Signed(document)))


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["0" * 64, "net", "downgrade"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["downgrade", "engine"]),
    key=st.sampled_from(
        ["kedge", "model", "release", "floor", "from", "serial", "onnx", "plan", "passport", "engine", "more"]
    ),
    value=_VALUES,
)
def test_a_statement_is_read_or_refused(kind: str, key: str, value: object) -> None:
    whole = {
        "downgrade": {"kedge": "downgrade", "model": "net", "release": "0" * 64, "floor": 1, "from": 1, "serial": 1},
        "engine": {"kedge": "engine", "release": "0" * 64, "onnx": "0" * 64, "plan": {}, "engine": "0" * 64}
        | {"passport": {"runtime": "tensorrt", "runtime_version": "10.3.0", "os": "linux", "arch": "x86_64"}},
    }[kind]
    parse = parse_downgrade if kind == "downgrade" else parse_engine_statement
    assert parse(json.dumps(whole).encode())
    try:
        found = parse(json.dumps(whole | {key: value}).encode())
    except ManifestError:
        return
    assert json.loads(statement_bytes(found))[key] == value


def test_a_damaged_state_keeps_no_release_away_and_its_way_back_tells_the_floor(
    old: Release, layout: Layout, tmp_path: Path
) -> None:
    back = ModelState("c" * 64, None, floor=4)
    write_state(layout, "net", ModelState("e" * 64, "c" * 64, floor=5), back)
    (layout.model("net") / "state.json").write_bytes(b"torn")
    with pytest.raises(AgentError, match="has been at version 4"):
        judge(layout, UNSIGNED, old.manifest_bytes, Offer())
    newer = released(tmp_path / "newer.release", version=5)
    assert judge(layout, UNSIGNED, newer.manifest_bytes, Offer()) == Verdict(signed=False)


def test_a_downgrade_is_kept_beside_the_release_and_more_keys_may_sign_it(
    old: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path
) -> None:
    for name in ("ed25519", "rsa"):
        sign(old, keys[name].path)
        state_downgrade(old, keys[name].path, 5)
    with pytest.raises(BadInputError, match="from version 5, not 6"):
        state_downgrade(old, keys["rsa"].path, 6)
    old.verify()
    asked = rules(tmp_path, ("net", keys["ed25519"]), ("net", keys["rsa"]), threshold=2)
    assert judge(layout, asked, old.manifest_bytes, old.offer()).downgrade_floor == 1
    assert open_release(old.folder).digest == old.digest


def test_a_manifest_that_is_none_is_the_senders_fault(layout: Layout) -> None:
    with pytest.raises(AgentError) as caught:
        judge(layout, UNSIGNED, b"{}", Offer())
    assert caught.value.kind == "bad_input"


# --- what was accepted, by today's rules -----------------------------------------------------------------------------


@pytest.fixture
def standing(release: Release, layout: Layout, tmp_path: Path) -> Callable[..., None]:
    """Look again, by these rules, at a release that was accepted."""

    def look(asked: ReleaseRules) -> None:
        require_standing(layout, asked, release.manifest, read_acceptance(layout, release.digest), None)

    return look


def test_a_release_that_waited_is_refused_once_its_key_is_revoked_or_more_keys_are_asked_for(
    release: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path, standing: Callable[..., None]
) -> None:
    for name in ("ed25519", "rsa"):
        sign(release, keys[name].path)
    asked = rules(tmp_path, ("net", keys["ed25519"]), ("net", keys["rsa"]))
    import_archive(layout, io.BytesIO(archived(release, release.offer())), asked)
    standing(asked)
    standing(replace(asked, threshold=2))
    with pytest.raises(AgentError, match="2 of which still count; this device asks for 3"):
        standing(replace(asked, threshold=3))
    # Who is not in the file any more, or has expired, has signed all the same.
    expired = allow(tmp_path / "expired", [("net", keys["other"])])
    standing(replace(asked, allowed_signers=expired))
    listed = f"# alice's\n{keys['ed25519'].public}\n".encode()
    for write in (lambda: revoke(asked.revoked_keys, keys["ed25519"]), lambda: asked.revoked_keys.write_bytes(listed)):
        write()
        standing(asked)
        with pytest.raises(AgentError, match=r"asks for 2: the key SHA256:.* is revoked") as caught:
            standing(replace(asked, threshold=2))
        assert caught.value.kind == "integrity"
    for unreadable in (b"\xff no list of anything", None):
        asked.revoked_keys.unlink()
        asked.revoked_keys.write_bytes(unreadable) if unreadable else asked.revoked_keys.symlink_to("nowhere")
        with pytest.raises(AgentError, match="0 of which still count"):
            standing(asked)


def test_a_release_that_was_accepted_unsigned_is_refused_once_signatures_are_asked_for(
    release: Release, layout: Layout, keys: dict[str, Key], tmp_path: Path, standing: Callable[..., None]
) -> None:
    import_archive(layout, io.BytesIO(archived(release, Offer())), UNSIGNED)
    standing(UNSIGNED)
    with pytest.raises(AgentError, match="accepted without signatures"):
        standing(rules(tmp_path, ("net", keys["ed25519"])))


def test_a_link_to_signers_that_leads_nowhere_asks_for_signatures_all_the_same(tmp_path: Path) -> None:
    link = tmp_path / "allowed_signers"
    asked = ReleaseRules(allowed_signers=link)
    assert not asked.required
    link.symlink_to(tmp_path / "nowhere")
    assert asked.required
    assert "cannot be read" in str(signing_problem(asked))


def test_a_list_of_revoked_keys_that_cannot_be_looked_for_revokes_every_key(
    keys: dict[str, Key], tmp_path: Path
) -> None:
    asked = rules(tmp_path, ("net", keys["ed25519"]))
    signatures = sign_document(DOCUMENT, keys["ed25519"].path, RELEASE_NAMESPACE)
    verify(asked, DOCUMENT, signatures, RELEASE_NAMESPACE, "net")
    (tmp_path / "no-folder").write_text("")
    for path in (tmp_path / "no-folder" / "revoked", tmp_path / "dead"):
        if path.name == "dead":
            path.symlink_to("nowhere")
        lost = replace(asked, revoked_keys=path)
        assert "cannot be read as a list of revoked keys" in refusal(lost, signatures).message
