"""The inventory as a file: what people write by hand, what commands change, what a list shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kedge.cli.device import device
from kedge.errors import BadInputError
from kedge.fleet.inventory import Inventory
from kedge.targets import load_target
from kedge.transport.address import SshAddress
from tests.unit.test_inventory import FLEET, JUMPS, inventory_of


@pytest.mark.parametrize("name", ["../../x", "a b,c", "Cam", "-cam", ".", "x" * 65])
def test_a_name_in_the_file_is_checked_as_one_that_is_added(name: str, tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, f'["{name}"]\nhost = "h"\nuser = "u"\ntarget = "t"\n')
    with pytest.raises(BadInputError, match="cannot name a device"):
        inventory.select("@all")


def test_more_jump_hosts_than_a_way_can_have_are_refused_where_they_are_written(tmp_path: Path) -> None:
    text = '["@all"]\nuser = "u"\ntarget = "t"\n'
    for number in range(10):
        before = f'jump = "j{number - 1}"\n' if number else ""
        text += f'[j{number}]\nhost = "h{number}"\njump_host = true\n{before}'
    flat = ", ".join(f'"u@h{number}"' for number in range(9))
    text += f'[near]\nhost = "h"\njump = "j7"\n[far]\nhost = "h"\njump = "j8"\n[listed]\nhost = "h"\njump = [{flat}]\n'
    inventory = inventory_of(tmp_path, text)
    near = inventory.get("near")
    assert SshAddress.from_json(near.way()) == near.address
    for name in ("far", "listed"):
        with pytest.raises(BadInputError, match=rf"\[{name}\] is behind more than 8 jump hosts"):
            _ = inventory.get(name).address
    with pytest.raises(BadInputError, match="more than 8 jump hosts"):
        # With nothing of the way known yet.
        _ = inventory_of(tmp_path, text).get("far").address


def test_what_is_not_absolute_lies_beside_the_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ops")
    text = '[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nidentity = "keys/id"\n'
    text += 'certificate = "~/id-cert.pub"\nagent = "a.sock"\n'
    way = inventory_of(tmp_path, text).get("d").way()
    assert (way["identity"], way["certificate"], way["agent"]) == (
        *(f"{tmp_path}/keys/id", "/home/ops/id-cert.pub", f"{tmp_path}/a.sock"),
    )


def test_a_change_leaves_who_may_read_the_file_as_it_was(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, FLEET)
    inventory.path.chmod(0o644)
    inventory.update("cam-1", state="/s")
    assert inventory.path.stat().st_mode & 0o777 == 0o644
    fresh = Inventory(tmp_path / "fresh.toml")
    fresh.add("gate", SshAddress("g", 22, "u"), None)
    assert fresh.path.stat().st_mode & 0o777 == 0o600


def test_a_list_shows_what_is_not_usable_beside_the_others(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, FLEET + '[cam-4]\nhost = "h"\nusr = "u"\n')
    words = ["list", "--inventory", str(inventory.path)]
    shown = CliRunner().invoke(device, words)
    assert shown.exit_code == 0
    assert "not usable: " in shown.output
    listed = {one["name"]: one for one in json.loads(CliRunner().invoke(device, [*words, "--json"]).output)}
    assert list(listed) == ["cam-1", "cam-2", "cam-3", "cam-4", "local"]
    assert "usr" in listed["cam-4"]["why"]
    assert listed["cam-1"]["why"] is None
    assert listed["cam-1"].keys() == listed["cam-4"].keys() == listed["local"].keys()


def test_changes_keep_groups_and_comments_and_write_nothing_that_is_no_inventory(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, f"# ours\n{FLEET}")
    inventory.update("cam-1", state="/var/lib/kedge")
    with pytest.raises(BadInputError, match=r'the group \["@night"\] lists cam-3'):
        inventory.remove("cam-3")
    inventory.remove("cam-2")
    text = inventory.path.read_text()
    assert text.startswith("# ours\n")
    assert 'devices = ["cam-3", "cam-1"]' in text
    again = Inventory(inventory.path)
    assert again.names() == ["cam-1", "cam-3"]
    assert again.get("cam-1").address.state == "/var/lib/kedge"


def test_a_jump_host_that_others_need_is_not_removed(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, JUMPS)
    with pytest.raises(BadInputError, match="gate is a jump host of cam-1 and 1 more"):
        inventory.remove("gate")
    inventory.remove("cam-1")
    assert inventory.hosts() == ["gate", "outer", "cam-2", "cam-3"]


def test_what_is_added_with_groups_labels_and_jumps_is_read_back(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, "")
    target = load_target("orin-nano-8gb")
    inventory.add("gate", SshAddress("g", 22, "u"), None)
    added = inventory.add(
        "cam-1", SshAddress("h", 22, "u"), target, groups=["berlin"], labels={"floor": "2"}, jump=["gate"]
    )
    assert (added.groups, added.labels) == (("berlin",), {"floor": "2"})
    assert added.address.jumps == (SshAddress("g", 22, "u", name="gate"),)
    before = inventory.path.read_text()
    with pytest.raises(BadInputError, match="cannot be one"):
        inventory.add("cam-2", SshAddress("h", 22, "u"), target, labels={"floor": "a b"})
    with pytest.raises(BadInputError, match="no device named 'gaet'"):
        inventory.add("cam-2", SshAddress("h", 22, "u"), target, jump=["gaet"])
    assert inventory.path.read_text() == before
