"""What the daemon and its libraries say is bounded, and says when it was said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from kedge_agent.process import bound_output


def test_a_file_of_output_that_has_grown_too_long_is_emptied_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "start.log"
    with path.open("wb", buffering=0) as output:
        output.write(b"a warning of each request\n" * 100)
        assert bound_output(output.fileno(), path, 10_000)
        assert path.stat().st_size == 2600
        assert bound_output(output.fileno(), path, 1000)
        # As a child that was started before goes on.
        subprocess.run(["echo", "another"], stdout=output, check=True)
        output.write(b"and one more\n")
    assert path.read_bytes() == b"(what was here is gone: it was too long)\nanother\nand one more\n"


def test_output_that_goes_elsewhere_is_left_alone(tmp_path: Path) -> None:
    log, other = tmp_path / "start.log", tmp_path / "mine"
    with other.open("wb", buffering=0) as output:
        output.write(bytes(5000))
        assert not bound_output(output.fileno(), log, 1000)
        log.touch()
        assert not bound_output(output.fileno(), log, 1000)
    assert other.stat().st_size == 5000
    read_end, write_end = os.pipe()
    try:
        assert not bound_output(write_end, log, 0)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_times_in_the_log_are_in_utc_wherever_the_device_is(tmp_path: Path) -> None:
    program = """
import logging, sys, time
from pathlib import Path
from kedge_agent.process import log_to
log_to(Path(sys.argv[1]))
print(time.strftime("%Y-%m-%dT%H:", time.gmtime()))
logging.getLogger("kedge.test").error("said")
print(time.strftime("%Y-%m-%dT%H:", time.gmtime()))
"""
    path = tmp_path / "agent.log"
    environment = {**os.environ, "TZ": "Asia/Kathmandu"}
    command = [sys.executable, "-c", program, str(path)]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    line = path.read_text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR kedge\.test said\n", line)
    assert line[:14] in said
