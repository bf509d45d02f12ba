"""Every HTML report, made by its command and opened in Chromium: it complains of nothing, and everyone can read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kedge.report.optimize_html import optimize_html
from kedge.report.rollout_html import rollout_html
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
from tests.support.reports import KINDS, Workshop
from tests.support.rollouts import rollout_document
from tests.unit.test_optimize_report import HOSTILE, full, hostile

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytestmark = pytest.mark.slow

every_report = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@every_report
def test_a_report_opens_without_a_complaint_and_fits_every_window(
    browser: Browser, workshop: Workshop, kind: str
) -> None:
    for width in (360, 800, 1280):
        for scheme in ("light", "dark"):
            with opened(browser, workshop.report(kind), width=width, scheme=scheme) as page:
                assert wider_than_the_window(page) <= 0
                screenshot(page, f"{kind}-{width}-{scheme}")


@every_report
@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 1280)])
def test_axe_finds_nothing_serious(browser: Browser, workshop: Workshop, kind: str, scheme: str, width: int) -> None:
    with opened(browser, workshop.report(kind), scheme=scheme, width=width) as page:
        open_all(page)
        assert serious_faults(page) == []


@every_report
def test_on_paper_everything_is_there_and_nothing_is_cut(browser: Browser, workshop: Workshop, kind: str) -> None:
    with opened(browser, workshop.report(kind), width=PAPER_PX, scheme="dark") as page:
        page.emulate_media(media="print")
        assert cut_or_hidden(page) == []
        screenshot(page, f"{kind}-print")


@every_report
def test_without_its_script_a_report_says_the_same(browser: Browser, workshop: Workshop, kind: str) -> None:
    with opened(browser, workshop.report(kind)) as page:
        said = page.inner_text("main")
    with opened(browser, workshop.report(kind), script=False) as page:
        assert page.inner_text("main") == said
        assert page.locator("button").count() == 0


@every_report
def test_a_table_sorts_by_its_figures_and_goes_back_to_the_report_s_order(
    browser: Browser, workshop: Workshop, kind: str
) -> None:
    with opened(browser, workshop.report(kind)) as page:
        open_all(page)
        for head in page.locator("table[data-sort] th:has(button)").all():
            before = column(head)
            orders = []
            for _ in range(3):
                head.locator("button").click()
                orders.append(head.get_attribute("aria-sort"))
                check_sorted(column(head), orders[-1], before)
            assert orders in (["descending", "ascending", None], ["ascending", "descending", None])


def column(head: Locator) -> list[tuple[str | None, str]]:
    """(figure, text) of each cell under a head, in the order of the page."""
    found = head.evaluate(
        "(head) => Array.from(head.closest('table').tBodies[0].rows, (row) => row.cells[head.cellIndex])"
        ".map((cell) => [cell.dataset.value ?? null, cell.textContent])"
    )
    return [tuple(each) for each in found]


def check_sorted(cells: list[tuple[str | None, str]], order: str | None, before: list[tuple[str | None, str]]) -> None:
    assert sorted(map(repr, cells)) == sorted(map(repr, before))
    if order is None:
        assert cells == before
        return
    figures = [float(value) for value, _ in cells if value is not None]
    if figures:
        assert figures == sorted(figures, reverse=order == "descending")
        assert all(value is not None for value, _ in cells[: len(figures)])


def test_the_keyboard_reaches_the_content_sorts_and_scrolls(browser: Browser, workshop: Workshop) -> None:
    with opened(browser, workshop.report("bench"), width=360) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        head = page.locator("#waterfall th:has(button)").last
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        box = page.locator("#waterfall .scroll")
        assert box.get_attribute("tabindex") == "0"
        box.focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelector('#waterfall .scroll').scrollLeft > 0")


def test_a_thousand_layers_and_a_dozen_charts_are_a_page_of_a_few_megabytes(browser: Browser, tmp_path: Path) -> None:
    document = full(1000)
    (drawn,) = document["histograms"]
    document["histograms"] = [{**drawn, "layer": f"/layer{number}/Conv"} for number in range(12)]
    large = tmp_path / "large.html"
    large.write_text(optimize_html(document))
    assert large.stat().st_size < 5_000_000
    with opened(browser, large) as page:
        assert page.locator("svg.chart").count() > 12
        open_all(page)
        head = page.locator("#layers table").last.locator("th:has-text('SNR')")
        assert len(column(head)) > 1000
        head.locator("button").click()
        check_sorted(column(head), "descending", column(head))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_rollout_of_a_thousand_devices_is_a_page_that_can_be_read(
    browser: Browser, tmp_path: Path, scheme: str
) -> None:
    large = tmp_path / "rollout.html"
    large.write_text(rollout_html(rollout_document(1000, bad={7: "late", 90: "failed", 400: "refused"})))
    assert large.stat().st_size < 1_500_000
    for width in (360, 1280):
        with opened(browser, large, scheme=scheme, width=width) as page:
            assert wider_than_the_window(page) <= 0
            assert serious_faults(page) == []
            open_all(page)
            head = page.locator("#devices th:has-text('Push')")
            assert len(column(head)) == 1000
            head.locator("button").click()
            check_sorted(column(head), "descending", column(head))


def test_hostile_names_do_nothing_in_a_browser(browser: Browser, tmp_path: Path) -> None:
    hostile_page = tmp_path / "hostile.html"
    hostile_page.write_text(optimize_html(hostile(HOSTILE)))
    with opened(browser, hostile_page, width=360) as page:
        open_all(page)
        assert page.inner_text("main").count("<script>alert(1)</script>") > 10
        assert wider_than_the_window(page) <= 0
        assert serious_faults(page) == []


def test_no_script_runs_but_the_page_s_own(browser: Browser, workshop: Workshop, tmp_path: Path) -> None:
    """Should a name ever get past the escapes, the policy of the page still stands before it."""
    text = workshop.report("bench").read_text()
    page_file = tmp_path / "page.html"
    page_file.write_text(text.replace("</main>", "<script>alert(1)</script><img src=x onerror=alert(2)></main>"))
    with pytest.raises(AssertionError, match="Content Security Policy") as raised, opened(browser, page_file):
        pass
    assert "asked" not in str(raised.value)
