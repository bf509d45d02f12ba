"""The agent replaces itself: what goes right, what goes wrong, and who serves after whoever was killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kedge.deploy.agent_bundle import Bundle
from kedge.release.bundle import Release
from kedge_agent.store.crashes import Marks
from kedge_agent.store.layout import Layout
from kedge_agent.store.locks import deploying
from kedge_agent.store.slots import changing_agents, read_outcome, read_trial, slot_named
from tests.conftest import make_release
from tests.support.upgrades import Slotted, bundle_of
from tests.unit.test_store import deliver

IN_TIME_S = 5.0

Make = Callable[..., Slotted]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tmp_path_factory.mktemp("release"), version=1)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("first"), "1.0.0")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("second"), "2.0.0")


@pytest.fixture
def make(tmp_path: Path, live: Release, first: Bundle) -> Iterator[Make]:
    """Devices that serve a model with the first agent, and have taken another one."""
    made: list[Slotted] = []

    def begin(bundle: Bundle, **more: str) -> Slotted:
        device = Slotted(tmp_path / "state", first)
        made.append(device)
        device.install(live)
        device.accept(bundle)
        device.start(**more)
        device.answers()
        return device

    yield begin
    for device in made:
        device.close()


def waits(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def assert_serves(device: Slotted, live: Release, version: str) -> None:
    assert device.agent()["version"] == version
    assert device.serving() == {live.manifest.model: live.digest}
    # The record is written first.
    waits(lambda: not (device.state / "agent" / "trial.json").exists())


def test_another_agent_takes_over_and_serves_what_was_served(
    make: Make, live: Release, first: Bundle, second: Bundle
) -> None:
    device = make(second)
    before = device.agent()
    assert (before["version"], before["bundle"], before["previous"]) == ("1.0.0", first.digest, None)
    assert device.upgrade(second) == (200, {"bundle": second.digest, "state": "running"})
    ended = device.outcome(second)
    assert (ended["state"], ended["reason"]) == ("committed", None)
    assert ended["doors_ms"] <= ended["models_ms"]
    assert_serves(device, live, "2.0.0")
    after = device.agent()
    assert (after["bundle"], after["previous"]) == (second.digest, first.digest)
    waits(lambda: len(device.processes()) == 1)
    assert device.upgrade(second) == (200, {"bundle": second.digest, "state": "current"})
    assert {path.name for path in (device.state / "agent").iterdir() if path.is_dir()} >= {first.digest, second.digest}
    # What the launcher starts from now on is the new one.
    device.kill()
    device.start()
    assert device.answers() < IN_TIME_S
    assert_serves(device, live, "2.0.0")


@pytest.mark.slow
def test_the_way_back_is_an_upgrade_too(make: Make, live: Release, first: Bundle, second: Bundle) -> None:
    device = make(second)
    device.upgrade(second)
    assert device.outcome(second)["state"] == "committed"
    device.upgrade(first)
    assert device.outcome(first)["state"] == "committed"
    assert_serves(device, live, "1.0.0")
    assert slot_named(device.layout, "previous") == second.digest


@pytest.mark.slow
def test_a_third_agent_takes_the_place_of_the_first_on_disk(
    make: Make, first: Bundle, second: Bundle, tmp_path: Path
) -> None:
    device = make(second)
    device.upgrade(second)
    device.outcome(second)
    third = bundle_of(tmp_path, "3.0.0")
    device.accept(third)
    device.upgrade(third)
    assert device.outcome(third)["state"] == "committed"
    waits(lambda: not (device.state / "agent" / first.digest).exists())
    assert (slot_named(device.layout, "current"), slot_named(device.layout, "previous")) == (
        third.digest,
        second.digest,
    )


@pytest.mark.slow
def test_nobody_deploys_while_an_agent_hands_over_and_nobody_hands_over_while_one_deploys(
    make: Make, live: Release, second: Bundle
) -> None:
    device = make(second)
    with deploying(device.layout, live.manifest.model):
        device.upgrade(second)
        ended = device.outcome(second)
    assert (ended["state"], "somebody else is deploying" in ended["reason"]) == ("refused", True)
    with changing_agents(device.layout):
        status, said = device.upgrade(second)
        assert (status, said["kind"]) == (503, "busy")
    assert_serves(device, live, "1.0.0")


def test_an_agent_that_came_before_signatures_were_asked_for_is_not_started(
    make: Make, live: Release, second: Bundle, tmp_path: Path
) -> None:
    device = make(second)
    signers = tmp_path / "signers"
    signers.write_text("")
    # No reload: what is deployed obeys the file, and so does who takes over.
    rules = {"releases": {"signatures": "required", "allowed_signers": str(signers)}}
    (device.state / "agent.json").write_text(json.dumps(rules))
    status, said = device.upgrade(second)
    assert (status, said["kind"]) == (422, "integrity")
    assert "no signature came with kedge-agent" in said["error"]
    assert device.agent()["upgrade"] is None
    assert_serves(device, live, "1.0.0")


def test_an_agent_that_is_not_here_is_not_started(make: Make, live: Release, second: Bundle, tmp_path: Path) -> None:
    device = make(second)
    absent = bundle_of(tmp_path, "3.0.0")
    status, said = device.upgrade(absent)
    assert (status, said["kind"]) == (404, "not_found")
    assert device.request("POST", "/kedge/v1/agent/upgrade", {"bundle": "../x"})[0] == 400
    assert device.request("POST", "/kedge/v1/agent/upgrade", {})[0] == 400
    assert device.request("GET", "/kedge/v1/agents")[0] == 404
    assert_serves(device, live, "1.0.0")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("kedge_agent/cli.py", "\nthis is not Python\n", "ended with status 1"),
        ("kedge_agent/serving/routes.py", None, "ended with status 1"),
        ("kedge_agent/standby.py", "\nos.kill(os.getpid(), 11)\n", "SIGSEGV"),
        (
            "kedge_agent/serving/staging.py",
            "\ndef stage_release(*_):\n    raise AgentError('no such runtime')\n",
            "no such runtime",
        ),
    ],
)
def test_an_agent_that_cannot_stand_by_is_refused_while_the_old_one_serves(
    make: Make, live: Release, tmp_path: Path, file: str, text: str | None, reason: str
) -> None:
    bad = bundle_of(tmp_path, "2.0.0", {file: text})
    device = make(bad)
    pid = device.agent()["pid"]
    device.upgrade(bad)
    ended = device.outcome(bad)
    assert ended["state"] == "refused"
    assert reason in ended["reason"]
    assert device.agent()["pid"] == pid
    assert_serves(device, live, "1.0.0")


# A signal to the process may be taken by another thread, a moment later; one that is raised is this thread's.
_UNFIT = """
import signal
def _unfit(self, repository, door):
    {body}
Standby._check = _unfit
"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise AgentError('the GPU is gone')", "the GPU is gone"),
        ("signal.raise_signal(signal.SIGSEGV)", "SIGSEGV"),
        ("os._exit(3)", "status 3"),
    ],
)
def test_the_old_agent_serves_again_where_the_new_one_does_not(
    make: Make, live: Release, first: Bundle, tmp_path: Path, body: str, reason: str
) -> None:
    bad = bundle_of(tmp_path, "2.0.0", {"kedge_agent/standby.py": _UNFIT.format(body=body)})
    device = make(bad)
    pid = device.agent()["pid"]
    device.upgrade(bad)
    ended = device.outcome(bad)
    assert ended["state"] == "fallen-back"
    assert reason in ended["reason"]
    device.answers()
    assert_serves(device, live, "1.0.0")
    # Whoever watches the process need not know.
    assert device.agent()["pid"] == pid
    assert slot_named(device.layout, "current") == first.digest


@pytest.mark.slow
def test_the_old_agent_serves_again_where_the_new_one_hangs(make: Make, live: Release, second: Bundle) -> None:
    device = make(second, failpoints="upgrade.taken=hang")
    device.upgrade(second)
    ended = device.outcome(second)
    assert ended["state"] == "fallen-back"
    assert "did not serve within" in ended["reason"]
    device.answers()
    assert_serves(device, live, "1.0.0")


_CRASHES = """
import signal
def load_staged(layout, staged, trial=None, marker=None, **more):
    marker.enter()
    signal.raise_signal(signal.SIGSEGV)
"""


@pytest.mark.slow
def test_a_bad_agent_is_not_held_against_the_models_that_it_crashed_on(
    make: Make, live: Release, tmp_path: Path
) -> None:
    bad = bundle_of(tmp_path, "2.0.0", {"kedge_agent/serving/loading.py": _CRASHES})
    device = make(bad)
    device.upgrade(bad)
    ended = device.outcome(bad)
    assert (ended["state"], "SIGSEGV" in ended["reason"]) == ("fallen-back", True), ended
    device.answers()
    assert_serves(device, live, "1.0.0")
    # Looked at in a copy: whoever looks counts.
    (tmp_path / "copy").mkdir()
    shutil.copy(device.state / "running", tmp_path / "copy" / "running")
    assert Marks(Layout(tmp_path / "copy")).crashes(live.manifest.model, live.digest) == 0


@pytest.mark.parametrize(
    ("place", "version", "state"),
    [
        ("upgrade.standby", "1.0.0", "refused"),
        ("upgrade.marked", "2.0.0", "committed"),
        ("upgrade.released", "2.0.0", "committed"),
        ("upgrade.taken", "1.0.0", "fallen-back"),
        ("upgrade.healthy", "1.0.0", "fallen-back"),
        ("upgrade.committed", "2.0.0", "committed"),
    ],
)
def test_whichever_agent_is_killed_the_other_serves(
    make: Make, live: Release, second: Bundle, place: str, version: str, state: str
) -> None:
    device = make(second, failpoints=f"{place}=kill")
    device.upgrade(second)
    assert device.outcome(second)["state"] == state
    device.answers()
    assert_serves(device, live, version)
    waits(lambda: len(device.processes()) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["upgrade.marked", "upgrade.taken", "upgrade.healthy", "upgrade.committed"])
def test_a_disk_that_fails_leaves_an_agent_that_serves(make: Make, live: Release, second: Bundle, place: str) -> None:
    device = make(second, failpoints=f"{place}=eio")
    device.upgrade(second)
    device.outcome(second)
    device.answers()
    assert device.serving() == {live.manifest.model: live.digest}
    waits(lambda: len(device.processes()) == 1)


def reached(device: Slotted, place: str, second: Bundle) -> bool:
    """Whether the agents have come to where they hang."""
    holder = (device.state / "agent.lock").read_text()
    newer = [pid for pid in device.processes() if f"/{second.digest}/" in Path(f"/proc/{pid}/cmdline").read_text()]
    if place == "upgrade.standby":
        return bool(newer) and device.agent()["upgrade"] == {"bundle": second.digest, "step": "rehearse"}
    if place in ("upgrade.marked", "upgrade.released"):
        return read_trial(device.layout) is not None
    if place == "upgrade.committed":
        return slot_named(device.layout, "current") == second.digest
    return holder in map(str, newer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "version"),
    [
        ("upgrade.standby", "1.0.0"),
        ("upgrade.marked", "1.0.0"),
        ("upgrade.released", "1.0.0"),
        ("upgrade.taken", "1.0.0"),
        ("upgrade.healthy", "1.0.0"),
        ("upgrade.committed", "2.0.0"),
    ],
)
def test_after_both_agents_are_killed_the_next_start_serves_in_time(
    make: Make, live: Release, second: Bundle, place: str, version: str
) -> None:
    device = make(second, failpoints=f"{place}=hang")
    device.upgrade(second)
    waits(lambda: reached(device, place, second))
    time.sleep(0.5)
    device.kill()
    device.start()
    assert device.answers() < IN_TIME_S
    assert_serves(device, live, version)
    if place != "upgrade.standby":
        assert device.agent()["last"]["state"] == ("committed" if version == "2.0.0" else "fallen-back")
    # And the upgrade can be had again.
    device.upgrade(second)
    waits(lambda: version_of(device) == "2.0.0")


def version_of(device: Slotted) -> str | None:
    """Of the agent that answers; None where nobody does."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return str(device.agent()["version"])
    return None


_SLOW = """
_commit = Standby._commit
def _slow(self):
    time.sleep(3)
    _commit(self)
Standby._commit = _slow
"""


@pytest.mark.slow
def test_the_new_agent_goes_on_alone_when_the_old_one_is_killed_meanwhile(
    make: Make, live: Release, tmp_path: Path
) -> None:
    slow = bundle_of(tmp_path, "2.0.0", {"kedge_agent/standby.py": _SLOW})
    device = make(slow)
    old = device.agent()["pid"]
    device.upgrade(slow)
    waits(lambda: (device.state / "agent.lock").read_text() != str(old))
    os.kill(old, signal.SIGKILL)
    assert device.outcome(slow)["state"] == "committed"
    assert_serves(device, live, "2.0.0")


@pytest.mark.slow
def test_an_agent_that_is_told_to_stop_meanwhile_stops(make: Make, live: Release, tmp_path: Path) -> None:
    slow = bundle_of(tmp_path, "2.0.0", {"kedge_agent/standby.py": _SLOW})
    device = make(slow)
    old = device.agent()["pid"]
    device.upgrade(slow)
    waits(lambda: (device.state / "agent.lock").read_text() != str(old))
    os.kill(old, signal.SIGTERM)
    assert device.gone()
    device.start()
    device.answers()
    assert_serves(device, live, "1.0.0")


@pytest.mark.slow
def test_an_agent_that_is_told_to_stop_takes_the_one_that_stands_by_with_it(
    make: Make, live: Release, second: Bundle
) -> None:
    device = make(second, failpoints="upgrade.standby=hang")
    device.upgrade(second)
    waits(lambda: len(device.processes()) == 2)
    os.kill(device.agent()["pid"], signal.SIGTERM)
    assert device.gone()
    device.start()
    device.answers()
    assert_serves(device, live, "1.0.0")


_WAITS = """
_rehearse = Standby.rehearse
def _later(self, *args):
    while not os.path.exists({place!r}):
        time.sleep(0.02)
    _rehearse(self, *args)
Standby.rehearse = _later
"""


def waiting(folder: Path) -> tuple[Bundle, Path]:
    """An agent whose rehearsal waits until a file is there."""
    place = folder / "go on"
    return bundle_of(folder, "2.0.0", {"kedge_agent/standby.py": _WAITS.format(place=str(place))}), place


@pytest.mark.slow
def test_a_stop_while_another_agent_prepares_is_no_handover(make: Make, live: Release, tmp_path: Path) -> None:
    slow, place = waiting(tmp_path)
    device = make(slow)
    device.upgrade(slow)
    waits(lambda: len(device.processes()) == 2)
    # A request is inside as long as its body has not arrived.
    with socket.socket(socket.AF_UNIX) as inside:
        inside.connect(str(device.sockets / "infer.sock"))
        inside.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: agent\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.5)
        os.kill(device.agent()["pid"], signal.SIGTERM)
        waits(lambda: not (device.sockets / "infer.sock").exists())
        place.touch()
        # The other one is gone before the last request is answered, and has not been marked.
        waits(lambda: len(device.processes()) == 1, 10)
        waits(lambda: (ended := read_outcome(device.layout)) is not None and ended.state == "refused")
        assert read_trial(device.layout) is None
    assert device.gone()
    device.start()
    device.answers()
    assert_serves(device, live, "1.0.0")


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_what_is_deployed_while_another_agent_prepares_is_what_it_serves(
    make: Make, tmp_path: Path, dies: bool
) -> None:
    slow, place = waiting(tmp_path)
    device = make(slow)
    release = make_release(tmp_path, version=2, seed=2)
    deliver(device.layout, release)
    device.upgrade(slow)
    waits(lambda: len(device.processes()) == 2)
    status, said = device.request("POST", f"/kedge/v1/releases/{release.digest}/activate")
    assert status == 200, said
    waits(lambda: device.request("GET", f"/kedge/v1/deploys/{release.digest}")[1]["state"] == "done")
    if dies:
        os.kill(device.agent()["pid"], signal.SIGKILL)
    place.touch()
    assert device.outcome(slow)["state"] == "committed"
    assert_serves(device, release, "2.0.0")


@pytest.mark.slow
def test_nobody_hands_over_while_the_first_release_of_a_model_is_deployed(
    make: Make, live: Release, second: Bundle, tmp_path: Path
) -> None:
    device = make(second, failpoints="deploy.gated=hang")
    other = make_release(tmp_path, version=1, name="other")
    deliver(device.layout, other)
    assert device.request("POST", "/kedge/v1/deploys", {"release": other.digest})[0] == 200
    device.upgrade(second)
    ended = device.outcome(second)
    assert (ended["state"], ended["reason"]) == ("refused", "another activation is under way")
    assert_serves(device, live, "1.0.0")


@pytest.mark.slow
def test_an_agent_that_makes_way_because_it_is_unfit_has_not_crashed(make: Make, live: Release, tmp_path: Path) -> None:
    body = "time.sleep(3); raise AgentError('the GPU is gone')"
    bad = bundle_of(tmp_path, "2.0.0", {"kedge_agent/standby.py": _UNFIT.format(body=body)})
    device = make(bad)
    old = device.agent()["pid"]
    device.upgrade(bad)
    waits(lambda: (device.state / "agent.lock").read_text() != str(old))
    os.kill(old, signal.SIGKILL)
    waits(lambda: version_of(device) == "1.0.0")
    device.answers()
    assert_serves(device, live, "1.0.0")
    (tmp_path / "copy").mkdir()
    shutil.copy(device.state / "running", tmp_path / "copy" / "running")
    # Whoever looks counts, and nobody else has.
    assert Marks(Layout(tmp_path / "copy")).anonymous == 1


@pytest.mark.slow
def test_requests_inside_are_answered_and_few_others_are_refused(make: Make, live: Release, second: Bundle) -> None:
    device = make(second)
    over = threading.Event()
    cut: list[BaseException] = []
    answered = 0

    def ask() -> None:
        nonlocal answered
        while not over.is_set():
            try:
                device.request("GET", "/v2/health/live", door="infer")
                answered += 1
            except (ConnectionRefusedError, FileNotFoundError, BrokenPipeError):
                # Nobody listens, or whoever accepted hung up before the request was sent: it was not taken.
                time.sleep(0.005)
            except Exception as error:
                cut.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    device.upgrade(second)
    device.outcome(second)
    over.set()
    thread.join()
    assert answered
    assert not cut


def test_systemd_is_told_who_the_service_is(make: Make, live: Release, second: Bundle) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(30)
        device = make(second, NOTIFY_SOCKET=str(folder / "notify"), WATCHDOG_USEC="2000000")
        old = device.agent()["pid"]
        device.upgrade(second)
        device.outcome(second)
        new = device.agent()["pid"]
        said: list[str] = []
        while (
            not any("STATUS=serving" in line and "READY=1" in line for line in said[1:]) or f"MAINPID={new}" not in said
        ):
            said.append(manager.recv(4096).decode())
        told = said.index(f"MAINPID={new}")
        # Until then the new one says nothing, and the old one never that it stops.
        assert sum("READY=1" in line for line in said[:told]) == 1
        assert not any("STOPPING=1" in line for line in said)
        assert any("READY=1" in line for line in said[told:])
        while "WATCHDOG=1" not in manager.recv(4096).decode():
            pass
        assert old != new
    (folder / "notify").unlink()
    folder.rmdir()


@pytest.mark.slow
def test_agents_are_killed_at_random_moments_of_many_upgrades(
    make: Make, live: Release, first: Bundle, second: Bundle
) -> None:
    device = make(second)
    moments = random.Random(20261126)  # noqa: S311  (a fixed seed is the point)
    for turn in range(20):
        target = first if device.agent()["version"] == "2.0.0" else second
        assert device.upgrade(target)[0] == 200
        whom = moments.choice(["oldest", "newest", "both"])
        time.sleep(moments.uniform(0, 1.5))
        pids = sorted(device.processes(), key=started)
        killed = {"oldest": pids[:1], "newest": pids[-1:], "both": pids}[whom]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Whoever is killed, or has handed over, is listed for a moment yet.
        waits(lambda killed=killed: set(killed).isdisjoint(device.processes()))
        waits(lambda: not device.processes() or answering(device))
        if not device.processes():
            # A supervisor starts what has ended altogether. Where one agent was left, it serves by itself.
            over = slot_named(device.layout, "current") == target.digest
            assert whom == "both" or len(pids) == 1 or over, (turn, whom, pids)
            device.start()
            assert device.answers() < IN_TIME_S, (turn, whom)
        device.answers()
        assert device.serving() == {live.manifest.model: live.digest}, (turn, whom)
        waits(lambda: device.agent()["upgrade"] is None)
        # A model that was being loaded when the agent was killed, twice in a row, is not loaded again: another rule.
        device.kill()
        (device.state / "running").unlink()
        device.start()
        device.answers()


def answering(device: Slotted) -> bool:
    """Whether an agent says that it is there."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return device.request("GET", "/kedge/v1/status")[0] == 200
    return False


def started(pid: int) -> int:
    """When a process was started, in ticks since the boot; proc(5), "starttime"."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    return 0
