"""Snapshots of which a part is missing, that are called something else, or are none: judged, shown, refused."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from kedge.cli.app import main
from kedge.diagnose.opened import open_snapshot
from kedge.diagnose.snapshot import take_snapshot
from kedge.errors import ExitCode
from kedge_agent.formats.parts import Part, write_json_part, write_part
from tests.support.evidence import healthy
from tests.support.schemas import validate
from tests.unit.test_logs import Sent
from tests.unit.test_snapshot_files import packed

NAME = "nano-20261126T041200Z.kedge-snapshot.tar.zst"


def members(document: dict[str, Any]) -> dict[str, bytes]:
    """A whole snapshot of a device with these facts."""
    head = {key: document[key] for key in ("at_s", "agent_version", "state", "seconds")} | {"kedge_snapshot": 1}
    facts = {f"facts/{name}.json": outcome for name, outcome in document["collectors"].items()}
    every = {"begun.json": head, **facts, "manifest.json": head}
    return {name: json.dumps(body).encode() for name, body in every.items()}


def cut(tmp_path: Path, without: tuple[str, ...] = ("agent", "recorder", "journal", "releases")) -> Path:
    """The same without its end, and what these collectors said."""
    left = members(healthy())
    for name in ("manifest.json", *(f"facts/{each}.json" for each in without)):
        del left[name]
    path = tmp_path / NAME
    path.write_bytes(packed(left))
    return path


def test_the_doctor_says_of_a_cut_file_that_it_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = cut(tmp_path), tmp_path / "page.html"
    assert main(["doctor", str(path), "--html", str(page)]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "not whole: the file has no manifest" in err
    assert "nano has no fault in what is left of the file" in out
    assert "the file was cut before it" in out
    assert "The file is not whole" in page.read_text()
    assert "All is well" not in page.read_text()
    assert main(["doctor", str(path), "--json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    validate(document, "doctor")
    assert len(document["problems"]) == 1
    why = {each["check"]: each["evidence"] for each in document["findings"] if each["result"] == "unknown"}
    assert {why[name] for name in ("service", "latency", "releases")} == {"the file was cut before it"}


def test_history_says_of_a_cut_file_that_it_is_not_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, page = cut(tmp_path), tmp_path / "page.html"
    assert main(["history", "--snapshot", str(path), "--html", str(page)]) == ExitCode.OK
    assert "not whole: the file has no manifest" in capsys.readouterr().err
    assert "The file is not whole" in page.read_text()
    assert main(["history", "--snapshot", str(path), "--json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    validate(document, "history")
    assert (document["recording_why"], document["entries_why"]) == ("the file was cut before it",) * 2
    assert len(document["problems"]) == 1


def test_a_file_in_which_a_collector_is_missing_and_no_end_is_not_called_cut(tmp_path: Path) -> None:
    left = members(healthy())
    del left["facts/disk.json"]
    path = tmp_path / NAME
    path.write_bytes(packed(left))
    evidence = open_snapshot(path).evidence()
    assert (evidence.section("disk").why, evidence.problems) == ("the device does not tell", ())


@pytest.mark.parametrize(
    ("name", "device"), [(NAME, "nano"), ("stop.zst", "DEVICE"), (f"$(id)-{NAME.partition('-')[2]}", "DEVICE")]
)
def test_a_device_is_called_by_the_name_of_the_file_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, device: str
) -> None:
    path = tmp_path / name
    path.write_bytes(packed(members(healthy())))
    for words in (["doctor", str(path)], ["history", "--snapshot", str(path)]):
        assert main([*words, "--json"]) == ExitCode.OK
        assert json.loads(capsys.readouterr().out)["device"] == device
    assert open_snapshot(path).device == device


@pytest.mark.parametrize("words", [["doctor"], ["history", "--snapshot"], ["snapshot", "open"]])
def test_what_is_no_file_is_refused_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    for path in (tmp_path, tmp_path / "nosuch.zst"):
        assert main([*words, str(path)]) == ExitCode.BAD_INPUT
        assert "kedge snapshot --on DEVICE makes one" in capsys.readouterr().err


def test_options_of_taking_a_snapshot_are_no_options_of_opening_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut(tmp_path)
    assert main(["snapshot", "--on", "nano", "open", str(path)]) == ExitCode.USAGE
    assert "needs no device" in capsys.readouterr().err
    assert main(["snapshot", "open", str(path)]) == ExitCode.OK


class Sending(Sent):
    """A device that sends a snapshot and its map; `cut`: the stream breaks off after the file's first half."""

    def __init__(self, data: bytes, *, private: dict[str, Any] | None, cut: bool = False) -> None:
        super().__init__(data)
        sink = BytesIO()
        write_part(sink, Part.DATA, data[: len(data) // 2] if cut else data)
        if not cut:
            if private is not None:
                write_json_part(sink, Part.PRIVATE, private)
            write_json_part(sink, Part.END, {"kedge_snapshot": 1})
        self._parts = sink.getvalue()

    def end(self, timeout_s: float) -> tuple[int | None, str]:
        return None, ""


def test_a_cut_file_replaces_no_whole_one_and_lies_beside_it(tmp_path: Path) -> None:
    out, whole = tmp_path / NAME, packed(members(healthy()))
    first = take_snapshot(Sending(whole, private={"<ip-1>": {"value": "192.0.2.1"}}), out)
    again = take_snapshot(Sending(whole, private=None, cut=True), out)
    assert (first.path, first.cut) == (out, None)
    assert (again.path, again.map_path) == (tmp_path / f"{NAME}.cut", None)
    assert again.cut
    assert (out.read_bytes(), open_snapshot(again.path).problems != ()) == (whole, True)
    assert open_snapshot(again.path).device == "nano"
    # It is still the whole one's.
    assert first.map_path is not None
    assert "192.0.2.1" in first.map_path.read_text()


def test_a_cut_file_is_kept_where_it_was_to_be_if_nothing_is_there(tmp_path: Path) -> None:
    out = tmp_path / NAME
    taken = take_snapshot(Sending(packed(members(healthy())), private=None, cut=True), out)
    assert (taken.path, [each.name for each in tmp_path.iterdir()]) == (out, [NAME])


def test_the_map_of_a_file_that_was_replaced_goes_with_it(tmp_path: Path) -> None:
    out, whole = tmp_path / NAME, packed(members(healthy()))
    take_snapshot(Sending(whole, private={"<ip-1>": {"value": "192.0.2.1"}}), out)
    taken = take_snapshot(Sending(whole, private=None), out)
    assert (taken.cut, taken.map_path) == (None, None)
    assert [each.name for each in tmp_path.iterdir()] == [NAME]
