"""What leaves the store, what never does, and what a cut at any point leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kedge.release.bundle import Release
from kedge_agent.errors import AgentError
from kedge_agent.formats.bundle import parse_bundle
from kedge_agent.formats.digests import sha256_hex
from kedge_agent.formats.offer import Offer
from kedge_agent.store.accept import ReleaseParcel
from kedge_agent.store.collect import Collected, collect
from kedge_agent.store.files import exclusive_lock
from kedge_agent.store.journal import Journal
from kedge_agent.store.layout import Layout
from kedge_agent.store.locks import using_store
from kedge_agent.store.models import ModelState, prepare_switch, write_state
from kedge_agent.store.releases import has_release, read_release, release_digests, verify_release
from kedge_agent.store.room import room_for
from kedge_agent.store.rules import ReleaseRules
from kedge_agent.store.slots import Trial, agents_folder, begin_trial, changing_agents, has_slot, slot
from kedge_agent.store.space import SPARE_BYTES, has_room
from tests.support.stores import parts_of, put
from tests.support.upgrades import bundle_of, take_agent

RULES = ReleaseRules(keep=1)
NOTHING = Collected((), 0, 0, 0, 0)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state")


@pytest.fixture
def digests(layout: Layout, release: Release, tmp_path: Path) -> list[str]:
    """Six accepted releases of one model, each with weights of its own; the one accepted first comes first."""
    return [
        put(layout, parts_of(release, tmp_path, version=version, weights=bytes([version]) * 5000))
        for version in range(1, 7)
    ]


def weights_of(layout: Layout, digest: str) -> Path:
    return layout.object(read_release(layout, digest).file("weights.bin").sha256)


def free(monkeypatch: pytest.MonkeyPatch, bytes_: Callable[[], int]) -> None:
    """Have the disk say that it has so much room."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=bytes_(), f_frsize=1))


def assert_whole(layout: Layout) -> None:
    """Everything that is named in the store holds."""
    for digest in release_digests(layout):
        verify_release(layout, read_release(layout, digest))


def test_what_the_state_names_and_the_latest_stay_and_the_rest_goes_with_the_objects_it_alone_named(
    layout: Layout, digests: list[str]
) -> None:
    write_state(layout, "digits", ModelState(digests[2], digests[0]))
    objects = [weights_of(layout, digest) for digest in digests]
    done = collect(layout, RULES)
    assert done is not None
    assert set(done.releases) == {digests[1], digests[3], digests[4]}
    assert (done.objects, done.partials, done.engines) == (3, 0, 0)
    assert done.freed_bytes >= 3 * 5000
    assert [path.exists() for path in objects] == [True, False, True, False, False, True]
    assert_whole(layout)
    assert collect(layout, RULES) == NOTHING


def test_under_pressure_only_what_a_state_names_stays(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[2], digests[0]))
    assert collect(layout, RULES, pressed=True) is not None
    assert release_digests(layout) == sorted([digests[0], digests[2]])
    assert_whole(layout)


def test_the_way_back_the_state_to_come_and_what_is_asked_for_stay(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[0], None))
    prepare_switch(layout, "digits", ModelState(digests[1], digests[0]), ModelState(digests[2], digests[3]))
    loose = weights_of(layout, digests[5])
    kept = {digests[4], loose.parent.name + loose.name}
    assert collect(layout, RULES, pressed=True, keep=kept) is not None
    assert release_digests(layout) == sorted(digests[:5])
    assert loose.exists()


def test_a_release_whose_deploy_has_not_ended_stays(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[0], None))
    journal = Journal(layout)
    journal.append("digits", digests[1], "begun")
    collect(layout, RULES, pressed=True)
    assert release_digests(layout) == sorted(digests[:2])
    journal.append("digits", digests[1], "refused")
    collect(layout, RULES, pressed=True)
    assert release_digests(layout) == digests[:1]


def test_a_release_that_waits_for_its_deploy_stays_where_none_are_kept(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[4], None))
    collect(layout, ReleaseRules(keep=0))
    assert release_digests(layout) == sorted(digests[4:])
    write_state(layout, "digits", ModelState(digests[5], digests[4]))
    collect(layout, ReleaseRules(keep=0))
    assert release_digests(layout) == sorted(digests[4:])


@pytest.mark.parametrize("name", ["state.json", "state.back", "state.next"])
def test_nothing_of_a_model_goes_while_nobody_can_tell_what_it_serves(
    layout: Layout, digests: list[str], release: Release, tmp_path: Path, name: str
) -> None:
    other = put(layout, parts_of(release, tmp_path, model="other", weights=b"o" * 5000))
    write_state(layout, "digits", ModelState(digests[0], None))
    (layout.model("digits") / name).write_bytes(b"\0" * 100)
    done = collect(layout, RULES, pressed=True)
    assert done is not None
    assert done.releases == (other,)
    assert release_digests(layout) == sorted(digests)


def test_nothing_goes_of_a_release_whose_manifest_cannot_be_read(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[0], None))
    weights = weights_of(layout, digests[1])
    manifest = layout.release(digests[1]) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_bytes(b"{")
    collect(layout, RULES, pressed=True)
    assert (layout.release(digests[1]) / "weights.bin").exists()
    assert weights.exists()
    assert not has_release(layout, digests[2])


def test_nothing_goes_while_somebody_uses_the_store(layout: Layout, digests: list[str]) -> None:
    with using_store(layout):
        assert collect(layout, RULES, pressed=True) is None
    assert release_digests(layout) == sorted(digests)


def test_of_pushes_that_broke_off_the_latest_stay_and_the_one_under_way(layout: Layout) -> None:
    folders = [layout.staging(sha256_hex(bytes([index]))) for index in range(7)]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"p" * 5000)
        os.utime(folder / "part", (1000 + index, 1000 + index))
    with exclusive_lock(folders[0] / ".lock", "held"):
        os.utime(folders[0] / ".lock", (0, 0))
        done = collect(layout, RULES)
        assert done is not None
        assert (done.partials, done.freed_bytes >= 10_000) == (2, True)
        assert [folder.exists() for folder in folders] == [True, False, False, True, True, True, True]
        collect(layout, RULES, pressed=True, keep={folders[5].name})
        assert [folder.exists() for folder in folders] == [True, False, False, False, False, True, False]


def test_objects_of_a_release_whose_acceptance_was_cut_short_stay_as_long_as_its_push(
    layout: Layout, digests: list[str]
) -> None:
    write_state(layout, "digits", ModelState(digests[5], None))
    weights = weights_of(layout, digests[0])
    staging = layout.staging(digests[0])
    staging.mkdir()
    shutil.move(layout.release(digests[0]) / "manifest.json", staging)
    shutil.rmtree(layout.release(digests[0]))
    collect(layout, ReleaseRules(keep=0))
    assert release_digests(layout) == [digests[5]]
    assert weights.exists()
    collect(layout, ReleaseRules(keep=0), pressed=True)
    assert not weights.exists()
    assert_whole(layout)


def test_what_an_acceptance_or_a_collection_left_that_was_cut_short_goes(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[5], digests[4]))
    for suffix in ("partial", "damaged", "removed"):
        left = layout.release(digests[0]).with_name(f".{digests[0]}.{suffix}")
        left.mkdir()
        (left / "x").write_bytes(b"x" * 5000)
    collect(layout, ReleaseRules(keep=6))
    assert sorted(os.listdir(layout.root / "releases")) == sorted(digests)


def test_of_engines_built_here_the_latest_stay_and_what_is_being_built(layout: Layout) -> None:
    folders = [layout.root / "engines" / sha256_hex(bytes([index])) for index in range(10)]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "engine").write_bytes(b"e" * 5000)
        os.utime(folder / "engine", (1000 + index, 1000 + index))
    building = layout.root / "engines" / ".engine-x"
    timing = layout.root / "engines" / "timing"
    for folder in (building, timing):
        folder.mkdir()
    done = collect(layout, RULES)
    assert done is not None
    assert (done.engines, [folder.exists() for folder in folders]) == (2, [False] * 2 + [True] * 8)
    collect(layout, RULES, pressed=True)
    assert [folder.exists() for folder in folders] == [False] * 9 + [True]
    assert building.exists()
    assert timing.exists()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["collect.marked", "collect.removed"])
def test_a_collection_that_is_killed_leaves_all_that_is_named_whole_and_the_next_one_ends_it(
    layout: Layout, digests: list[str], place: str
) -> None:
    write_state(layout, "digits", ModelState(digests[5], digests[3]))
    objects = [weights_of(layout, digest) for digest in digests]
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kedge_agent.store.collect import collect\n"
        "from kedge_agent.store.layout import Layout\n"
        "from kedge_agent.store.rules import ReleaseRules\n"
        "collect(Layout(Path(sys.argv[1])), ReleaseRules(keep=0))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(layout.root)],
        env={**os.environ, "KEDGE_FAILPOINTS": f"{place}=kill"},
        timeout=60,
        check=False,
    )
    assert ended.returncode == -9
    assert release_digests(layout) == sorted([digests[3], digests[5]])
    assert_whole(layout)
    assert collect(layout, ReleaseRules(keep=0)) is not None
    assert [path.exists() for path in objects] == [False, False, False, True, False, True]
    assert sorted(os.listdir(layout.root / "releases")) == sorted([digests[3], digests[5]])
    assert collect(layout, ReleaseRules(keep=0)) == NOTHING


def test_wheels_of_the_agents_that_are_installed_stay(layout: Layout, digests: list[str]) -> None:
    write_state(layout, "digits", ModelState(digests[5], None))
    release = read_release(layout, digests[0])
    entry = release.file("weights.bin")
    wheel = {"name": "kedge_agent-1-py3-none-any.whl", "bytes": entry.size_bytes, "sha256": entry.sha256}
    body = {"kedge_agent": 1, "version": "1", "python": "3.11", "arch": "x86_64"}
    body["files"] = [wheel | {"frames": list(entry.frames)}]
    data = json.dumps(body).encode()
    folder = slot(layout, parse_bundle(data).digest)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(data)
    collect(layout, RULES, pressed=True)
    assert release_digests(layout) == [digests[5]]
    assert layout.object(entry.sha256).exists()


def test_a_store_that_is_not_there_yet_has_nothing_to_collect(layout: Layout) -> None:
    assert collect(layout, RULES) == NOTHING


def test_a_push_that_needs_room_gets_what_nobody_else_needs_and_keeps_what_it_needs_itself(
    layout: Layout, digests: list[str], release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(layout, "digits", ModelState(digests[5], None))
    again = parts_of(release, tmp_path, version=9, weights=bytes([1]) * 5000)
    fresh = parts_of(release, tmp_path, version=9, weights=bytes([9]) * 5000)
    free(monkeypatch, lambda: SPARE_BYTES + (10_000 if len(release_digests(layout)) == 1 else 100))
    for parts, missing in ((again, 0), (fresh, 1)):
        parcel = ReleaseParcel(layout, RULES, parts.data, Offer())
        staging = layout.staging(parcel.digest)
        staging.mkdir(parents=True)
        with room_for(layout, RULES, parcel, staging) as frames:
            assert len(frames) == missing
            # Whatever is found while it is open stays.
            assert collect(layout, RULES) is None
    assert release_digests(layout) == [digests[5]]
    short = 5000 + SPARE_BYTES - 100
    free(monkeypatch, lambda: 100)
    with (
        pytest.raises(AgentError, match=rf"100 free, {short} too few \(all that could be removed") as caught,
        room_for(layout, RULES, parcel, staging),
    ):
        pytest.fail("there is no room")
    assert caught.value.kind == "space"
    with (
        using_store(layout),
        pytest.raises(AgentError, match="somebody else uses the store"),
        room_for(layout, RULES, parcel, staging),
    ):
        pytest.fail("there is no room")
    assert_whole(layout)
    assert has_room(layout, 0)
    assert not has_room(layout, 1)


def test_a_push_that_can_never_fit_takes_nothing_from_others(
    layout: Layout, digests: list[str], release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(layout, "digits", ModelState(digests[5], None))
    left = layout.staging("c" * 64)
    left.mkdir(parents=True)
    (left / "x").write_bytes(b"partial")
    engines = [layout.root / "engines" / (letter * 64) for letter in "ab"]
    for folder in engines:
        folder.mkdir(parents=True)
        (folder / "engine").write_bytes(b"engine")
    fresh = parts_of(release, tmp_path, version=9, weights=bytes(4_000_000))
    parcel = ReleaseParcel(layout, RULES, fresh.data, Offer())
    staging = layout.staging(parcel.digest)
    staging.mkdir(parents=True)
    free(monkeypatch, lambda: SPARE_BYTES + 100)
    with pytest.raises(AgentError, match="would not be enough") as caught, room_for(layout, RULES, parcel, staging):
        pytest.fail("there is no room")
    assert caught.value.kind == "space"
    assert release_digests(layout) == sorted(digests)
    assert_whole(layout)
    assert [path.is_dir() for path in (left, *engines)] == [True, True, True]
    # What is less than what may go is made room for.
    done = collect(layout, RULES, pressed=True, lack_bytes=5 * 5000)
    assert done is not None
    assert (len(done.releases), done.partials, done.engines) == (5, 2, 1)
    assert done.freed_bytes >= 5 * 5000


def test_under_pressure_only_the_agents_that_run_or_ran_last_stay_with_their_wheels(
    layout: Layout, tmp_path: Path
) -> None:
    bundles = [bundle_of(tmp_path, version) for version in ("1", "2", "3", "4")]
    for bundle in bundles:
        take_agent(layout, bundle)
    folder = agents_folder(layout)
    for name, bundle in zip(("previous", "current"), bundles[1:], strict=False):
        (folder / name).symlink_to(bundle.digest)
    begin_trial(layout, Trial(bundles[3].digest, bundles[2].digest, "3"))
    with changing_agents(layout):
        assert collect(layout, RULES, pressed=True) == NOTHING
    done = collect(layout, RULES, pressed=True)
    assert done is not None
    assert done.objects == 1
    assert done.freed_bytes > bundles[0].files[0][0].size_bytes
    assert [has_slot(layout, bundle.digest) for bundle in bundles] == [False, True, True, True]
    assert all(layout.object(bundle.files[0][0].sha256).is_file() for bundle in bundles[1:])
