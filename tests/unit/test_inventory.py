"""The inventory: groups, who inherits what from whom, variables, jump hosts and ssh aliases."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedge.errors import BadInputError
from kedge.fleet.inventory import Inventory, Limit
from kedge.fleet.ssh_config import hosts_of, known_key, resolve
from kedge.fleet.way import open_way
from kedge.transport.address import SshAddress
from kedge.transport.hostkeys import HostKey
from tests.support.environment import sshd_path
from tests.support.keys import make_key

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


def test_changes_keep_groups_and_comments_and_write_nothing_that_is_no_inventory(tmp_path: Path) -> None:
    inventory = inventory_of(tmp_path, f"# ours\n{FLEET}")
    inventory.update("cam-1", state="/var/lib/kedge")
    with pytest.raises(BadInputError, match="lists a device that is not there: 'cam-3'"):
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
    from kedge.targets import load_target

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


def test_an_alias_is_resolved_and_what_the_device_says_itself_wins(tmp_path: Path) -> None:
    sshd_path()
    key = make_key(tmp_path, "id").path
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host cam-*\n HostName %h.example\n User ops\n Port 2222\n IdentityFile {key}\n IdentityAgent none\n"
        " ProxyJump inner\nHost inner\n ProxyJump outer,middle:2022\nHost circle\n ProxyJump circle2\n"
        "Host circle2\n ProxyJump circle\n"
    )
    text = f'["@all"]\ntarget = "orin-nano-8gb"\nssh = "{{name}}"\nssh_config = "{config}"\n'
    text += '[cam-1]\n[cam-2]\nuser = "me"\n'
    inventory = inventory_of(tmp_path, text + "jump = []\nport = 22\n[circle]\n")
    first, second = inventory.get("cam-1").address, inventory.get("cam-2").address
    assert (first.host, first.port, first.user, first.identity, first.agent) == (
        *("cam-1.example", 2222, "ops", key, False),
    )
    assert [(jump.host, jump.port) for jump in first.jumps] == [("outer", 22), ("middle", 2022), ("inner", 22)]
    assert (second.host, second.port, second.user, second.jumps) == ("cam-2.example", 22, "me", ())
    with pytest.raises(BadInputError, match=r"in a circle|fails"):
        _ = inventory.get("circle").address


def test_a_proxy_command_is_refused_with_what_to_do(tmp_path: Path) -> None:
    sshd_path()
    (tmp_path / "c").write_text("Host a\n ProxyCommand touch /tmp/x\n")
    with pytest.raises(BadInputError, match="ProxyCommand") as caught:
        resolve("a", tmp_path / "c")
    assert "ProxyJump" in caught.value.hint
    with pytest.raises(BadInputError, match="not a host"):
        resolve("-oProxyCommand=id", tmp_path / "c")
    (tmp_path / "bad").write_text("Nonsense yes\n")
    with pytest.raises(BadInputError, match="fails"):
        resolve("a", tmp_path / "bad")


def test_hosts_of_a_config_follow_include_and_leave_patterns_out(tmp_path: Path) -> None:
    (tmp_path / "one.conf").write_text('Host "a b" c d*\nhost=e\n')
    (tmp_path / "two.conf").write_text("Host f !g\n  HostName h\nMatch host x\n# Host z\n")
    (tmp_path / "config").write_text(f"Include {tmp_path}/*.conf {tmp_path}/absent\nHost c k ?\n")
    assert hosts_of(tmp_path / "config") == ["a b", "c", "e", "f", "k"]
    (tmp_path / "loop").write_text(f"Include {tmp_path}/loop\n")
    with pytest.raises(BadInputError, match="too deep"):
        hosts_of(tmp_path / "loop")
    with pytest.raises(BadInputError, match="cannot be read"):
        hosts_of(tmp_path / "none")


def test_known_hosts_give_the_key_that_ssh_would_prefer(tmp_path: Path) -> None:
    rsa, ed, other = (
        make_key(tmp_path, name, kind) for name, kind in (("r", "rsa"), ("e", "ed25519"), ("o", "ed25519"))
    )
    file = tmp_path / "known"
    file.write_text(f"h {rsa.public}\nh,i {ed.public}\n@cert-authority * {other.public}\n[h]:2222 {other.public}\n")

    def known(host: str, port: int) -> HostKey | None:
        return known_key(host, port, (str(file), str(tmp_path / "absent")))

    assert known("h", 22) == HostKey.parse(ed.public)
    assert known("h", 2222) == HostKey.parse(other.public)
    assert known("j", 22) is None


def test_a_revoked_key_is_not_known_though_another_file_has_it(tmp_path: Path) -> None:
    ed, other = (make_key(tmp_path, name, kind) for name, kind in (("e", "ed25519"), ("o", "rsa")))
    known, revoked = tmp_path / "known", tmp_path / "revoked"
    known.write_text(f"h {ed.public}\ni {ed.public}\nh {other.public}\n")
    revoked.write_text(f"@revoked h {ed.public}\n")
    files = (str(known), str(revoked))
    assert known_key("h", 22, files) == HostKey.parse(other.public)
    assert known_key("i", 22, files) == HostKey.parse(ed.public)
    revoked.write_text(f"@revoked * {ed.public}\n")
    assert known_key("i", 22, files) is None


def test_tokens_of_keys_and_certificates_are_put_in_as_ssh_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd_path()
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "c"
    config.write_text(
        "Host cam\n HostName 10.0.0.1\n User bob\n Port 2222\n"
        " IdentityFile ~/keys/%h_%r_%p\n CertificateFile %d/certs/%n%%\n"
        "Host other\n IdentityFile ~/keys/%C\n"
    )
    address = resolve("cam", config).address
    assert address.identity == tmp_path / "keys" / "10.0.0.1_bob_2222"
    assert address.certificate == tmp_path / "certs" / "cam%"
    with pytest.raises(BadInputError, match="%C in '~/keys/%C' is a token") as caught:
        resolve("other", config)
    assert caught.value.hint


def test_files_of_known_hosts_may_have_quotes_and_spaces_in_their_names(tmp_path: Path) -> None:
    sshd_path()
    key = make_key(tmp_path, "id")
    (tmp_path / "a b").mkdir()
    for name in ("a b/known", "o'b"):
        (tmp_path / name).write_text(f"h {key.public}\n")
        config = tmp_path / "c"
        config.write_text(
            f'Host h\n UserKnownHostsFile {tmp_path}/none "{tmp_path}/{name}"\n GlobalKnownHostsFile none\n'
        )
        assert resolve("h", config).key() == HostKey.parse(key.public), name


def test_the_home_of_nobody_is_told_and_does_not_abort_an_import(tmp_path: Path) -> None:
    sshd_path()
    from kedge.fleet.importing import import_hosts
    from kedge.targets import load_target

    inventory = inventory_of(tmp_path, '[d]\nhost = "h"\nuser = "u"\ntarget = "t"\nidentity = "~nosuchuser/key"\n')
    with pytest.raises(BadInputError, match="~nosuchuser/key: there is no such user"):
        inventory.get("d").way()
    with pytest.raises(BadInputError, match="no such user"):
        SshAddress("h", 22, "u", certificate=Path("~nosuchuser/key")).to_json()
    config = tmp_path / "c"
    config.write_text("Host bad\n IdentityFile ~nosuchuser/key\nHost good\n HostName 10.0.0.1\n")
    found = import_hosts(inventory, load_target("orin-nano-8gb"), config=config)
    assert [(one.device, one.why is None) for one in found] == [("bad", False), ("good", True)]
    assert "no such user" in (found[0].why or "")
    assert inventory.names() == ["d", "good"]
