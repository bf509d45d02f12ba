from __future__ import annotations

import itertools
import re
from importlib import resources

import pytest
from jinja2 import ChoiceLoader, DictLoader, Environment

from kedge.report import page as pages
from kedge.report.page import STATES, cell, markup, render_page
from kedge.report.svg import COLOURS
from tests.support.pages import self_contained

HOSTILE = "</td><script>alert(1)</script><img src=http://x onerror=alert(2)>{{7*7}}\x1b[31m\u202e"

PAGE = """\
{% extends "page.html.j2" %}
{% import "macros.html.j2" as ui %}
{% block title %}{{ name }}{% endblock %}
{% block what %}kedge{% endblock %}
{% block heading %}{{ name }}{% endblock %}
{% block nav %}{{ ui.nav([("some", name)]) }}{% endblock %}
{% block content %}
{{ ui.headline(name, "fault", name, [name, name]) }}
{{ ui.tiles([{"name": name, "value": name, "detail": name}]) }}
<section id="some">
{{ ui.table((name, "figure"), rows, right=(1,), caption=name) }}
{{ ui.key_values([(name, name)]) }}
{{ ui.pairs([(name, [(name, name)])]) }}
{{ ui.bars([{"name": name, "percent": 50, "value": name, "role": "blue"}]) }}
{{ ui.lines([name]) }}
{% call ui.details(name) %}{{ name }}{% endcall %}
{{ ui.findings(found) }}
</section>
{% endblock %}
"""


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> str:
    """A page of everything there is, with a hostile name in every place."""
    made = pages._environment

    def with_page(filters: dict) -> Environment:
        environment = made(filters)
        environment.loader = ChoiceLoader([DictLoader({"page-of-all": PAGE}), environment.loader])
        return environment

    monkeypatch.setattr(pages, "_environment", with_page)
    found = [
        {
            "state": state,
            "title": HOSTILE,
            "text": HOSTILE,
            "pairs": [(HOSTILE, HOSTILE)],
            "commands": [HOSTILE],
            "lines": [HOSTILE],
        }
        for state in STATES
    ]
    rows = [(HOSTILE, 1.5), (cell(HOSTILE, code=True), cell(HOSTILE)), (cell(HOSTILE, state="ok"), cell("2 ms", 2.0))]
    return render_page("page-of-all", {"name": HOSTILE, "rows": rows, "found": found})


def test_a_hostile_name_is_text_wherever_it_stands(rendered: str) -> None:
    page = self_contained(rendered)
    assert page.text.count("<script>alert(1)</script>") > 60
    assert "49" not in rendered
    assert not {"\x1b", "\u202e"} & set(rendered)


def test_a_state_is_told_by_a_sign_and_a_word_besides_its_colour(rendered: str) -> None:
    for state in set(STATES) - {"none"}:
        sign, word = STATES[state]
        assert (
            f'<span class="mark {state}"><span class="sign" aria-hidden="true">{sign}</span> {word}</span>' in rendered
        )
    assert len(set(STATES.values())) == len(STATES)


def test_a_cell_sorts_by_its_figure_and_what_has_none_has_no_figure(rendered: str) -> None:
    assert re.findall(r'<td class="n"( data-value="[^"]*")?>', rendered) == [
        ' data-value="1.5"',
        "",
        ' data-value="2.0"',
    ]


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_and_lines_stand_out_from_what_they_are_on_in_light_and_dark() -> None:
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for what a drawing is understood by (1.4.11)."""
    texts = {
        name: resources.files("kedge.report").joinpath(f"templates/{name}").read_text()
        for name in ("page.css", "page.html.j2")
    }
    for scheme, source in enumerate(texts.values()):
        backgrounds = re.findall(r"--(?:page|card): (#[0-9a-f]{6})", source)[:2]
        assert len(backgrounds) == 2
        for role, background in itertools.product(set(COLOURS) - {"grid"}, backgrounds):
            least = 3.0 if role in ("grey", "purple") else 4.5
            assert contrast(COLOURS[role][scheme], background) >= least, (role, background)


def test_a_drawing_is_markup_and_a_text_is_not() -> None:
    assert markup("<svg/>").__html__() == "<svg/>"
    assert cell("<svg/>")["text"] == "<svg/>"
