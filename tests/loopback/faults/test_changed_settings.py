"""Settings that are changed, or broken, while the agent serves: a deploy obeys the file, not what was read of it."""

from __future__ import annotations

from pathlib import Path

from tests.support.agents import Device, assert_invariant
from tests.support.bad_models import obedient_release
from tests.support.deploys import configure, deploy, must_deploy


def test_what_was_pushed_before_signatures_were_required_is_refused_without_a_reload(
    device: Device, tmp_path: Path
) -> None:
    first, second = (obedient_release(tmp_path, version=n) for n in (1, 2))
    configure(device.state, releases={"signatures": "off"})
    device.start()
    must_deploy(device, first)
    device.push(second)
    configure(device.state, releases={"signatures": "required", "allowed_signers": str(tmp_path / "signers")})
    ended = deploy(device, second)
    assert (ended["state"], ended["error"]["kind"]) == ("refused", "integrity")
    assert "without signatures" in ended["error"]["error"]
    assert device.request("GET", "/kedge/v1/info")[1]["signatures"]["required"] is True
    assert_invariant(device.state, device.agent, {first.digest})
    # Settings that cannot be read let nothing unsigned through, and the API answers.
    (device.state / "agent.json").write_text("{")
    assert deploy(device, second)["state"] == "refused"
    assert "agent.json" in device.request("GET", "/kedge/v1/info")[1]["settings"]["problem"]
    assert_invariant(device.state, device.agent, {first.digest})
    configure(device.state, releases={"signatures": "off"})
    assert deploy(device, second)["state"] == "done"
    assert device.request("GET", "/kedge/v1/info")[1]["settings"]["problem"] is None
