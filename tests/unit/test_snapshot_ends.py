"""A snapshot ends by its time, also in the middle of a file, or where nobody takes it; and it stays in its folder."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path

from kedge_agent.diagnose.collectors.files import collect_store
from kedge_agent.diagnose.device import Collected, Device
from kedge_agent.diagnose.running import Collector
from kedge_agent.diagnose.snapshot import write_snapshot
from kedge_agent.formats.parts import Part, read_parts


def test_a_file_that_takes_longer_to_mask_than_there_is_time_is_left_out_and_said(tmp_path: Path) -> None:
    lines = "".join(f'{{"m": "x{number}", "token": "Canary{number:06d}xyz"}}\n' for number in range(90_000)).encode()
    collectors = (
        Collector("quick", lambda device: Collected({"x": 1}, [("quick.txt", b"well\n")]), 60.0),
        Collector("endless", lambda device: Collected({}, [("logs/start.log", lines)]), 60.0),
    )
    sink = io.BytesIO()
    write_snapshot(tmp_path, sink, 3, collectors, tmp_path)
    sink.seek(0)
    (end,) = [body for kind, body in read_parts(sink.read) if kind is Part.END]
    assert isinstance(end, dict)
    rows = end["collectors"]

    assert [each["name"] for each in rows["quick"]["members"]] == ["facts/quick.json", "quick.txt"]
    assert {"name": "logs/start.log", "why": "the time for all was over"} in rows["endless"]["left_out"]


_PROGRAM = """
import sys
from pathlib import Path
from kedge_agent.diagnose import command

command._PATIENCE_S = 1
command.diagnose(Path(sys.argv[1]), command.parse_words(["snapshot", "--seconds", "3"]), sys.stdout.buffer)
"""


def test_a_host_that_takes_nothing_leaves_no_process_behind(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _PROGRAM, str(tmp_path)]
    stalled = subprocess.Popen(words, stdout=subprocess.PIPE, pipesize=4096)
    try:
        assert stalled.wait(timeout=50) == -signal.SIGALRM
    finally:
        stalled.kill()
        stalled.communicate()


def test_links_that_lead_out_of_the_state_folder_are_not_followed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    outside = tmp_path / "outside"
    for folder in (state / "agent", state / "models/digits", outside):
        folder.mkdir(parents=True)
    (outside / "state.json").write_text('{"mine": "no"}')
    (state / "models/digits/state.json").write_text("{}")
    (state / "agent/upgrade.json").symlink_to(outside / "state.json")
    (state / "start.log").symlink_to(outside / "state.json")
    (state / "journal").symlink_to(outside / "state.json")
    (state / "models/other").symlink_to(outside)
    found = collect_store(Device(state))

    assert dict(found.members) == {"store/models/digits/state.json": b"{}"}
    assert {each for each in found.data["left_out"] if "link" in each} >= {
        f"{name}: it is a link to what lies elsewhere" for name in ("store/agent/upgrade.json", "store/journal")
    }
