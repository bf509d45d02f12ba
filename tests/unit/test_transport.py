from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kedge.errors import AgentMissingError, BadInputError, IncompatibleError, KedgeError, NoSpaceError, UnreachableError
from kedge.transport.base import Deadline, agent_hint, agreed, greet, told_error
from kedge.transport.hostkeys import HostKey, fetch_host_key
from kedge.transport.local import ProcessChannel
from kedge.transport.ssh_channel import QuickSocket, SshChannel, fast_ciphers_first
from kedge_agent.formats.parts import Part, read_parts, write_part
from kedge_agent.wire import Greeting, render_greeting
from tests.support.environment import sshd_path


class Scripted:
    """A channel that says what it is told to."""

    def __init__(self, *parts: bytes, status: int | None = 0, errors: str = "") -> None:
        self.parts = list(parts)
        self.status = status
        self.errors = errors

    def recv(self, size: int) -> bytes:
        if not self.parts:
            return b""
        part = self.parts.pop(0)
        if part[size:]:
            self.parts.insert(0, part[size:])
        return part[:size]

    def settimeout(self, seconds: float | None) -> None:
        assert seconds is None or seconds > 0

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        return self.status, self.errors


def hear(*parts: bytes, **options: Any) -> Greeting:
    return greet(Scripted(*parts, **options), "bench1", Deadline.after(5, "greeting"))  # type: ignore[arg-type]


GOOD = render_greeting(Greeting((1,), "0.1.0"))


def test_a_greeting_is_found_behind_what_a_login_shell_prints_and_in_pieces() -> None:
    assert hear(GOOD).version == "0.1.0"
    assert hear(b"Welcome to Ubuntu!\nKEDGE is not a greeting\n"[:19], b"\n" + GOOD[:5], GOOD[5:]).version == "0.1.0"


def test_what_follows_a_greeting_at_once_is_left_to_who_reads_on() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        out = theirs.makefile("wb")
        out.write(b"Welcome!\n" + GOOD)
        write_part(out, Part.DATA, b"facts")
        write_part(out, Part.END, b"{}")
        greet(ours, "bench1", Deadline.after(5, "greeting"))  # type: ignore[arg-type]
        assert list(read_parts(ours.makefile("rb").read)) == [(Part.DATA, b"facts"), (Part.END, {})]


def test_an_agent_of_another_protocol_is_named_with_both_versions() -> None:
    with pytest.raises(IncompatibleError, match="speaks protocol 7, this kedge speaks 1, 2") as caught:
        hear(render_greeting(Greeting((7,), "9.0")))
    assert "provision" in caught.value.hint


def test_what_the_agent_cannot_do_is_told_with_its_own_words() -> None:
    with pytest.raises(NoSpaceError, match="bench1: disk full") as caught:
        hear(render_greeting(Greeting((1,), "0.1.0", "disk full", "see kedge device provision NAME", "space")))
    assert caught.value.hint == "see kedge device provision bench1"


def test_nobody_is_sent_to_provision_the_agent_that_kedge_runs_itself() -> None:
    hint = "start it: kedge device provision DEVICE"
    assert told_error("nano", "no_agent", "none serves", hint).hint == "start it: kedge device provision nano"
    assert agent_hint("nano") == "bring the agent to this version: kedge device upgrade nano"
    for said in (told_error("local", "no_agent", "none serves", hint).hint, agent_hint("local")):
        assert "kedge device" not in said
        assert "install this one again" in said


@pytest.mark.parametrize("status", [126, 127])
def test_a_missing_agent_is_told_from_a_broken_one(status: int) -> None:
    with pytest.raises(AgentMissingError, match="no agent is installed"):
        hear(b"", status=status)
    with pytest.raises(AgentMissingError, match="cannot be used: ImportError: numpy"):
        hear(b"", status=1, errors="Traceback …\nImportError: numpy\n")


def test_a_device_that_prints_without_end_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="prints too much"):
        hear(*[b"x" * 4096] * 100)


def test_a_greeting_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(IncompatibleError):
        hear(b"KEDGE {}\n")


def test_a_deadline_that_has_passed_says_what_took_too_long() -> None:
    deadline = Deadline.after(0.01, "reaching bench1")
    time.sleep(0.02)
    with pytest.raises(UnreachableError, match="reaching bench1 took too long"):
        deadline.remaining()


def test_a_process_channel_carries_bytes_both_ways_and_ends() -> None:
    channel = ProcessChannel(["sh", "-c", "cat; echo oops >&2; exit 3"])
    channel.sendall(b"hello")
    assert channel.recv(5) == b"hello"
    channel._socket.shutdown(socket.SHUT_WR)
    assert channel.end(5) == (3, "oops\n")
    channel.close()
    channel.close()


def test_closing_a_channel_ends_a_process_that_would_not() -> None:
    channel = ProcessChannel(["sleep", "1000"])
    channel.close()
    assert channel._process.returncode is not None


def test_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    sshd_path()
    for kind in ("ed25519", "ecdsa", "rsa"):
        path = tmp_path / kind
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
        said = subprocess.run(["ssh-keygen", "-lf", f"{path}.pub"], capture_output=True, text=True, check=True).stdout
        key = HostKey.parse(Path(f"{path}.pub").read_text())
        assert key.fingerprint == said.split()[1]
        assert HostKey.parse(str(key)) == key


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIA=="])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(BadInputError):
        HostKey.parse(text)


def test_a_port_nobody_serves_or_that_speaks_no_ssh_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}"):
            fetch_host_key("127.0.0.1", port, Deadline.after(1, "reading the host key"))
    with pytest.raises(KedgeError) as caught:
        fetch_host_key("127.0.0.1", port, Deadline.after(5, "reading the host key"))
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("spoken", "expected"), [((1,), 1), ((1, 2), 2), ((2, 3), 2)])
def test_a_channel_speaks_the_highest_protocol_that_both_sides_have(spoken: tuple[int, ...], expected: int) -> None:
    assert agreed(hear(render_greeting(Greeting(spoken, "0.1.0")))) == expected


@pytest.mark.parametrize(
    ("round_trip_s", "window", "expected"),
    [(0.0002, 2 << 20, 512 << 10), (0.003, 2 << 20, 900_000), (0.01, 2 << 20, 2 << 20), (0.0002, 24_000, 24_000)],
)
def test_no_more_is_in_flight_than_the_link_holds_and_the_window_admits(
    round_trip_s: float, window: int, expected: int
) -> None:
    channel: Any = SimpleNamespace(lock=threading.Lock(), out_window_size=window)
    SshChannel(channel).bound_in_flight(round_trip_s)
    assert channel.out_window_size == expected


def test_ciphers_that_need_no_hash_of_their_own_are_offered_first() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = fast_ciphers_first(ours)
        ciphers = transport.get_security_options().ciphers
        assert list(ciphers[:2]) == ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
        assert len(set(ciphers)) == len(ciphers) > 2
        transport.close()


def test_a_quick_socket_reads_and_writes_as_any_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        quick = QuickSocket.connected(server.getsockname(), 5)
        there, _ = server.accept()
        with quick, there:
            quick.sendall(b"hello")
            assert there.recv(5) == b"hello"
            there.sendall(b"again")
            assert quick.recv(5) == b"again"
            assert quick.gettimeout() == 5
            assert quick.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class _Ended:
    """A channel to a program that has said its last."""

    def __init__(self, status: int, said: str) -> None:
        self._ended = status, said

    def settimeout(self, seconds: float | None) -> None:
        pass

    def recv(self, size: int) -> bytes:
        return b""

    def end(self, timeout_s: float) -> tuple[int, str]:
        return self._ended


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (127, "install it: kedge device provision nano"),
        (1, "install it anew: kedge device provision nano --force"),
    ],
)
def test_an_agent_that_is_damaged_is_installed_anew_and_one_that_is_missing_installed(status: int, hint: str) -> None:
    with pytest.raises(AgentMissingError) as caught:
        greet(_Ended(status, "ImportError: x"), "nano", Deadline.after(5, "greeting"))  # type: ignore[arg-type]
    assert caught.value.hint == hint
