"""Signed releases between hosts and devices: pushed, pulled, carried as archives, and engines that devices built."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge.build.attestation import attest
from kedge.build.cache import EngineCache
from kedge.build.release import BuildOptions, build_release
from kedge.cli.app import main
from kedge.deploy.engines import complete, engine_on_device
from kedge.deploy.releases import pull_release, push_release
from kedge.errors import BadInputError, IntegrityError
from kedge.release.archives import export_release
from kedge.release.bundle import Release, open_release
from kedge.release.signing import sign
from kedge.targets import load_target
from kedge.transport.base import Deadline
from kedge.transport.client import AgentClient
from kedge.transport.local import LocalAgent
from tests.support import environment, models
from tests.support.deploys import configure
from tests.support.keys import Key, allow, make_key
from tests.unit.test_archive import released


class Named(LocalAgent):
    """An agent that is another device than this host."""

    def __init__(self, name: str, state: Path) -> None:
        super().__init__(state)
        self.name = name


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return make_key(tmp_path_factory.mktemp("keys"), "signer")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Callable[..., LocalAgent]]:
    """Makes devices; those that are named a signer ask for signatures."""
    made: list[LocalAgent] = []

    def make(name: str, *signers: Key) -> LocalAgent:
        state = tmp_path / name
        if signers:
            path = allow(tmp_path / f"{name}.signers", [("net", each) for each in signers])
            configure(state, releases={"allowed_signers": str(path)})
        agent = Named(name, state)
        made.append(agent)
        agent.start(Deadline.after(60, "the test"))
        return agent

    yield make
    for agent in made:
        agent.close()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return released(tmp_path / "net.release")


def test_a_release_goes_to_a_device_and_comes_back_with_its_signatures(
    device: Callable[..., LocalAgent], release: Release, key: Key, tmp_path: Path
) -> None:
    agent = device("orin", key)
    with pytest.raises(IntegrityError, match="no signature came"):
        push_release(agent, release)
    sign(release, key.path)
    assert push_release(agent, release).sent_bytes == sum(
        {e.sha256: e.size_bytes for e in release.manifest.files}.values()
    )
    shutil.copytree(release.folder, tmp_path / "copy")
    shutil.rmtree(release.folder)
    back = pull_release(agent, release.digest, tmp_path / "back.release")
    back.verify()
    assert back.digest == release.digest
    assert back.offer() == open_release(tmp_path / "copy").offer()
    for which, message in (("a" * 64, "not on this device"), ("net", "serves no model")):
        with pytest.raises(BadInputError, match=message):
            pull_release(agent, which, tmp_path / "none.release")
    assert not (tmp_path / "none.release").exists()
    assert not list(tmp_path.glob(".none*"))


def test_a_device_whose_disk_rots_gives_no_wrong_release_back(
    device: Callable[..., LocalAgent], release: Release, tmp_path: Path
) -> None:
    agent = device("orin")
    push_release(agent, release)
    (path,) = (tmp_path / "orin" / "releases").glob("*/model.onnx")
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"rotten")
    with pytest.raises(IntegrityError, match="other bytes"):
        pull_release(agent, release.digest, tmp_path / "back.release")
    assert not (tmp_path / "back.release").exists()


def test_a_device_gives_back_nothing_but_what_a_release_of_its_own_names(
    device: Callable[..., LocalAgent], release: Release, tmp_path: Path
) -> None:
    agent = device("orin")
    push_release(agent, release)
    other = released(tmp_path / "other.release", b"another model", version=2)
    push_release(agent, other)
    (foreign,) = {entry.sha256 for entry in other.manifest.files} - {entry.sha256 for entry in release.manifest.files}
    base = f"/kedge/v1/releases/{release.digest}"
    client = AgentClient(agent)
    try:
        shown = client.get(base)
        assert (shown["model"], shown["version"], shown["accepted"]["signed"]) == ("net", 1, False)
        own = release.manifest.file("model.onnx").sha256
        assert (
            bytes(client.get_bytes(f"{base}/objects/{own}?offset=17000", limit_bytes=1 << 20))
            == ((release.folder / "model.onnx").read_bytes()[17000:])
        )
        for path in (
            f"{base}/objects/{foreign}?offset=0",
            f"{base}/objects/{own}",
            f"{base}/objects/{own}?offset=-1",
            f"{base}/objects/..%2f..%2fstate.json?offset=0",
            f"/kedge/v1/releases/{'0' * 64}/manifest",
            f"/kedge/v1/releases/{'0' * 64}/offer",
        ):
            with pytest.raises(BadInputError):
                client.get_bytes(path, limit_bytes=1 << 20)
    finally:
        client.close()


def test_an_archive_is_imported_on_the_device_itself_by_the_same_rules(
    release: Release, key: Key, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    path = allow(tmp_path / "signers", [("net", key)])
    configure(state, releases={"allowed_signers": str(path)})
    archive = tmp_path / "net.kedge"
    export_release(release, archive)
    command = [sys.executable, "-m", "kedge_agent", "--state", str(state), "import"]
    refused = subprocess.run([*command, str(archive)], capture_output=True, text=True, check=False)
    assert refused.returncode == 6
    assert "no signature came" in refused.stderr
    sign(release, key.path)
    export_release(release, archive)
    with archive.open("rb") as source:
        taken = subprocess.run([*command, "-"], stdin=source, capture_output=True, text=True, check=False)
    assert taken.returncode == 0, taken.stderr
    assert json.loads(taken.stdout)["release"] == release.digest
    assert json.loads((state / "releases" / release.digest / "accepted.json").read_text())["signed"] is True


@pytest.fixture
def kedge(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that must succeed; its document."""

    def run(*arguments: object) -> Any:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return run


def test_the_commands_sign_show_verify_export_and_import(
    release: Release, key: Key, tmp_path: Path, kedge: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    signers = allow(tmp_path / "signers", [("n*", key)])
    assert kedge("release", "show", release.folder)["signatures"] == []
    assert main(["release", "verify", str(release.folder), "--signers", str(signers)]) == 6
    signed = kedge("release", "sign", release.folder, "--key", key.path, "--downgrade", "--from", "3")
    assert (signed["release"], signed["key"], signed["signatures"]) == (release.digest, key.fingerprint, 1)
    archive = tmp_path / "net.kedge"
    assert kedge("release", "export", release.folder, "-o", archive)["bytes"] == archive.stat().st_size
    assert kedge("release", "import", archive, "-o", tmp_path / "again")["release"] == release.digest
    for path in (archive, tmp_path / "again"):
        shown = kedge("release", "show", path, "--signers", signers)
        assert [(each["key"], each["good"]) for each in shown["signatures"]] == [(key.fingerprint, True)]
        assert shown["beside"] == ["downgrade"]
        assert kedge("release", "verify", path, "--signers", signers)["intact"] is True
    assert kedge("release", "show", archive)["signatures"][0]["good"] is None
    assert main(["release", "show", str(archive), "--signers", str(signers)]) == 0
    assert f"{key.fingerprint} (good)" in capsys.readouterr().out.replace("\n", " ")


def test_a_downgrade_is_signed_from_a_version_on_or_not_at_all(release: Release, key: Key) -> None:
    command = ["release", "sign", str(release.folder), "--key", str(key.path)]
    for some in (["--downgrade"], ["--from", "3"]):
        assert main([*command, *some]) == 3
    assert release.offer().downgrade is None


def test_the_commands_push_and_pull(
    release: Release, tmp_path: Path, kedge: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    archive = tmp_path / "net.kedge"
    export_release(release, archive)
    assert kedge("release", "push", archive, "--to", "local")["release"] == release.digest
    pulled = kedge("release", "pull", release.digest, "--on", "local", "-o", tmp_path / "back")
    assert pulled["release"] == open_release(tmp_path / "back").digest == release.digest
    assert (pulled["accepted"]["signed"], pulled["accepted"]["keys"]) == (False, [])


@pytest.mark.slow
def test_an_engine_goes_from_its_builder_to_another_device_once_somebody_vouches_for_it(
    device: Callable[..., LocalAgent], key: Key, tmp_path: Path
) -> None:
    environment.tensorrt_rtx()
    target = load_target("rtx-ada-2000")
    model = models.classifier(tmp_path / "small.onnx", batch=1)
    planned = build_release(model, target, tmp_path / "net.release", BuildOptions("net", on_device=True)).release
    sign(planned, key.path)
    cache = EngineCache(tmp_path / "cache")
    told: list[str] = []

    def built_for(agent: LocalAgent) -> tuple[Release, bool]:
        engine, built = engine_on_device(agent, target, planned, lambda step, _: told.append(step), cache=cache)
        return complete(planned, engine, tmp_path / f"{agent.name}.release"), built

    first, second, third = device("orin-1", key), device("orin-2", key), device("orin-3", key)
    whole, built = built_for(first)
    assert built
    push_release(first, whole)
    assert built_for(first)[1] is False
    with pytest.raises(IntegrityError, match="nobody vouches for it"):
        push_release(second, whole)
    other, built = built_for(second)
    assert built
    assert any("orin-1" in step and "attest" in step for step in told)
    push_release(second, other)
    for name in ("orin-1", "orin-2"):
        assert {each.builder.device for each in attest(planned, key.path, cache, name) if each.builder} == {name}
    shared, built = built_for(third)
    assert not built
    push_release(third, shared)
    accepted = json.loads((tmp_path / "orin-3" / "releases" / shared.digest / "accepted.json").read_text())
    assert (accepted["signed"], accepted["attested"]) == (True, "attestation")
    # The first device forgets what it built: it does not take its own old engine on anybody's word then.
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "orin-1" / "engines")
    anew, built = built_for(first)
    assert built
    push_release(first, anew)
