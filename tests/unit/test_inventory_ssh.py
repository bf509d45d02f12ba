"""What the inventory takes from OpenSSH: aliases of an ssh config, imports of them, keys of known_hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedge.errors import BadInputError
from kedge.fleet.importing import import_hosts
from kedge.fleet.ssh_config import hosts_of, resolve
from kedge.targets import load_target
from kedge.transport.address import SshAddress
from kedge.transport.hostkeys import HostKey
from kedge.transport.known_hosts import known_key
from tests.support.environment import sshd_path
from tests.support.keys import make_key
from tests.unit.test_inventory import inventory_of


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


def test_an_alias_wins_over_what_is_said_farther_from_the_device_than_it(tmp_path: Path) -> None:
    sshd_path()
    key = make_key(tmp_path, "id")
    config, known = tmp_path / "c", tmp_path / "known"
    known.write_text(f"[10.0.0.1]:2222 {key.public}\n")
    config.write_text(
        f"Host cam-*\n HostName 10.0.0.1\n User root\n Port 2222\n UserKnownHostsFile {known}\nHost cam-1\n"
    )
    common = '["@all"]\nuser = "kedge"\nport = 22\nidentity = "/k"\njump = "u@gate"\nstate = "/s"\n'
    common += 'target = "orin-nano-8gb"\n'
    inventory = inventory_of(
        tmp_path,
        common + '["@lab"]\nssh = "cam-9"\nssh_config = "c"\nport = 23\n[cam-2]\nuser = "me"\ngroups = ["lab"]\n',
    )
    (imported,) = import_hosts(inventory, load_target("orin-nano-8gb"), config=config)
    first = inventory.get("cam-1").address
    assert imported.address is not None
    assert (first.host, first.port, first.user) == ("10.0.0.1", 2222, "root")
    assert (first.identity, first.jumps, first.state) == (None, (), "/s")
    assert (imported.address.host, imported.address.port, imported.address.user) == (first.host, first.port, first.user)
    assert first.host_key == imported.host_key == HostKey.parse(key.public)
    # What stands beside the alias or nearer to the device than it wins.
    second = inventory.get("cam-2").address
    assert (second.host, second.port, second.user, second.jumps) == ("10.0.0.1", 23, "me", ())


def test_an_import_goes_by_the_ssh_config_that_the_devices_will_inherit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sshd_path()

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host cam-1\n HostName 10.0.0.1\n")
    (tmp_path / "theirs").write_text("Host cam-1\n HostName 10.0.0.2\n")
    inventory = inventory_of(tmp_path, '["@all"]\nssh_config = "theirs"\n')
    (found,) = import_hosts(inventory, load_target("orin-nano-8gb"))
    assert found.address is not None
    assert found.address.host == inventory.get("cam-1").address.host == "10.0.0.2"
    with pytest.raises(BadInputError, match="'a b' cannot name a group"):
        import_hosts(inventory, load_target("orin-nano-8gb"), groups=["a b"])
