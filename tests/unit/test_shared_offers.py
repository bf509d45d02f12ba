"""Signatures of a release that lie at a URL and in this host's cache: whoever adds some takes nobody else's away."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kedge.cli.app import main
from kedge.cli.rolling import _lasting
from kedge.config import cache_dir
from kedge.errors import BadInputError
from kedge.release.archives import export_release
from kedge.release.bundle import Release, open_release
from kedge.release.offers import merged
from kedge.release.remote import fetched, pull_from, push_to
from kedge.release.signing import sign, signatures_of
from kedge.release.urls import require_plain
from kedge_agent.formats.offer import Offer, Signed
from kedge_agent.formats.sshsig import MAX_SIGNATURES
from kedge_agent.formats.statements import Downgrade, statement_bytes
from tests.support.keys import make_key
from tests.support.weights import weighty_release


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def _source(release: Release, store: Path) -> dict[str, str]:
    return {"digest": release.digest, "source": f"file://{store}"}


def _sign(release: Release, folder: Path, name: str) -> str:
    """Sign with a new key; its fingerprint."""
    return sign(release, make_key(folder, name).path).fingerprint


def _signers(release: Release) -> set[str]:
    return {each.fingerprint for each in signatures_of(release)}


def test_signatures_that_were_fetched_stay_when_the_store_is_gone(
    release: Release, store: Path, tmp_path: Path
) -> None:
    signer = _sign(release, tmp_path, "anna")
    push_to(release, f"file://{store}")
    fetched(_source(release, store))
    store.rename(tmp_path / "unmounted")
    assert _signers(fetched(_source(release, store))) == {signer}


@pytest.mark.parametrize("nonsense", [b"{}x", b"{}", b"x" * (2 << 20), None], ids=["torn", "empty", "long", "gone"])
def test_nonsense_in_the_place_of_an_offer_takes_nothing_from_what_is_kept(
    release: Release, store: Path, tmp_path: Path, nonsense: bytes | None
) -> None:
    signer = _sign(release, tmp_path, "anna")
    push_to(release, f"file://{store}")
    fetched(_source(release, store))
    offer = store / "releases" / release.digest / "offer.json"
    offer.unlink()
    if nonsense is not None:
        offer.write_bytes(nonsense)
    assert _signers(fetched(_source(release, store))) == {signer}
    push_to(release, f"file://{store}")
    assert _signers(pull_from(f"file://{store}", release.digest, tmp_path / "back")) == {signer}


def test_whoever_pushes_an_own_signature_leaves_those_of_others(release: Release, store: Path, tmp_path: Path) -> None:
    other = open_release(shutil.copytree(release.folder, tmp_path / "other"))
    (release.folder / "downgrade.json").write_bytes(b"{}")
    anna, bert = _sign(release, tmp_path, "anna"), _sign(other, tmp_path, "bert")
    push_to(release, f"file://{store}")
    push_to(other, f"file://{store}")
    found = pull_from(f"file://{store}", release.digest, tmp_path / "back")
    assert _signers(found) == {anna, bert}
    assert found.offer().downgrade == Signed(b"{}")


def test_a_push_says_that_there_is_no_room_for_one_more_signature(
    release: Release, store: Path, tmp_path: Path
) -> None:
    other = open_release(shutil.copytree(release.folder, tmp_path / "other"))
    for number in range(MAX_SIGNATURES):
        _sign(release, tmp_path, f"key{number}")
    push_to(release, f"file://{store}")
    _sign(other, tmp_path, "one-more")
    with pytest.raises(BadInputError, match="no room for more signatures"):
        push_to(other, f"file://{store}")


def test_of_two_downgrades_the_later_stays_whichever_came_last() -> None:
    earlier, later = (
        Offer(downgrade=Signed(statement_bytes(Downgrade("net", "0" * 64, 1, 2, serial)))) for serial in (5, 6)
    )
    assert merged(earlier, later).downgrade == merged(later, earlier).downgrade == later.downgrade


def test_signatures_of_one_statement_are_added_up_and_what_is_none_hides_none(release: Release, tmp_path: Path) -> None:
    armours = [sign(release, make_key(tmp_path, name).path).armour for name in ("anna", "bert")]
    both = merged(Offer(attestation=Signed(b"{}", armours[0])), Offer(attestation=Signed(b"{}", armours[1])))
    assert both.attestation == Signed(b"{}", b"".join(armours))
    assert merged(Offer(signatures=armours[0]), Offer(signatures=b"nonsense")).signatures == armours[0]
    assert merged(Offer(signatures=b"nonsense"), Offer(signatures=armours[0])).signatures == armours[0]


def test_threads_that_fetch_as_signatures_come_see_whole_releases(release: Release, store: Path) -> None:
    """A document and the signature beside it are of one write, and no file on its way is taken for a stray one."""
    problems: list[BaseException] = []

    def fetch() -> None:
        try:
            found = fetched(_source(release, store))
            found.verify()
            stated = found.offer().downgrade
            assert stated is None or stated.document == stated.signatures
        except BaseException as error:  # whatever it is, the test tells
            problems.append(error)

    for number in range(15):
        for name in ("downgrade.json", "downgrade.json.sig"):
            (release.folder / name).write_bytes(b"%d" % number)
        push_to(release, f"file://{store}")
        threads = [threading.Thread(target=fetch) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    stated = fetched(_source(release, store)).offer().downgrade
    assert stated == Signed(b"14", b"14")


def test_a_file_that_a_killed_writer_left_beside_a_release_is_no_stray(release: Release) -> None:
    (release.folder / f".manifest.json.sig.{'0' * 32}.partial").write_bytes(b"half")
    release.verify()


@pytest.mark.parametrize("name", ["its bytes", "its size", "its manifest", "its signatures"])
def test_a_kept_release_that_is_damaged_is_fetched_again(release: Release, store: Path, name: str) -> None:
    push_to(release, f"file://{store}")
    path = fetched(_source(release, store)).files()[0][1]
    if name == "its bytes":
        path.write_bytes(bytes(path.stat().st_size))
    elif name == "its size":
        path.write_bytes(b"")
    else:
        side = path.parent / ("manifest.json" if name == "its manifest" else "manifest.json.sig")
        side.write_bytes(b"\xff")
    found = fetched(_source(release, store))
    found.verify()
    assert found.offer() == release.offer()
    assert [each.name for each in (cache_dir() / "releases").iterdir()] == [release.digest]


def test_many_that_meet_a_damaged_release_all_get_a_whole_one(release: Release, store: Path) -> None:
    push_to(release, f"file://{store}")
    path = fetched(_source(release, store)).files()[0][1]
    path.write_bytes(bytes(path.stat().st_size))
    problems: list[BaseException] = []

    def fetch() -> None:
        try:
            fetched(_source(release, store)).verify()
        except BaseException as error:  # whatever it is, the test tells
            problems.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_push_mends_a_manifest_that_was_damaged_there(release: Release, store: Path, tmp_path: Path) -> None:
    push_to(release, f"file://{store}")
    manifest = store / "releases" / release.digest / "manifest.json"
    manifest.write_bytes(bytes(manifest.stat().st_size))
    push_to(release, f"file://{store}")
    assert pull_from(f"file://{store}", release.digest, tmp_path / "back").digest == release.digest


def test_an_archive_that_was_signed_since_is_rolled_out_with_its_signatures(release: Release, tmp_path: Path) -> None:
    export_release(release, tmp_path / "first.kedge")
    with _lasting(tmp_path / "first.kedge", unpack=True) as given:
        assert _signers(given) == set()
    signer = _sign(release, tmp_path, "anna")
    export_release(release, tmp_path / "signed.kedge")
    for name in ("signed.kedge", "first.kedge"):
        with _lasting(tmp_path / name, unpack=True) as given:
            assert _signers(given) == {signer}


@contextmanager
def _no_file_above(size_bytes: int) -> Iterator[None]:
    """As on a disk that is full: a write fails."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, was[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)


def test_a_host_that_has_no_room_for_a_release_says_so(store: Path, tmp_path: Path) -> None:
    release = weighty_release(tmp_path, version=1)
    push_to(release, f"file://{store}")
    with _no_file_above(1 << 20):
        for pull in (
            lambda: fetched(_source(release, store)),
            lambda: pull_from(f"file://{store}", release.digest, tmp_path / "back"),
        ):
            with pytest.raises(BadInputError, match="cannot be written: File too large") as caught:
                pull()
            assert "kedge cache gc" in caught.value.hint
    assert fetched(_source(release, store)).digest == release.digest


@pytest.mark.parametrize(
    "url",
    [
        "simplecache::sftp://me:geheim@host/x",
        "zip://a.zip::sftp://geheim@host/x",
        "filecache::file:///geheim",
        "SFTP://me@geheim/x",
        "s3://geheim@bucket/x",
        "https://geheim@host/x",
    ],
)
def test_a_url_that_hides_another_or_a_token_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadInputError) as caught:
        require_plain(url)
    assert "geheim" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "url", ["sftp://me@host:22/x", "sftp://[::1]:22/x", "s3://bucket/x", "abfs://box@account.example/x", "file:///x"]
)
def test_a_url_of_one_folder_is_plain(url: str) -> None:
    require_plain(url)


def test_a_plan_is_not_shown_with_a_secret_in_its_source(
    release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inventory = tmp_path / "devices.toml"
    inventory.write_text("[a]\nhost='h'\nuser='u'\nstate='/s'\ntarget='cpu-generic-x86_64'\n")
    words = ["--to", "@all", "--dry-run", "--json", "--inventory", str(inventory)]
    assert main(["deploy", str(release.folder), *words, "--source", "s3://key:geheim@bucket/x"]) == 3
    said = capsys.readouterr()
    assert "geheim" not in said.out + said.err
