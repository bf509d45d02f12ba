"""Engines that devices built: who vouches for them, and where they may go."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.build.attestation import HOST, attest
from kedge.build.cache import Builder, CachedEngine, EngineCache
from kedge.cli.app import main
from kedge.deploy.engines import complete
from kedge.deploy.vouching import require_vouched
from kedge.errors import BadInputError, IntegrityError
from kedge.release.archives import export_release, import_release
from kedge.release.bundle import Release, open_release, write_release
from kedge.release.signing import sign, state_downgrade
from kedge.transport.local import LocalAgent
from kedge_agent.engine.order import Order, engine_key
from kedge_agent.errors import AgentError
from kedge_agent.formats.offer import Offer, Signed
from kedge_agent.formats.passport import Passport
from kedge_agent.formats.sshsig import ENGINE_NAMESPACE, RELEASE_NAMESPACE
from kedge_agent.formats.statements import completed_artefact, parse_engine_statement, statement_bytes
from kedge_agent.store.engines import keep_engine
from kedge_agent.store.layout import Layout
from kedge_agent.store.models import ModelState, write_state
from kedge_agent.store.rules import OFF, ReleaseRules
from kedge_agent.store.signers import judge
from tests.support import keys as support
from tests.support.keys import Key, allow, make_key
from tests.unit.test_archive import body
from tests.unit.test_engine_cache import made

ORIN = Passport("tensorrt", "10.3.0.30", "linux", "aarch64", ("8.7",), module="nvidia,p3767-0003")
ORDER = Order("tensorrt", profiles={"x": ((4,), (4,), (4,))})
FIRST = Builder("orin-1", "SHA256:first")
SECOND = Builder("orin-2", "SHA256:second")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("alice", "bob", "mallory")}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture
def rules(tmp_path: Path, keys: dict[str, Key]) -> ReleaseRules:
    """A device that takes what alice or bob signed."""
    signers = allow(tmp_path / "allowed", [("net", keys["alice"]), ("net", keys["bob"])])
    return ReleaseRules(allowed_signers=signers, revoked_keys=tmp_path / "revoked")


def planned(folder: Path, version: int = 1, **changes: Any) -> Release:
    """A release that a device has yet to compile, and that has a second form for onnxruntime."""
    whole = body(version) | changes
    (plain,) = whole["artefacts"]  # type: ignore[misc]
    compiled = {**plain, "runtime": "tensorrt", "file": "planned.onnx", "build": ORDER.to_json()}
    sources: dict[str, Path | bytes] = {
        "planned.onnx": b"what is compiled",
        "model.onnx": b"what is not",
        "golden-in-0.bin": b"1234",
        "golden-out-0.bin": b"5678",
    }
    return write_release(folder, sources, {**whole, "artefacts": [compiled, plain]})


def engine_of(cache: EngineCache, release: Release, builder: Builder | None, fill: int = 0) -> CachedEngine:
    onnx = release.manifest.file("planned.onnx").sha256
    return cache.put(engine_key(onnx, ORDER, ORIN), onnx, ORDER, ORIN, made(ORIN, fill=fill), {}, builder)


@pytest.fixture
def release(tmp_path: Path, keys: dict[str, Key]) -> Release:
    found = planned(tmp_path / "planned.release")
    sign(found, keys["alice"].path)
    return found


@pytest.fixture
def whole(release: Release, cache: EngineCache, tmp_path: Path) -> Release:
    """The release with an engine that some device built; nobody vouched for it yet."""
    return complete(release, engine_of(cache, release, FIRST), tmp_path / "whole.release")


# --- the cache -------------------------------------------------------------------------------------------------------


def test_engines_of_two_devices_with_one_passport_lie_side_by_side(cache: EngineCache, release: Release) -> None:
    first, second = engine_of(cache, release, FIRST), engine_of(cache, release, SECOND, fill=1)
    own = engine_of(cache, release, None, fill=2)
    assert len({first.key, second.key, own.key}) == 3
    assert (first.builder, second.builder, own.builder) == (FIRST, SECOND, None)
    assert {each.sha256 for each in cache.of_model(own.onnx_sha256, ORDER)} == {
        first.sha256,
        second.sha256,
        own.sha256,
    }


def test_what_a_device_built_is_found_only_by_those_who_say_that_it_may_be(
    cache: EngineCache, release: Release
) -> None:
    kept = engine_of(cache, release, FIRST)
    assert cache.find(kept.onnx_sha256, ORDER, ORIN) is None
    found = cache.find(kept.onnx_sha256, ORDER, ORIN, lambda engine: FIRST.is_same(engine.builder))
    assert found is not None
    assert found[0] == kept
    assert cache.find(kept.onnx_sha256, ORDER, ORIN, lambda engine: SECOND.is_same(engine.builder)) is None


def test_a_device_is_known_by_its_host_key_whatever_it_is_called() -> None:
    assert FIRST.is_same(replace(FIRST, device="renamed"))
    assert not FIRST.is_same(replace(SECOND, device="orin-1"))
    assert FIRST.is_same(Builder("orin-1"))
    assert not FIRST.is_same(None)


def test_what_a_device_built_again_takes_the_place_of_what_it_built_before(
    cache: EngineCache, release: Release
) -> None:
    engine_of(cache, release, FIRST)
    again = engine_of(cache, release, FIRST, fill=7)
    assert [each.sha256 for each in cache.entries()] == [again.sha256]


def test_an_engine_from_before_builders_were_noted_may_be_anybodys(cache: EngineCache, release: Release) -> None:
    import hashlib

    kept = engine_of(cache, release, None)
    path = kept.path.with_name("entry.json")
    old = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("builder", "entry_sha256")}
    digest = hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(old | {"entry_sha256": digest}))
    found = cache.get(kept.key)
    assert found is not None
    assert found.builder == Builder("unknown")
    assert cache.find(kept.onnx_sha256, ORDER, ORIN) is None


# --- attesting on the host -------------------------------------------------------------------------------------------


def test_a_completed_release_says_which_one_it_completes(release: Release, whole: Release) -> None:
    whole.verify()
    offer = whole.offer()
    assert offer.base == Signed(release.manifest_bytes, release.signatures)
    assert (offer.signatures, offer.attestation) == (b"", None)
    assert completed_artefact(release.manifest_bytes, whole.manifest_bytes) == 0


def test_to_attest_an_engine_changes_no_digest(whole: Release, cache: EngineCache, keys: dict[str, Key]) -> None:
    (attested,) = attest(whole, keys["alice"].path, cache)
    again = open_release(whole.folder)
    again.verify()
    assert again.digest == whole.digest
    assert (attested.builder, attested.passport) == (FIRST, ORIN)
    statement = parse_engine_statement(_attestation(again).document)
    assert statement.engine == attested.engine == again.manifest.file("model.engine").sha256
    assert statement.release == attested.release


def test_engines_of_the_cache_are_attested_for_every_release_that_takes_them(
    release: Release, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    first, second = engine_of(cache, release, FIRST), engine_of(cache, release, SECOND, fill=1)
    found = [each for name in ("orin-1", "orin-2") for each in attest(release, keys["alice"].path, cache, name)]
    assert {each.builder for each in found} == {FIRST, SECOND}
    assert {each.engine for each in found} == {first.sha256, second.sha256}
    whole = complete(release, second, tmp_path / "whole.release")
    assert parse_engine_statement(_attestation(whole).document).engine == second.sha256
    other = planned(tmp_path / "other.release", version=2)
    assert second.attestation(other.digest) is None


def test_two_keys_may_attest_the_same_engine(whole: Release, cache: EngineCache, keys: dict[str, Key]) -> None:
    for name in ("alice", "bob", "alice"):
        attest(whole, keys[name].path, cache)
    assert _attestation(whole).signatures.count(b"BEGIN SSH SIGNATURE") == 2


def test_what_has_no_engine_to_vouch_for_is_told(
    release: Release, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="the cache has no engine"):
        attest(release, keys["alice"].path, cache)
    plain = write_release(
        tmp_path / "plain",
        {"model.onnx": b"x", "golden-in-0.bin": b"1234", "golden-out-0.bin": b"5678"},
        body(),
    )
    with pytest.raises(BadInputError, match="a device compiles nothing of it"):
        attest(plain, keys["alice"].path, cache)


def test_an_engine_without_its_release_or_with_another_one_is_not_attested(
    whole: Release, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    other = planned(tmp_path / "other.release", version=2)
    (whole.folder / "base.json").write_bytes(other.manifest_bytes)
    with pytest.raises(IntegrityError, match="not the release"):
        attest(whole, keys["alice"].path, cache)
    (whole.folder / "base.json").unlink()
    with pytest.raises(BadInputError, match="does not say"):
        attest(whole, keys["alice"].path, cache)


def test_an_attestation_travels_in_an_archive(
    whole: Release, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    attest(whole, keys["alice"].path, cache)
    export_release(whole, tmp_path / "net.kedge")
    assert import_release(tmp_path / "net.kedge", tmp_path / "again").offer() == whole.offer()


class Reached(LocalAgent):
    """A device that is never called."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(folder)
        self.name = name


def test_the_host_carries_no_engine_to_another_device_that_nobody_vouches_for(
    release: Release, keys: dict[str, Key], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = EngineCache()
    whole = complete(release, engine_of(cache, release, Builder("orin-1")), tmp_path / "whole.release")
    require_vouched(Reached("orin-1", tmp_path), whole)
    require_vouched(Reached("orin-2", tmp_path), release)
    with pytest.raises(IntegrityError, match="was built on orin-1") as caught:
        require_vouched(Reached("orin-2", tmp_path), whole)
    assert "attest" in caught.value.hint
    attest(whole, keys["alice"].path, cache)
    require_vouched(Reached("orin-2", tmp_path), whole)


RTX = Passport("tensorrt-rtx", "1.7.1.116", "linux", "x86_64", ("8.9",))


@pytest.fixture
def second(tmp_path: Path, keys: dict[str, Key]) -> Release:
    """A signed release that has an engine already, and the build plan of another after it."""
    whole = body(1)
    (plain,) = whole["artefacts"]  # type: ignore[misc]
    engine = {**plain, "runtime": RTX.runtime, "file": "rtx.engine", "passport": RTX.to_json()}
    compiled = {**plain, "runtime": "tensorrt", "file": "planned.onnx", "build": ORDER.to_json()}
    sources: dict[str, Path | bytes] = {
        "rtx.engine": made(RTX),
        "planned.onnx": b"what is compiled",
        "golden-in-0.bin": b"1234",
        "golden-out-0.bin": b"5678",
    }
    found = write_release(tmp_path / "second.release", sources, {**whole, "artefacts": [engine, compiled]})
    sign(found, keys["alice"].path)
    return found


def test_of_several_engines_the_one_that_the_plan_became_is_vouched_for_and_judged(
    second: Release, layout: Layout, rules: ReleaseRules, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    engine = engine_of(cache, second, FIRST)
    whole = complete(second, engine, tmp_path / "whole.release")
    assert completed_artefact(second.manifest_bytes, whole.manifest_bytes) == 1
    assert "nobody vouches for it" in refusal(layout, rules, whole, whole.offer())
    (attested,) = attest(whole, keys["alice"].path, cache)
    assert (attested.engine, attested.passport) == (engine.sha256, ORIN)
    assert judge(layout, rules, whole.manifest_bytes, whole.offer()).attested == "attestation"
    evil = complete(second, engine_of(cache, second, SECOND, fill=0x66), tmp_path / "evil.release")
    forged = replace(evil.offer(), attestation=whole.offer().attestation)
    assert "of another engine" in refusal(layout, rules, evil, forged)
    onnx = second.manifest.file("planned.onnx").sha256
    entry = {"passport": ORIN.to_json(), "onnx_sha256": onnx}
    keep_engine(layout, engine_key(onnx, ORDER, ORIN), engine.path.read_bytes(), entry, {})
    built = replace(whole.offer(), attestation=None)
    assert judge(layout, rules, whole.manifest_bytes, built).attested == "builder"


def test_of_several_engines_the_host_carries_the_one_that_the_plan_became_to_nobody_else(
    second: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    whole = complete(second, engine_of(EngineCache(), second, Builder("orin-1")), tmp_path / "whole.release")
    require_vouched(Reached("orin-1", tmp_path), whole)
    with pytest.raises(IntegrityError, match="was built on orin-1"):
        require_vouched(Reached("orin-2", tmp_path), whole)


def test_of_a_plan_that_several_devices_built_somebody_says_whose_engines_are_meant(
    release: Release, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    built = {builder: engine_of(cache, release, builder, fill) for fill, builder in enumerate((FIRST, SECOND, None))}
    with pytest.raises(BadInputError, match="engines of this plan from HOST, orin-1, orin-2") as caught:
        attest(release, keys["alice"].path, cache)
    assert "--built-on" in caught.value.hint
    assert all(each.attestation(release.digest) is None for each in cache.entries())
    for builder, name in ((FIRST, "orin-1"), (None, HOST)):
        (attested,) = attest(release, keys["alice"].path, cache, name)
        assert (attested.builder, attested.engine) == (builder, built[builder].sha256)
    with pytest.raises(BadInputError, match="that was built on orin-3"):
        attest(release, keys["alice"].path, cache, "orin-3")
    whole = complete(release, built[SECOND], tmp_path / "second.release")
    assert len(attest(whole, keys["alice"].path, cache, "orin-2")) == 1
    with pytest.raises(BadInputError, match="was not built on orin-1"):
        attest(whole, keys["alice"].path, cache, "orin-1")


def test_the_command_lists_what_it_vouched_for(
    release: Release,
    keys: dict[str, Key],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    command = ["release", "attest", str(release.folder), "--key", str(keys["alice"].path)]
    assert main(command) == 3
    engine = engine_of(EngineCache(), release, FIRST)
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["release"] == release.digest
    assert document["engines"] == [
        {
            "engine": engine.sha256,
            "passport": ORIN.to_json(),
            "builder": {"device": "orin-1", "host_key": "SHA256:first"},
        }
    ]
    assert main(command) == 0
    assert "built by orin-1: attested" in capsys.readouterr().out


def _attestation(release: Release) -> Signed:
    found = release.offer().attestation
    assert found is not None
    return found


# --- judging on the device -------------------------------------------------------------------------------------------


def refusal(layout: Layout, rules: ReleaseRules, release: Release, offer: Offer) -> str:
    with pytest.raises(AgentError) as caught:
        judge(layout, rules, release.manifest_bytes, offer)
    assert caught.value.hint
    return caught.value.message


def test_an_attested_engine_is_taken(
    whole: Release, layout: Layout, rules: ReleaseRules, cache: EngineCache, keys: dict[str, Key]
) -> None:
    assert "nobody vouches for it" in refusal(layout, rules, whole, whole.offer())
    attest(whole, keys["bob"].path, cache)
    verdict = judge(layout, rules, whole.manifest_bytes, whole.offer())
    assert (verdict.signed, verdict.attested) == (True, "attestation")
    # Whose release it is, the signature of the one that it completes says.
    assert verdict.keys == (keys["alice"].fingerprint,)


@pytest.mark.parametrize("version", ["10.3.0.30", "10.3.0"])
def test_the_device_that_built_an_engine_takes_it_on_its_own_word(
    whole: Release, release: Release, layout: Layout, rules: ReleaseRules, version: str
) -> None:
    """A machine may tell three parts of its compiler's version, by which it then keeps what it builds."""
    onnx = release.manifest.file("planned.onnx").sha256
    engine = (whole.folder / "model.engine").read_bytes()
    key = engine_key(onnx, ORDER, replace(ORIN, runtime_version=version))
    keep_engine(layout, key, engine, {"passport": ORIN.to_json(), "onnx_sha256": onnx}, {})
    assert judge(layout, rules, whole.manifest_bytes, whole.offer()).attested == "builder"
    keep_engine(layout, key, engine + b"\0", {"passport": ORIN.to_json(), "onnx_sha256": onnx}, {})
    assert "nobody vouches for it" in refusal(layout, rules, whole, whole.offer())


def test_an_engine_that_was_built_by_another_plan_is_not_the_one(
    whole: Release, release: Release, layout: Layout, rules: ReleaseRules
) -> None:
    onnx = release.manifest.file("planned.onnx").sha256
    key = engine_key(onnx, replace(ORDER, sparse_weights=True), ORIN)
    entry = {"passport": ORIN.to_json(), "onnx_sha256": onnx}
    keep_engine(layout, key, (whole.folder / "model.engine").read_bytes(), entry, {})
    assert "nobody vouches for it" in refusal(layout, rules, whole, whole.offer())


def test_a_release_with_an_engine_that_is_signed_itself_needs_nobody_else(
    whole: Release, layout: Layout, rules: ReleaseRules, keys: dict[str, Key]
) -> None:
    sign(whole, keys["alice"].path)
    verdict = judge(layout, rules, whole.manifest_bytes, whole.offer())
    assert (verdict.keys, verdict.attested) == ((keys["alice"].fingerprint,), None)


def test_a_base_that_nobody_signed_is_worth_nothing(
    whole: Release, layout: Layout, rules: ReleaseRules, cache: EngineCache, keys: dict[str, Key]
) -> None:
    attest(whole, keys["alice"].path, cache)
    offer = whole.offer()
    assert offer.base is not None
    for base in (replace(offer.base, signatures=b""), support.signed(offer.base.document, [keys["mallory"]], "file")):
        refusal(layout, rules, whole, replace(offer, base=base))
    assert "no signature came" in refusal(layout, rules, whole, replace(offer, base=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"release": "a" * 64}, "another engine"),
        ({"onnx": "a" * 64}, "another engine"),
        ({"engine": "a" * 64}, "another engine"),
        ({"plan": replace(ORDER, sparse_weights=True).plan()}, "another engine"),
        ({"passport": replace(ORIN, compute_capabilities=("8.6",))}, "another engine"),
    ],
)
def test_an_attestation_of_something_else_is_worth_nothing(
    whole: Release,
    layout: Layout,
    rules: ReleaseRules,
    cache: EngineCache,
    keys: dict[str, Key],
    change: dict[str, Any],
    message: str,
) -> None:
    attest(whole, keys["alice"].path, cache)
    stated = replace(parse_engine_statement(_attestation(whole).document), **change)
    forged = support.signed(statement_bytes(stated), [keys["alice"]], ENGINE_NAMESPACE)
    assert message in refusal(layout, rules, whole, replace(whole.offer(), attestation=forged))


@pytest.mark.parametrize(
    ("who", "namespace", "message"),
    [
        ("mallory", ENGINE_NAMESPACE, "is not one of"),
        ("alice", RELEASE_NAMESPACE, "not for kedge-engine"),
    ],
)
def test_an_attestation_needs_a_signer_and_its_own_purpose(
    whole: Release,
    layout: Layout,
    rules: ReleaseRules,
    cache: EngineCache,
    keys: dict[str, Key],
    who: str,
    namespace: str,
    message: str,
) -> None:
    attest(whole, keys["alice"].path, cache)
    forged = support.signed(_attestation(whole).document, [keys[who]], namespace)
    assert message in refusal(layout, rules, whole, replace(whole.offer(), attestation=forged))


def test_a_downgrade_of_a_release_is_one_of_what_a_device_makes_of_it(
    release: Release, layout: Layout, rules: ReleaseRules, cache: EngineCache, keys: dict[str, Key], tmp_path: Path
) -> None:
    write_state(layout, "net", ModelState("c" * 64, None, floor=5))
    state_downgrade(release, keys["alice"].path, 5)
    whole = complete(release, engine_of(cache, release, FIRST), tmp_path / "whole.release")
    attest(whole, keys["alice"].path, cache)
    for each in (release, whole):
        assert judge(layout, rules, each.manifest_bytes, each.offer()).downgrade_floor == 1
    other = planned(tmp_path / "other.release", provenance={"accuracy": {}, "other": 1})
    sign(other, keys["alice"].path)
    forged = complete(other, engine_of(cache, other, FIRST), tmp_path / "forged.release")
    offer = replace(forged.offer(), downgrade=whole.offer().downgrade)
    assert "for another release" in refusal(layout, rules, forged, offer)
    assert "refused" in refusal(layout, rules, forged, replace(offer, base=Signed(b"{}")))


def test_without_the_mode_nobody_is_asked(whole: Release, layout: Layout) -> None:
    verdict = judge(layout, ReleaseRules(signatures=OFF), whole.manifest_bytes, Offer())
    assert (verdict.signed, verdict.attested) == (False, None)


# --- what may differ between a release and the one that completes it -------------------------------------------------


def _other_version(manifest: dict[str, Any]) -> None:
    manifest["version"] = 2


def _other_gates(manifest: dict[str, Any]) -> None:
    manifest["gates"]["parity"]["cosine_min"] = "0"


def _other_golden(manifest: dict[str, Any]) -> None:
    manifest["files"][3]["sha256"] = "0" * 64


def _truth_for_a_number(manifest: dict[str, Any]) -> None:
    manifest["provenance"] = {"accuracy": True}


def _other_second_form(manifest: dict[str, Any]) -> None:
    manifest["artefacts"][1]["precision"] = "int8"


def _other_inputs(manifest: dict[str, Any]) -> None:
    manifest["artefacts"][0]["inputs"][0]["shape"] = [5]


def _one_file_more(manifest: dict[str, Any]) -> None:
    manifest["files"].append({"name": "more", "bytes": 0, "sha256": "0" * 64, "frames": []})


def _one_form_less(manifest: dict[str, Any]) -> None:
    del manifest["artefacts"][1]


def _engine_in_the_place_of_golden(manifest: dict[str, Any]) -> None:
    (engine,) = (each for each in manifest["files"] if each["name"] == "model.engine")
    manifest["files"] = [each for each in manifest["files"] if each["name"] not in ("golden-in-0.bin", "model.engine")]
    manifest["files"].append(engine | {"name": "golden-in-0.bin"})
    manifest["artefacts"][0]["file"] = "golden-in-0.bin"


def _engine_in_the_place_of_the_second_form(manifest: dict[str, Any]) -> None:
    (engine,) = (each for each in manifest["files"] if each["name"] == "model.engine")
    manifest["files"] = [each for each in manifest["files"] if each["name"] not in ("model.onnx", "model.engine")]
    manifest["files"].append(engine | {"name": "model.onnx"})
    manifest["artefacts"][0]["file"] = "model.onnx"


def _still_to_be_built(manifest: dict[str, Any]) -> None:
    del manifest["artefacts"][0]["passport"]


@pytest.mark.parametrize(
    "change",
    [
        _other_version,
        _other_gates,
        _other_golden,
        _truth_for_a_number,
        _other_second_form,
        _other_inputs,
        _one_file_more,
        _one_form_less,
        _engine_in_the_place_of_golden,
        _engine_in_the_place_of_the_second_form,
        _still_to_be_built,
    ],
)
def test_only_the_engine_may_differ(
    cache: EngineCache, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    base = planned(tmp_path / "base.release", provenance={"accuracy": 1})
    whole = complete(base, engine_of(cache, base, FIRST), tmp_path / "whole.release")
    assert completed_artefact(base.manifest_bytes, whole.manifest_bytes) == 0
    manifest = json.loads(whole.manifest_bytes)
    change(manifest)
    assert completed_artefact(base.manifest_bytes, json.dumps(manifest).encode()) is None


def test_a_release_completes_neither_itself_nor_backwards(release: Release, whole: Release) -> None:
    for base, own in ((release, release), (whole, whole), (whole, release)):
        assert completed_artefact(base.manifest_bytes, own.manifest_bytes) is None
