"""The documentation site: a broken link is found, docstrings become what docutils reads, and all of it builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from tools.docs import api, links, site
from tools.docs.docstrings import to_rst

from tests.support import models
from tests.support.browser import launched, screenshot, serious_faults, wider_than_the_window


def faults_of(folder: Path, **pages: str) -> list[str]:
    for name, body in pages.items():
        (folder / f"{name}.html").write_text(f"<!doctype html><html><body>{body}</body></html>")
    return [str(fault) for fault in links.check(folder, links.read_pages(folder))]


def test_a_site_whose_links_all_lead_somewhere_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("")
    index = '<h1 id="top">x</h1><a href="#top">x</a> <a href="other.html#part">x</a> <a href="a%20b.txt">x</a>'
    other = '<p id="part"><a href="https://example.com/x#y">elsewhere</a></p>'
    assert not faults_of(tmp_path, index=index, other=other)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">x</a>', "index.html: gone.html leads nowhere"),
        ('<a href="index.html#gone">x</a>', "index.html: index.html#gone: index.html has no such anchor"),
        ('<a href="#gone">x</a>', "index.html: #gone: index.html has no such anchor"),
        ('<img src="gone.svg" alt="">', "index.html: gone.svg leads nowhere"),
        ('<a href="/docs/x.html">x</a>', "outside where the site does not lie at the root"),
        ('<script src="https://cdn.example/x.js"></script>', "index.html: fetches https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "index.html: fetches //fonts.example/x.css"),
        ('<img alt="" srcset="index.html 1x, gone.png 2x">', "index.html: gone.png leads nowhere"),
        ('<img alt="" srcset="index.html 300w,https://cdn.example/x.png 600w">', "fetches https://cdn.example/x.png"),
        ('<picture><source srcset="gone.webp"></picture>', "index.html: gone.webp leads nowhere"),
        ('<video poster="gone.jpg" src="index.html"></video>', "index.html: gone.jpg leads nowhere"),
        ('<video src="gone.mp4"></video>', "index.html: gone.mp4 leads nowhere"),
        ('<audio src="gone.ogg"></audio>', "index.html: gone.ogg leads nowhere"),
        ('<embed src="gone.pdf">', "index.html: gone.pdf leads nowhere"),
        ('<object data="gone.svg"></object>', "index.html: gone.svg leads nowhere"),
        ('<map name="m"><area href="gone.html"></map>', "index.html: gone.html leads nowhere"),
        ('<meta http-equiv="Refresh" content="0; url=gone.html">', "index.html: gone.html leads nowhere"),
        ('<svg><image href="gone.png"/></svg>', "index.html: gone.png leads nowhere"),
        ('<svg><use xlink:href="#gone"/></svg>', "index.html: #gone: index.html has no such anchor"),
        ("<style>p { background: url(gone.png) }</style>", "index.html: gone.png leads nowhere"),
        ("<style>@import 'https://cdn.example/x.css';</style>", "index.html: fetches https://cdn.example/x.css"),
        ('<p style="background: url(&quot;gone.png&quot;)">x</p>', "index.html: gone.png leads nowhere"),
        (
            '<a href="file:///home/me/x.html">x</a>',
            "index.html: file:///home/me/x.html leads to the reader's own machine",
        ),
        ('<a href="http://localhost:8000/x">x</a>', "index.html: http://localhost:8000/x leads to the reader's own"),
        ('<img src="http://127.0.0.1/x.png" alt="">', "index.html: http://127.0.0.1/x.png leads to the reader's own"),
    ],
)
def test_what_is_broken_is_found_and_named(tmp_path: Path, body: str, fault: str) -> None:
    (found,) = faults_of(tmp_path, index=body)
    assert fault in found


def test_a_page_that_no_page_leads_to_is_found(tmp_path: Path) -> None:
    assert faults_of(tmp_path, index="x", lost='<a href="index.html">x</a>') == ["lost.html: no page leads to it"]


def test_what_a_style_sheet_fetches_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "css").mkdir()
    (tmp_path / "here.woff2").write_text("")
    (tmp_path / "css" / "x.css").write_text(
        "@font-face { src: url('https://fonts.example/x.woff2'), url(../here.woff2) } a { b: url(data:x) }\n"
        '/* url(old.png) */ @import "gone.css"; p { background: url( gone.png ) } q { mask: url(data:a,b%3A\') }'
    )
    assert faults_of(tmp_path, index="x") == [
        "css/x.css: fetches https://fonts.example/x.woff2",
        "css/x.css: gone.css leads nowhere",
        "css/x.css: gone.png leads nowhere",
    ]


def test_an_image_within_its_link_and_a_page_that_leads_on_by_itself_are_no_faults(tmp_path: Path) -> None:
    body = '<img src="data:image/png;base64,AA==" alt=""><meta http-equiv="refresh" content="0; url=next.html">'
    assert not faults_of(tmp_path, index=body, next='<p style="color: red">x</p>')


def test_links_to_other_sites_are_listed_once_with_their_pages(tmp_path: Path) -> None:
    body = '<a href="https://a.example/x#1">1</a> <a href="https://a.example/x#2">2</a> <a href="index.html">here</a>'
    faults_of(tmp_path, index=body, other=body)
    assert links.external(links.read_pages(tmp_path)) == {"https://a.example/x": ["index.html", "other.html"]}


def test_a_paragraph_of_names_becomes_a_list_and_an_indented_one_stands_as_it_is() -> None:
    text = "What it is.\n\nname: who. version: its\n    number.\nrows, columns: of it.\n\n    a   table"
    assert to_rst(text.split("\n"), "class") == [
        *("What it is.", "", "* `name`: who.", "* `version`: its number.", "* `rows, columns`: of it.", ""),
        *("::", "", "    a   table", ""),
    ]


def test_what_would_be_markup_by_chance_is_text_and_code_is_left() -> None:
    assert to_rst(["max |a - b| of *all* `x_ | y` in foo_"], "function") == [
        r"max \|a - b\| of \*all\* `x_ | y` in foo\_",
        "",
    ]


def test_sections_become_fields() -> None:
    text = "Do it.\n\nArgs:\n    path: where *to*.\n\nRaises:\n    OSError: it is not there."
    lines = to_rst(text.split("\n"), "function")
    assert r":param path: where \*to\*." in lines
    assert ":raises OSError: it is not there." in lines


def test_each_module_of_the_python_reference_says_what_it_shows_and_stands_once() -> None:
    modules = [module for part in api.FACE.values() for module in part.modules]
    assert len(modules) == len(set(modules))
    assert all(api.names_of(module) for module in modules)


def test_a_folder_that_holds_something_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError):
        site.clear(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def built(folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "tools.docs", "--out", str(folder)],
        cwd=site.ROOT,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


#: A message by a part of it, as troubleshooting has it, and as it was printed.
FOUND = (
    ("no agent is known there", "… no agent is known there (14)"),
    ("kedge: error: nano: no agent is known there", "{name}: no agent is known there"),
)
#: Width of the second column of the first table of goals, in CSS pixels.
ROOM = """() => [...document.querySelectorAll("table")].find((each) => each.rows[0].cells[0].innerText === "goal")
  .rows[0].cells[1].getBoundingClientRect().width"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_strictly_asks_nobody_and_can_be_read_by_everyone(tmp_path: Path) -> None:
    folder = built(tmp_path / "site")
    asked: list[str] = []
    with launched() as browser:
        for page, width, scheme in (
            ("docs/index", 1400, "light"),
            ("docs/index", 1400, "dark"),
            ("docs/index", 390, "light"),
            ("docs/agent", 390, "dark"),
            ("docs/generated/api/build", 390, "light"),
        ):
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            opened = context.new_page()
            opened.on("request", lambda request: asked.append(request.url))
            opened.goto((folder / f"{page}.html").as_uri())
            screenshot(opened, f"site-{page.replace('/', '-')}-{width}-{scheme}")
            assert wider_than_the_window(opened) <= 0, (page, width)
            assert not serious_faults(opened), (page, scheme)
            context.close()
        # The search needs no server: its index is a script.
        opened = browser.new_page()
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto((folder / "search.html").as_uri() + "?q=probation")
        opened.wait_for_selector("#search-results li a")
        for query, first in FOUND:
            opened.goto((folder / "search.html").as_uri() + "?q=" + quote(query))
            opened.wait_for_selector("#search-results li a")
            assert opened.locator("#search-results li > a").first.inner_text().endswith(first), query
        opened.set_viewport_size({"width": 1280, "height": 900})
        opened.goto((folder / "benchmarks" / "README.html").as_uri())
        assert opened.evaluate(ROOM) >= 120, "the goals' figures have no room"
    assert all(url.startswith((folder.as_uri(), "data:", "blob:")) for url in asked), asked


@pytest.mark.slow
def test_the_program_on_the_page_on_python_runs_as_it_stands(tmp_path: Path) -> None:
    text = (site.ROOT / "docs" / "python-api.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "digits").mkdir()
    models.classifier(tmp_path / "digits" / "digits-fp32.onnx")
    np.save(tmp_path / "digits" / "calibration.npy", models.images())
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^[0-9a-f]{64} [\d.]+ (True|False)$", done.stdout, re.MULTILINE)
