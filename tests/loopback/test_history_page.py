"""The page of a history in Chromium, with all that a device can tell, and with names that nobody would choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kedge.report.history_html import history_html
from tests.support.browser import (
    PAPER_PX,
    cut_or_hidden,
    launched,
    open_all,
    opened,
    screenshot,
    serious_faults,
    wider_than_the_window,
)
from tests.unit.test_history_text import document, hostile

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

every_page = pytest.mark.parametrize("kind", ["full", "hostile", "empty"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    nothing = {"entries": [], "entries_why": "no journal", "recording": None, "recording_why": "the recorder is off"}
    documents = {"full": document(300), "hostile": hostile(), "empty": document() | nothing}
    for kind, told in documents.items():
        (folder / f"{kind}.html").write_text(history_html(told), encoding="utf-8")
    return {kind: folder / f"{kind}.html" for kind in documents}


@every_page
def test_it_opens_without_a_complaint_and_fits_every_window(
    browser: Browser, pages: dict[str, Path], kind: str
) -> None:
    for width in (360, 1280):
        for scheme in ("light", "dark"):
            with opened(browser, pages[kind], width=width, scheme=scheme) as page:
                assert wider_than_the_window(page) <= 0
                screenshot(page, f"history-{kind}-{width}-{scheme}")


@every_page
@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1280)])
def test_axe_finds_nothing_serious(
    browser: Browser, pages: dict[str, Path], kind: str, scheme: str, width: int
) -> None:
    with opened(browser, pages[kind], scheme=scheme, width=width) as page:
        open_all(page)
        assert serious_faults(page) == []


@every_page
def test_on_paper_everything_is_there_and_nothing_is_cut(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    with opened(browser, pages[kind], width=PAPER_PX, scheme="dark") as page:
        page.emulate_media(media="print")
        assert cut_or_hidden(page) == []
        screenshot(page, f"history-{kind}-print")


def test_on_a_narrow_screen_the_newest_is_in_sight_first(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["full"], width=360) as page:
        lefts = page.evaluate(
            "Array.from(document.querySelectorAll('figure.whole'),"
            " (each) => each.scrollWidth - each.clientWidth - each.scrollLeft)"
        )
        assert lefts
        assert all(abs(left) <= 1 for left in lefts)
