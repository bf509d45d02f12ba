"""The live display: what it shows of slow links, and what a device may not do to the terminal with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from kedge.cli import live

FRAME = 8 << 20


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """Every display of rich that is made meanwhile."""
    found: list[Progress] = []

    def make(*columns: Any, **options: Any) -> Progress:
        console = Console(force_terminal=True, stderr=True)
        found.append(Progress(*columns, **{**options, "console": console, "auto_refresh": False}))
        return found[-1]

    monkeypatch.setattr(live, "Progress", make)
    return found


@pytest.mark.parametrize("bits_per_s", [4e6, 2e6, 5e5])
def test_a_slow_link_has_a_rate_and_a_time_that_is_left(bits_per_s: float, made: list[Progress]) -> None:
    now = 0.0
    with live.live_display() as display:
        made[0].get_time = lambda: now
        display.step("push")
        display.bytes(0, 10 * FRAME)
        for done in (1, 2, 3):
            now += FRAME * 8 / bits_per_s
            display.bytes(done * FRAME, 10 * FRAME)
        task = made[0].tasks[0]
        assert task.speed == pytest.approx(bits_per_s / 8, rel=0.01)
        assert task.time_remaining == pytest.approx(7 * FRAME * 8 / bits_per_s, rel=0.05)
        assert task.fields["note"].endswith("kB/s")


@pytest.mark.parametrize(
    "tell",
    [
        lambda display, text: display.step(text),
        lambda display, text: display.share(text, 0.5),
        lambda display, text: display.event({"event": "gate", "gate": text, "passed": True}),
    ],
)
def test_nothing_that_a_device_tells_steers_the_terminal(
    tell: Callable[[live.Live, str], None], made: list[Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    shown: AbstractContextManager[live.Live] = live.live_display()
    with shown as display:
        display.step("deploy")
        tell(display, "pwn\x1b]0;ed\x07\x1b[2J")
        made[0].refresh()
    seen = capsys.readouterr().err
    assert "pwn" in seen
    assert "\x1b]0;" not in seen
    assert "\x1b[2J" not in seen
