"""Several channels of one push over real sshd, on a link so long that the window of one binds it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools.bench.push_link import Link, linked

from kedge.transport.base import Deadline
from kedge.transport.hostkeys import HostKey
from kedge.transport.ssh import SshAddress, SshTransport
from kedge.transport.upload import upload
from kedge_agent.store.layout import Layout
from kedge_agent.store.releases import read_release, verify_release
from tests.loopback.test_ssh import TARGET, make_cli
from tests.support.sshd import Sshd, make_sshd, remove_sshd
from tests.unit.test_receive import with_weights

pytestmark = pytest.mark.slow

LONG = Link("100 ms", 0.100)


@pytest.fixture
def server() -> Iterator[Sshd]:
    made = make_sshd()
    yield made
    remove_sshd(made)


def test_on_a_long_link_several_channels_bring_a_release_whole(server: Sshd, tmp_path: Path) -> None:
    cli = make_cli(tmp_path / "cli")
    cli("device", "add", "straight", server.address, "--target", TARGET, "--key", str(server.key))
    cli("device", "trust", "straight", "--fingerprint", server.fingerprint())
    state = str(cli.json("device", "provision", "straight", "--no-service")["state"])
    release = with_weights(tmp_path, 1, os.urandom(64_000_000))
    key = HostKey.parse((server.folder / "host_key.pub").read_text())
    with linked(LONG, server.port) as proxy:
        address = SshAddress("127.0.0.1", proxy.port, server.user, key, server.key, state)
        with contextlib.closing(SshTransport("far", address)) as transport:
            channel, protocol = transport.open_receive(Deadline.after(60, "the test"))
            done = upload(
                channel,
                "far",
                release.manifest_bytes,
                release.files(),
                protocol=protocol,
                open_more=transport.open_receive,
            )
    assert done.channels > 1
    assert (done.sent_bytes, done.resent_frames) == (release.manifest.total_bytes, 0)
    layout = Layout(Path(state))
    verify_release(layout, read_release(layout, release.digest))
