"""What a process takes of its own: not what the page cache lends it of programs and libraries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kedge_agent.measure.memory import OwnPeak, read_libraries

MIB = 1 << 20
SIZE = 32 * MIB
# More than what Python itself needs meanwhile, less than an eighth of what is looked for.
NEAR = 3 * MIB

# Each line of smaps that is read, and some that are not.
SMAPS = """\
55d0c0000000-55d0c0100000 r--p 00000000 fe:00 11                         /usr/bin/python3.11
Size:               1024 kB
Rss:                 100 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55d0c0100000-55d0c0200000 r-xp 00100000 fe:00 11                         /usr/bin/python3.11
Rss:                 200 kB
Anonymous:             0 kB
55d0c0200000-55d0c0300000 rw-p 00200000 fe:00 11                         /usr/bin/python3.11
Rss:                  64 kB
Anonymous:            40 kB
55d0c0300000-55d0c0400000 rw-p 00000000 00:00 0                          [heap]
Rss:                5000 kB
Anonymous:          5000 kB
7f0000000000-7f0000100000 r--p 00000000 fe:00 12                         /models/a model.onnx
Rss:                3000 kB
Anonymous:             0 kB
7f0000100000-7f0000200000 rwxs 00000000 00:01 13                         /memfd:code (deleted)
Rss:                 300 kB
Anonymous:             0 kB
7f0000200000-7f0000300000 r-xp 00000000 00:00 0                          [vdso]
Rss:                   4 kB
Anonymous:             0 kB
7f0000300000-7f0000400000 r-xp 00000000 fe:01 11
Rss:                   8 kB
Anonymous:             8 kB
"""

# Own memory before and after something is mapped and touched, or allocated and given back.
PROGRAM = """\
import json, mmap, sys
from kedge_agent.measure.memory import OwnPeak

kind, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
peak = OwnPeak()
peak.note()
before, rss = peak.bytes, peak.rss_bytes
if kind == "allocated":
    block = bytearray(b"x") * size
    del block
else:
    access = mmap.PROT_READ | (mmap.PROT_EXEC if kind == "executed" else 0)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE, prot=access)
    for at in range(0, size, mmap.PAGESIZE):
        mapped[at]
peak.note()
print(json.dumps({"own": peak.bytes - before, "rss": peak.rss_bytes - rss}))
"""


def grown(kind: str, folder: Path) -> dict[str, int]:
    file = folder / "file"
    file.write_bytes(b"x" * SIZE)
    words = [sys.executable, "-c", PROGRAM, kind, str(file), str(SIZE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


def test_libraries_are_the_unchanged_pages_of_files_of_which_a_part_is_executed(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/smaps").write_text(SMAPS)
    assert read_libraries(tmp_path) == 1024 * (100 + 200 + 24)
    (tmp_path / "self/smaps").write_text(re.sub("[0-9]+ kB", "0 kB", SMAPS))
    assert read_libraries(tmp_path) is None, "an emulator's"
    (tmp_path / "self/smaps").unlink()
    assert read_libraries(tmp_path) is None


@pytest.mark.parametrize("kind", ["allocated", "mapped"])
def test_what_a_process_allocates_or_maps_as_data_is_its_own_and_stays_its_peak(kind: str, tmp_path: Path) -> None:
    found = grown(kind, tmp_path)
    assert found["own"] == pytest.approx(SIZE, abs=NEAR)


def test_pages_of_a_library_are_resident_and_not_its_own(tmp_path: Path) -> None:
    found = grown("executed", tmp_path)
    # More, where a touch of some other library maps much of it.
    assert found["rss"] > SIZE - NEAR
    assert found["own"] == pytest.approx(0, abs=NEAR)


def test_the_peak_of_a_part_before_more_of_a_library_was_mapped_is_kept(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    status, smaps = tmp_path / "self/status", tmp_path / "self/smaps"

    def put(rss_kb: int, peak_kb: int, library_kb: int) -> None:
        status.write_text(f"VmHWM: {peak_kb} kB\nVmRSS: {rss_kb} kB\n")
        smaps.write_text(f"1000-2000 r-xp 00000000 fe:00 11 /lib/x.so\nRss: {library_kb} kB\nAnonymous: 0 kB\n")

    peak = OwnPeak(tmp_path)
    put(rss_kb=300, peak_kb=500, library_kb=100)
    assert peak.note() == 200 * 1024
    put(rss_kb=400, peak_kb=500, library_kb=350)
    assert peak.note() == 50 * 1024
    assert (peak.bytes, peak.rss_bytes, peak.libraries_bytes) == (400 * 1024, 500 * 1024, 350 * 1024)
    smaps.unlink()
    assert peak.note() == 50 * 1024, "as it was when it could be read"
    assert (peak.bytes, peak.libraries_bytes) == (400 * 1024, 350 * 1024)
    put(rss_kb=340, peak_kb=500, library_kb=350)
    assert peak.note() == 0


def test_without_mappings_the_whole_resident_set_counts_and_without_a_proc_nothing_is_known(tmp_path: Path) -> None:
    peak = OwnPeak(tmp_path)
    assert peak.note() is None
    assert (peak.bytes, peak.rss_bytes, peak.libraries_bytes) == (None, None, None)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("VmHWM: 500 kB\nVmRSS: 300 kB\n")
    assert peak.note() == 300 * 1024
    assert (peak.bytes, peak.libraries_bytes) == (500 * 1024, None)
    shutil.rmtree(tmp_path / "self")
    assert peak.note() is None
    assert peak.bytes == 500 * 1024, "a peak that was seen is not forgotten"
