"""docs/diagnose.md names everything that the facts may hold, collector by collector."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedge_agent.diagnose.collectors.table import COLLECTORS, FACTS
from kedge_agent.diagnose.kernel_log import KINDS
from tests.support.schemas import FOLDER

DOCUMENT = (Path(__file__).parents[2] / "docs/diagnose.md").read_text()
SCHEMA = json.loads((FOLDER / "facts.schema.json").read_text())


def section(name: str) -> str:
    return DOCUMENT.partition(f"\n### {name}\n")[2].partition("\n### ")[0].partition("\n## ")[0]


def keys_of(node: Any) -> Iterator[str]:
    """Keys of objects that the schema closes, in all depths."""
    if isinstance(node, dict):
        for key, each in node.get("properties", {}).items():
            yield key
            yield from keys_of(each)
        for part in ("items", "additionalProperties"):
            yield from keys_of(node.get(part))
        if node.get("$ref") == "#/$defs/pressure":
            yield from keys_of(SCHEMA["$defs"]["pressure"])


@pytest.mark.parametrize("name", [collector.name for collector in FACTS])
def test_every_key_of_a_collector_stands_in_its_section(name: str) -> None:
    words = set(re.findall(r"`([^`]+)`", section(name)))
    missing = {key for key in keys_of(SCHEMA["$defs"][name]) if key not in words}
    assert missing == set()


def test_the_schema_has_every_collector_and_no_other() -> None:
    outcomes = SCHEMA["properties"]["collectors"]
    assert list(outcomes["required"]) == [name for name in outcomes["properties"] if name in outcomes["required"]]
    assert set(outcomes["required"]) == {collector.name for collector in FACTS}
    assert set(outcomes["properties"]) == {collector.name for collector in COLLECTORS}


def test_every_collector_of_a_snapshot_alone_is_named_with_its_files() -> None:
    table = DOCUMENT.partition("\n## What a snapshot takes besides\n")[2]
    assert all(f"| `{collector.name}` |" in table for collector in COLLECTORS if collector.heavy)


def test_what_the_kernel_is_searched_for_is_counted_by_these_names() -> None:
    assert set(SCHEMA["$defs"]["kernel"]["properties"]["counts"]["properties"]) == set(KINDS)
