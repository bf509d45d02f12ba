"""Files of snapshots, written and read: by whoever, cut, damaged, lying, or made to fill the reader's memory."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedge.diagnose import opened as reading
from kedge.diagnose.opened import Opened, open_snapshot
from kedge.diagnose.opened_page import snapshot_page
from kedge.errors import BadInputError
from kedge_agent.diagnose import archive as writing
from kedge_agent.diagnose.archive import Archive
from kedge_agent.diagnose.members import LeftOutError, masked_member
from kedge_agent.diagnose.redact import Redactor
from kedge_agent.formats.snapshots import is_member_name, zstd_module
from tests.unit.test_recording import encoded, second, start

BEGUN = json.dumps({"kedge_snapshot": 1, "at_s": 1.5, "agent_version": "0.1", "state": "/s"}).encode()


def packed(members: dict[str, bytes]) -> bytes:
    out = bytearray()
    archive = Archive(out.extend)
    for name, data in members.items():
        archive.add(name, data)
        archive.flush()
    archive.close()
    return bytes(out)


def zipped(tar: bytes) -> bytes:
    compressed: bytes = zstd_module().compress(tar)
    return compressed


def tar_of(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "x.kedge-snapshot.tar.zst"
    path.write_bytes(data)
    return path


def test_what_is_written_is_read_and_the_same_members_give_the_same_bytes(tmp_path: Path) -> None:
    members = {"begun.json": BEGUN, "facts/a.json": b"{}", "logs/big.log": bytes(3 << 20), "manifest.json": BEGUN}
    opened = open_snapshot(written(tmp_path, packed(members)))

    assert dict(opened.members) == members
    assert opened.problems == ()
    assert packed(members) == packed(members)


def test_members_are_plain_files_for_their_owner_alone(tmp_path: Path) -> None:
    tar = zstd_module().decompress(packed({"begun.json": BEGUN, "facts/a.json": b"{}"}))
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        infos = archive.getmembers()

    assert [(info.name, info.mode, info.mtime, info.uid, info.uname) for info in infos] == [
        ("begun.json", 0o600, 0, 0, ""),
        ("facts/a.json", 0o600, 0, 0, ""),
    ]
    assert all(info.isreg() for info in infos)


def test_without_zstd_it_is_gzip_and_read_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "zstd_module", lambda: None)
    data = packed({"begun.json": BEGUN, "facts/a.json": b"{}", "manifest.json": BEGUN})
    opened = open_snapshot(written(tmp_path, data))

    assert data.startswith(b"\x1f\x8b")
    assert opened.member("facts/a.json") == b"{}"
    assert opened.problems == ()


@pytest.mark.parametrize("gzip", [False, True])
def test_of_a_file_that_was_cut_everything_before_the_cut_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gzip: bool
) -> None:
    if gzip:
        monkeypatch.setattr(writing, "zstd_module", lambda: None)
    noise = np.random.default_rng(7).bytes(200_000)
    data = packed({"begun.json": BEGUN, "facts/a.json": b'{"data": 1}', "logs/x.log": noise, "manifest.json": BEGUN})
    opened = open_snapshot(written(tmp_path, data[: len(data) // 2]))

    assert list(opened.members) == ["begun.json", "facts/a.json"]
    assert opened.manifest is None
    assert opened.problems == ("the file is cut or damaged after 2 members: it stops in the middle",)
    assert opened.facts()["collectors"] == {"a": {"data": 1}}
    assert opened.facts()["at_s"] == 1.5
    assert "not whole" in snapshot_page(opened)


def test_a_file_without_a_manifest_was_cut_while_it_was_written(tmp_path: Path) -> None:
    opened = open_snapshot(written(tmp_path, packed({"begun.json": BEGUN})))

    assert opened.problems == ("the file has no manifest: it was cut while it was written",)


def read_or_refused(tmp_path: Path, data: bytes) -> Opened | None:
    """What was read; None: it was refused, in one line."""
    with contextlib.suppress(BadInputError):
        return open_snapshot(written(tmp_path, data))
    return None


def test_every_cut_is_seen(tmp_path: Path) -> None:
    data = packed({"begun.json": BEGUN, "facts/a.json": b"{}", "manifest.json": BEGUN})
    for length in range(len(data)):
        opened = read_or_refused(tmp_path, data[:length])
        assert opened is None or opened.problems


def test_every_flipped_bit_that_changes_something_is_seen(tmp_path: Path) -> None:
    members = {"begun.json": BEGUN, "facts/a.json": b'{"data": {"x": 1}}', "manifest.json": BEGUN}
    data = packed(members)
    for place in range(8, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        opened = read_or_refused(tmp_path, bytes(damaged))
        assert opened is None or opened.problems or dict(opened.members) == members, place


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a/.b", "-rf", "a\\b", "a b", "x" * 201, "", "a/", "ü"],
)
def test_names_that_lead_elsewhere_are_none(name: str) -> None:
    assert not is_member_name(name)


def _info(name: str, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "entry",
    [
        _info("../../up"),
        _info("/etc/shadow"),
        _info("link", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
        _info("hard", type=tarfile.LNKTYPE, linkname="begun.json"),
        _info("node", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        _info("pipe", type=tarfile.FIFOTYPE),
        _info("folder", type=tarfile.DIRTYPE),
        _info("begun.json"),
    ],
)
def test_what_no_snapshot_has_is_left_out_and_said(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    tar = tar_of((_info("begun.json"), BEGUN), (entry, b""), (_info("manifest.json"), BEGUN))
    opened = open_snapshot(written(tmp_path, zipped(tar)))

    assert dict(opened.members) == {"begun.json": BEGUN, "manifest.json": BEGUN}
    assert len(opened.problems) == 1
    assert repr(entry.name) in opened.problems[0]


def test_extensions_of_tar_are_not_acted_on(tmp_path: Path) -> None:
    long = _info("begun.json", pax_headers={"path": "../../up", "size": "999999999999"})
    tar = tar_of((long, BEGUN), (_info("manifest.json"), BEGUN), form=tarfile.PAX_FORMAT)
    opened = open_snapshot(written(tmp_path, zipped(tar)))

    assert opened.member("begun.json") == BEGUN
    assert len(opened.problems) == 1


def test_a_bomb_is_cut_off_long_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_WHOLE_BYTES", 8 << 20)
    monkeypatch.setattr(reading, "MAX_MEMBER_BYTES", 4 << 20)
    tar = tar_of((_info("begun.json"), BEGUN), *((_info(f"z{each}"), bytes(3 << 20)) for each in range(40)))
    opened = open_snapshot(written(tmp_path, zipped(tar)))

    # And the headers that as many members as there may be would have.
    assert sum(map(len, opened.members.values())) <= 12 << 20
    assert "8 MiB" in opened.problems[-1]


def test_a_member_that_is_too_large_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_MEMBER_BYTES", 1 << 20)
    tar = tar_of((_info("begun.json"), BEGUN), (_info("large"), bytes(2 << 20)), (_info("manifest.json"), BEGUN))
    opened = open_snapshot(written(tmp_path, zipped(tar)))

    assert list(opened.members) == ["begun.json", "manifest.json"]
    assert opened.problems == ("'large' has more than 1 MiB: left out",)


def test_so_many_members_no_snapshot_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_MEMBERS", 10)
    tar = tar_of((_info("begun.json"), BEGUN), *((_info(f"n{each}"), b"") for each in range(20)))
    opened = open_snapshot(written(tmp_path, zipped(tar)))

    assert len(opened.members) == 10
    assert "more than 10 members" in opened.problems[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x28\xb5\x2f\xfd",
        b"\x1f\x8b\x08\x00",
        zlib.compress(b"x"),
        packed({"other.txt": b"x"}),
        packed({"begun.json": b"[1]"}),
        packed({"begun.json": b'{"kedge_snapshot": 2}'}),
        packed({"begun.json": b'{"kedge_snapshot": "\\u001b[31m"}'}),
    ],
)
def test_what_is_no_snapshot_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInputError) as caught:
        open_snapshot(written(tmp_path, data))
    assert caught.value.message.isprintable()


def test_documents_of_any_form_make_a_page(tmp_path: Path) -> None:
    """A page of whatever stands in the facts: nothing in it is believed."""
    hostile: list[Any] = [None, 1, "x", [], {}, [{}], {"data": 3}, {"data": {"models": 1}}, "<script>alert(1)</script>"]
    hostile += [{"status": "ok", "reason": None, "ms": 10**400, "data": {"readings": [{"value": 1e308, "kind": {}}]}}]
    names = ["system", "disk", "memory", "agent", "releases", "engines", "journal", "sensors", "processes", "installs"]
    for body in hostile:
        members = {
            "begun.json": BEGUN,
            **{f"facts/{name}.json": json.dumps(body).encode() for name in (*names, "logs")},
        }
        members["manifest.json"] = json.dumps({"kedge_snapshot": 1, "collectors": body, "redacted": body}).encode()
        page = snapshot_page(open_snapshot(written(tmp_path, packed(members))))
        assert "<script>alert" not in page


@pytest.mark.parametrize("ring", ["seconds", "minutes"])
def test_what_was_recorded_is_drawn_from_either_ring(tmp_path: Path, ring: str) -> None:
    data = encoded([start(0), *(second(number) for number in range(1, 90))])
    members = {"begun.json": BEGUN, f"recorder/{ring}/0000000000.rec": data, "manifest.json": BEGUN}
    opened = open_snapshot(written(tmp_path, packed(members)))
    page = snapshot_page(opened)

    assert opened.recording(ring) == data
    assert "Latency of digits" in page
    assert page.count("<svg") >= 4


def test_a_recording_of_nonsense_draws_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).bytes(50_000)
    members = {"begun.json": BEGUN, "recorder/seconds/0.rec": b"kRc1" + noise, "manifest.json": BEGUN}

    assert "<svg" not in snapshot_page(open_snapshot(written(tmp_path, packed(members))))


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (lambda: masked_member(Redactor(), "a.zip", b"PK\x03\x04rest"), "it is compressed: what is in it"),
        (lambda: masked_member(Redactor(), "a.gz", b"\x1f\x8b\x08broken"), "it is compressed, and damaged"),
    ],
)
def test_what_cannot_be_looked_into_is_left_out(act: Callable[[], bytes], why: str) -> None:
    with pytest.raises(LeftOutError, match=why):
        act()


def test_settings_are_written_by_their_allow_list_whatever_is_in_the_file() -> None:
    data = b'{"tcp_port": 8000, "cloud": {"key": "abc"}, "releases": {"signatures": "off", "x": 1}}'
    kept = {"tcp_port": 8000, "cloud": "<left out>", "releases": {"signatures": "off", "x": "<left out>"}}

    assert json.loads(masked_member(Redactor(), "config/settings.json", data)) == kept
    assert json.loads(masked_member(Redactor(), "config/settings.json", b"token = abc")) == "<left out>"


def test_lines_of_a_journal_are_masked_as_documents_and_untouched_ones_stay() -> None:
    line = '0a1b2c3d {"step": "committed", "passport": {"runtime_version": "10.3.0.30"}}\n'
    bad = '0a1b2c3d {"step": "refused", "reason": "from 203.0.113.7"}\n'
    out = masked_member(Redactor(), "store/journal", (line + bad + "torn {").encode()).decode()

    assert out == line + '0a1b2c3d {"step": "refused", "reason": "from <ip-1>"}\ntorn {'


def test_names_of_a_device_tree_are_text_though_zeros_end_them() -> None:
    data = b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0"

    assert masked_member(Redactor(), "system/proc/device-tree/compatible", data) == data
