"""Bundles of agents: their manifest, what unpacks them, where they lie, and how an interrupted upgrade ends."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedge.deploy import bootstrap, wheelhouse
from kedge.deploy.agent_bundle import make_bundle
from kedge.deploy.wheelhouse import DevicePython, Wheel
from kedge.errors import IncompatibleError
from kedge_agent.errors import AgentError
from kedge_agent.formats.bundle import bundle_bytes, parse_bundle
from kedge_agent.formats.manifest import ManifestError
from kedge_agent.formats.offer import AGENT, Offer
from kedge_agent.store.agents import AgentParcel, judge_slot, run_program
from kedge_agent.store.layout import Layout
from kedge_agent.store.rules import OFF, ReleaseRules
from kedge_agent.store.slots import (
    COMMITTED,
    FALLEN_BACK,
    Trial,
    agent_objects,
    agents_folder,
    begin_trial,
    changing_agents,
    clean_slots,
    commit_trial,
    has_slot,
    own_slot,
    read_outcome,
    read_trial,
    settle,
    slot,
    slot_named,
)
from kedge_agent.store.wheels import unpack_wheel
from tests.support.keys import AGENT as AGENT_NAMESPACE
from tests.support.keys import allow, make_key, sign
from tests.support.upgrades import HERE, bundle_of, take_agent

UNSIGNED = ReleaseRules(signatures=OFF)
A, B = "a" * 64, "b" * 64


def entry(name: str = "kedge_agent-1-py3-none-any.whl") -> dict[str, Any]:
    return {"name": name, "bytes": 3, "sha256": A, "frames": [B]}


def body(**more: Any) -> dict[str, Any]:
    return {"kedge_agent": 1, "version": "1", "python": "3.11", "arch": "x86_64", "files": [entry()], **more}


def test_a_bundle_s_manifest_is_read_as_it_was_written() -> None:
    bundle = parse_bundle(bundle_bytes(body()))
    assert (bundle.version, bundle.python, bundle.arch) == ("1", "3.11", "x86_64")
    assert bundle.files[0].frames == (B,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kedge_agent": 2},
        {"kedge": 1},
        {"version": "../x"},
        {"python": "2.7"},
        {"python": 3.11},
        {"arch": "x86-64; reboot"},
        {"files": []},
        {"files": [entry("numpy-2-py3.whl")]},
        {"files": [entry(), entry()]},
        {"files": [entry(), entry("../numpy.whl")]},
        {"files": [entry(), entry("numpy.tar.gz")]},
        {"files": [entry(), {**entry("numpy-2-py3.whl"), "bytes": 0, "frames": []}]},
        {"files": [entry(), {**entry("numpy-2-py3.whl"), "frames": [B, B]}]},
        {"files": [entry(), {**entry("numpy-2-py3.whl"), "sha256": "A" * 64}]},
        {"files": [entry(), {**entry("numpy-2-py3.whl"), "mode": 1}]},
    ],
)
def test_a_malformed_bundle_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        parse_bundle(json.dumps(body(**wrong)).encode())


def wheel(path: Path, *entries: tuple[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
        if link is not None:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return path


Unpack = Callable[[Path, Path], None]


def by_agent(path: Path, site: Path) -> None:
    unpack_wheel(path, site)


def by_bootstrap(path: Path, site: Path) -> None:
    import hashlib

    bootstrap._unpack(path, hashlib.sha256(path.read_bytes()).hexdigest(), site)


@pytest.mark.parametrize("unpack", [by_agent, by_bootstrap])
@pytest.mark.parametrize("name", ["../out.py", "/out.py", "x/../../out.py", "x.data/purelib/../../../out.py"])
def test_a_wheel_that_leads_elsewhere_is_refused(tmp_path: Path, unpack: Unpack, name: str) -> None:
    (tmp_path / "site").mkdir()
    with pytest.raises((AgentError, SystemExit), match="holds the path"):
        unpack(wheel(tmp_path / "x.whl", (name, b"x")), tmp_path / "site")
    assert not (tmp_path / "out.py").exists()


@pytest.mark.parametrize("unpack", [by_agent, by_bootstrap])
def test_a_wheel_with_a_link_is_refused(tmp_path: Path, unpack: Unpack) -> None:
    (tmp_path / "site").mkdir()
    with pytest.raises((AgentError, SystemExit), match="holds the path"):
        unpack(wheel(tmp_path / "x.whl", link="x/passwd"), tmp_path / "site")


@pytest.mark.parametrize("unpack", [by_agent, by_bootstrap])
def test_modules_are_laid_down_and_scripts_are_not(tmp_path: Path, unpack: Unpack) -> None:
    (tmp_path / "site").mkdir()
    made = wheel(
        tmp_path / "x.whl",
        ("x/__init__.py", b"1"),
        ("x-1.data/purelib/y.py", b"2"),
        ("x-1.data/platlib/z/w.so", b"3"),
        ("x-1.data/scripts/run", b"4"),
        ("x-1.data/headers/x.h", b"5"),
    )
    unpack(made, tmp_path / "site")
    found = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert found == {"x/__init__.py", "y.py", "z/w.so"}


def test_a_damaged_wheel_and_one_that_no_wheel_is_like_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "good.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.py", b"x" * 1000)
    good = (tmp_path / "good.whl").read_bytes()
    local, central = good.find(b"PK\3\4"), good.find(b"PK\1\2")
    name = good.find(b"x.py")
    damaged = {
        "encrypted": {local + 6: 1, central + 8: 1},
        "deflate": dict.fromkeys(range(name + 4, name + 8), 0xFF),
        "name": {central + 9: 0x08, central + 46: 0xFF},
        "bzip2": {local + 8: 12, central + 10: 12},
    }
    for what, patches in damaged.items():
        data = bytearray(good)
        for place, byte in patches.items():
            data[place] = byte
        (tmp_path / f"{what}.whl").write_bytes(data)
        with pytest.raises(AgentError):
            unpack_wheel(tmp_path / f"{what}.whl", tmp_path / "site")
    for number, names in enumerate((["x", "x/y"], ["x/y", "x"], ["."], ["n" * 300])):
        made = wheel(tmp_path / "x.whl", *((each, b"1") for each in names))
        (tmp_path / str(number)).mkdir()
        with pytest.raises(AgentError):
            unpack_wheel(made, tmp_path / str(number))


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"not a zip")
    with pytest.raises(AgentError, match="no wheel"):
        unpack_wheel(tmp_path / "x.whl", tmp_path)


def test_the_launcher_runs_the_same_program_whoever_unpacked_the_agent(tmp_path: Path) -> None:
    assert run_program(tmp_path / "a'b" / "site") == bootstrap.RUN.format(site=str(tmp_path / "a'b" / "site"))


def accept(layout: Layout, folder: Path, version: str) -> str:
    bundle = bundle_of(folder, version)
    take_agent(layout, bundle)
    assert not layout.staging(bundle.digest).exists()
    return bundle.digest


def test_an_accepted_agent_lies_in_a_slot_and_its_wheels_are_kept(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    digest = accept(layout, tmp_path, "2.0.0")
    assert has_slot(layout, digest)
    assert (tmp_path / "state" / "agent" / digest / "site" / "kedge_agent" / "cli.py").is_file()
    assert {layout.object(sha256).is_file() for sha256 in agent_objects(layout)} == {True}
    assert slot_named(layout, "current") is None
    assert own_slot(layout) is None
    # Once more: nothing is missing, and nothing changes.
    bundle = bundle_of(tmp_path, "2.0.0")
    parcel = AgentParcel(layout, UNSIGNED, bundle.manifest, Offer(AGENT))
    parcel.accept(tmp_path / "nothing")
    assert has_slot(layout, digest)


def test_another_push_mends_a_slot_unless_it_is_the_one_that_runs(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    digest = accept(layout, tmp_path, "2.0.0")
    module = slot(layout, digest) / "site" / "kedge_agent" / "cli.py"
    good = module.read_bytes()
    module.write_bytes(b"rotten")
    accept(layout, tmp_path, "2.0.0")
    assert module.read_bytes() == good
    assert [path.name for path in slot(layout, digest).parent.glob(".*") if path.name != ".lock"] == []
    (slot(layout, digest).parent / "current").symlink_to(digest)
    inode = module.stat().st_ino
    accept(layout, tmp_path, "2.0.0")
    assert module.stat().st_ino == inode


def test_a_slot_that_the_disk_does_not_take_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, fsync = Layout(tmp_path / "state"), os.fsync

    def fails(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("/site/kedge_agent/cli.py"):
            raise OSError(5, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        accept(layout, tmp_path, "2.0.0")
    assert [path.name for path in (tmp_path / "state" / "agent").iterdir()] == [".lock"]


def test_a_push_of_an_agent_removes_those_that_never_came_to_run(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    digests = [accept(layout, tmp_path, "1")]
    (slot(layout, digests[0]).parent / "current").symlink_to(digests[0])
    for version in ("2", "3", "3"):
        digests.append(accept(layout, tmp_path, version))
        assert {path.name for path in agents_folder(layout).glob("?" * 64)} == {digests[0], digests[-1]}


def test_an_agent_that_was_taken_unsigned_is_not_started_where_signatures_are_asked_for(tmp_path: Path) -> None:
    layout, key, other = Layout(tmp_path / "state"), make_key(tmp_path, "key"), make_key(tmp_path, "other")
    bundle = bundle_of(tmp_path, "2")
    take_agent(layout, bundle)
    judge_slot(layout, UNSIGNED, bundle.digest)
    rules = ReleaseRules(
        allowed_signers=allow(tmp_path / "signers", [("*", key), ("*", other)]), revoked_keys=tmp_path / "revoked"
    )
    with pytest.raises(AgentError, match="no signature came with kedge-agent") as refused:
        judge_slot(layout, rules, bundle.digest)
    assert refused.value.kind == "integrity"
    # Pushed again with a signature, it may be; whether it runs or not.
    for link in ("other", "current"):
        (agents_folder(layout) / link).symlink_to(bundle.digest)
        take_agent(layout, bundle, sign(key, bundle.manifest, AGENT_NAMESPACE), rules)
        judge_slot(layout, rules, bundle.digest)
        take_agent(layout, bundle)
    take_agent(layout, bundle, sign(key, bundle.manifest, AGENT_NAMESPACE), rules)
    with pytest.raises(AgentError, match="1 of the 2 distinct keys"):
        judge_slot(layout, replace(rules, threshold=2), bundle.digest)
    rules.revoked_keys.write_text(key.public + "\n")
    with pytest.raises(AgentError, match="is revoked"):
        judge_slot(layout, rules, bundle.digest)


def test_an_agent_that_was_provisioned_is_started_as_the_way_back_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state")
    bundle = bundle_of(tmp_path, "2")
    take_agent(layout, bundle)
    (slot(layout, bundle.digest) / "offer.json").unlink()
    (tmp_path / "signers").write_text("")
    rules = ReleaseRules(allowed_signers=tmp_path / "signers")
    with pytest.raises(AgentError, match="is damaged"):
        judge_slot(layout, rules, bundle.digest)
    (agents_folder(layout) / "previous").symlink_to(bundle.digest)
    judge_slot(layout, rules, bundle.digest)


def test_what_breaks_off_leaves_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "state")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kedge_agent.store.agents.unpack_wheel", full)
        with pytest.raises(OSError, match="No space"):
            accept(layout, tmp_path, "2.0.0")
    assert [path.name for path in (tmp_path / "state" / "agent").iterdir()] == [".lock"]


def test_an_agent_for_another_python_or_processor_is_refused(tmp_path: Path) -> None:
    made = bundle_of(tmp_path, "2.0.0")
    for wrong in ({"python": "3.99"}, {"arch": "riscv64"}):
        manifest = bundle_bytes({**json.loads(made.manifest), **wrong})
        with pytest.raises(AgentError) as refused:
            AgentParcel(Layout(tmp_path), UNSIGNED, manifest, Offer(AGENT)).judge()
        assert refused.value.kind == "incompatible"


def test_an_unsigned_agent_is_refused_where_signatures_are_asked_for(tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    signers.write_text("")
    rules = ReleaseRules(allowed_signers=signers)
    with pytest.raises(AgentError) as refused:
        AgentParcel(Layout(tmp_path), rules, bundle_of(tmp_path, "2").manifest, Offer(AGENT)).judge()
    assert refused.value.kind == "integrity"


def test_a_release_s_offer_brings_no_agent(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="no agent"):
        AgentParcel(Layout(tmp_path), UNSIGNED, bundle_of(tmp_path, "2").manifest, Offer()).judge()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    for digest in (A, B):
        (tmp_path / "agent" / digest).mkdir(parents=True)
    (tmp_path / "agent" / "current").symlink_to(A)
    return Layout(tmp_path)


def test_an_upgrade_that_was_cut_short_ends_with_the_agent_that_is_current(layout: Layout) -> None:
    assert settle(layout) is None
    trial = Trial(B, A, "1.0.0")
    begin_trial(layout, trial)
    assert read_trial(layout) == trial
    ended = settle(layout)
    assert ended is not None
    assert (ended.state, slot_named(layout, "current")) == (FALLEN_BACK, A)
    assert read_trial(layout) is None
    begin_trial(layout, trial)
    commit_trial(layout, trial)
    ended = settle(layout)
    assert ended is not None
    assert (ended.state, slot_named(layout, "current"), slot_named(layout, "previous")) == (COMMITTED, B, A)
    last = read_outcome(layout)
    assert last is not None
    assert (last.bundle, last.former, last.from_version, last.state) == (B, A, "1.0.0", COMMITTED)


def test_an_agent_whose_folder_is_gone_does_not_become_current(layout: Layout) -> None:
    (layout.root / "agent" / B).rmdir()
    with pytest.raises(AgentError, match="not on this device any more"):
        commit_trial(layout, Trial(B, A, "1.0.0"))
    assert slot_named(layout, "current") == A


@pytest.mark.parametrize("text", ["", "{", "[]", '{"bundle": "x", "former": "y", "version": "1"}', "x" * 100_000])
def test_a_damaged_mark_is_taken_away_and_the_old_agent_serves(layout: Layout, text: str) -> None:
    (layout.root / "agent" / "trial.json").write_text(text)
    (layout.root / "agent" / "upgrade.json").write_text(text)
    assert read_trial(layout) is None
    assert read_outcome(layout) is None
    assert settle(layout) is None
    assert not (layout.root / "agent" / "trial.json").exists()


def test_only_the_current_slot_and_the_one_before_are_kept(layout: Layout) -> None:
    for name in ("c" * 64, f".{A}.partial"):
        (layout.root / "agent" / name).mkdir()
    commit_trial(layout, Trial(B, A, "1"))
    (layout.root / "agent" / "current").rename(layout.root / "agent" / "kept")
    clean_slots(layout)
    assert (layout.root / "agent" / ("c" * 64)).is_dir()  # nothing is known to run: nothing is known to be old
    (layout.root / "agent" / "kept").rename(layout.root / "agent" / "current")
    clean_slots(layout)
    assert sorted(path.name for path in (layout.root / "agent").iterdir()) == sorted(
        [".lock", A, B, "current", "previous"]
    )


def test_one_changes_agents_at_a_time(layout: Layout) -> None:
    with (
        changing_agents(layout),
        pytest.raises(AgentError, match="somebody else is changing"),
        changing_agents(layout, wait_s=0.1),
    ):
        pass


def test_provisioning_leaves_what_an_upgrade_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_start", lambda *_, **__: ("background", None))
    state, layout = tmp_path / "state", Layout(tmp_path / "state")
    digests = []
    for version in ("1", "2", "3"):
        bundle = bundle_of(tmp_path, version)
        (state / "provision").mkdir(parents=True)
        wheels = []
        for file, path in bundle.files:
            (state / "provision" / f"{file.sha256}.whl").write_bytes(path.read_bytes())
            wheels.append({"name": file.name, "sha256": file.sha256})
        request = {"state": str(state), "digest": bundle.digest, "manifest": bundle.manifest.decode(), "wheels": wheels}
        bootstrap.install(request)
        digests.append(bundle.digest)
        assert agent_objects(layout) >= {file.sha256 for file, _ in bundle.files}
        assert all(layout.object(file.sha256).is_file() for file, _ in bundle.files)
    assert (slot_named(layout, "current"), slot_named(layout, "previous")) == (digests[2], digests[1])
    assert not has_slot(layout, digests[0])
    assert not os.path.lexists(state / "provision")


def test_the_same_wheels_make_the_same_bundle_whatever_their_order(tmp_path: Path) -> None:
    first = bundle_of(tmp_path, "1").files[0]
    other = tmp_path / "numpy-2-py3-none-any.whl"
    other.write_bytes(b"numpy")
    wheels = [Wheel(first[0].name, first[0].sha256, first[1]), Wheel(other.name, "", other)]
    made = make_bundle(wheels, HERE)
    assert make_bundle(wheels[::-1], HERE) == made
    assert made.version == "1"
    assert made.total_bytes == first[0].size_bytes + 5


def test_a_device_without_a_wheel_of_zstd_gets_the_others_and_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numpy = tmp_path / "numpy-2-py3-none-any.whl"
    numpy.write_bytes(b"numpy")
    asked: list[list[str]] = []

    def kept(device: DevicePython, requirements: list[str], *_: object) -> list[Wheel]:
        asked.append(requirements)
        if requirements == [wheelhouse.ZSTD]:
            raise IncompatibleError("no wheels for riscv64")
        return [Wheel(numpy.name, "", numpy)]

    monkeypatch.setattr(wheelhouse, "_kept", kept)
    notes: list[str] = []
    wheels = wheelhouse.resolve(DevicePython((3, 10), "riscv64", (2, 35)), note=notes.append)
    assert [name.name.split("-")[0] for name in wheels] == ["kedge_agent", "numpy"]
    assert len(notes) == 1
    assert "backports.zstd" in notes[0]
    asked.clear()
    wheelhouse.resolve(DevicePython((3, 14), "riscv64", (2, 35)), note=notes.append)
    assert [wheelhouse.ZSTD] not in asked
