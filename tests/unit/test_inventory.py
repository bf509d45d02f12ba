"""The inventory: groups, who inherits what from whom, variables, jump hosts and ssh aliases."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.errors import BadInputError
from kedge.fleet.inventory import Inventory, Limit
from kedge.fleet.way import open_way
from kedge.transport.address import SshAddress

FLEET = """
["@all"]
user = "kedge"
target = "orin-nano-8gb"
vars = { domain = "cams.example" }
labels = { owner = "ops" }

["@berlin"]
port = 2200
concurrency = 4
labels = { site = "berlin" }
identity = "/keys/{site}/{name}"

["@night"]
port = 2300
user = "night-{site}"
devices = ["cam-3", "cam-1"]
vars = { domain = "night.example" }

[cam-1]
host = "{name}.{domain}"
groups = ["berlin"]

[cam-2]
host = "{name}.{domain}"
groups = ["berlin"]
port = 22
labels = { floor = "2", site = "spandau" }

[cam-3]
host = "10.0.0.3"
labels = { site = "paris" }
"""


def inventory_of(tmp_path: Path, text: str) -> Inventory:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    return Inventory(path)


def test_a_device_wins_over_its_groups_those_in_order_and_they_over_all(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, FLEET)
    first, second, third = (inventory.get(f"cam-{number}") for number in (1, 2, 3))
    # berlin is named by the device and comes before night, which lists it.
    assert first.groups == ("berlin", "night")
    assert first.address == SshAddress("cam-1.night.example", 2200, "night-berlin", identity=Path("/keys/berlin/cam-1"))
    assert second.address == SshAddress("cam-2.cams.example", 22, "kedge", identity=Path("/keys/spandau/cam-2"))
    assert third.address == SshAddress("10.0.0.3", 2300, "night-paris")
    assert second.labels == {"owner": "ops", "site": "spandau", "floor": "2"}
    assert first.target == "orin-nano-8gb"


def test_limits_are_those_of_groups_with_the_devices_that_are_asked_for(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, FLEET)
    assert inventory.limits(inventory.select("@all")) == [Limit("berlin", frozenset({"cam-1", "cam-2"}), 4)]
    assert inventory.limits(inventory.select("cam-2")) == [Limit("berlin", frozenset({"cam-2"}), 4)]
    assert inventory.limits(inventory.select("cam-3")) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[d]\nhost = "{name}.{zone}"\nuser = "u"\ntarget = "t"', r"\[d\] host = .*\{zone\}"),
        ('["@all"]\nidentity = "/k/{site}"\n[d]\nhost = "h"\nuser = "u"\ntarget = "t"', r"\[d\] identity = .*\{site\}"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nlables = {}', r"\[d\] has a key that no device has: lables"),
        ('["@g"]\nhots = "h"\n[d]\nhost = "h"\nuser = "u"\ntarget = "t"', r'"@g"\] has a key that no group has: hots'),
        ('["@g"]\nconcurrency = 0', r"concurrency is no number above 0"),
        ('["@g"]\nconcurrency = true', r"concurrency is no number above 0"),
        ('["@g"]\ndevices = ["x"]', r"lists a device that is not there: 'x'"),
        ('["@g"]\ndevices = "x"', r"no list of names"),
        ('["@a b"]', r"cannot name a group"),
        ('[local]\nhost = "h"\nuser = "u"\ntarget = "t"', r"\[local\] cannot be in a file"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\ngroups = "g"', r"groups: no list of names"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\ngroups = ["all"]', r"'all' cannot be one"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nlabels = { a = 1 }', r"labels: a = 1 cannot be one"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nlabels = { a = "x,y" }', r"labels: a = 'x,y' cannot be one"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nvars = "x"', r"vars is no table"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nagent = 1', r"agent is not"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nport = 70000', r"port 70000"),
        ('[d]\nhost = "h"\nuser = "u"\njump_host = 1', r"jump_host is not true or false"),
        ('[d]\nhost = 7\nuser = "u"\ntarget = "t"', r"host is no text"),
        ('[d]\nhost = "h"\nuser = "u"', r"it has no 'target'"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\njump = "gate"', r"no device named 'gate'"),
        ('[d]\nhost = "h"\nuser = "u"\ntarget = "t"\njump = "-oX@y"', r"not an address"),
        (
            '["@all"]\njump = "g"\nuser="u"\n[g]\nhost="h"\njump_host=true\n[d]\nhost="h"\ntarget="t"',
            r"circle: d → g → g",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_table_it_is_in(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=said) as caught:
        _ = inventory_of(tmp_path, text).get("d").address
    assert caught.value.hint


def test_one_device_that_is_not_usable_does_not_hold_up_the_others(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, FLEET + '[cam-4]\nhost = "{nothing}"\nlabels = { floor = "9" }\n')
    assert [device.name for device in inventory.select("cam-1,cam-2")] == ["cam-1", "cam-2"]
    with pytest.raises(BadInputError, match=r"\[cam-4\] host"):
        inventory.select("@all")
    inventory = inventory_of(tmp_path, FLEET + '[cam-4]\nhost = "h"\ngroups = "berlin"\n')
    for selection in ("@berlin", "label:owner=ops&@berlin"):
        assert [device.name for device in inventory.select(selection)] == ["cam-1", "cam-2"], selection
    with pytest.raises(BadInputError, match=r"\[cam-4\] groups: no list"):
        inventory.select("@all")


JUMPS = """
["@all"]
user = "kedge"
target = "orin-nano-8gb"

["@cellar"]
jump = ["admin@edge.example:2222", "gate"]

[gate]
host = "gate.example"
user = "admin"
jump_host = true
jump = "outer"

[outer]
host = "outer.example"
jump_host = true

[cam-1]
host = "10.0.0.1"
jump = "gate"

[cam-2]
host = "10.0.0.2"
groups = ["cellar"]

[cam-3]
host = "10.0.0.3"
groups = ["cellar"]
jump = []
"""


def test_jump_hosts_come_outermost_first_with_their_own_before_them(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, JUMPS)

    def through(name: str) -> list[str]:
        return [str(jump) for jump in inventory.get(name).address.jumps]

    gate = ["outer (kedge@outer.example:22)", "gate (admin@gate.example:22)"]
    assert through("cam-1") == gate
    assert through("cam-2") == ["admin@edge.example:2222", *gate]
    assert through("cam-3") == []


def test_a_jump_host_is_no_device(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, JUMPS)
    assert inventory.names() == ["cam-1", "cam-2", "cam-3"]
    assert [device.name for device in inventory.select("@all")] == ["cam-1", "cam-2", "cam-3"]
    assert inventory.host("gate").address.user == "admin"
    assert inventory.host("gate").to_json()["target"] is None
    for select in (inventory.get, inventory.select):
        with pytest.raises(BadInputError, match="gate is a jump host"):
            select("gate")


def test_a_way_is_plain_json_and_leads_back_to_the_address(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, JUMPS)
    device = inventory.get("cam-2")
    assert SshAddress.from_json(device.way()) == device.address
    (local,) = inventory.select("local")
    assert local.way() == {"local": True}
    with pytest.raises(BadInputError):
        _ = local.address


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"local": False},
        {"host": "h", "port": 22},
        {"host": "h", "port": True, "user": "u"},
        {"host": "h", "port": 0, "user": "u"},
        {"host": "", "port": 22, "user": "u"},
        {"host": "h", "port": 22, "user": "u", "identity": 3},
        {"host": "h", "port": 22, "user": "u", "host_key": "nonsense"},
        {"host": "h", "port": 22, "user": "u", "agent": 1},
        {"host": "h", "port": 22, "user": "u" * 5000},
        {"host": "h\0", "port": 22, "user": "u"},
        {"host": "h", "port": 22, "user": "u", "jumps": "gate"},
        {"host": "h", "port": 22, "user": "u", "jumps": [7]},
        {"host": "h", "port": 22, "user": "u", "jumps": [{"host": "h", "port": 22, "user": "u"}] * 9},
        {"host": "h", "port": 22, "user": "u", "jumps": [{"host": "h", "port": 22, "user": "u", "jumps": [{}]}]},
    ],
)
def test_what_is_no_way_is_refused(way: dict[str, object]) -> None:
    with pytest.raises(BadInputError, match=r"no way|not an address|not an SSH public key"), open_way("cam-1", way):
        pass


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), min_size=1, max_size=30)
addresses = st.builds(
    SshAddress,
    host=texts,
    port=st.integers(1, 65535),
    user=texts,
    state=st.none() | texts,
    agent=st.booleans() | texts,
    name=st.none() | texts,
)


@given(address=addresses, jumps=st.lists(addresses, max_size=8))
def test_every_address_survives_json(address: SshAddress, jumps: list[SshAddress]) -> None:
    from dataclasses import replace

    whole = replace(address, jumps=tuple(jumps))
    assert SshAddress.from_json(whole.to_json()) == whole
