"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import Device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device on this machine's own disk; its agent is not started yet."""
    made = Device(tmp_path / "state")
    yield made
    made.kill()
