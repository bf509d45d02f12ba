"""The link drops in any state of a deploy over real sshd: the device ends it by itself, the same command tells how."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kedge.release.bundle import Release
from kedge_agent.store.layout import socket_directory
from tests.loopback.test_ssh import TARGET, Cli, make_cli
from tests.support.agents import assert_invariant
from tests.support.daemon import Agent
from tests.support.links import Link
from tests.support.sshd import Sshd, make_sshd, remove_sshd
from tests.support.weights import weighty_release

pytestmark = pytest.mark.slow

STATES = ("push", "verify", "stage", "gate", "switch", "probation")


class Neighbour(Agent):
    """An agent that was provisioned over SSH on this machine, as this machine sees it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.sockets = Path(f"/tmp/kedge-{state.stat().st_uid}") / socket_directory(state).name


@dataclass
class Remote:
    """A device behind a link: how a person reaches it, and what lies on it."""

    cli: Cli
    server: Sshd
    link: Link
    agent: Neighbour

    def holds(self, *live: Release, model: str = "digits") -> None:
        """The invariant, with one of these live."""
        assert_invariant(self.agent.state, self.agent, {release.digest for release in live}, model=model)


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


@pytest.fixture(scope="module")
def remote(server: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    cli = make_cli(tmp_path_factory.mktemp("links"))
    with contextlib.closing(Link(server.port)) as link:
        for name, port in (("straight", server.port), ("far", link.port)):
            address = f"{server.user}@127.0.0.1:{port}"
            cli("device", "add", name, address, "--target", TARGET, "--key", str(server.key))
            cli("device", "trust", name, "--fingerprint", server.fingerprint())
        made = cli.json("device", "provision", "straight", "--no-service")
        cli("device", "provision", "far", "--no-service")
        yield Remote(cli, server, link, Neighbour(Path(made["state"])))
        cli("device", "remove", "straight")


class Deploy:
    """`kedge deploy --events` as a process, and a hook that is called when a state begins."""

    def __init__(self, remote: Remote, release: Release, *options: str, to: str = "far") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kedge", "deploy", str(release.folder), "--to", to, "--events", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=remote.cli.environment,
        )
        self.states: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.errors = ""

    def run(self, state: str = "", act: Callable[[], object] = lambda: None) -> int:
        """To its end; `act` is called once, when this state begins. Its exit code."""
        errors = threading.Thread(target=self._read_errors)
        errors.start()
        assert self._process.stdout is not None
        acted = False
        for line in self._process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if event.get("event") == "step":
                self.states.append(event["step"])
            if not acted and self._begun(state, event):
                acted = True
                act()
        errors.join()
        self._process.stdout.close()
        return self._process.wait(60)

    def _begun(self, state: str, event: dict[str, Any]) -> bool:
        if state in ("push", "acknowledged"):
            # Not before the device has said what it lacks; not before it has acknowledged a frame.
            progress = event.get("event") == "progress" and event.get("step") == "push"
            return progress and event["bytes"] >= (state == "acknowledged")
        return event.get("event") == "step" and event.get("step") == state

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            self.errors = errors.read()

    def kill(self) -> None:
        self._process.kill()


@pytest.fixture(autouse=True)
def mended(remote: Remote) -> None:
    """Each test begins with a link that holds, whatever the one before it left."""
    remote.link.mend()


@pytest.fixture
def versions(tmp_path: Path) -> Callable[[], Release]:
    """Releases of ever higher versions, each of other bytes."""

    def make() -> Release:
        version = time.time_ns() // 1_000_000_000
        return weighty_release(tmp_path, version=version, seed=time.time_ns() % 100_000, small_files=2, probation_s=3)

    return make


@pytest.mark.parametrize("state", STATES)
def test_a_link_that_drops_and_comes_back_in_any_state_costs_a_deploy_nothing(
    remote: Remote, versions: Callable[[], Release], state: str
) -> None:
    release = versions()
    deploy = Deploy(remote, release, "--limit", "100Mbit")

    def drop() -> None:
        remote.link.cut()
        threading.Timer(1.0, remote.link.mend).start()

    code = deploy.run(state, drop)
    if state in ("push", "verify") and code == 4:
        # A push that breaks off is run again; it goes on where it was.
        again = Deploy(remote, release)
        assert again.run() == 0, again.errors
        code = 0
    assert code == 0, deploy.errors
    remote.holds(release)


@pytest.mark.parametrize("state", STATES)
def test_a_host_that_goes_for_good_in_any_state_leaves_a_device_that_ends_the_deploy_and_the_same_command_tells(
    remote: Remote, versions: Callable[[], Release], state: str
) -> None:
    former = versions()
    assert Deploy(remote, former).run() == 0
    time.sleep(1.1)
    release = versions()
    deploy = Deploy(remote, release, "--limit", "100Mbit")

    def vanish() -> None:
        remote.link.cut()
        deploy.kill()

    deploy.run(state, vanish)
    remote.holds(former, release)
    remote.link.mend()
    again = Deploy(remote, release)
    assert again.run() == 0, again.errors
    assert again.states[-1] == "done"
    remote.holds(release)
    told = remote.cli.json("history", "digits", "--on", "straight")["entries"]
    assert [entry["step"] for entry in told if entry["release"] == release.digest][-1] == "committed"


def test_two_deploys_at_once_with_a_collection_and_a_dropped_link_end_as_if_each_had_been_alone(
    remote: Remote, tmp_path: Path
) -> None:
    # So many releases of one model that each further commit has something to collect.
    for version in range(1, 6):
        release = weighty_release(tmp_path, version=version, seed=version, name="crowd", bulk_bytes=100_000)
        assert Deploy(remote, release, to="straight").run() == 0
    crowd = weighty_release(tmp_path, version=6, seed=6, name="crowd", bulk_bytes=9_000_000)
    other = weighty_release(tmp_path, version=7, seed=7, name="crowd", bulk_bytes=100_000)
    lone = weighty_release(tmp_path, version=1, seed=8, name="lone")
    slow = Deploy(remote, crowd, "--limit", "4Mbit", to="straight")
    codes: dict[str, int] = {}
    dropped = slow

    def begin_others() -> None:
        nonlocal dropped
        # The same model is being deployed; another one may be.
        codes["busy"] = Deploy(remote, other, to="straight").run()
        dropped = Deploy(remote, lone, "--limit", "40Mbit")
        threads.append(threading.Thread(target=lambda: codes.update(dropped=dropped.run("acknowledged", drop))))
        threads[-1].start()

    def drop() -> None:
        remote.link.cut()
        # It would try for a minute to connect again.
        dropped.kill()

    threads: list[threading.Thread] = []
    codes["slow"] = slow.run("push", begin_others)
    for thread in threads:
        thread.join(120)
    assert codes["busy"] == 13
    assert codes["slow"] == 0, slow.errors
    assert codes["dropped"] == -signal.SIGKILL, dropped.errors
    remote.holds(crowd, model="crowd")
    remote.link.mend()
    # The lock died with the process that held it; what was acknowledged is still there.
    again = Deploy(remote, lone)
    assert again.run() == 0, again.errors
    remote.holds(lone, model="lone")
    remote.holds(crowd, model="crowd")
    assert again.events[-1]["result"]["sent_bytes"] < lone.manifest.total_bytes
