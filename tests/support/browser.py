"""HTML reports in headless Chromium: what it complains of, what axe-core finds, what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.environment import axe, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: A4 between margins of 15 mm, in CSS pixels.
PAPER_PX = 680

_AXE = "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
_OUT_OF_PLACE = """() => {
  const reach = document.querySelector("main").getBoundingClientRect().right + 1;
  return [...document.querySelectorAll("body *")].filter((each) => each.getBoundingClientRect().right > reach)
    .map((each) => each.outerHTML.slice(0, 120));
}"""
_HIDDEN = """() => [...document.querySelectorAll("main :is(p, li, dt, dd, th, td, pre, h2, h3, svg)")]
  .filter((each) => !each.checkVisibility()).map((each) => each.outerHTML.slice(0, 120))"""


@contextmanager
def launched() -> Iterator[Browser]:
    """A Chromium; skips where there is none. No sandbox: root has none, and the pages are our own."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, path: Path, *, width: int = 1280, scheme: Any = "light", script: bool = True
) -> Iterator[Page]:
    """A page in a window; whatever Chromium had to say against it, or fetched for it, fails the test."""
    complaints: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    try:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"asked: {dialog.message}"))
        page.on("request", lambda asked: complaints.append(asked.url) if asked.url != path.as_uri() else None)
        page.goto(path.as_uri())
        yield page
    finally:
        context.close()
    assert not complaints, complaints


def open_all(page: Page) -> None:
    """Open what can be opened."""
    page.evaluate("() => document.querySelectorAll('details').forEach((each) => { each.open = true; })")


def serious_faults(page: Page) -> list[str]:
    """What axe-core calls serious or critical: each with its rule and the first places."""
    page.evaluate(axe())
    return [
        f"{found['id']} ({found['impact']}): {found['help']}: {[node['html'][:120] for node in found['nodes'][:3]]}"
        for found in page.evaluate(_AXE)
        if found["impact"] in ("serious", "critical")
    ]


def wider_than_the_window(page: Page) -> int:
    """By how many pixels the page would have to be scrolled sideways."""
    return int(page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth"))


def cut_or_hidden(page: Page) -> list[str]:
    """What a reader of the page cannot see: beyond its edge, or not shown. For paper, where nothing scrolls."""
    return [*page.evaluate(_OUT_OF_PLACE), *page.evaluate(_HIDDEN)]


def screenshot(page: Page, name: str) -> None:
    """The whole page as NAME.png in $KEDGE_SCREENSHOTS, where that is set."""
    folder = os.environ.get("KEDGE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
