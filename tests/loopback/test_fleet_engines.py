"""Engines of a rollout: real agents, NVIDIA's real compiler, no GPU. One builds, the host vouches, the rest receive it.

No device here can run what it compiles. So each ends with the engine accepted and its deploy refused for want of the
runtime, which is as far as it goes without a GPU; and that a device could run one, each is believed.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import kedge.deploy.engines
from kedge.build.cache import EngineCache
from kedge.build.release import BuildOptions, build_release
from kedge.config import state_dir
from kedge.errors import IncompatibleError, IntegrityError
from kedge.fleet.engines import EngineGoneError, complete_for
from kedge.fleet.executor import open_executor
from kedge.fleet.rollout.drive import drive
from kedge.fleet.rollout.ledger import create
from kedge.fleet.rollout.plan import Options, Planned, make_plan
from kedge.fleet.task import run_task
from kedge.release.bundle import Release, open_release
from kedge.release.remote import fetched, push_to
from kedge.release.signing import sign
from kedge.targets import load_target
from kedge.transport.client import AgentClient
from kedge_agent.engine.order import engine_key, parse_order
from kedge_agent.formats.passport import Passport
from tests.support import environment, models
from tests.support.deploys import configure
from tests.support.fleet_tasks import Named, Way, agents, task_for
from tests.support.keys import Key, allow, make_key

TARGET = "rtx-ada-2000"
NO_RUNTIME = "the release needs a runtime among: tensorrt-rtx"


@dataclass(frozen=True)
class Plan:
    """What `complete_for` needs of one."""

    id: str
    release: dict[str, str]
    devices: tuple[Planned, ...]


@pytest.fixture(autouse=True)
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    environment.tensorrt_rtx()
    monkeypatch.setattr(kedge.deploy.engines, "_require_runtime", lambda device, client, runtime: None)


@pytest.fixture
def key(tmp_path: Path) -> Key:
    return make_key(tmp_path, "signer")


@pytest.fixture
def planned(tmp_path: Path) -> Release:
    """A release that a device has yet to compile."""
    model = models.classifier(tmp_path / "net.onnx", batch=1)
    return build_release(model, load_target(TARGET), tmp_path / "net", BuildOptions("net", on_device=True)).release


@pytest.fixture
def three(tmp_path: Path, key: Key) -> Iterator[dict[str, Named]]:
    """Devices that ask for signatures."""
    for name in ("a", "b", "c"):
        signers = allow(tmp_path / f"{name}.signers", [("net", key)])
        configure(tmp_path / "devices" / name, releases={"allowed_signers": str(signers), "probation_s": 0})
    with agents(tmp_path / "devices", "a", "b", "c") as made:
        yield made


def plan_of(release: Release, source: str | None = None, target: str = TARGET) -> Plan:
    devices = tuple(Planned(name, target, {"test": name}, 1) for name in ("a", "b", "c"))
    return Plan("20261126-090000-abcdef", {"digest": release.digest, "source": source or str(release.folder)}, devices)


def told_of(planned: Release, back: Release | None = None, url: str = "") -> dict[str, Any]:
    """What a worker may say that device a has built of a release."""
    artefact = planned.manifest.artefacts[0]
    onnx, order = planned.manifest.file(artefact.file).sha256, parse_order(dict(artefact.build or {}))
    wanted = Passport("tensorrt-rtx", "1.0.0.1", "linux", "x86_64", ("8.9",))
    return {
        "key": engine_key(onnx, order, wanted),
        "wanted": wanted.to_json(),
        "sha256": "0" * 64,
        "builder": {"device": "a", "host_key": None},
        "release": None if back is None else {"digest": back.digest, "source": url},
    }


def answer(devices: dict[str, Named], name: str, wanted: Release, kind: str = "deploy", **more: Any) -> dict[str, Any]:
    way = Way({each: agent.state for each, agent in devices.items()})
    return run_task({**task_for(name, wanted, kind, target=TARGET), **more}, opener=way)


def accepted(agent: Named, digest: str) -> dict[str, Any]:
    client = AgentClient(agent)
    try:
        return dict(client.get(f"/kedge/v1/releases/{digest}")["accepted"])
    finally:
        client.close()


def test_one_device_compiles_for_three(three: dict[str, Named], planned: Release, key: Key) -> None:
    sign(planned, key.path)
    asked = [answer(three, name, planned) for name in three]
    assert {each["state"] for each in asked} == {"needs_engine"}
    assert len({each["engine"]["key"] for each in asked}) == 1
    # Nothing was sent, and nobody waits.
    assert {step for each in asked for step in each["steps"]} == {"connect", "fetch", "engine"}

    built = answer(three, "a", planned, "build")
    assert (built["state"], built["engine"]["key"]) == ("built", asked[0]["engine"]["key"])
    assert built["engine"]["release"] is None
    assert len(json.dumps(built)) < 64 * 1024
    assert len(EngineCache().entries()) == 1

    engine = complete_for(plan_of(planned), built, key.path)  # type: ignore[arg-type]
    assert engine["key"] == built["engine"]["key"]
    assert engine["attested"] == key.fingerprint
    folder = Path(engine["release"]["source"])
    assert folder.is_relative_to(state_dir() / "rollouts" / "20261126-090000-abcdef")
    assert open_release(folder).digest == engine["release"]["digest"]

    for name, agent in three.items():
        ended = answer(three, name, planned, engines=[engine])
        assert (ended["state"], ended["exit_code"]) == ("failed", 7), ended
        assert NO_RUNTIME in ended["reason"]
        # That far it came on the attestation alone; the compiler ran on one of them.
        assert accepted(agent, engine["release"]["digest"])["signed"]
        assert (agent.state / "engines").exists() == (name == "a")


def test_the_engine_of_a_worker_elsewhere_comes_back_through_the_url(
    three: dict[str, Named], planned: Release, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(planned, key.path)
    url = (tmp_path / "source").as_uri()
    push_to(planned, url)
    source = {"digest": planned.digest, "source": url}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "worker"))
    built = answer(three, "a", planned, "build", release=source)
    assert built["state"] == "built", built
    assert built["engine"]["release"]["source"] == url
    assert fetched(built["engine"]["release"]).offer().attestation is None

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "host"))
    engine = complete_for(plan_of(planned, url), built, key.path)  # type: ignore[arg-type]
    assert engine["release"] == built["engine"]["release"]
    assert [each.builder.device for each in EngineCache().entries() if each.builder is not None] == ["a"]

    # A worker that has fetched it before learns that somebody has vouched for it since.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "worker"))
    ended = answer(three, "b", planned, release=source, engines=[engine])
    assert NO_RUNTIME in str(ended["reason"])
    assert accepted(three["b"], engine["release"]["digest"])["signed"]


def test_what_came_back_and_is_another_release_is_not_vouched_for(planned: Release, key: Key, tmp_path: Path) -> None:
    url = (tmp_path / "source").as_uri()
    push_to(planned, url)
    model = models.classifier(tmp_path / "other.onnx", batch=1, seed=5)
    here = EngineCache(tmp_path / "cache")
    other = build_release(model, load_target(TARGET), tmp_path / "other", BuildOptions("net", 1), cache=here).release
    push_to(other, url)
    told = {"device": "a", "engine": told_of(planned, other, url)}
    with pytest.raises(IntegrityError, match="is not the rollout's release with an engine"):
        complete_for(plan_of(planned, url), told, key.path)  # type: ignore[arg-type]
    assert not EngineCache().entries()


@pytest.mark.parametrize(
    "more",
    [
        None,
        {"key": "../.."},
        {"key": "0" * 64},
        {"wanted": None},
        {"wanted": Passport("tensorrt-rtx", "1.0.0.1", "linux", "x86_64", ("8.6",)).to_json()},
        {"sha256": "nonsense"},
    ],
)
def test_what_makes_no_sense_is_not_vouched_for(planned: Release, key: Key, more: Any) -> None:
    """Nor an engine of another passport than the one of its key, which the device asked for."""
    told = {} if more is None else told_of(planned) | more
    with pytest.raises(IntegrityError, match="makes no sense"):
        complete_for(plan_of(planned), {"device": "a", "engine": told}, key.path)  # type: ignore[arg-type]


def test_an_engine_that_is_gone_is_to_be_built_again(three: dict[str, Named], planned: Release, key: Key) -> None:
    sign(planned, key.path)
    built = answer(three, "a", planned, "build")
    assert [each.sha256 for each in EngineCache().gc(keep_bytes=0)] == [built["engine"]["sha256"]]
    with pytest.raises(EngineGoneError, match="is not in this host's cache") as gone:
        complete_for(plan_of(planned), built, key.path)  # type: ignore[arg-type]
    # Which is of a kind that a rollout takes for the builder's, and not for this host's.
    assert isinstance(gone.value, IntegrityError)
    again = answer(three, "a", planned, "build")
    assert complete_for(plan_of(planned), again, key.path)["attested"] == key.fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize("builder", [None, {"device": "b", "host_key": None}, {"device": "a", "host_key": "SHA256:x"}])
def test_what_a_worker_says_that_another_built_is_not_vouched_for(
    planned: Release, key: Key, tmp_path: Path, builder: Any
) -> None:
    told = told_of(planned, planned, (tmp_path / "source").as_uri()) | {"builder": builder}
    with pytest.raises(IntegrityError, match="was built on another device"):
        complete_for(plan_of(planned), {"device": "a", "engine": told}, key.path)  # type: ignore[arg-type]
    assert not EngineCache().entries()


def test_an_engine_that_another_device_built_is_not_vouched_for_nor_one_of_another_target(
    three: dict[str, Named], planned: Release, key: Key
) -> None:
    sign(planned, key.path)
    built = answer(three, "a", planned, "build")
    with pytest.raises(IntegrityError, match="b: the engine that came back for it was built on another device"):
        complete_for(plan_of(planned), {**built, "device": "b"}, key.path)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="orin-nano-4gb is linux/aarch64, the engine is for linux/x86_64"):
        complete_for(plan_of(planned, target="orin-nano-4gb"), built, key.path)  # type: ignore[arg-type]
    assert all(each.attestation(planned.digest) is None for each in EngineCache().entries())


def test_without_a_key_each_device_compiles_for_itself_and_waits_for_no_other(planned: Release, tmp_path: Path) -> None:
    with agents(tmp_path / "devices", "a", "b") as devices:
        first = answer(devices, "a", planned)
        # Somebody else builds for this passport, for as long as it takes.
        with EngineCache().building(first["engine"]["key"]), ThreadPoolExecutor() as threads:
            ended = list(threads.map(lambda name: answer(devices, name, planned, build_own=True), devices))
        assert all(NO_RUNTIME in each["reason"] for each in ended), ended
        assert all((agent.state / "engines").exists() for agent in devices.values())
        builders = {each.builder.device for each in EngineCache().entries() if each.builder is not None}
        assert builders == {"a", "b"}


def test_a_device_that_does_not_end_its_build_is_late_and_joins_it_later(planned: Release, tmp_path: Path) -> None:
    with agents(tmp_path / "devices", "a") as devices:
        late = answer(devices, "a", planned, "build", deadline_s=0.4)
        assert late["state"] == "late"
        time.sleep(0.1)
        assert answer(devices, "a", planned, "build")["state"] == "built"


@dataclass(frozen=True)
class Chosen:
    """A device as a plan wants it."""

    name: str
    target: str = TARGET

    def way(self) -> dict[str, Any]:
        return {"test": self.name}


def test_a_rollout_has_one_device_build_for_all_of_its_passport(
    three: dict[str, Named], planned: Release, key: Key
) -> None:
    sign(planned, key.path)
    plan = make_plan(
        [Chosen(name) for name in three],
        model="net",
        version=1,
        digest=planned.digest,
        source=str(planned.folder),
        options=Options(attest=str(key.path), max_failures=3, concurrency=3),
    )
    way = Way({name: agent.state for name, agent in three.items()})
    heard: list[dict[str, Any]] = []
    with open_executor(None, 3) as workers:
        rollout = drive(
            create(plan),
            workers.executor,
            work=functools.partial(run_task, opener=way),
            hear=lambda rollout, event: heard.append(dict(event)),
        )
    assert sum((agent.state / "engines").exists() for agent in three.values()) == 1
    engines = [event for event in heard if event["event"] == "engine"]
    assert len(engines) == 1
    assert rollout.ended == "done"
    for row in rollout.to_json()["devices"]:
        assert (row["state"], row["exit_code"]) == ("failed", 7)
        assert NO_RUNTIME in row["reason"]
