"""What docs/inventory.md shows does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kedge.fleet import entries
from kedge.fleet.inventory import Inventory

TEXT = (Path(__file__).parents[2] / "docs" / "inventory.md").read_text(encoding="utf-8")
TABLES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def rows_below(heading: str) -> list[list[str]]:
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def inventory(tmp_path: Path) -> Inventory:
    path = tmp_path / "devices.toml"
    path.write_text(TABLES[0])
    return Inventory(path)


@pytest.mark.parametrize("row", rows_below("Selections"), ids=lambda row: row[0])
def test_the_selections_of_the_document_mean_what_it_says(row: list[str], tmp_path: Path) -> None:
    chosen = inventory(tmp_path).select(row[0].strip("`"))
    assert ", ".join(device.name for device in chosen) == row[2]


def test_the_devices_of_the_document_are_where_it_says(tmp_path: Path) -> None:
    first = inventory(tmp_path).get("cam-1").address
    assert (first.host, first.user, first.port) == ("cam-1.cams.example", "kedge", 22)
    assert [str(jump) for jump in first.jumps] == ["gate (ops@gate.cams.example:22)"]


def test_every_key_is_in_the_document_and_no_other() -> None:
    listed = {key for row in rows_below("Keys") for key in re.findall(r"`(\w+)`", row[0])}
    assert listed == {*entries._OF_A_DEVICE, *entries._OF_A_GROUP}
    for row in rows_below("Keys"):
        for key in re.findall(r"`(\w+)`", row[0]):
            owners = {"device": key in entries._OF_A_DEVICE, "group": key in entries._OF_A_GROUP}
            assert row[1] == ", ".join(name for name, has in owners.items() if has), key
