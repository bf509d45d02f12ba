"""For how long a device waits for the host that pushes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RECEIVE = """
import sys
import kedge_agent.cli as cli
cli._SILENCE_S, cli._GRACE_S, cli._SLOWEST_BYTES_PER_S = {silence}, {grace}, {rate}
sys.exit(cli.main(["--state", sys.argv[1], "receive"]))
"""
_MANIFEST_OF_A_MEBIBYTE = b"\x01" + (1 << 20).to_bytes(4, "big")


@contextmanager
def receiving(state: Path, *, silence: float, grace: float, rate: int) -> Iterator[subprocess.Popen[bytes]]:
    code = _RECEIVE.format(silence=silence, grace=grace, rate=rate)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(state)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def drip(process: subprocess.Popen[bytes], times: int) -> bool:
    """A byte every twentieth of a second; whether the process takes them all."""
    assert process.stdin is not None
    for _ in range(times):
        time.sleep(0.05)
        if process.poll() is not None:
            return False
        process.stdin.write(b" ")
    return True


def test_a_host_that_drips_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with receiving(tmp_path / "state", silence=30, grace=0.5, rate=1000) as process:
        assert process.stdin is not None
        process.stdin.write(_MANIFEST_OF_A_MEBIBYTE)
        try:
            taken = drip(process, 600)
        except BrokenPipeError:
            taken = False
        assert not taken
        assert process.stderr is not None
        assert b"the host went away during the push" in process.stderr.read()


def test_a_host_that_is_slow_and_not_too_slow_is_waited_for(tmp_path: Path) -> None:
    with receiving(tmp_path / "state", silence=30, grace=0.5, rate=1) as process:
        assert process.stdin is not None
        process.stdin.write(_MANIFEST_OF_A_MEBIBYTE)
        assert drip(process, 40)


def test_a_host_that_is_silent_is_given_up(tmp_path: Path) -> None:
    with receiving(tmp_path / "state", silence=0.2, grace=30, rate=1000) as process:
        assert process.wait(30) != 0
