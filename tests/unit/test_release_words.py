"""What is said where a release cannot be signed, read or taken: one line that names the file, and what to do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kedge.cli import main
from kedge.errors import BadInputError, IntegrityError
from kedge.release.bundle import Release, open_release
from kedge.release.signing import check_signatures, sign, signatures_of
from tests.support.keys import Key, make_key
from tests.unit.test_archive import released


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return released(tmp_path / "net.release")


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """A key with a passphrase, and a program that gives ssh-keygen another one."""
    key = make_key(tmp_path, "locked")
    command = ["ssh-keygen", "-q", "-p", "-P", "", "-N", "open sesame", "-f", str(key.path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ask = tmp_path / "ask"
    ask.write_text("#!/bin/sh\necho sesame\n")
    ask.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(ask))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return key


def test_a_wrong_passphrase_is_told_in_our_words_and_nothing_else(
    release: Release, locked: Key, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "sign", str(release.folder), "--key", str(locked.path)]) == 3
    said = capfd.readouterr().err.splitlines()
    assert said[0] == f"kedge: error: the passphrase is not that of {locked.path}"
    assert "ssh-agent" not in said[1]
    assert len(said) == 2


@pytest.mark.parametrize("data", [b"\x08\x07\x12\x07model", b"", b"notes on keys\n"])
def test_a_file_that_is_no_key_is_named_as_that(release: Release, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(BadInputError, match=r"m\.onnx is no SSH key") as caught:
        sign(release, tmp_path / "m.onnx")
    assert "ssh-keygen -t ed25519" in caught.value.hint


def test_a_key_that_others_may_read_is_told_with_what_to_do(release: Release, tmp_path: Path) -> None:
    key = make_key(tmp_path, "open")
    key.path.chmod(0o644)
    with pytest.raises(BadInputError, match="others may read") as caught:
        sign(release, key.path)
    assert caught.value.hint == f"chmod 600 {key.path}"


def test_a_signature_that_is_none_is_told_with_its_file(release: Release, tmp_path: Path) -> None:
    path = release.folder / "manifest.json.sig"
    path.write_text("signed, me\n")
    (tmp_path / "signers").touch()
    for read in (signatures_of, lambda each: check_signatures(each, tmp_path / "signers")):
        with pytest.raises(IntegrityError, match=r"manifest\.json\.sig: ") as caught:
            read(open_release(release.folder))
        assert caught.value.hint
    with pytest.raises(IntegrityError, match=r"manifest\.json\.sig: "):
        sign(release, make_key(tmp_path, "mine").path)


@pytest.mark.parametrize("arguments", [["deploy", "FILE", "--to", "local"], ["release", "import", "FILE", "-o", "out"]])
def test_a_model_in_the_place_of_a_release_is_a_mistake_and_no_damage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(b"\x08\x07\x12\x07" + os.urandom(100))
    assert main([each.replace("FILE", "model.onnx") for each in arguments]) == 3
    said = capsys.readouterr().err
    assert "model.onnx is neither a release folder nor an archive" in said
    assert "kedge build" in said


def test_an_archive_that_is_cut_is_still_one(tmp_path: Path, release: Release) -> None:
    assert main(["release", "export", str(release.folder), "-o", str(tmp_path / "r.kedge")]) == 0
    whole = (tmp_path / "r.kedge").read_bytes()
    (tmp_path / "r.kedge").write_bytes(whole[:30])
    assert main(["release", "import", str(tmp_path / "r.kedge"), "-o", str(tmp_path / "out")]) == 6


def test_sizes_have_units_and_strays_have_a_hint(release: Release) -> None:
    (release.folder / "notes.txt").touch()
    with pytest.raises(IntegrityError, match=r"notes\.txt") as caught:
        release.verify()
    assert caught.value.hint
    (release.folder / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"is missing; the manifest names \d+ bytes"):
        open_release(release.folder)


def test_one_key_is_not_counted_as_many(release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (make_key(tmp_path, name) for name in ("first", "second"))
    assert main(["release", "sign", str(release.folder), "--key", str(first.path)]) == 0
    assert capsys.readouterr().out.strip().endswith(f"signed by {first.fingerprint}, the only key so far")
    assert main(["release", "sign", str(release.folder), "--key", str(second.path)]) == 0
    assert "one of 2 distinct keys" in capsys.readouterr().out
